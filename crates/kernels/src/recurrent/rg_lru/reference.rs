//! The definition in Burn operations.

use burn::tensor::{
    Tensor, TensorData,
    activation::{sigmoid, softplus},
};

use super::{RgLru, SMALLEST, STRENGTH};
use crate::recurrent::linear_scan;

/// Shapes as in [`super::rg_lru`]; returns `h`.
///
/// The root's slope is bounded where its square lies below `SMALLEST` over 4; values there have no slope at all, which
/// differs from the bounded slope only by what vanishes.
pub fn rg_lru(unit: RgLru<'_>, state: Tensor<2>) -> Tensor<3> {
    let [batch, time, width] = unit.x.dims();
    let decay = softplus(unit.decay, 1.0).reshape([1, 1, width]) * -STRENGTH;
    let log_a = sigmoid(unit.recurrence_gate) * decay;
    let square = (log_a.clone() * 2.0).exp().neg() + 1.0;
    let root = square.clamp_min(SMALLEST / 4.0).sqrt();
    let (mut a, mut root) = (log_a.exp(), root);
    if let Some(starts) = unit.starts {
        let starts: Vec<f32> = starts.iter().map(|start| f32::from(*start)).collect();
        let data = TensorData::new(starts, [batch, time, 1]);
        let starts =
            Tensor::<3>::from_data(data, &unit.x.device().inner()).expand([batch, time, width]);
        let inside = starts.clone().neg() + 1.0;
        (a, root) = (a * inside.clone(), root * inside + starts);
    }
    linear_scan::reference(a, root * sigmoid(unit.input_gate) * unit.x, state)
}
