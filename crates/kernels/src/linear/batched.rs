//! Products of many pairs of matrices, as experts need them.

use burn::tensor::Tensor;
use burn_flex::FlexTensor;

use super::{Precision, reference::rounded};
use crate::{
    host::{self, Given, HostOperator, Saved, contiguous, dimensions, slice, tensor},
    matmul::{How, Matrix, Threads, product},
    parallel::for_chunks,
};

/// `left right` for each pair, or `left right^T` when `transposed` is set.
///
/// `left`: `[batch, rows, depth]`, `right`: `[batch, depth, columns]`, or `[batch, columns, depth]` when transposed;
/// returns `[batch, rows, columns]`. Products forward and backward run in `precision`, sums in f32.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use espalier_kernels::linear::{Precision, batched::batched_product};
/// let left = Tensor::<3>::from_floats([[[1.0, 2.0]], [[3.0, 4.0]]], &Device::flex());
/// let product = batched_product(left.clone(), left, true, Precision::F32);
/// assert_eq!(product.into_data().try_to_vec::<f32>().unwrap(), [5.0, 25.0]);
/// ```
pub fn batched_product(
    left: Tensor<3>,
    right: Tensor<3>,
    transposed: bool,
    precision: Precision,
) -> Tensor<3> {
    if host::on_host(&left) {
        return host::two(
            left,
            right,
            Batched {
                transposed,
                precision,
            },
        );
    }
    reference(left, right, transposed, precision)
}

/// The definition in Burn operations.
fn reference(
    left: Tensor<3>,
    right: Tensor<3>,
    transposed: bool,
    precision: Precision,
) -> Tensor<3> {
    let right = if transposed {
        right.swap_dims(1, 2)
    } else {
        right
    };
    rounded(left, precision).matmul(rounded(right, precision))
}

#[derive(Debug)]
struct Batched {
    transposed: bool,
    precision: Precision,
}

/// Matrix `i` of a batch.
fn matrix(tensor: &FlexTensor, i: usize) -> Matrix<'_> {
    let shape = dimensions(tensor);
    let size = shape[1] * shape[2];
    Matrix::new(&slice(tensor)[i * size..(i + 1) * size], shape[1], shape[2])
}

/// One product for each of `batch`, in new memory. Many products run side by side, few use all threads each.
fn all<'a>(
    batch: usize,
    size: [usize; 2],
    precision: Precision,
    factors: impl Fn(usize) -> (Matrix<'a>, Matrix<'a>) + Sync,
) -> Vec<f32> {
    let length = size[0] * size[1];
    let mut out = vec![0.0; batch * length];
    let threads = if batch > 1 {
        Threads::One
    } else {
        Threads::All
    };
    for_chunks([(&mut out, length.max(1))], |i, [out]| {
        let (left, right) = factors(i);
        product(out, left, right, false, How { precision, threads });
    });
    out
}

impl Batched {
    /// Element `i` of the right factor as `[depth, columns]`.
    fn right<'a>(&self, right: &'a FlexTensor, i: usize) -> Matrix<'a> {
        if self.transposed {
            matrix(right, i).transposed()
        } else {
            matrix(right, i)
        }
    }
}

impl HostOperator<2> for Batched {
    fn forward(&self, inputs: &[FlexTensor; 2], _: [bool; 2]) -> (FlexTensor, Saved) {
        let [left, right] = inputs.each_ref().map(contiguous);
        let (shape, other) = (dimensions(&left), dimensions(&right));
        let size = [shape[1], if self.transposed { other[1] } else { other[2] }];
        let out = all(shape[0], size, self.precision, |i| {
            (matrix(&left, i), self.right(&right, i))
        });
        (tensor(out, &[shape[0], size[0], size[1]]), Vec::new())
    }

    fn backward(&self, given: Given<2>, wanted: [bool; 2]) -> [Option<FlexTensor>; 2] {
        let [left, right] = given.inputs.each_ref().map(contiguous);
        let (gradient, precision) = (&given.gradient, self.precision);
        let sized = |of: &FlexTensor| {
            let shape = dimensions(of);
            (shape[0], [shape[1], shape[2]], shape)
        };
        let of_left = wanted[0].then(|| {
            let (batch, size, shape) = sized(&left);
            let factors = |i| (matrix(gradient, i), self.right(&right, i).transposed());
            tensor(all(batch, size, precision, factors), &shape)
        });
        let of_right = wanted[1].then(|| {
            let (batch, size, shape) = sized(&right);
            let factors = |i| match self.transposed {
                true => (matrix(gradient, i).transposed(), matrix(&left, i)),
                false => (matrix(&left, i).transposed(), matrix(gradient, i)),
            };
            tensor(all(batch, size, precision, factors), &shape)
        });
        [of_left, of_right]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::agree;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn agrees_with_the_reference(batch in 1usize..5, rows in 1usize..30, columns in 1usize..40, depth in 1usize..50,
            transposed: bool) {
            let right = if transposed { [batch, columns, depth] } else { [batch, depth, columns] };
            let shapes: [&[usize]; 2] = [&[batch, rows, depth], &right];
            let longest = rows.max(columns).max(depth) as f32;
            for (precision, tolerance) in [(Precision::F32, 1e-5), (Precision::Bf16, longest.sqrt() / 64.0)] {
                agree(&shapes, tolerance,
                    |t| batched_product(t[0].get(), t[1].get(), transposed, precision).reshape([-1]),
                    |t| reference(t[0].get(), t[1].get(), transposed, Precision::F32).reshape([-1]));
            }
        }
    }
}
