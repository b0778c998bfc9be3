//! Next-token cross-entropy on logits, and the log-probability of given tokens.

use burn::tensor::{Int, Tensor};

/// Log-probability of `targets` under `logits`, in f32.
///
/// `logits`: `[tokens, vocabulary]`, `targets`: `[tokens]`; returns `[tokens]`. The log of the sum is taken after the
/// row's maximum is subtracted, and the whole table of log-probabilities is never made.
pub fn log_probabilities(logits: Tensor<2>, targets: Tensor<1, Int>) -> Tensor<1> {
    let count = targets.dims()[0];
    let maximum = logits.clone().detach().max_dim(1);
    let shifted = logits - maximum;
    let chosen = shifted.clone().gather(1, targets.reshape([count, 1]));
    let normaliser = shifted.exp().sum_dim(1).log();
    (chosen - normaliser).reshape([count])
}

/// Sum over tokens of the negative log-probability: `[1]`.
///
/// `logits`: `[tokens, vocabulary]`, `targets`: `[tokens]`. A sum, not a mean: the caller divides by the number of
/// targets of the whole optimisation step.
pub fn cross_entropy(logits: Tensor<2>, targets: Tensor<1, Int>) -> Tensor<1> {
    -log_probabilities(logits, targets).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    #[test]
    fn uniform_logits_cost_the_log_of_the_vocabulary() {
        let device = Device::flex();
        let targets = Tensor::from_ints([0, 3, 1], &device);
        let loss = cross_entropy(Tensor::ones([3, 4], &device), targets).into_scalar::<f32>();
        assert!((loss - 3.0 * 4f32.ln()).abs() < 1e-6);
    }

    #[test]
    fn huge_logits_stay_finite_and_the_gradient_is_probability_minus_target() {
        let device = Device::flex();
        let logits = Tensor::<2>::from_floats([[1000.0, 999.0, -1000.0]], &device).autodiff().require_grad();
        let loss = cross_entropy(logits.clone(), Tensor::from_ints([1], &device));
        assert!((loss.clone().into_scalar::<f32>() - 1.313262).abs() < 1e-5);
        let gradient = logits.grad(&loss.backward()).unwrap().into_data().try_to_vec::<f32>().unwrap();
        for (value, expected) in gradient.iter().zip([0.731059, -0.731059, 0.0]) {
            assert!((value - expected).abs() < 1e-5);
        }
    }
}
