//! The definition in Burn operations.

use burn::tensor::{DType, Tensor};

use super::Precision;

/// `x W^T + b`; shapes as in [`super::linear`].
pub fn linear<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    precision: Precision,
) -> Tensor<D> {
    let mut shape = x.dims();
    let rows = shape[..D - 1].iter().product::<usize>();
    let x = rounded(x.reshape([rows, shape[D - 1]]), precision);
    shape[D - 1] = weight.dims()[0];
    let y = x.matmul(rounded(weight, precision).transpose());
    let y = match bias {
        Some(bias) => y + bias.unsqueeze_dim(0),
        None => y,
    };
    y.reshape(shape)
}

/// The factor of a product in `precision`, still as f32.
pub(crate) fn rounded<const D: usize>(x: Tensor<D>, precision: Precision) -> Tensor<D> {
    match precision {
        Precision::F32 => x,
        Precision::Bf16 => x.cast(DType::BF16).cast(DType::F32),
    }
}
