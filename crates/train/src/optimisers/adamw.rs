//! AdamW: decoupled weight decay (arXiv 1711.05101).
//!
//! `m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2; w = w (1 - lr wd) - lr m^ / (sqrt(v^) + eps)`. Matrices decay, vectors
//! (norms and biases) do not, as in the Hugging Face trainer. Recipes: all of them.

use espalier_kernels::readback::ReadFloats;
use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor, TensorData};
use espalier_kernels::optimiser::{AdamWState, AdamWStep, adamw};
use espalier_models::parameter::Parameter;

use crate::options::TrainOptions;

/// The optimiser's memory: two moments a parameter.
#[derive(Debug, Clone, Default)]
pub struct AdamW {
    moments: BTreeMap<String, [Tensor<1>; 2]>,
}

impl AdamW {
    /// One step of `parameter` along `gradient` (`[len]`), which is first multiplied by `gradient_scale`.
    /// `step` counts from 1.
    pub fn step(
        &mut self,
        parameter: &mut Parameter,
        gradient: Tensor<1>,
        options: &TrainOptions,
        learning_rate: f64,
        step: u64,
        gradient_scale: f64,
    ) {
        let zeros = || Tensor::zeros([parameter.len()], &gradient.device());
        let [first, second] = self
            .moments
            .remove(parameter.name())
            .unwrap_or_else(|| [zeros(), zeros()]);
        let weight_decay = if parameter.decays() {
            options.weight_decay
        } else {
            0.0
        };
        let (beta1, beta2, epsilon) = (options.beta1, options.beta2, options.epsilon);
        let step = AdamWStep {
            learning_rate,
            beta1,
            beta2,
            epsilon,
            weight_decay,
            step,
            gradient_scale,
        };
        let name = parameter.name().to_owned();
        parameter.update(|weight| {
            let after = adamw(
                AdamWState {
                    weight,
                    first,
                    second,
                },
                gradient,
                step,
            );
            self.moments.insert(name, [after.first, after.second]);
            after.weight
        });
    }

    /// The moments by name, for a checkpoint: `first.<parameter>` and `second.<parameter>`.
    pub fn state(&self) -> Vec<(String, Vec<f32>)> {
        let values = |tensor: &Tensor<1>| tensor.clone().floats();
        let both = |(name, [first, second]): (&String, &[Tensor<1>; 2])| {
            [
                (format!("first.{name}"), values(first)),
                (format!("second.{name}"), values(second)),
            ]
        };
        self.moments.iter().flat_map(both).collect()
    }

    /// Puts back what [`AdamW::state`] gave.
    pub fn restore(&mut self, name: &str, first: Vec<f32>, second: Vec<f32>, device: &Device) {
        let tensor = |values: Vec<f32>| {
            let count = values.len();
            Tensor::from_data(TensorData::new(values, [count]), device)
        };
        self.moments
            .insert(name.to_owned(), [tensor(first), tensor(second)]);
    }
}
