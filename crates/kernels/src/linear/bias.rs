//! A bias added to all rows, on all threads, where it belongs to no single linear map: after a sum of experts or of low-rank maps.

use burn::tensor::Tensor;
use burn_flex::FlexTensor;

use crate::{
    fused::{self, FusedOperator, Given, Saved, contiguous, dimensions, slice, tensor},
    parallel::{chunk, fresh},
    simd::{add, sums},
};

/// `x + bias`: `x` of any shape `[.., width]`, `bias`: `[width]`.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use espalier_kernels::linear::add_bias;
/// let device = Device::flex();
/// let sum = add_bias(Tensor::<2>::ones([2, 2], &device), Tensor::from_floats([1.0, 2.0], &device));
/// assert_eq!(sum.into_data().try_into_vec::<f32>().unwrap(), [2.0, 3.0, 2.0, 3.0]);
/// ```
pub fn add_bias<const D: usize>(x: Tensor<D>, bias: Tensor<1>) -> Tensor<D> {
    match fused::on_host(&x) {
        true => fused::two(x, bias, AddBias),
        false => x + bias.unsqueeze(),
    }
}

#[derive(Debug)]
struct AddBias;

/// Rows of a task.
const ROWS: usize = 32;

impl FusedOperator<2> for AddBias {
    fn forward(&self, inputs: &[FlexTensor; 2], _: [bool; 2]) -> (FlexTensor, Saved) {
        let [x, bias] = inputs.each_ref().map(contiguous);
        let (x, bias, shape) = (slice(&x), slice(&bias), dimensions(&x));
        let width = bias.len().max(1);
        let [sum] = fresh([(x.len(), ROWS * width)], |i, [sum]: [&mut [f32]; 1]| {
            let rows = chunk(x, ROWS * width, i).chunks_exact(width);
            sum.chunks_exact_mut(width)
                .zip(rows)
                .for_each(|(sum, x)| sums(sum, x, bias));
        });
        (tensor(sum, &shape), Vec::new())
    }

    fn keeps_input(&self, input: usize) -> bool {
        input > 0
    }

    fn backward(&self, given: Given<2>, wanted: [bool; 2]) -> [Option<FlexTensor>; 2] {
        let shape = dimensions(&given.inputs[1]);
        let of_bias = wanted[1].then(|| {
            let gradient = contiguous(&given.gradient);
            tensor(column_sums(slice(&gradient), shape[0]), &shape)
        });
        [wanted[0].then_some(given.gradient), of_bias]
    }
}

/// The sum of all rows.
pub(super) fn column_sums(values: &[f32], width: usize) -> Vec<f32> {
    let width = width.max(1);
    // Each task's sums, which are then added up in order.
    let tasks = values.len().div_ceil(ROWS * width);
    let [partial] = fresh([(tasks * width, width)], |i, [sums]: [&mut [f32]; 1]| {
        chunk(values, ROWS * width, i)
            .chunks_exact(width)
            .for_each(|row| add(sums, row));
    });
    let mut all = vec![0.0; width];
    partial
        .chunks_exact(width)
        .for_each(|sums| add(&mut all, sums));
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::agree;

    #[test]
    fn agrees_with_its_definition() {
        for shape in [[1, 1, 1], [2, 3, 5], [3, 50, 7], [1, 70, 300]] {
            let width = shape[2];
            agree(
                &[&shape, &[width]],
                1e-5,
                |t| add_bias(t[0].get::<3>(), t[1].get()).reshape([-1]),
                |t| (t[0].get::<3>() + t[1].get::<1>().unsqueeze()).reshape([-1]),
            );
        }
    }
}
