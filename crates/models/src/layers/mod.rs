//! The layers that blocks are made of.

pub mod attention;
pub mod attention_experts;
pub mod block;
pub mod channel;
pub mod clamped_gate;
pub mod classifier;
pub mod cross_attention;
pub mod depth;
pub mod embedding;
pub mod expert_linear;
pub mod experts;
pub mod head_norm;
pub mod head_transform;
pub mod input_statistics;
pub mod latent_attention;
pub mod linear;
pub mod multi_head_experts;
pub mod norm;
pub mod router;

use burn::tensor::{Device, Tensor, TensorData};

use crate::{
    Result,
    parameter::Parameter,
    source::{Initial, ParameterSource, Values},
    spec::WeightBits,
};

/// Builds layers from a source of weights.
pub struct Builder<'a> {
    /// Gives the weights.
    pub source: &'a mut dyn ParameterSource,
    /// Where the weights are put.
    pub device: Device,
    /// Standard deviation of a fresh weight.
    pub deviation: f64,
    /// Standard deviation of a fresh projection into the residual stream: smaller, so that depth does not add up (GPT-2).
    pub residual_deviation: f64,
    /// The number of the block that is being built.
    pub layer: usize,
    /// Blocks of the stack.
    pub layers: usize,
    /// What weights of linear maps are rounded to when they multiply, inside the blocks.
    pub bits: Option<WeightBits>,
}

impl Builder<'_> {
    /// One weight under its full name, in f32: what is small, or read by more than products and lookups.
    ///
    /// # Errors
    /// When the source has no such weight or another shape.
    pub fn parameter(
        &mut self,
        name: String,
        shape: Vec<usize>,
        initial: Initial,
    ) -> Result<Parameter> {
        let values = self.source.parameter(&name, &shape, initial)?;
        Ok(self.in_f32(name, shape, values))
    }

    /// As [`Builder::parameter`] for a matrix or a table, which on the host stays as its file holds it until it is trained, where it
    /// takes less room there than in f32. What is f32 in the file is copied: decoding reads it a fifth faster from large pages.
    ///
    /// # Errors
    /// When the source has no such weight or another shape.
    pub fn weight(
        &mut self,
        name: String,
        shape: Vec<usize>,
        initial: Initial,
    ) -> Result<Parameter> {
        let values = self.source.parameter(&name, &shape, initial)?;
        Ok(self.kept(name, shape, values))
    }

    /// As [`Builder::weight`] for the weight of a linear map, which the source may round.
    ///
    /// # Errors
    /// When the source has no such weight or another shape.
    pub fn linear(
        &mut self,
        name: String,
        shape: Vec<usize>,
        initial: Initial,
    ) -> Result<Parameter> {
        let values = self.source.linear(&name, &shape, initial)?;
        Ok(self.kept(name, shape, values))
    }

    fn kept(&self, name: String, shape: Vec<usize>, values: Values) -> Parameter {
        match values {
            Values::Stored(stored)
                if self.device == Device::flex()
                    && stored.bytes().len() < 4 * stored.shape().iter().product::<usize>() =>
            {
                Parameter::stored(name, stored)
            }
            values => self.in_f32(name, shape, values),
        }
    }

    fn in_f32(&self, name: String, shape: Vec<usize>, values: Values) -> Parameter {
        let values = values.into_floats();
        let count = values.len();
        let flat = Tensor::from_data(TensorData::new(values, [count]), &self.device);
        Parameter::new(name, shape, flat)
    }
}
