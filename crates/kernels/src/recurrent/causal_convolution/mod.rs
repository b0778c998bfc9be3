//! The short convolution along time, one filter a channel, that precedes a scan (Mamba, arXiv 2312.00752; Griffin, arXiv
//! 2402.19427).

mod cpu;
pub mod reference;

use burn::tensor::Tensor;

use super::last_steps;
use crate::fused;

/// `y_t = bias + sum_j weight_j x_{t - (taps - 1) + j}`, then `y sigmoid(y)` where `silu` is set; and the last `taps - 1`
/// inputs, with which the next part of the sequence continues.
///
/// `x`: `[batch, time, width]`, `weight`: `[width, taps]` whose last tap is the current step's, `bias`: `[width]` or
/// none, `state`: `[batch, taps - 1, width]`, the inputs before the first, zeros where absent. Returns the shapes of `x`
/// and `state`.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use espalier_kernels::recurrent::causal_convolution::causal_convolution;
/// let device = Device::flex();
/// let x = Tensor::<3>::from_floats([[[1.0], [2.0], [3.0]]], &device);
/// let weight = Tensor::<2>::from_floats([[10.0, 1.0]], &device);
/// let (y, state) = causal_convolution(x, weight, None, None, false);
/// assert_eq!(y.into_data().try_to_vec::<f32>().unwrap(), [1.0, 12.0, 23.0]);
/// assert_eq!(state.into_scalar::<f32>(), 3.0);
/// ```
pub fn causal_convolution(
    x: Tensor<3>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    state: Option<Tensor<3>>,
    silu: bool,
) -> (Tensor<3>, Tensor<3>) {
    let ([batch, time, width], [_, taps]) = (x.dims(), weight.dims());
    let device = x.device().inner();
    let bias = bias.unwrap_or_else(|| Tensor::zeros([width], &device));
    let state = state.unwrap_or_else(|| Tensor::zeros([batch, taps - 1, width], &device));
    let last = match time + 1 >= taps {
        true => last_steps(x.clone(), taps - 1),
        false => Tensor::cat(
            vec![
                state.clone().slice([0..batch, time..taps - 1, 0..width]),
                x.clone(),
            ],
            1,
        ),
    };
    let y = match fused::on_host(&x) {
        true => fused::four(x, weight, bias, state, cpu::Convolution { silu }),
        false => reference::causal_convolution(x, weight, bias, state, silu),
    };
    (y, last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recurrent::testing::{check, check_parts, zeros};
    use crate::testing::agree;
    use proptest::prelude::*;

    /// By the formula, in f64.
    fn definition(
        [batch, time, width, taps]: [usize; 4],
        silu: bool,
        inputs: &[Vec<f64>],
    ) -> Vec<f64> {
        let [x, weight, bias, state] = [0, 1, 2, 3].map(|i| &inputs[i]);
        let mut y = Vec::new();
        for (b, t, c) in
            (0..batch * time * width).map(|i| (i / (time * width), i / width % time, i % width))
        {
            let mut sum = bias[c];
            for j in 0..taps {
                sum += weight[c * taps + j]
                    * match t + j < taps - 1 {
                        true => state[(b * (taps - 1) + t + j) * width + c],
                        false => x[(b * time + t + j + 1 - taps) * width + c],
                    };
            }
            y.push(if silu {
                sum / (1.0 + (-sum).exp())
            } else {
                sum
            });
        }
        y
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn agrees_with_the_reference(batch in 1usize..3, time in 1usize..150, width in 1usize..70, taps in 2usize..6,
            silu: bool) {
            let shapes: [&[usize]; 4] = [&[batch, time, width], &[width, taps], &[width], &[batch, taps - 1, width]];
            agree(&shapes, 1e-5,
                |t| causal_convolution(t[0].get(), t[1].get(), Some(t[2].get()), Some(t[3].get()), silu).0.reshape([-1]),
                |t| reference::causal_convolution(t[0].get(), t[1].get(), t[2].get(), t[3].get(), silu).reshape([-1]));
        }

        #[test]
        fn agrees_with_the_formula_in_f64(time in 1usize..8, width in 1usize..4, taps in 2usize..5, silu: bool) {
            let shapes: [&[usize]; 4] = [&[2, time, width], &[width, taps], &[width], &[2, taps - 1, width]];
            check(&shapes,
                |t| causal_convolution(t[0].get(), t[1].get(), Some(t[2].get()), Some(t[3].get()), silu).0.reshape([-1]),
                |inputs| definition([2, time, width, taps], silu, inputs));
        }
    }

    #[test]
    fn parts_join_and_the_future_is_unseen() {
        for time in [1, 2, 9, 70] {
            let weight = crate::recurrent::testing::tensor([40, 4], 7);
            check_parts::<3>([2, time, 40], |x, state| {
                causal_convolution(x, weight.clone(), None, state, true)
            });
        }
    }

    #[test]
    fn parts_of_wider_rows_are_read_where_they_lie() {
        let shapes: [&[usize]; 2] = [&[2, 9, 80], &[30, 4]];
        let part = |t: &crate::testing::Leaf| t.get::<3>().slice([0..2, 0..9, 20..50]);
        agree(
            &shapes,
            1e-5,
            |t| {
                causal_convolution(part(&t[0]), t[1].get(), None, None, false)
                    .0
                    .reshape([-1])
            },
            |t| {
                reference::causal_convolution(
                    part(&t[0]),
                    t[1].get(),
                    zeros([30]),
                    zeros([2, 3, 30]),
                    false,
                )
                .reshape([-1])
            },
        );
    }
}
