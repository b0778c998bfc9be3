//! The definition, in Burn operations.

use burn::tensor::Tensor;

use super::{
    WeightBits,
    rounding::{LARGEST, SMALLEST},
};
use crate::{linear::reference::linear, matmul::Precision};

/// See [`super::bit_linear`].
pub fn bit_linear<const D: usize>(x: Tensor<D>, weight: Tensor<2>, bits: WeightBits) -> Tensor<D> {
    let rounded = straight_through(weight.clone(), rounded_weight(weight, bits));
    linear_of_rounded(x, rounded)
}

/// The same with a weight that is rounded already.
pub fn linear_of_rounded<const D: usize>(x: Tensor<D>, weight: Tensor<2>) -> Tensor<D> {
    let largest = x.clone().abs().max_dim(D - 1).clamp_min(SMALLEST);
    // Divided as the fused form divides: another last bit would round some numbers to another side.
    let scale = largest.ones_like() * LARGEST / largest;
    let rounded = (x.clone() * scale.clone()).round().clamp(-128.0, 127.0) / scale;
    linear(straight_through(x, rounded), weight, None, Precision::F32)
}

fn rounded_weight(weight: Tensor<2>, bits: WeightBits) -> Tensor<2> {
    let magnitude = weight.clone().abs().mean();
    match bits {
        WeightBits::Ternary => {
            let scale = magnitude.clamp_min(SMALLEST).reshape([1, 1]);
            (weight * scale.clone().recip()).round().clamp(-1.0, 1.0) * scale
        }
        WeightBits::Binary => {
            let middle = weight.clone().mean().reshape([1, 1]);
            let above = (weight - middle).greater_elem(0.0).float();
            (above * 2.0 - 1.0) * magnitude.reshape([1, 1])
        }
    }
}

/// The value of `rounded` with the gradient of `x`.
fn straight_through<const D: usize>(x: Tensor<D>, rounded: Tensor<D>) -> Tensor<D> {
    x.clone() + (rounded - x).detach()
}
