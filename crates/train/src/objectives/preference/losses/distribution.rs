//! What losses of distributions compare: two samples in their orders.

use burn::tensor::{Int, Tensor, TensorData};
use espalier_kernels::readback::ReadFloats;

/// The ascending values of one vector less those of another, `[pairs]`; gradients go to whichever value stood there.
pub fn sorted_difference(a: Tensor<1>, b: Tensor<1>) -> Tensor<1> {
    sorted(a) - sorted(b)
}

fn sorted(values: Tensor<1>) -> Tensor<1> {
    let numbers = values.clone().floats();
    let mut order: Vec<i32> = (0..numbers.len() as i32).collect();
    order.sort_by(|i, j| numbers[*i as usize].total_cmp(&numbers[*j as usize]));
    let order = Tensor::<1, Int>::from_data(TensorData::from(&order[..]), &values.device().inner());
    values.select(0, order)
}
