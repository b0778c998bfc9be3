//! The router of experts: a linear map to one score an expert, in f32 whatever the precision of the rest.

use espalier_kernels::readback::ReadFloats;
use std::sync::Arc;

use burn::tensor::Tensor;
use espalier_kernels::{
    experts::{Routing, choice_weights},
    linear::{Group, Precision},
    recomputable::Recomputable,
};

use super::{
    Builder,
    linear::{Linear, LinearMap, LinearMapMut},
};
use crate::{
    Result,
    auxiliary_losses::{SideOutput, SideSpec, Sides},
    parameter::{Parameter, Parameters},
    source::Initial,
    spec::RouterSpec,
    stack::Context,
};

/// Scores experts and chooses among them.
#[derive(Debug, Clone)]
pub struct Router {
    spec: RouterSpec,
    scores: Linear,
    times: usize,
}

impl Router {
    /// Builds `{name}.weight` `[experts, width]`.
    ///
    /// # Errors
    /// When the source lacks the weight.
    pub fn build(
        builder: &mut Builder,
        name: &str,
        width: usize,
        spec: &RouterSpec,
    ) -> Result<Self> {
        let initial = Initial::Normal(builder.deviation);
        let weight =
            builder.parameter(format!("{name}.weight"), vec![spec.experts, width], initial)?;
        Ok(Self {
            spec: spec.clone(),
            scores: Linear::from_weight(name, weight, Precision::F32),
            times: 1,
        })
    }

    /// What the router's logits are good for, where every token has so many parts.
    pub fn side(&self, parts: usize) -> SideSpec {
        SideSpec::Experts {
            router: self.spec.clone(),
            parts,
            times: self.times,
        }
    }

    /// The same router, counted so many times in the balance loss.
    pub fn counted(self, times: usize) -> Self {
        Self { times, ..self }
    }

    /// How many maps of a group of readers it is: none where adapters see its product.
    pub fn readers(&self) -> usize {
        usize::from(!self.scores.is_apart())
    }

    /// The choices for rows `x` `[.., width]`, of which every token of `size` (`[batch, time]`) has equally many, and their weights
    /// `[rows, active]`. The logits become a side output `[batch, time, parts * experts]`. `readers` are those of `x`, of whose
    /// maps the router is one, see [`Router::readers`].
    pub fn forward<const D: usize>(
        &self,
        x: impl Into<Recomputable<D>>,
        readers: &Group,
        [batch, time]: [usize; 2],
        context: &Context,
        sides: &mut Sides,
    ) -> (Arc<Routing>, Tensor<2>) {
        let logits = self.scores.forward_among(readers, x);
        let experts = self.spec.experts;
        let rows = logits.dims().iter().product::<usize>() / experts.max(1);
        let (logits, parts) = (
            logits.reshape([rows, experts]),
            rows / (batch * time).max(1),
        );
        let scores = logits.clone().floats();
        let routing = Arc::new(choose(
            &self.spec,
            &scores,
            parts,
            context.present.as_deref(),
            context.training,
        ));
        let weights = choice_weights(logits.clone(), &routing, self.spec.normalised);
        let values = logits.reshape([batch, time, parts * experts]);
        let side = SideOutput::new(self.side(parts), values, context);
        sides.outputs.push(SideOutput {
            routing: Some(routing.clone()),
            ..side
        });
        (routing, weights)
    }
}

impl Parameters for Router {
    fn visit<'a>(&'a self, visitor: &mut dyn FnMut(&'a Parameter)) {
        self.scores.visit(visitor);
    }

    fn visit_mut(&mut self, visitor: &mut dyn FnMut(&mut Parameter)) {
        self.scores.visit_mut(visitor);
    }

    fn visit_linears_mut(&mut self, visitor: &mut dyn FnMut(LinearMapMut<'_>)) {
        self.scores.visit_linears_mut(visitor);
        // Whatever the rest computes in.
        self.scores.precision = Precision::F32;
    }

    fn visit_linears<'a>(&'a self, visitor: &mut dyn FnMut(LinearMap<'a>)) {
        self.scores.visit_linears(visitor);
    }
}

/// The choices for `scores` `[tokens * parts, experts]`, where `present` says which tokens are no padding.
pub(crate) fn choose(
    spec: &RouterSpec,
    scores: &[f32],
    parts: usize,
    present: Option<&Vec<bool>>,
    training: bool,
) -> Routing {
    let present: Option<Vec<bool>> = present.map(|present| {
        present
            .iter()
            .flat_map(|real| std::iter::repeat_n(*real, parts))
            .collect()
    });
    let rows = scores.len() / spec.experts.max(1);
    let real = present
        .as_ref()
        .map_or(rows, |present| present.iter().filter(|real| **real).count());
    let capacity = spec.capacity.map(|capacity| {
        let factor = if training {
            capacity.training
        } else {
            capacity.evaluation
        };
        (factor * (real * spec.active) as f64 / spec.experts as f64).ceil() as usize
    });
    Routing::top_k(
        scores,
        spec.experts,
        spec.active,
        capacity,
        present.as_deref(),
    )
}
