//! AdamW with moments of a byte a number (arXiv 2110.02861): two bytes of state a weight in place of eight.
//!
//! The formula is AdamW's (`adamw.rs`); after every step the moments are rounded, block by block, by the tables in
//! `kernels/src/optimiser/eight_bit.rs`. Parameters of fewer than 4096 numbers and tables of tokens keep f32 moments, as
//! bitsandbytes and the Hugging Face trainer have it.

use burn::tensor::{Tensor, TensorData};
use espalier_kernels::{
    optimiser::{AdamW8BitState, BLOCK, adamw_8bit},
    readback::ReadFloats,
};
use espalier_models::parameter::Parameter;
use serde::{Deserialize, Serialize};

use super::{
    Rule, Slot, Step, Value,
    adamw::{AdamW, AdamWOptions},
};
use crate::{Error, Result, options::TrainOptions};

/// The options; `beta1`, `beta2`, `epsilon` and `weight_decay` stand beside the learning rate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AdamW8BitOptions {
    /// Parameters of fewer numbers keep f32 moments.
    pub smallest: usize,
    /// Whether the table of tokens has moments in bytes too.
    pub embeddings: bool,
}

impl Default for AdamW8BitOptions {
    fn default() -> Self {
        Self {
            smallest: 4096,
            embeddings: false,
        }
    }
}

impl AdamW8BitOptions {
    /// Whether they make sense.
    ///
    /// # Errors
    /// The first that does not.
    pub fn check(&self) -> Result<()> {
        match self.smallest {
            0 => Err(Error::Option {
                key: "smallest",
                reason: "must be at least 1".into(),
            }),
            _ => Ok(()),
        }
    }
}

/// The rule; two moments a parameter, each in bytes with a magnitude for every block of numbers.
#[derive(Debug, Clone)]
pub struct AdamW8Bit {
    own: AdamW8BitOptions,
    exact: AdamW,
}

impl AdamW8Bit {
    /// The rule of these options.
    pub fn new(own: &AdamW8BitOptions, options: &TrainOptions) -> Self {
        Self {
            own: own.clone(),
            exact: AdamW::new(&AdamWOptions {}, options),
        }
    }

    fn is_small(&self, parameter: &Parameter) -> bool {
        let is_table = parameter.name().ends_with("embedding.weight");
        parameter.len() < self.own.smallest || is_table && !self.own.embeddings
    }
}

impl Rule for AdamW8Bit {
    fn slots(&self, parameter: &Parameter) -> Vec<Slot> {
        if self.is_small(parameter) {
            return self.exact.slots(parameter);
        }
        let (numbers, blocks) = (parameter.len(), parameter.len().div_ceil(BLOCK));
        vec![
            Slot::bytes("first", numbers),
            Slot::floats("first_scale", blocks),
            Slot::bytes("second", numbers),
            Slot::floats("second_scale", blocks),
        ]
    }

    fn update(
        &self,
        parameter: &mut Parameter,
        gradient: Tensor<1>,
        state: Vec<Value>,
        step: Step,
    ) -> Vec<Value> {
        if self.is_small(parameter) {
            return self.exact.update(parameter, gradient, state, step);
        }
        let Ok([first, first_scale, second, second_scale]) = <[Value; 4]>::try_from(state) else {
            return Vec::new();
        };
        let device = parameter.device().inner();
        let numbers = self.exact.numbers(parameter, step);
        let mut after = Vec::new();
        parameter.update(|weight| {
            let state = AdamW8BitState {
                weight,
                first: first.bytes(),
                first_scale: first_scale.floats().floats(),
                second: second.bytes(),
                second_scale: second_scale.floats().floats(),
            };
            let done = adamw_8bit(state, gradient, numbers);
            let scales = |values: Vec<f32>| {
                let count = values.len();
                Value::Floats(Tensor::from_data(TensorData::new(values, [count]), &device))
            };
            after = vec![
                Value::Bytes(done.first),
                scales(done.first_scale),
                Value::Bytes(done.second),
                scales(done.second_scale),
            ];
            done.weight
        });
        after
    }
}
