//! AdamW: decoupled weight decay (arXiv 1711.05101).
//!
//! `m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2; w = w (1 - lr wd) - lr m^ / (sqrt(v^) + eps)`. Matrices decay, vectors
//! (norms and biases) do not, as in the Hugging Face trainer. Recipes: all of them.

use burn::tensor::Tensor;
use espalier_kernels::optimiser::{AdamWState, AdamWStep, adamw};
use espalier_models::parameter::Parameter;
use serde::{Deserialize, Serialize};

use super::{Rule, Slot, Step, Value, decay};
use crate::{Result, options::TrainOptions};

/// It has none of its own: `beta1`, `beta2`, `epsilon` and `weight_decay` stand beside the learning rate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AdamWOptions {}

impl AdamWOptions {
    /// Nothing can be wrong.
    ///
    /// # Errors
    /// None.
    pub fn check(&self) -> Result<()> {
        Ok(())
    }
}

/// The optimiser: its options, and two moments a parameter.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use espalier_models::parameter::Parameter;
/// use espalier_train::{optimisers::{OptimiserOptions, Step}, options::TrainOptions};
/// let mut weight = Parameter::new("weight", vec![2], Tensor::zeros([2], &Device::flex()));
/// let mut optimiser = OptimiserOptions::default().build(&TrainOptions::default());
/// let step = Step { number: 1, learning_rate: 0.5, gradient_scale: 1.0 };
/// optimiser.step("weight", &mut weight, Tensor::ones([2], &Device::flex()), step);
/// assert!((weight.to_vec()[0] + 0.5).abs() < 1e-5);
/// assert_eq!(optimiser.state()[0].name, "first.weight");
/// ```
#[derive(Debug, Clone, Copy)]
pub struct AdamW {
    beta1: f64,
    beta2: f64,
    epsilon: f64,
    weight_decay: f64,
}

impl AdamW {
    /// The rule of these options.
    pub fn new(_: &AdamWOptions, options: &TrainOptions) -> Self {
        Self {
            beta1: options.beta1,
            beta2: options.beta2,
            epsilon: options.epsilon,
            weight_decay: options.weight_decay,
        }
    }

    /// The numbers of a step of this parameter.
    pub(super) fn numbers(&self, parameter: &Parameter, step: Step) -> AdamWStep {
        AdamWStep {
            learning_rate: step.learning_rate,
            beta1: self.beta1,
            beta2: self.beta2,
            epsilon: self.epsilon,
            weight_decay: decay(parameter, self.weight_decay),
            step: step.number,
            gradient_scale: step.gradient_scale,
        }
    }
}

impl Rule for AdamW {
    fn slots(&self, parameter: &Parameter) -> Vec<Slot> {
        ["first", "second"]
            .map(|name| Slot::floats(name, parameter.len()))
            .into()
    }

    fn update(
        &self,
        parameter: &mut Parameter,
        gradient: Tensor<1>,
        state: Vec<Value>,
        step: Step,
    ) -> Vec<Value> {
        let numbers = self.numbers(parameter, step);
        let mut moments = state.into_iter().map(Value::floats);
        let (Some(first), Some(second)) = (moments.next(), moments.next()) else {
            return Vec::new();
        };
        let mut after = Vec::new();
        parameter.update(|weight| {
            let state = AdamWState {
                weight,
                first,
                second,
            };
            let done = adamw(state, gradient, numbers);
            after = [done.first, done.second].map(Value::Floats).into();
            done.weight
        });
        after
    }
}
