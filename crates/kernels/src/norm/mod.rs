//! LayerNorm (arXiv 1607.06450) and RMSNorm (arXiv 1910.07467) over the last axis, GroupNorm (arXiv 1803.08494) over parts of it.

mod cpu;
pub mod reference;
pub mod residual;

use burn::tensor::Tensor;

use crate::{
    fused,
    recomputable::{Recomputable, values},
};

/// `x / sqrt(mean(x^2) + epsilon) * weight`.
///
/// `x`: any shape `[.., width]`, `weight`: `[width]`; statistics in f32.
pub fn rms_norm<const D: usize>(x: Tensor<D>, weight: Tensor<1>, epsilon: f64) -> Tensor<D> {
    match fused::on_host(&x) {
        true => fused::two(
            x,
            weight,
            cpu::RmsNorm {
                epsilon: epsilon as f32,
            },
        ),
        false => reference::rms_norm(x, weight, epsilon),
    }
}

/// `(x - mean) / sqrt(var + epsilon) * weight + bias` with the biased variance.
///
/// `x`: any shape `[.., width]`, `weight` and `bias`: `[width]`; statistics in f32.
pub fn layer_norm<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<1>,
    bias: Tensor<1>,
    epsilon: f64,
) -> Tensor<D> {
    match fused::on_host(&x) {
        true => fused::three(
            x,
            weight,
            bias,
            cpu::LayerNorm {
                epsilon: epsilon as f32,
                groups: 1,
            },
        ),
        false => reference::layer_norm(x, weight, bias, epsilon),
    }
}

/// [`layer_norm`] within each of `groups` equal parts of the last axis.
///
/// `x`: `[batch, time, width]`, `weight` and `bias`: `[width]`.
pub fn group_norm(
    x: Tensor<3>,
    weight: Tensor<1>,
    bias: Tensor<1>,
    groups: usize,
    epsilon: f64,
) -> Tensor<3> {
    match fused::on_host(&x) {
        true => fused::three(
            x,
            weight,
            bias,
            cpu::LayerNorm {
                epsilon: epsilon as f32,
                groups,
            },
        ),
        false => reference::group_norm(x, weight, bias, groups, epsilon),
    }
}

/// The norm of `x` with its recipe; with one factor RMSNorm, with factor and bias LayerNorm.
fn remade<const D: usize, const N: usize>(
    normed: Tensor<D>,
    x: &Tensor<D>,
    factors: [&Tensor<1>; N],
    epsilon: f64,
) -> Recomputable<D> {
    if !fused::on_host(x) {
        return normed.into();
    }
    let (x, factors) = (values(x), factors.map(values));
    Recomputable::new(normed, move || {
        cpu::forward(&x, &factors[0], factors.get(1), epsilon as f32, 1).0
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::agree;
    use burn::tensor::Device;
    use proptest::prelude::*;

    fn near(output: Tensor<2>, expected: &[f32]) {
        for (value, expected) in output
            .into_data()
            .try_to_vec::<f32>()
            .unwrap()
            .iter()
            .zip(expected)
        {
            assert!(
                (value - expected).abs() < 1e-6,
                "{value} against {expected}"
            );
        }
    }

    #[test]
    fn worked_examples() {
        let device = Device::flex();
        let ones = |n| Tensor::<1>::ones([n], &device);
        near(
            rms_norm(Tensor::from_floats([[3.0, 4.0]], &device), ones(2), 0.0),
            &[0.848528, 1.131371],
        );
        let x = Tensor::from_floats([[1.0, 2.0, 3.0, 4.0]], &device);
        let normed = layer_norm(x, ones(4), Tensor::zeros([4], &device), 0.0);
        near(normed, &[-1.341641, -0.447214, 0.447214, 1.341641]);
        let x = Tensor::<3>::from_floats([[[1.0, 3.0, 4.0, 0.0]]], &device);
        let bias = Tensor::from_floats([0.0, 0.0, 0.0, 5.0], &device);
        near(
            group_norm(x, ones(4), bias, 2, 0.0).reshape([1, 4]),
            &[-1.0, 1.0, 1.0, 4.0],
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn agree_with_the_reference(rows in 1usize..150, width in 2usize..90) {
            let shapes: [&[usize]; 3] = [&[rows, 2, width], &[width], &[width]];
            agree(&shapes[..2], 1e-5, |t| rms_norm(t[0].get::<3>(), t[1].get(), 1e-3).reshape([-1]),
                |t| reference::rms_norm(t[0].get::<3>(), t[1].get(), 1e-3).reshape([-1]));
            let (groups, wide) = (1 + rows % 5, width * (1 + rows % 5));
            agree(&[&[rows, 2, wide], &[wide], &[wide]], 1e-5,
                |t| group_norm(t[0].get(), t[1].get(), t[2].get(), groups, 1e-3).reshape([-1]),
                |t| reference::group_norm(t[0].get(), t[1].get(), t[2].get(), groups, 1e-3).reshape([-1]));
            agree(&shapes, 1e-5, |t| layer_norm(t[0].get::<3>(), t[1].get(), t[2].get(), 1e-3).reshape([-1]),
                |t| reference::layer_norm(t[0].get::<3>(), t[1].get(), t[2].get(), 1e-3).reshape([-1]));
        }
    }
}
