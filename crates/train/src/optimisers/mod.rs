//! Optimisers: the update of a parameter along its gradient.
//!
//! An optimiser is one file here and one line of `optimisers!` below. It knows parameters by the keys of
//! [`crate::trained`], and hands its state over as named tensors, of whatever number and type it has. Most are a [`Rule`]: what
//! state a parameter has, and what a step makes of both.

pub mod adafactor;
pub mod adamw;
pub mod adamw_8bit;
pub mod galore;
pub mod lion;
pub mod muon;
pub mod sgd;
mod state;

use burn::tensor::Tensor;
use espalier_models::parameter::Parameter;
use serde::{Deserialize, Serialize};

pub use self::state::{Ruled, Slot, Value};
use crate::{
    Result,
    named_tensors::{NamedTensor, SavedTensors},
    options::TrainOptions,
};

/// The numbers of one step of a parameter.
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

/// An optimiser whose every step is a function of the parameter, its gradient and its state.
pub trait Rule {
    /// The state of a parameter, which starts at zeros.
    fn slots(&self, parameter: &Parameter) -> Vec<Slot>;

    /// One step. `state` has the slots in their order, as has what is returned.
    fn update(
        &self,
        parameter: &mut Parameter,
        gradient: Tensor<1>,
        state: Vec<Value>,
        step: Step,
    ) -> Vec<Value>;
}

/// Registers the optimisers: their help, name, options, the check of these, and how they are made.
macro_rules! optimisers {
    ($(#[doc = $help:literal] $variant:ident($name:literal, $options:ty) = $new:expr),+ $(,)?) => {
        /// The optimisers by name, with their options: `optimiser = "adamw"` or `optimiser = { galore = { rank = 64 } }`.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
        pub enum OptimiserOptions {
            $(#[doc = $help] #[serde(rename = $name)] $variant($options)),+
        }

        /// Name and help of every optimiser.
        pub const OPTIMISERS: &[(&str, &str)] = &[$(($name, $help.trim_ascii())),+];

        impl OptimiserOptions {
            /// The optimiser, without state.
            pub fn build(&self, options: &TrainOptions) -> Box<dyn Optimiser> {
                match self {
                    $(Self::$variant(own) => Box::new(Ruled::new($new(own, options)))),+
                }
            }

            /// Whether its own options make sense.
            ///
            /// # Errors
            /// The first that does not.
            pub fn check(&self) -> Result<()> {
                match self {
                    $(Self::$variant(own) => own.check()),+
                }
            }
        }
    };
}

optimisers! {
    /// Adam with decoupled weight decay; options `beta1`, `beta2`, `epsilon`, `weight_decay`.
    AdamW("adamw", adamw::AdamWOptions) = adamw::AdamW::new,
    /// AdamW whose two moments take a byte a number.
    AdamW8Bit("adamw_8bit", adamw_8bit::AdamW8BitOptions) = adamw_8bit::AdamW8Bit::new,
    /// Momentum, made orthogonal, for the matrices of blocks; AdamW for the rest.
    Muon("muon", muon::MuonOptions) = muon::Muon::new,
    /// AdamW in a subspace of the gradients of blocks' matrices, plain for the rest.
    GaLore("galore", galore::GaLoreOptions) = galore::GaLore::new,
    /// The sign of a momentum: one number of state for each weight.
    Lion("lion", lion::LionOptions) = lion::Lion::new,
    /// Adam without momentum whose second moment is a row and a column.
    Adafactor("adafactor", adafactor::AdafactorOptions) = adafactor::Adafactor::new,
    /// Gradient descent, with momentum where it is asked for.
    Sgd("sgd", sgd::SgdOptions) = sgd::Sgd::new,
}

impl Default for OptimiserOptions {
    fn default() -> Self {
        Self::AdamW(adamw::AdamWOptions {})
    }
}

impl OptimiserOptions {
    /// Whether `beta1`, `beta2` and `epsilon` beside the learning rate are read.
    pub fn reads_adams_options(&self) -> bool {
        !matches!(self, Self::Lion(_) | Self::Adafactor(_) | Self::Sgd(_))
    }
}

/// Decay of a parameter: matrices have the option's, vectors none.
fn decay(parameter: &Parameter, weight_decay: f64) -> f64 {
    match parameter.decays() {
        true => weight_decay,
        false => 0.0,
    }
}

/// Whether it is a matrix, or a stack of them, inside a block: neither table, nor head, nor vector.
fn is_hidden_matrix(parameter: &Parameter) -> bool {
    let name = parameter.name();
    let in_block = name.starts_with("blocks.") || name.contains(".blocks.");
    in_block && parameter.shape().len() >= 2 && parameter.decays()
}

/// Rows and columns of every matrix of a parameter, and how many matrices it stacks.
fn matrices(parameter: &Parameter) -> [usize; 3] {
    match parameter.shape() {
        [.., rows, columns] => {
            let each = (rows * columns).max(1);
            [parameter.len() / each, *rows, *columns]
        }
        shape => [1, 1, shape.iter().product()],
    }
}

#[cfg(test)]
mod tests;
