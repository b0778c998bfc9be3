//! Losses of the scaled difference `x = beta D` of two answers' scores.

use burn::tensor::{
    Tensor,
    activation::{log_sigmoid, relu, sigmoid as logistic},
};

/// `-ls(x)`.
pub fn sigmoid(x: Tensor<1>) -> Tensor<1> {
    -log_sigmoid(x)
}

/// `max(0, 1 - x)`.
pub fn hinge(x: Tensor<1>) -> Tensor<1> {
    relu(-x + 1.0)
}

/// `(D - 1 / (2 beta))^2`.
pub fn ipo(difference: Tensor<1>, beta: f64) -> Tensor<1> {
    (difference - 0.5 / beta).powi_scalar(2)
}

/// `-(1 - e) ls(x) - e ls(-x)`.
pub fn smoothed(x: Tensor<1>, e: f64) -> Tensor<1> {
    match e {
        0.0 => sigmoid(x),
        _ => sigmoid(x.clone()) * (1.0 - e) + sigmoid(-x) * e,
    }
}

/// `(-(1 - e) ls(x) + e ls(-x)) / (1 - 2 e)`.
pub fn robust(x: Tensor<1>, e: f64) -> Tensor<1> {
    (sigmoid(x.clone()) * (1.0 - e) - sigmoid(-x) * e) / (1.0 - 2.0 * e)
}

/// `q (ls(x) - ln(1 - e)) + (1 - q) (ls(-x) - ln e)`, `q = sigmoid(x)`.
pub fn exo(x: Tensor<1>, e: f64) -> Tensor<1> {
    let divergence = |x: Tensor<1>, label: f64| logistic(x.clone()) * (log_sigmoid(x) - label.ln());
    divergence(x.clone(), 1.0 - e) + divergence(-x, e)
}

/// `m exp(-x) - (1 - m) ls(x)`, `m = sigmoid(x / tau)`.
pub fn discopop(x: Tensor<1>, tau: f64) -> Tensor<1> {
    let exponential = logistic(x.clone() / tau);
    let logistic_share = -exponential.clone() + 1.0;
    exponential * (-x.clone()).exp() + logistic_share * sigmoid(x)
}
