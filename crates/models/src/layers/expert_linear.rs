//! A linear map for every expert: one stacked weight, and a low-rank adapter for every part of every expert's matrix.

use std::{ops::Range, sync::Arc};

use burn::tensor::Tensor;
use espalier_kernels::{
    experts::{Routing, expert_linear, expert_sum},
    linear::{Group, Precision},
    weight::Weight,
};

use super::{
    Builder,
    linear::{LinearMap, LinearMapMut, LowRank},
};
use crate::{
    Result,
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
    adapters: Vec<Option<LowRank>>,
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
        let weight = builder.weight(
            format!("{name}.weight"),
            shape.to_vec(),
            Initial::Normal(deviation),
        )?;
        let adapters = (0..shape[0] * parts).map(|_| None).collect();
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

    /// Whether any expert has an adapter.
    pub fn is_adapted(&self) -> bool {
        self.adapters.iter().any(Option::is_some)
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
                x.clone(),
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
                let narrow = expert_linear(x, down, routing, [heads, 1], self.precision, None);
                y + expert_sum(narrow, up, weights, routing, 1, self.precision)
            }
            None => y,
        }
    }

    /// The stacked factors of the adapters of part `part`, `[experts, rank, in]` and `[experts, rows, rank]`, where any expert has
    /// one. Experts with a smaller rank, or no adapter at all, get zeros.
    fn factors(&self, part: usize) -> Option<[Tensor<3>; 2]> {
        let adapters: Vec<_> = self
            .adapters
            .iter()
            .skip(part)
            .step_by(self.parts)
            .collect();
        let rank = adapters
            .iter()
            .flat_map(|a| a.as_ref())
            .map(|a| a.down.shape()[0])
            .max()?;
        let (inputs, rows, device) = (
            self.weight.shape()[2],
            self.rows(part).len(),
            self.weight.device(),
        );
        let factors = |adapter: &&Option<LowRank>| {
            let (own, factors) = match adapter {
                Some(a) => (
                    a.down.shape()[0],
                    Some([a.down.value::<2>(), a.up.value::<2>() * a.scale]),
                ),
                None => (0, None),
            };
            let missing =
                [[rank - own, inputs], [rows, rank - own]].map(|size| Tensor::zeros(size, &device));
            match (factors, own == rank) {
                (Some(factors), true) => factors,
                (Some([down, up]), false) => {
                    let [no_down, no_up] = missing;
                    [
                        Tensor::cat(vec![down, no_down], 0),
                        Tensor::cat(vec![up, no_up], 1),
                    ]
                }
                (None, _) => missing,
            }
        };
        let (down, up) = adapters
            .iter()
            .map(factors)
            .map(|[down, up]| (down, up))
            .unzip();
        Some([Tensor::stack(down, 0), Tensor::stack(up, 0)])
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
                name: format!("{}.{map}", self.name),
                rows: self.rows(map),
                adapter: &mut self.adapters[map],
                precision: &mut self.precision,
                weight: &mut self.weight,
            });
        }
    }

    fn visit_linears<'a>(&'a self, visitor: &mut dyn FnMut(LinearMap<'a>)) {
        for (map, adapter) in self.adapters.iter().enumerate() {
            visitor(LinearMap {
                name: format!("{}.{map}", self.name),
                weight: self.weight.name(),
                rows: self.rows(map),
                expert: Some(map / self.parts),
                adapter: adapter.as_ref(),
            });
        }
    }
}
