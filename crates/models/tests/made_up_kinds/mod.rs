//! Kinds of adapters for tests, each in one file with its one line.

#![allow(dead_code, reason = "not every test uses every kind")]

pub mod output_scale;
pub mod steering;

use burn::tensor::{Device, Tensor};
use espalier_models::{
    adapter::Registration, model::LanguageModel, parameter::Parameter, parameter::Parameters,
};

/// The list that takes the place of the library's.
pub const KINDS: &[Registration] = &[output_scale::REGISTRATION, steering::REGISTRATION];

/// A parameter of an adapter with the same value everywhere.
fn constant(
    name: String,
    adapter: &str,
    shape: &[usize],
    value: f32,
    device: &Device,
) -> Parameter {
    let count = shape.iter().product::<usize>();
    let flat = Tensor::full([count], value, device);
    Parameter::new(name, shape.to_vec(), flat).of_adapter(adapter)
}

/// Moves every parameter of an adapter, as training would.
pub fn disturb(model: &mut LanguageModel, adapter: &str) {
    let device = model.device().clone();
    let mut seed = adapter.len();
    model.visit_mut(&mut |parameter| {
        if parameter.adapter() == Some(adapter) {
            seed += 1;
            let old = parameter.to_vec().into_iter().enumerate();
            let moved = old.map(|(i, x)| x + 0.1 * (((i + seed) * 7 % 11) as f32 - 5.0) / 5.0);
            parameter.set_data(moved.collect(), &device);
        }
    });
}
