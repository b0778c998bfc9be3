//! A base whose linear maps are rounded to four bits while it is built (QLoRA, arXiv 2305.14314).
//!
//! One weight at a time is read, rounded and let go, so that building peaks at the rounded model and one tensor. What is rounded are the
//! linear maps of the blocks, experts' among them; tables, head, norms, routers and what stands around the blocks stay as they are.

use espalier_kernels::stored::FourBit;

use crate::{
    Error, Result,
    model::LanguageModel,
    parameter::Parameters,
    source::{Initial, ParameterSource, Values},
};

/// A source whose linear maps come rounded.
pub struct Quantising<'a> {
    /// Gives the weights.
    pub source: &'a mut dyn ParameterSource,
    /// How they are rounded.
    pub format: &'static FourBit,
}

impl ParameterSource for Quantising<'_> {
    fn parameter(&mut self, name: &str, shape: &[usize], initial: Initial) -> Result<Values> {
        self.source.parameter(name, shape, initial)
    }

    fn linear(&mut self, name: &str, shape: &[usize], initial: Initial) -> Result<Values> {
        let in_block = name.starts_with("blocks.") || name.contains(".blocks.");
        match self.source.linear(name, shape, initial)? {
            // What the file holds in so few bits is not rounded again.
            Values::Stored(stored) if !in_block || stored.format().block()[0] > 1 => {
                Ok(Values::Stored(stored))
            }
            values if !in_block => Ok(values),
            values => {
                let rounded = self.format.quantised(shape, &values.into_floats());
                rounded.map(Values::Stored).ok_or_else(|| {
                    Error::Invalid(format!(
                        "`{name}` of shape {shape:?} is too wide to be quantised"
                    ))
                })
            }
        }
    }
}

/// Weights of a model that are rounded.
pub fn quantised_weights(model: &LanguageModel) -> usize {
    let mut count = 0;
    model.visit(&mut |parameter| count += usize::from(parameter.is_quantised()));
    count
}
