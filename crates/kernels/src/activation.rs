//! Activations, forward in exact form (Burn's own `gelu` has an approximate backward, so it is not used here).

use burn::tensor::{Tensor, activation};

/// `x * sigmoid(x)`.
pub fn silu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    x.clone() * activation::sigmoid(x)
}

/// `x * Phi(x)` by the error function.
pub fn gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let cumulative = (x.clone() * std::f64::consts::FRAC_1_SQRT_2).erf() + 1.0;
    x * cumulative * 0.5
}

/// `0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`: `gelu_new`, `gelu_pytorch_tanh`, `gelu_fast`.
pub fn gelu_tanh<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let cube = x.clone() * x.clone() * x.clone();
    let inner = (x.clone() + cube * 0.044715) * (2.0 / std::f64::consts::PI).sqrt();
    x * (inner.tanh() + 1.0) * 0.5
}

/// `max(0, x)`.
pub fn relu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    activation::relu(x)
}

/// `max(0, x)^2`.
pub fn relu2<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let positive = activation::relu(x);
    positive.clone() * positive
}

/// `x * sigmoid(1.702 x)`.
pub fn quick_gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    x.clone() * activation::sigmoid(x * 1.702)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    const POINTS: [f32; 6] = [-3.0, -1.0, -0.5, 0.5, 1.0, 2.0];

    fn check(function: fn(Tensor<1>) -> Tensor<1>, expected: [f32; 6]) {
        let output = function(Tensor::from_floats(POINTS, &Device::flex())).into_data().try_to_vec::<f32>().unwrap();
        for (value, expected) in output.iter().zip(expected) {
            assert!((value - expected).abs() < 1e-6, "{value} against {expected}");
        }
    }

    #[test]
    fn values_of_the_reference_library() {
        check(gelu, [-0.004050225, -0.1586553, -0.1542688, 0.3457312, 0.8413447, 1.9545]);
        check(gelu_tanh, [-0.003637433, -0.158808, -0.154286, 0.345714, 0.841192, 1.954598]);
        check(quick_gelu, [-0.01807131, -0.1542042, -0.1496116, 0.3503884, 0.8457958, 1.935659]);
        check(silu, [-0.1422776, -0.2689414, -0.1887703, 0.3112297, 0.7310586, 1.761594]);
        check(relu2, [0.0, 0.0, 0.0, 0.25, 1.0, 4.0]);
    }

    #[test]
    fn backward_agrees_with_finite_differences() {
        for function in [silu::<1>, gelu, gelu_tanh, relu2, quick_gelu] {
            let device = Device::flex();
            let x = Tensor::<1>::from_floats(POINTS, &device).autodiff().require_grad();
            let gradients = function(x.clone()).sum().backward();
            let gradient = x.grad(&gradients).unwrap().into_data().try_to_vec::<f32>().unwrap();
            let shifted = |by: f32| function(Tensor::from_floats(POINTS.map(|p| p + by), &device)).into_data();
            let (above, below) =
                (shifted(1e-2).try_to_vec::<f32>().unwrap(), shifted(-1e-2).try_to_vec::<f32>().unwrap());
            for i in 0..POINTS.len() {
                let numeric = (above[i] - below[i]) / 2e-2;
                assert!((gradient[i] - numeric).abs() < 2e-3, "at {}: {} against {numeric}", POINTS[i], gradient[i]);
            }
        }
    }
}
