//! The definition in Burn operations.

use burn::tensor::{Tensor, activation::silu};

/// `bias + sum_j weight_j x_{t - (taps - 1) + j}`, then SiLU where asked. Shapes as in [`super::causal_convolution`].
pub fn causal_convolution(
    x: Tensor<3>,
    weight: Tensor<2>,
    bias: Tensor<1>,
    state: Tensor<3>,
    with_silu: bool,
) -> Tensor<3> {
    let ([batch, time, width], [_, taps]) = (x.dims(), weight.dims());
    let padded = if taps > 1 {
        Tensor::cat(vec![state, x], 1)
    } else {
        x
    };
    let tap = |j: usize| {
        weight
            .clone()
            .slice([0..width, j..j + 1])
            .reshape([1, 1, width])
    };
    let shifted = |j: usize| padded.clone().slice([0..batch, j..j + time, 0..width]);
    let y = (0..taps).fold(bias.reshape([1, 1, width]).repeat_dim(1, time), |y, j| {
        y + shifted(j) * tap(j)
    });
    if with_silu { silu(y) } else { y }
}
