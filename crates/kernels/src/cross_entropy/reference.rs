//! The definition in Burn operations.

use burn::tensor::{Int, Tensor};

use super::HeadOptions;
use crate::linear;

/// The logits `[tokens, vocabulary]`; shapes as in [`super::linear_log_probabilities`].
pub fn logits(
    hidden: Tensor<2>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    options: HeadOptions,
) -> Tensor<2> {
    let logits = linear::reference::linear(hidden, weight, bias, options.precision);
    match options.softcap {
        Some(softcap) => (logits / softcap).tanh() * softcap,
        None => logits,
    }
}

/// Log-probability of `targets` `[tokens]` under `logits` `[tokens, vocabulary]`, in f32: `[tokens]`.
///
/// The log of the sum is taken after the row's maximum is subtracted, and the whole table of log-probabilities is never
/// made.
pub fn log_probabilities(logits: Tensor<2>, targets: Tensor<1, Int>) -> Tensor<1> {
    let count = targets.dims()[0];
    let maximum = logits.clone().detach().max_dim(1);
    let shifted = logits - maximum;
    let chosen = shifted.clone().gather(1, targets.reshape([count, 1]));
    let normaliser = shifted.exp().sum_dim(1).log();
    (chosen - normaliser).reshape([count])
}

/// `log Z` of every row, the log of the sum of its logits' exponentials: `[tokens]`.
pub fn log_normalisers(logits: Tensor<2>) -> Tensor<1> {
    let maximum = logits.clone().detach().max_dim(1);
    let normalisers = (logits - maximum.clone()).exp().sum_dim(1).log() + maximum;
    let count = normalisers.dims()[0];
    normalisers.reshape([count])
}
