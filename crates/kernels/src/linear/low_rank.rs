//! The linear map with a low-rank addition (LoRA, arXiv 2106.09685, Eq. 3): `y = x W^T + s (x A^T) B^T`, in one sum of
//! products; `W` is frozen.

use burn::tensor::Tensor;
use burn_flex::FlexTensor;

use super::{
    Precision,
    cpu::{input_shape, matrix},
    group::{Factor, Group, Rows},
    reference,
};
use crate::{
    fused::{self, FusedOperator, Given, Saved, contiguous, dimensions, tensor},
    matmul::{How, Left, Matrix, sum_of_products, tall_product, transpose},
    recomputable::{Recomputable, Remake},
    stored::Stored,
    weight::{Held, Weight},
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
    x: impl Into<Recomputable<D>>,
    weight: impl Into<Weight<2>>,
    down: Tensor<2>,
    up: Tensor<2>,
    scale: f64,
    precision: Precision,
) -> Tensor<D> {
    Group::new(1).low_rank_linear(x, weight, [down, up], scale, precision)
}

impl Group {
    /// As [`low_rank_linear`], as one map of this group; the matrices are `down` and `up`.
    pub fn low_rank_linear<const D: usize>(
        &self,
        x: impl Into<Recomputable<D>>,
        weight: impl Into<Weight<2>>,
        [down, up]: [Tensor<2>; 2],
        scale: f64,
        precision: Precision,
    ) -> Tensor<D> {
        let (x, remake) = x.into().into_parts();
        if fused::on_host(&x) {
            let (weight, stored) = weight.into().into_parts();
            let operator = LowRankLinear {
                scale: scale as f32,
                precision,
                group: self.clone(),
                remake,
                stored,
            };
            return fused::four(x, weight, down, up, operator);
        }
        let weight = weight.into().into_tensor(&x.device());
        let narrow = reference::linear(x.clone(), down, None, precision) * scale;
        reference::linear(x, weight.detach(), None, precision)
            + reference::linear(narrow, up, None, precision)
    }
}

#[derive(Debug)]
struct LowRankLinear {
    scale: f32,
    precision: Precision,
    group: Group,
    remake: Option<Remake>,
    stored: Option<Stored>,
}

impl LowRankLinear {
    fn scaled(&self, mut values: Vec<f32>) -> Vec<f32> {
        values.iter_mut().for_each(|value| *value *= self.scale);
        values
    }
}

impl FusedOperator<4> for LowRankLinear {
    /// Saves `s x A^T`.
    fn forward(
        &self,
        [x, weight, down, up]: &[FlexTensor; 4],
        _: [bool; 4],
    ) -> (FlexTensor, Saved) {
        let (how, mut shape) = (How::all(self.precision), dimensions(x));
        // The input is read twice, by the weight and by `A`, so that even a single map has it packed.
        let rows = self.group.shared_input(x, self.precision);
        let weight = Held::new(weight, &self.stored);
        let [down, up] = [down, up].map(contiguous);
        let narrow = self.scaled(sum_of_products(
            &[(rows.left(), matrix(&down).transposed())],
            how,
        ));
        let rank = dimensions(&down)[0];
        let narrow_rows = Matrix::new(&narrow, narrow.len() / rank.max(1), rank);
        let terms = [
            (rows.left(), weight.matrix().transposed()),
            (Left::Plain(narrow_rows), matrix(&up).transposed()),
        ];
        let y = sum_of_products(&terms, how);
        if let Some(last) = shape.last_mut() {
            *last = weight.shape()[0];
        }
        (tensor(y, &shape), vec![narrow])
    }

    fn keeps_input(&self, input: usize) -> bool {
        input > 0 || self.remake.is_none()
    }

    fn backward(&self, given: Given<4>, wanted: [bool; 4]) -> [Option<FlexTensor>; 4] {
        let weight = Held::new(&given.inputs[1], &self.stored);
        let [x, _, down, up] = given.inputs.each_ref().map(contiguous);
        let x = self.remake.as_ref().map_or(&x, Remake::get);
        let how = How::all(self.precision);
        let upstream = Rows::packed(&given.gradient, self.precision);
        let of_narrow = self.scaled(sum_of_products(&[(upstream.left(), matrix(&up))], how));
        let rank = dimensions(&down)[0];
        let of_narrow = tensor(of_narrow, &[given.saved[0].len() / rank.max(1), rank]);
        let narrow = Matrix::new(&given.saved[0], given.saved[0].len() / rank.max(1), rank);
        let of_up = tall_product(upstream.matrix(), narrow, self.precision);
        // The transposed product fills its tiles; the rank alone would leave a part of them empty.
        let turned = tall_product(Rows::plain(x).matrix(), matrix(&of_narrow), self.precision);
        let mut of_down = vec![0.0; turned.len()];
        transpose(&turned, dimensions(&down)[1], rank, &mut of_down);
        let (of_down, of_up) = (
            tensor(of_down, &dimensions(&down)),
            tensor(of_up, &dimensions(&up)),
        );
        let of_x = wanted[0].then(|| {
            let (shape, precision) = (input_shape(&given.gradient, &weight), self.precision);
            let narrow = Factor {
                upstream: Rows::plain(&of_narrow),
                weight: Held::Tensor(down),
                precision,
            };
            self.group.gradient(
                vec![
                    Factor {
                        upstream,
                        weight,
                        precision,
                    },
                    narrow,
                ],
                &shape,
            )
        });
        [of_x.flatten(), None, Some(of_down), Some(of_up)]
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
