//! One row added to all rows, for sums that no linear map ends.

use burn::tensor::Tensor;
use burn_flex::FlexTensor;

use crate::{
    host::{self, Given, HostOperator, Saved, contiguous, dimensions, slice, tensor},
    parallel::{chunk, fresh},
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
    match host::on_host(&x) {
        true => host::two(x, bias, AddBias),
        false => x + bias.unsqueeze(),
    }
}

#[derive(Debug)]
struct AddBias;

/// Rows of a task.
const ROWS: usize = 32;

impl HostOperator<2> for AddBias {
    fn forward(&self, inputs: &[FlexTensor; 2], _: [bool; 2]) -> (FlexTensor, Saved) {
        let [x, bias] = inputs.each_ref().map(contiguous);
        let (x, bias, shape) = (slice(&x), slice(&bias), dimensions(&x));
        let width = bias.len().max(1);
        let [sum] = fresh([(x.len(), ROWS * width)], |i, [sum]: [&mut [f32]; 1]| {
            let rows = chunk(x, ROWS * width, i).chunks_exact(width);
            for (sum, x) in sum.chunks_exact_mut(width).zip(rows) {
                sum.iter_mut().zip(x.iter().zip(bias)).for_each(|(sum, (x, bias))| *sum = x + bias);
            }
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
    /// Columns that one thread takes at a time.
    const COLUMNS: usize = 128;
    let [sums] = fresh([(width, COLUMNS)], |i, [sums]: [&mut [f32]; 1]| {
        for row in values.chunks_exact(width.max(1)) {
            sums.iter_mut().zip(&row[i * COLUMNS..]).for_each(|(sum, value)| *sum += value);
        }
    });
    sums
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
