//! Stochastic gradient descent, with momentum and Nesterov's look ahead where asked for.
//!
//! `b = mu b + g; w = w (1 - lr wd) - lr b`, or with Nesterov `- lr (g + mu b)`, as PyTorch has them; decay is decoupled from the gradient
//! as everywhere here, which PyTorch's is not.

use burn::tensor::Tensor;
use espalier_models::parameter::Parameter;
use serde::{Deserialize, Serialize};

use super::{Rule, Slot, Step, Value, decay};
use crate::{Error, Result, error::within, options::TrainOptions};

/// The options of gradient descent; `weight_decay` stands beside the learning rate.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SgdOptions {
    /// Share of the last step that is taken again; 0 keeps no state.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub momentum: f64,
    /// Look ahead along the momentum.
    pub nesterov: bool,
}

impl SgdOptions {
    /// Whether they make sense.
    ///
    /// # Errors
    /// The first that does not.
    pub fn check(&self) -> Result<()> {
        within("momentum", self.momentum, 0.0, 1.0)?;
        match self.nesterov && self.momentum == 0.0 {
            false => Ok(()),
            true => Err(Error::Option {
                key: "nesterov",
                reason: "looks ahead along a momentum; set `momentum`, for example to 0.9".into(),
            }),
        }
    }
}

/// The rule; one momentum a parameter, or none.
#[derive(Debug, Clone)]
pub struct Sgd {
    own: SgdOptions,
    weight_decay: f64,
}

impl Sgd {
    /// The rule of these options.
    pub fn new(own: &SgdOptions, options: &TrainOptions) -> Self {
        Self {
            own: own.clone(),
            weight_decay: options.weight_decay,
        }
    }
}

impl Rule for Sgd {
    fn slots(&self, parameter: &Parameter) -> Vec<Slot> {
        match self.own.momentum > 0.0 {
            true => vec![Slot::floats("momentum", parameter.len())],
            false => Vec::new(),
        }
    }

    fn update(
        &self,
        parameter: &mut Parameter,
        gradient: Tensor<1>,
        state: Vec<Value>,
        step: Step,
    ) -> Vec<Value> {
        let keep = 1.0 - step.learning_rate * decay(parameter, self.weight_decay);
        let share = self.own.momentum;
        let gradient = gradient * step.gradient_scale;
        let momentum = state.into_iter().next().map(Value::floats);
        let momentum = momentum.map(|momentum| momentum * share + gradient.clone());
        let direction = match &momentum {
            None => gradient,
            Some(momentum) if self.own.nesterov => gradient + momentum.clone() * share,
            Some(momentum) => momentum.clone(),
        };
        parameter.update(|weight| weight * keep - direction * step.learning_rate);
        momentum.into_iter().map(Value::Floats).collect()
    }
}
