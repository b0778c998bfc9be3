//! Optimisers: the update of a parameter along its gradient.
//!
//! An optimiser is one file here and one line of `optimisers!` below. It knows parameters by the keys of
//! [`crate::trained`], and hands its state over as named tensors, of whatever number and type it has.

pub mod adamw;

use burn::tensor::Tensor;
use espalier_models::parameter::Parameter;
use serde::{Deserialize, Serialize};

use self::adamw::AdamW;
use crate::{
    Result,
    named_tensors::{NamedTensor, SavedTensors},
    options::TrainOptions,
};

/// The numbers of one step, which are the same for all parameters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// Number of the step, from 1.
    pub number: u64,
    /// Step size.
    pub learning_rate: f64,
    /// Factor on the gradient (clipping).
    pub gradient_scale: f64,
}

/// Changes parameters along their gradients.
pub trait Optimiser {
    /// Makes the state of a parameter that had no step yet.
    fn start(&mut self, key: &str, parameter: &Parameter);

    /// One step of `parameter` along `gradient` (`[len]`), which is first multiplied by [`Step::gradient_scale`].
    fn step(&mut self, key: &str, parameter: &mut Parameter, gradient: Tensor<1>, step: Step);

    /// All state, for a checkpoint.
    fn state(&self) -> Vec<NamedTensor<'_>>;

    /// Puts back the state of one parameter.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape.
    fn restore(&mut self, key: &str, parameter: &Parameter, saved: &SavedTensors) -> Result<()>;

    /// Bytes of state that a parameter costs, for the plan.
    fn bytes(&self, parameter: &Parameter) -> u64;
}

/// Registers the optimisers: their help, name, and how they are made of the options.
macro_rules! optimisers {
    ($(#[doc = $help:literal] $variant:ident($name:literal) = $new:expr),+ $(,)?) => {
        /// The optimisers by name.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
        pub enum OptimiserName {
            $(#[doc = $help] #[serde(rename = $name)] $variant),+
        }

        /// Name and help of every optimiser.
        pub const OPTIMISERS: &[(&str, &str)] = &[$(($name, $help.trim_ascii())),+];

        impl OptimiserName {
            /// The optimiser, without state.
            pub fn build(self, options: &TrainOptions) -> Box<dyn Optimiser> {
                match self {
                    $(Self::$variant => Box::new($new(options))),+
                }
            }
        }
    };
}

optimisers! {
    /// Adam with decoupled weight decay; options `beta1`, `beta2`, `epsilon`, `weight_decay`.
    AdamW("adamw") = AdamW::new,
}
