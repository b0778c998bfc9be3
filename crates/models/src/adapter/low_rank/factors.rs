//! The values of a low-rank adapter on their way to its map.

use burn::tensor::{Device, Tensor, TensorData};

use super::LowRank;
use crate::{Result, layers::linear::LinearMapMut, parameter::Parameter};

/// The values of an adapter of one map.
#[derive(Debug, Clone, Default)]
pub(super) struct Factors {
    pub(super) down: Vec<f32>,
    pub(super) up: Vec<f32>,
    pub(super) scale: f64,
    /// `A` and `-B` of what the base loses.
    pub(super) start: Option<[Vec<f32>; 2]>,
    pub(super) magnitude: Option<Vec<f32>>,
    pub(super) bias: Option<Vec<f32>>,
}

impl Factors {
    /// The same with another scale, the difference put into `B`.
    pub(super) fn rescale(&mut self, scale: f64) {
        let change = std::mem::replace(&mut self.scale, scale) / scale;
        if change != 1.0 {
            let changed = |value: &mut f32| *value = (f64::from(*value) * change) as f32;
            self.up.iter_mut().for_each(changed);
            self.bias.iter_mut().flatten().for_each(changed);
        }
    }

    /// Puts the adapter on its map.
    pub(super) fn attach(
        self,
        map: &mut LinearMapMut<'_>,
        adapter: &str,
        dropout: f64,
        device: &Device,
    ) -> Result<()> {
        let [outputs, inputs] = map.size();
        let parameter = |part: &str, shape: &[usize], values: Vec<f32>| {
            let flat = TensorData::new(values, [shape.iter().product::<usize>()]);
            let name = format!("{}.adapter.{adapter}.{part}", map.name);
            Parameter::new(name, shape.to_vec(), Tensor::from_data(flat, device))
                .of_adapter(adapter)
        };
        let factors = |names: [&str; 2], [down, up]: [Vec<f32>; 2]| {
            let rank = down.len() / inputs.max(1);
            let down = parameter(names[0], &[rank, inputs], down);
            [down, parameter(names[1], &[outputs, rank], up)]
        };
        let start = self.start.map(|start| {
            let start = factors(["start_down", "start_up"], start);
            start.map(Parameter::fixed)
        });
        let magnitude = self.magnitude;
        let magnitude = magnitude.map(|values| parameter("magnitude", &[outputs], values));
        let bias = self
            .bias
            .map(|values| parameter("bias", &[outputs], values));
        let low_rank = LowRank {
            dropout,
            start,
            magnitude,
            bias,
            ..LowRank::new(factors(["down", "up"], [self.down, self.up]), self.scale)
        };
        map.attach(adapter, Box::new(low_rank))
    }
}
