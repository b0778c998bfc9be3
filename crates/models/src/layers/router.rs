//! The router of experts: a linear map to one score an expert, in f32 whatever the precision of the rest.

use espalier_kernels::readback::ReadFloats;
use std::{borrow::Cow, sync::Arc};

use burn::tensor::Tensor;
use espalier_kernels::{
    experts::{Routing, choice_weights, sigmoid_weights},
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
    spec::{ExpertGroups, RouterScores, RouterSpec},
    stack::Context,
};

/// Scores experts and chooses among them.
#[derive(Debug, Clone)]
pub struct Router {
    spec: RouterSpec,
    scores: Linear,
    choice_bias: Option<Parameter>,
    times: usize,
}

impl Router {
    /// Builds `{name}.weight` `[experts, width]` and, where the spec has them, `{name}.bias` and `{name}.choice_bias` `[experts]`.
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
        let mut bias = |part: &str, wanted: bool| {
            let (name, shape) = (format!("{name}.{part}"), vec![spec.experts]);
            wanted
                .then(|| builder.parameter(name, shape, Initial::Zeros))
                .transpose()
        };
        let (bias, choice_bias) = (
            bias("bias", spec.bias)?,
            bias("choice_bias", spec.choice_bias)?.map(Parameter::fixed),
        );
        let mut scores = Linear::from_weight(name, weight, Precision::F32);
        scores.bias = bias;
        Ok(Self {
            spec: spec.clone(),
            scores,
            choice_bias,
            times: 1,
        })
    }

    /// What the router's logits are good for, where every token has so many parts.
    pub fn side(&self, parts: usize) -> SideSpec {
        SideSpec::Experts {
            router: self.spec.clone(),
            choice_bias: self
                .choice_bias
                .as_ref()
                .map(|bias| Arc::new(bias.to_vec())),
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
        let choice_bias = self.choice_bias.as_ref().map(Parameter::to_vec);
        let routing = Arc::new(choose(
            &self.spec,
            &scores,
            choice_bias.as_deref(),
            parts,
            context.present.as_deref(),
            context.training,
        ));
        let weights = self.weights(logits.clone(), &routing);
        let values = logits.reshape([batch, time, parts * experts]);
        let side = SideOutput::new(self.side(parts), values, context);
        sides.outputs.push(SideOutput {
            routing: Some(routing.clone()),
            ..side
        });
        (routing, weights)
    }

    /// The weights of the chosen experts, `[rows, active]`.
    fn weights(&self, logits: Tensor<2>, routing: &Arc<Routing>) -> Tensor<2> {
        let weights = match self.spec.scores {
            RouterScores::Softmax => choice_weights(logits, routing, self.spec.normalised),
            RouterScores::Sigmoid => sigmoid_weights(logits, routing, self.spec.normalised),
        };
        match self.spec.scale {
            1.0 => weights,
            scale => weights * scale,
        }
    }
}

impl Parameters for Router {
    fn visit<'a>(&'a self, visitor: &mut dyn FnMut(&'a Parameter)) {
        self.scores.visit(visitor);
        self.choice_bias.visit(visitor);
    }

    fn visit_mut(&mut self, visitor: &mut dyn FnMut(&mut Parameter)) {
        self.scores.visit_mut(visitor);
        self.choice_bias.visit_mut(visitor);
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

/// The choices for `logits` `[tokens * parts, experts]`, where `present` says which tokens are no padding.
pub(crate) fn choose(
    spec: &RouterSpec,
    logits: &[f32],
    choice_bias: Option<&[f32]>,
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
    let rows = logits.len() / spec.experts.max(1);
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
        &judged(spec, logits, choice_bias),
        spec.experts,
        spec.active,
        capacity,
        present.as_deref(),
    )
}

/// The numbers by which experts are chosen, `[rows, experts]`: the logits, where scores are in their order.
fn judged<'a>(spec: &RouterSpec, logits: &'a [f32], choice_bias: Option<&[f32]>) -> Cow<'a, [f32]> {
    if choice_bias.is_none() && spec.groups.is_none() {
        return Cow::Borrowed(logits);
    }
    let mut scores = logits.to_vec();
    for row in scores.chunks_exact_mut(spec.experts.max(1)) {
        match spec.scores {
            RouterScores::Softmax => softmax(row),
            RouterScores::Sigmoid => row.iter_mut().for_each(|x| *x = 1.0 / (1.0 + (-*x).exp())),
        }
        let biases = choice_bias.unwrap_or_default();
        row.iter_mut()
            .zip(biases)
            .for_each(|(score, bias)| *score += bias);
        if let Some(groups) = spec.groups {
            close_groups(row, groups);
        }
    }
    Cow::Owned(scores)
}

fn softmax(row: &mut [f32]) {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    row.iter_mut()
        .for_each(|value| *value = (*value - largest).exp());
    let sum: f32 = row.iter().sum();
    row.iter_mut().for_each(|value| *value /= sum);
}

/// Takes the experts of all but the best groups out of the choice.
fn close_groups(row: &mut [f32], groups: ExpertGroups) {
    let size = row.len() / groups.count.max(1);
    let worth = |group: &[f32]| -> f32 {
        let mut scores = group.to_vec();
        scores.sort_unstable_by(|a, b| b.total_cmp(a));
        scores.iter().take(groups.judged_by).sum()
    };
    let worths: Vec<f32> = row.chunks_exact(size.max(1)).map(worth).collect();
    let open = Routing::top_k(&worths, groups.count, groups.active, None, None);
    for (number, group) in row.chunks_exact_mut(size.max(1)).enumerate() {
        if !open.chosen().contains(&(number as u32)) {
            group.fill(f32::NEG_INFINITY);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(spec: &RouterSpec, scores: &[f32], choice_bias: Option<&[f32]>) -> Vec<u32> {
        choose(spec, scores, choice_bias, 1, None, false)
            .chosen()
            .to_vec()
    }

    #[test]
    fn experts_come_from_the_best_groups() {
        let groups = |judged_by| RouterSpec {
            groups: Some(ExpertGroups {
                count: 2,
                active: 1,
                judged_by,
            }),
            ..RouterSpec::softmax(4, 2, false)
        };
        // The first group has the best expert, the second one the best two.
        let scores = [2.0, -9.0, 1.8, 1.9];
        assert_eq!(
            chosen(&RouterSpec::softmax(4, 2, false), &scores, None),
            [0, 3]
        );
        assert_eq!(chosen(&groups(1), &scores, None), [0, 1]);
        assert_eq!(chosen(&groups(2), &scores, None), [3, 2]);
    }

    #[test]
    fn a_bias_counts_after_the_logistic_function() {
        let spec = RouterSpec {
            scores: RouterScores::Sigmoid,
            ..RouterSpec::softmax(3, 1, true)
        };
        // Scores 0.982, 0.5 and 0.018.
        let logits = [4.0, 0.0, -4.0];
        assert_eq!(chosen(&spec, &logits, Some(&[0.0, 0.4, 0.0])), [0]);
        assert_eq!(chosen(&spec, &logits, Some(&[0.0, 0.5, 0.0])), [1]);
        assert_eq!(chosen(&spec, &logits, Some(&[0.0, 0.4, 1.0])), [2]);
    }
}
