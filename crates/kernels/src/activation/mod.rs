//! Activations, plain and as a gate (GLU variants, arXiv 2002.05202).

pub(crate) mod cpu;
pub mod reference;

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

pub use crate::matmul::Precision;
use crate::{fused, recomputable::Recomputable};

/// An activation function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x * sigmoid(x)`; also called `swish`.
    Silu,
    /// `x * Phi(x)` by the error function.
    Gelu,
    /// `0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`: `gelu_new`, `gelu_pytorch_tanh`, `gelu_fast`.
    GeluTanh,
    /// `max(0, x)`.
    Relu,
    /// `max(0, x)^2`.
    Relu2,
    /// `x * sigmoid(1.702 x)`.
    QuickGelu,
    /// The logistic function, `1 / (1 + exp(-x))`.
    Sigmoid,
    /// `tanh(x)`.
    Tanh,
}

/// `activation(x)`, elementwise.
pub fn activate<const D: usize>(activation: Activation, x: Tensor<D>) -> Tensor<D> {
    match fused::on_host(&x) {
        true => fused::one(x, cpu::Plain(activation)),
        false => reference::activate(activation, x),
    }
}

/// `activation(gate) * up`, elementwise over two tensors of one shape; recomputed in the backward where a linear map reads it.
///
/// With [`Precision::Bf16`] both factors are rounded to bf16 first, and kept so for the backward.
pub fn gated<const D: usize>(
    activation: Activation,
    gate: Tensor<D>,
    up: Tensor<D>,
    precision: Precision,
) -> Recomputable<D> {
    if !fused::on_host(&gate) {
        return (reference::activate(activation, gate) * up).into();
    }
    let operator = cpu::Gated::new(activation, precision);
    let remake = operator.remake();
    Recomputable::new(fused::two(gate, up, operator), remake)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::agree;
    use burn::tensor::Device;
    use proptest::prelude::*;

    const ALL: [Activation; 8] = [
        Activation::Silu,
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::Relu,
        Activation::Relu2,
        Activation::QuickGelu,
        Activation::Sigmoid,
        Activation::Tanh,
    ];
    const POINTS: [f32; 6] = [-3.0, -1.0, -0.5, 0.5, 1.0, 2.0];

    fn check(activation: Activation, expected: [f32; 6]) {
        let x = Tensor::<1>::from_floats(POINTS, &Device::flex());
        for output in [
            activate(activation, x.clone()),
            reference::activate(activation, x),
        ] {
            for (value, expected) in output
                .into_data()
                .try_to_vec::<f32>()
                .unwrap()
                .iter()
                .zip(expected)
            {
                assert!(
                    (value - expected).abs() < 1e-6,
                    "{activation:?}: {value} against {expected}"
                );
            }
        }
    }

    #[test]
    fn values_of_the_reference_library() {
        check(
            Activation::Gelu,
            [
                -0.004050225,
                -0.1586553,
                -0.1542688,
                0.3457312,
                0.8413447,
                1.9545,
            ],
        );
        check(
            Activation::GeluTanh,
            [
                -0.003637433,
                -0.158808,
                -0.154286,
                0.345714,
                0.841192,
                1.954598,
            ],
        );
        check(
            Activation::QuickGelu,
            [
                -0.01807131,
                -0.1542042,
                -0.1496116,
                0.3503884,
                0.8457958,
                1.935659,
            ],
        );
        check(
            Activation::Silu,
            [
                -0.1422776, -0.2689414, -0.1887703, 0.3112297, 0.7310586, 1.761594,
            ],
        );
        check(Activation::Relu2, [0.0, 0.0, 0.0, 0.25, 1.0, 4.0]);
        check(
            Activation::Sigmoid,
            [
                0.04742587, 0.2689414, 0.3775407, 0.6224593, 0.7310586, 0.8807971,
            ],
        );
        check(
            Activation::Tanh,
            [
                -0.9950548, -0.7615942, -0.4621172, 0.4621172, 0.7615942, 0.9640276,
            ],
        );
    }

    #[test]
    fn backward_agrees_with_finite_differences() {
        for activation in ALL {
            let device = Device::flex();
            let x = Tensor::<1>::from_floats(POINTS, &device)
                .autodiff()
                .require_grad();
            let gradients = activate(activation, x.clone()).sum().backward();
            let gradient = x
                .grad(&gradients)
                .unwrap()
                .into_data()
                .try_to_vec::<f32>()
                .unwrap();
            let shifted = |by: f32| {
                activate(
                    activation,
                    Tensor::<1>::from_floats(POINTS.map(|p| p + by), &device),
                )
                .into_data()
            };
            let (above, below) = (
                shifted(1e-2).try_to_vec::<f32>().unwrap(),
                shifted(-1e-2).try_to_vec::<f32>().unwrap(),
            );
            for i in 0..POINTS.len() {
                let numeric = (above[i] - below[i]) / 2e-2;
                assert!(
                    (gradient[i] - numeric).abs() < 2e-3,
                    "at {}: {} against {numeric}",
                    POINTS[i],
                    gradient[i]
                );
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]
        #[test]
        fn agree_with_the_reference(count in 1usize..200, kind in 0usize..ALL.len()) {
            let (kind, shapes) = (ALL[kind], [&[1, count][..], &[1, count][..]]);
            agree(&shapes[..1], 1e-5, |t| activate(kind, t[0].get::<2>() * 4.0).reshape([-1]),
                |t| reference::activate(kind, t[0].get::<2>() * 4.0).reshape([-1]));
            // Factors that are off by 2^-9 of themselves each: values and slopes of up to 16.
            for (precision, tolerance) in [(Precision::F32, 1e-5), (Precision::Bf16, 0.02)] {
                agree(&shapes, tolerance, |t| gated(kind, t[0].get::<2>() * 4.0, t[1].get::<2>(), precision).into_tensor().reshape([-1]),
                    |t| (reference::activate(kind, t[0].get::<2>() * 4.0) * t[1].get::<2>()).reshape([-1]));
            }
        }
    }
}
