//! The definitions in Burn operations (Burn's own `gelu` has an approximate backward, so it is not used here).

use burn::tensor::{Tensor, activation};

use super::Activation;

/// `kind(x)`, elementwise.
pub fn activate<const D: usize>(kind: Activation, x: Tensor<D>) -> Tensor<D> {
    match kind {
        Activation::Silu => x.clone() * activation::sigmoid(x),
        Activation::Gelu => {
            let cumulative = (x.clone() * std::f64::consts::FRAC_1_SQRT_2).erf() + 1.0;
            x * cumulative * 0.5
        }
        Activation::GeluTanh => {
            let cube = x.clone() * x.clone() * x.clone();
            let inner = (x.clone() + cube * 0.044715) * (2.0 / std::f64::consts::PI).sqrt();
            x * (inner.tanh() + 1.0) * 0.5
        }
        Activation::Relu => activation::relu(x),
        Activation::Relu2 => {
            let positive = activation::relu(x);
            positive.clone() * positive
        }
        Activation::QuickGelu => x.clone() * activation::sigmoid(x * 1.702),
        Activation::Sigmoid => activation::sigmoid(x),
        Activation::Tanh => x.tanh(),
    }
}
