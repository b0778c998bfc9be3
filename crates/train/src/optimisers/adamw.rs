//! AdamW: decoupled weight decay (arXiv 1711.05101).
//!
//! `m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2; w = w (1 - lr wd) - lr m^ / (sqrt(v^) + eps)`. Matrices decay, vectors
//! (norms and biases) do not, as in the Hugging Face trainer. Recipes: all of them.

use std::collections::BTreeMap;

use burn::tensor::{Tensor, TensorData};
use espalier_kernels::optimiser::{AdamWState, AdamWStep, adamw};
use espalier_models::parameter::Parameter;

use super::{Optimiser, Step};
use crate::{
    Result,
    named_tensors::{NamedTensor, SavedTensors},
    options::TrainOptions,
};

/// The optimiser: its options, and two moments a parameter.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use espalier_models::parameter::Parameter;
/// use espalier_train::{optimisers::{Optimiser, Step, adamw::AdamW}, options::TrainOptions};
/// let mut weight = Parameter::new("weight", vec![2], Tensor::zeros([2], &Device::flex()));
/// let mut optimiser = AdamW::new(&TrainOptions::default());
/// let step = Step { number: 1, learning_rate: 0.5, gradient_scale: 1.0 };
/// optimiser.step("weight", &mut weight, Tensor::ones([2], &Device::flex()), step);
/// assert!((weight.to_vec()[0] + 0.5).abs() < 1e-5);
/// assert_eq!(optimiser.state()[0].name, "first.weight");
/// ```
#[derive(Debug, Clone)]
pub struct AdamW {
    beta1: f64,
    beta2: f64,
    epsilon: f64,
    weight_decay: f64,
    moments: BTreeMap<String, [Tensor<1>; 2]>,
}

impl AdamW {
    /// The optimiser without moments.
    pub fn new(options: &TrainOptions) -> Self {
        Self {
            beta1: options.beta1,
            beta2: options.beta2,
            epsilon: options.epsilon,
            weight_decay: options.weight_decay,
            moments: BTreeMap::new(),
        }
    }
}

fn zeros(parameter: &Parameter) -> [Tensor<1>; 2] {
    let device = parameter.flat().device();
    [(); 2].map(|()| Tensor::zeros([parameter.len()], &device))
}

impl Optimiser for AdamW {
    fn start(&mut self, key: &str, parameter: &Parameter) {
        self.moments.insert(key.to_owned(), zeros(parameter));
    }

    fn step(&mut self, key: &str, parameter: &mut Parameter, gradient: Tensor<1>, step: Step) {
        // Taken out, so that nobody else holds them and they change in place.
        let moments = self.moments.remove(key);
        let [first, second] = moments.unwrap_or_else(|| zeros(parameter));
        let weight_decay = match parameter.decays() {
            true => self.weight_decay,
            false => 0.0,
        };
        let step = AdamWStep {
            learning_rate: step.learning_rate,
            beta1: self.beta1,
            beta2: self.beta2,
            epsilon: self.epsilon,
            weight_decay,
            step: step.number,
            gradient_scale: step.gradient_scale,
        };
        parameter.update(|weight| {
            let state = AdamWState {
                weight,
                first,
                second,
            };
            let after = adamw(state, gradient, step);
            let moments = [after.first, after.second];
            self.moments.insert(key.to_owned(), moments);
            after.weight
        });
    }

    /// `first.<parameter>` and `second.<parameter>`, `[len]` each.
    fn state(&self) -> Vec<NamedTensor<'_>> {
        let both = |(key, [first, second]): (&String, &[Tensor<1>; 2])| {
            [
                NamedTensor::floats(format!("first.{key}"), first.clone()),
                NamedTensor::floats(format!("second.{key}"), second.clone()),
            ]
        };
        self.moments.iter().flat_map(both).collect()
    }

    fn restore(&mut self, key: &str, parameter: &Parameter, saved: &SavedTensors) -> Result<()> {
        let (device, shape) = (parameter.flat().device(), [parameter.len()]);
        let moment = |name: String| -> Result<Tensor<1>> {
            let values = saved.floats(&name, &shape)?;
            Ok(Tensor::from_data(TensorData::new(values, shape), &device))
        };
        let moments = [
            moment(format!("first.{key}"))?,
            moment(format!("second.{key}"))?,
        ];
        self.moments.insert(key.to_owned(), moments);
        Ok(())
    }

    fn bytes(&self, parameter: &Parameter) -> u64 {
        8 * parameter.len() as u64
    }
}
