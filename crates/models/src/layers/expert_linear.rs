//! A linear map for every expert: one stacked weight, and low-rank adapters for every part of every expert's matrix.

use std::{ops::Range, sync::Arc};

use burn::tensor::Tensor;
use espalier_kernels::{
    experts::{Routing, expert_linear, expert_sum},
    linear::{Group, Precision},
    weight::Weight,
};

use super::{
    Builder,
    linear::{LinearMap, LinearMapMut},
};
use crate::{
    Result,
    adapter::{linear_adapter::LinearAdapters, low_rank::LowRank},
    parameter::{Parameter, Parameters},
    source::Initial,
};

/// `y_s = W_e(s) x_s` for every slot `s` of a routing, plus the adapters where there are any.
///
/// The parts of a matrix are what checkpoints and adapters give a name of its own, such as gates and inputs.
#[derive(Debug, Clone)]
pub struct ExpertLinear {
    name: String,
    /// `[experts, out, in]`.
    weight: Parameter,
    parts: usize,
    /// Expert by expert, part by part.
    adapters: Vec<LinearAdapters>,
    precision: Precision,
}

impl ExpertLinear {
    /// Builds `{name}.weight` of shape `[experts, out, in]`; every expert's rows are `parts` of one size.
    ///
    /// # Errors
    /// When the source lacks the weight.
    pub fn build(
        builder: &mut Builder,
        name: &str,
        shape: [usize; 3],
        parts: usize,
        deviation: f64,
    ) -> Result<Self> {
        let weight = builder.linear(
            format!("{name}.weight"),
            shape.to_vec(),
            Initial::Normal(deviation),
        )?;
        let adapters = vec![LinearAdapters::default(); shape[0] * parts];
        Ok(Self {
            name: name.to_owned(),
            weight,
            parts,
            adapters,
            precision: Precision::F32,
        })
    }

    /// The stacked weight, `[experts, out, in]`.
    pub fn weight(&self) -> Weight<3> {
        self.weight.weight()
    }

    /// Whether any expert has an active adapter.
    pub fn is_adapted(&self) -> bool {
        self.adapters.iter().any(LinearAdapters::is_active)
    }

    /// `x`: a row for every token, `[.., in]`, or for every slot, `[slots, in]`; returns `[slots, out]`, zero where a slot was
    /// dropped. The rows of `x` and of the result lie in so many `heads`; a matrix of several parts gives rows in one. See
    /// [`expert_linear`] for both and for `readers`.
    pub fn forward<const D: usize>(
        &self,
        x: Tensor<D>,
        routing: &Arc<Routing>,
        heads: [usize; 2],
        readers: Group,
    ) -> Tensor<2> {
        let y = expert_linear(
            x.clone(),
            self.weight(),
            routing,
            heads,
            self.precision,
            Some(readers),
        );
        let added = |map| {
            let [down, up] = self.factors(map)?;
            let narrow = expert_linear(
                self.dropped(map, x.clone()),
                down,
                routing,
                [heads[0], 1],
                self.precision,
                None,
            );
            Some(expert_linear(
                narrow,
                up,
                routing,
                [1, heads[1]],
                self.precision,
                None,
            ))
        };
        match self.is_adapted() {
            true => {
                let [rows, all] = y.dims();
                let zeros = || Tensor::zeros([rows, all / self.parts], &y.device());
                y.clone()
                    + Tensor::cat(
                        (0..self.parts)
                            .map(|map| added(map).unwrap_or_else(zeros))
                            .collect(),
                        1,
                    )
            }
            false => y,
        }
    }

    /// The sum of a token's slots, each times its weight: `[tokens, out]`. `x`: a row for every slot, in so many `heads`.
    pub fn summed(
        &self,
        x: Tensor<2>,
        weights: Tensor<2>,
        routing: &Arc<Routing>,
        heads: usize,
    ) -> Tensor<2> {
        let y = expert_sum(
            x.clone(),
            self.weight(),
            weights.clone(),
            routing,
            heads,
            self.precision,
        );
        match self.factors(0) {
            Some([down, up]) => {
                let x = self.dropped(0, x);
                let narrow = expert_linear(x, down, routing, [heads, 1], self.precision, None);
                y + expert_sum(narrow, up, weights, routing, 1, self.precision)
            }
            None => y,
        }
    }

    /// The stacked factors of the active adapters of part `part`, `[experts, rank, in]` and `[experts, rows, rank]`, where any
    /// expert has one. Experts with a smaller rank, or no adapter at all, get zeros.
    fn factors(&self, part: usize) -> Option<[Tensor<3>; 2]> {
        let experts: Vec<Vec<&LowRank>> = self
            .adapters
            .iter()
            .skip(part)
            .step_by(self.parts)
            .map(|adapters| adapters.active().filter_map(|a| a.low_rank()).collect())
            .collect();
        let rank_of = |adapters: &Vec<&LowRank>| adapters.iter().map(|a| a.rank()).sum::<usize>();
        let rank = experts.iter().map(rank_of).max().filter(|rank| *rank > 0)?;
        let (inputs, rows, device) = (
            self.weight.shape()[2],
            self.rows(part).len(),
            self.weight.device(),
        );
        let factors = |adapters: &Vec<&LowRank>| {
            let mut down: Vec<Tensor<2>> = adapters.iter().map(|a| a.down.value()).collect();
            let scaled = |a: &&LowRank| a.up.value::<2>() * a.scale;
            let mut up: Vec<Tensor<2>> = adapters.iter().map(scaled).collect();
            let missing = rank - rank_of(adapters);
            if missing > 0 {
                down.push(Tensor::zeros([missing, inputs], &device));
                up.push(Tensor::zeros([rows, missing], &device));
            }
            (joined(down, 0), joined(up, 1))
        };
        let (down, up) = experts.iter().map(factors).unzip();
        Some([Tensor::stack(down, 0), Tensor::stack(up, 0)])
    }

    /// What the adapters of part `part` read of `x`: their experts have one dropout.
    fn dropped<const D: usize>(&self, part: usize, x: Tensor<D>) -> Tensor<D> {
        let own = self.adapters.iter().skip(part).step_by(self.parts);
        let mut dropouts = own.flat_map(|adapters| {
            let active = adapters.active().filter_map(|adapter| adapter.low_rank());
            active.filter_map(|adapter| adapter.dropped)
        });
        match dropouts.next() {
            Some(dropout) => dropout.forward(x),
            None => x,
        }
    }

    /// The rows of one map, counted over experts and their matrices.
    fn rows(&self, map: usize) -> Range<usize> {
        let length = self.weight.shape()[1] / self.parts;
        map * length..(map + 1) * length
    }
}

impl Parameters for ExpertLinear {
    fn visit<'a>(&'a self, visitor: &mut dyn FnMut(&'a Parameter)) {
        self.weight.visit(visitor);
        self.adapters.visit(visitor);
    }

    fn visit_mut(&mut self, visitor: &mut dyn FnMut(&mut Parameter)) {
        self.weight.visit_mut(visitor);
        self.adapters.visit_mut(visitor);
    }

    fn visit_linears_mut(&mut self, visitor: &mut dyn FnMut(LinearMapMut<'_>)) {
        for map in 0..self.adapters.len() {
            visitor(LinearMapMut {
                bits: None,
                name: format!("{}.{map}", self.name),
                rows: self.rows(map),
                expert: Some(map / self.parts),
                bias: None,
                adapters: &mut self.adapters[map],
                precision: &mut self.precision,
                weight: &mut self.weight,
            });
        }
    }

    fn visit_linears<'a>(&'a self, visitor: &mut dyn FnMut(LinearMap<'a>)) {
        for (map, adapters) in self.adapters.iter().enumerate() {
            visitor(LinearMap {
                name: format!("{}.{map}", self.name),
                weight: self.weight.name(),
                rows: self.rows(map),
                inputs: self.weight.shape()[2],
                expert: Some(map / self.parts),
                adapters,
            });
        }
    }
}

/// The matrices side by side along an axis.
fn joined(mut matrices: Vec<Tensor<2>>, axis: usize) -> Tensor<2> {
    match matrices.len() {
        1 => matrices.remove(0),
        _ => Tensor::cat(matrices, axis),
    }
}
