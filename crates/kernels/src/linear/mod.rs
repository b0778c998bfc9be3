//! The linear map `y = x W^T + b`, with its weight in the checkpoints' layout `[out, in]`.

mod bias;
mod cpu;
mod group;
pub mod low_rank;
pub mod reference;

use burn::tensor::Tensor;

pub use self::{bias::add_bias, group::Group};
pub use crate::matmul::Precision;
use crate::{fused, recomputable::Recomputable, weight::Weight};

/// `x W^T + b`.
///
/// `x`: `[.., in]`, `weight`: `[out, in]`, `bias`: `[out]`; returns `[.., out]`. The three products, forward and backward, run in
/// `precision`; sums are f32. A stored weight is read as it is, and has no gradient.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use espalier_kernels::linear::{Precision, linear};
/// let device = Device::flex();
/// let weight = Tensor::<2>::from_floats([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], &device);
/// let y = linear(Tensor::<2>::from_floats([[1.0, 1.0]], &device), weight, None, Precision::F32);
/// assert_eq!(y.into_data().try_to_vec::<f32>().unwrap(), [3.0, 7.0, 11.0]);
/// ```
pub fn linear<const D: usize>(
    x: impl Into<Recomputable<D>>,
    weight: impl Into<Weight<2>>,
    bias: Option<Tensor<1>>,
    precision: Precision,
) -> Tensor<D> {
    Group::new(1).linear(x, weight, bias, precision)
}

impl Group {
    /// As [`linear`], as one map of this group.
    pub fn linear<const D: usize>(
        &self,
        x: impl Into<Recomputable<D>>,
        weight: impl Into<Weight<2>>,
        bias: Option<Tensor<1>>,
        precision: Precision,
    ) -> Tensor<D> {
        let (x, remake) = x.into().into_parts();
        if !fused::on_host(&x) {
            let weight = weight.into().into_tensor(&x.device());
            return reference::linear(x, weight, bias, precision);
        }
        let (weight, stored) = weight.into().into_parts();
        let operator = cpu::Linear {
            precision,
            group: self.clone(),
            remake,
            stored,
        };
        match bias {
            Some(bias) => fused::three(x, weight, bias, operator),
            None => fused::two(x, weight, operator),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::agree;
    use proptest::prelude::*;

    fn check(rows: usize, inputs: usize, outputs: usize, precision: Precision, tolerance: f32) {
        let shapes: [&[usize]; 3] = [&[2, rows, inputs], &[outputs, inputs], &[outputs]];
        agree(
            &shapes,
            tolerance,
            |t| linear(t[0].get::<3>(), t[1].get(), Some(t[2].get()), precision).reshape([-1]),
            |t| {
                reference::linear(
                    t[0].get::<3>(),
                    t[1].get(),
                    Some(t[2].get()),
                    Precision::F32,
                )
                .reshape([-1])
            },
        );
        agree(
            &shapes[..2],
            tolerance,
            |t| linear(t[0].get::<3>(), t[1].get(), None, precision).reshape([-1]),
            |t| reference::linear(t[0].get::<3>(), t[1].get(), None, Precision::F32).reshape([-1]),
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn agrees_with_the_reference(rows in 1usize..40, inputs in 1usize..70, outputs in 1usize..50) {
            check(rows, inputs, outputs, Precision::F32, 1e-5);
            // Each factor is off by at most 2^-9 of itself, so a product of numbers up to one by 2^-8, and their sum by
            // that times the square root of its length, errors being independent; four times that for the worst of many.
            let longest = inputs.max(outputs).max(2 * rows) as f32;
            check(rows, inputs, outputs, Precision::Bf16, longest.sqrt() / 64.0);
        }

        #[test]
        fn groups_agree_with_single_maps(rows in 1usize..40, inputs in 1usize..70, outputs in 1usize..50) {
            let shapes: [&[usize]; 4] = [&[rows, inputs], &[outputs, inputs], &[outputs + 3, inputs], &[3, inputs]];
            let sum = |a: Tensor<2>, b: Tensor<2>, c: Tensor<2>| {
                Tensor::cat(vec![a.reshape([-1]), b.reshape([-1]), c.reshape([-1])], 0)
            };
            agree(&shapes, 1e-5, |t| {
                let (group, x) = (Group::new(3), t[0].get::<2>());
                let map = |i: usize| group.linear(x.clone(), t[i].get(), None, Precision::F32);
                sum(map(1), map(2), map(3))
            }, |t| {
                let map = |i: usize| reference::linear(t[0].get::<2>(), t[i].get(), None, Precision::F32);
                sum(map(1), map(2), map(3))
            });
        }
    }
}
