//! The linear map with a low-rank addition (LoRA, arXiv 2106.09685, Eq. 3): `y = x W^T + s (x A^T) B^T`, in one sum of
//! products; `W` is frozen.

use burn::tensor::Tensor;
use burn_flex::FlexTensor;

use super::{Precision, reference};
use crate::{
    host::{self, Given, HostOperator, Saved, contiguous, dimensions, slice, tensor},
    matmul::{How, Left, Matrix, Reusable, multiplied, sum_of_products},
};

/// `x W^T + scale (x A^T) B^T`; no gradient reaches `W`.
///
/// `x`: `[.., in]`, `weight`: `[out, in]`, `down` (`A`): `[rank, in]`, `up` (`B`): `[out, rank]`; returns `[.., out]`.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use espalier_kernels::linear::{Precision, low_rank::low_rank_linear};
/// let matrix = |values: [[f32; 2]; 1]| Tensor::<2>::from_floats(values, &Device::flex());
/// let (x, weight, down, up) = (matrix([[1.0, 2.0]]), matrix([[3.0, 4.0]]), matrix([[1.0, 1.0]]), 5.0);
/// let up = Tensor::<2>::from_floats([[up]], &Device::flex());
/// let y = low_rank_linear(x, weight, down, up, 2.0, Precision::F32);
/// assert_eq!(y.into_scalar::<f32>(), 11.0 + 2.0 * 3.0 * 5.0);
/// ```
pub fn low_rank_linear<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    down: Tensor<2>,
    up: Tensor<2>,
    scale: f64,
    precision: Precision,
) -> Tensor<D> {
    match host::on_host(&x) {
        true => host::four(x, weight, down, up, LowRankLinear { scale: scale as f32, precision }),
        false => {
            let narrow = reference::linear(x.clone(), down, None, precision) * scale;
            reference::linear(x, weight.detach(), None, precision) + reference::linear(narrow, up, None, precision)
        }
    }
}

#[derive(Debug)]
struct LowRankLinear {
    scale: f32,
    precision: Precision,
}

/// The inputs as matrices.
struct Factors<'a> {
    x: Matrix<'a>,
    weight: Matrix<'a>,
    down: Matrix<'a>,
    up: Matrix<'a>,
    rank: usize,
    rows: usize,
}

impl<'a> Factors<'a> {
    fn new([x, weight, down, up]: &'a [FlexTensor; 4]) -> Self {
        let ([outputs, inputs], rank) = ([dimensions(weight)[0], dimensions(weight)[1]], dimensions(down)[0]);
        let rows = slice(x).len() / inputs.max(1);
        Self {
            x: Matrix::new(slice(x), rows, inputs),
            weight: Matrix::new(slice(weight), outputs, inputs),
            down: Matrix::new(slice(down), rank, inputs),
            up: Matrix::new(slice(up), outputs, rank),
            rank,
            rows,
        }
    }
}

impl LowRankLinear {
    fn scaled(&self, mut values: Vec<f32>) -> Vec<f32> {
        values.iter_mut().for_each(|value| *value *= self.scale);
        values
    }
}

impl HostOperator<4> for LowRankLinear {
    /// Saves `s x A^T`.
    fn forward(&self, inputs: &[FlexTensor; 4], _: [bool; 4]) -> (FlexTensor, Saved) {
        let mut shape = dimensions(&inputs[0]);
        let inputs = inputs.each_ref().map(contiguous);
        let (f, how) = (Factors::new(&inputs), How::all(self.precision));
        let packed = Reusable::new(f.x, how);
        let narrow = self.scaled(sum_of_products(&[(packed.left(), f.down.transposed())], how));
        let narrow_matrix = Left::Plain(Matrix::new(&narrow, f.rows, f.rank));
        let terms = [(packed.left(), f.weight.transposed()), (narrow_matrix, f.up.transposed())];
        let y = sum_of_products(&terms, how);
        if let Some(last) = shape.last_mut() {
            *last = dimensions(&inputs[1])[0];
        }
        (tensor(y, &shape), vec![narrow])
    }

    fn backward(&self, given: Given<4>, wanted: [bool; 4]) -> [Option<FlexTensor>; 4] {
        let inputs = given.inputs.each_ref().map(contiguous);
        let (f, how) = (Factors::new(&inputs), How::all(self.precision));
        let outputs = dimensions(&inputs[1])[0];
        let upstream = Matrix::new(slice(&given.gradient), f.rows, outputs);
        let packed = Reusable::new(upstream, how);
        let of_narrow = self.scaled(sum_of_products(&[(packed.left(), f.up)], how));
        let of_narrow = Matrix::new(&of_narrow, f.rows, f.rank);
        let of_x = wanted[0].then(|| {
            let terms = [(packed.left(), f.weight), (Left::Plain(of_narrow), f.down)];
            tensor(sum_of_products(&terms, how), &dimensions(&inputs[0]))
        });
        let narrow = Matrix::new(&given.saved[0], f.rows, f.rank);
        let of_down = multiplied(of_narrow.transposed(), f.x, how);
        let of_up = multiplied(upstream.transposed(), narrow, how);
        let [_, _, down, up] = inputs.each_ref().map(dimensions);
        [of_x, None, Some(tensor(of_down, &down)), Some(tensor(of_up, &up))]
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
        fn agrees_with_the_reference(rows in 1usize..40, inputs in 1usize..70, outputs in 1usize..50, rank in 1usize..9) {
            let shapes: [&[usize]; 3] = [&[2, rows, inputs], &[rank, inputs], &[outputs, rank]];
            let weight = Tensor::<2>::random([outputs, inputs], burn::tensor::Distribution::Uniform(-1.0, 1.0), &Default::default());
            let longest = inputs.max(outputs).max(2 * rows) as f32;
            for (precision, tolerance) in [(Precision::F32, 1e-5), (Precision::Bf16, longest.sqrt() / 32.0)] {
                agree(&shapes, tolerance,
                    |t| low_rank_linear(t[0].get::<3>(), weight.clone(), t[1].get(), t[2].get(), 0.7, precision).reshape([-1]),
                    |t| {
                        let narrow = reference::linear(t[0].get::<3>(), t[1].get(), None, Precision::F32) * 0.7;
                        let wide = reference::linear(t[0].get::<3>(), weight.clone(), None, Precision::F32);
                        (wide + reference::linear(narrow, t[2].get(), None, Precision::F32)).reshape([-1])
                    });
            }
        }
    }
}
