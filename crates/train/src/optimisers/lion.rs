//! Lion: the sign of an interpolated momentum (arXiv 2302.06675, Algorithm 2).
//!
//! `c = b1 m + (1 - b1) g; w = w (1 - lr wd) - lr sign(c); m = b2 m + (1 - b2) g`. Its step is as long as the learning rate in
//! every weight: take a third to a tenth of AdamW's, and as much more decay.

use burn::tensor::Tensor;
use espalier_models::parameter::Parameter;
use serde::{Deserialize, Serialize};

use super::{Rule, Slot, Step, Value, decay};
use crate::{Result, error::within, options::TrainOptions};

/// The options of Lion; `weight_decay` stands beside the learning rate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LionOptions {
    /// Share of the momentum in the step's direction.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub beta1: f64,
    /// Share of the momentum that stays.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub beta2: f64,
}

impl Default for LionOptions {
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.99,
        }
    }
}

impl LionOptions {
    /// Whether they make sense.
    ///
    /// # Errors
    /// The first that does not.
    pub fn check(&self) -> Result<()> {
        within("beta1", self.beta1, 0.0, 1.0)?;
        within("beta2", self.beta2, 0.0, 1.0)
    }
}

/// The rule; one momentum a parameter.
#[derive(Debug, Clone)]
pub struct Lion {
    own: LionOptions,
    weight_decay: f64,
}

impl Lion {
    /// The rule of these options.
    pub fn new(own: &LionOptions, options: &TrainOptions) -> Self {
        Self {
            own: own.clone(),
            weight_decay: options.weight_decay,
        }
    }
}

impl Rule for Lion {
    fn slots(&self, parameter: &Parameter) -> Vec<Slot> {
        vec![Slot::floats("momentum", parameter.len())]
    }

    fn update(
        &self,
        parameter: &mut Parameter,
        gradient: Tensor<1>,
        state: Vec<Value>,
        step: Step,
    ) -> Vec<Value> {
        let keep = 1.0 - step.learning_rate * decay(parameter, self.weight_decay);
        let LionOptions { beta1, beta2 } = self.own;
        let gradient = gradient * step.gradient_scale;
        let old = state.into_iter().map(Value::floats);
        old.map(|momentum| {
            let mixed = momentum.clone() * beta1 + gradient.clone() * (1.0 - beta1);
            parameter.update(|weight| weight * keep - mixed.sign() * step.learning_rate);
            Value::Floats(momentum * beta2 + gradient.clone() * (1.0 - beta2))
        })
        .collect()
    }
}
