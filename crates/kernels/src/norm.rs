//! LayerNorm (arXiv 1607.06450) and RMSNorm (arXiv 1910.07467) over the last axis.

use burn::tensor::Tensor;

/// `x / sqrt(mean(x^2) + epsilon) * weight`.
///
/// `x`: any shape `[.., width]`, `weight`: `[width]`; statistics in f32.
pub fn rms_norm<const D: usize>(x: Tensor<D>, weight: Tensor<1>, epsilon: f64) -> Tensor<D> {
    let mean_square = (x.clone() * x.clone()).mean_dim(D - 1);
    let inverse = (mean_square + epsilon).sqrt().recip();
    x * inverse * broadcast(weight)
}

/// `(x - mean) / sqrt(var + epsilon) * weight + bias` with the biased variance.
///
/// `x`: any shape `[.., width]`, `weight` and `bias`: `[width]`; statistics in f32.
pub fn layer_norm<const D: usize>(x: Tensor<D>, weight: Tensor<1>, bias: Tensor<1>, epsilon: f64) -> Tensor<D> {
    let centred = x.clone() - x.mean_dim(D - 1);
    let variance = (centred.clone() * centred.clone()).mean_dim(D - 1);
    let inverse = (variance + epsilon).sqrt().recip();
    centred * inverse * broadcast(weight) + broadcast(bias)
}

/// A vector over the last axis, with leading axes of one.
fn broadcast<const D: usize>(vector: Tensor<1>) -> Tensor<D> {
    let width = vector.dims()[0];
    let mut shape = [1; D];
    shape[D - 1] = width;
    vector.reshape(shape)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    fn near(output: Tensor<2>, expected: &[f32]) {
        for (value, expected) in output.into_data().try_to_vec::<f32>().unwrap().iter().zip(expected) {
            assert!((value - expected).abs() < 1e-6, "{value} against {expected}");
        }
    }

    #[test]
    fn worked_examples() {
        let device = Device::flex();
        let ones = |n| Tensor::<1>::ones([n], &device);
        near(rms_norm(Tensor::from_floats([[3.0, 4.0]], &device), ones(2), 0.0), &[0.848528, 1.131371]);
        let x = Tensor::from_floats([[1.0, 2.0, 3.0, 4.0]], &device);
        let normed = layer_norm(x, ones(4), Tensor::zeros([4], &device), 0.0);
        near(normed, &[-1.341641, -0.447214, 0.447214, 1.341641]);
    }
}
