//! The definitions in Burn operations.

use burn::tensor::Tensor;

/// `x / sqrt(mean(x^2) + epsilon) * weight`.
/// Shapes as in [`super::rms_norm`].
pub fn rms_norm<const D: usize>(x: Tensor<D>, weight: Tensor<1>, epsilon: f64) -> Tensor<D> {
    let mean_square = (x.clone() * x.clone()).mean_dim(D - 1);
    let inverse = (mean_square + epsilon).sqrt().recip();
    x * inverse * broadcast(weight)
}

/// `(x - mean) / sqrt(var + epsilon) * weight + bias` with the biased variance.
/// Shapes as in [`super::layer_norm`].
pub fn layer_norm<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<1>,
    bias: Tensor<1>,
    epsilon: f64,
) -> Tensor<D> {
    let centred = x.clone() - x.mean_dim(D - 1);
    let variance = (centred.clone() * centred.clone()).mean_dim(D - 1);
    let inverse = (variance + epsilon).sqrt().recip();
    centred * inverse * broadcast(weight) + broadcast(bias)
}

/// [`layer_norm`] within each of `groups` parts of the last axis.
pub fn group_norm(
    x: Tensor<3>,
    weight: Tensor<1>,
    bias: Tensor<1>,
    groups: usize,
    epsilon: f64,
) -> Tensor<3> {
    let [batch, time, width] = x.dims();
    let (ones, zeros) = (weight.ones_like(), weight.zeros_like());
    let parts = x.reshape([batch, time, groups, width / groups]);
    let (ones, zeros) = (
        ones.narrow(0, 0, width / groups),
        zeros.narrow(0, 0, width / groups),
    );
    let normed = layer_norm(parts, ones, zeros, epsilon).reshape([batch, time, width]);
    normed * broadcast(weight) + broadcast(bias)
}

/// A vector over the last axis, with leading axes of one.
fn broadcast<const D: usize>(vector: Tensor<1>) -> Tensor<D> {
    let width = vector.dims()[0];
    let mut shape = [1; D];
    shape[D - 1] = width;
    vector.reshape(shape)
}
