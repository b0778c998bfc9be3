//! The log-probability of given tokens, from hidden states `[tokens, width]` or from logits `[tokens, vocabulary]`; its negative sum
//! is the cross-entropy. From hidden states the logits are computed by chunks of rows and never whole in memory.

mod cpu;
pub mod reference;

use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::{fused, linear::Precision, weight::Weight};

/// The head: the map from hidden states to logits.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct HeadOptions {
    /// Logits `z` become `softcap * tanh(z / softcap)` (Gemma 2).
    pub softcap: Option<f64>,
    /// Arithmetic of the products, forward and backward.
    pub precision: Precision,
    /// Terms of the loss beyond the targets' log-probabilities, which do not depend on it.
    pub regularisation: Regularisation,
}

/// Terms of the cross-entropy beyond the targets' log-probabilities.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Regularisation {
    /// Adds this times `(log Z)^2` for every row, `Z` the sum of its logits' exponentials (PaLM).
    pub z_loss: f64,
    /// The share of every target's weight that all tokens get alike, the target among them (arXiv 1512.00567, section 7).
    pub label_smoothing: f64,
}

/// Log-probability of `targets` under the logits `hidden weight^T + bias`, which are never whole in memory.
///
/// `hidden`: `[tokens, width]`, `weight`: `[vocabulary, width]`, `bias`: `[vocabulary]`, `targets`: `[tokens]`, below the
/// vocabulary's size; returns `[tokens]`, in f32. A stored weight has no gradient. The backward computes the logits a second time, some rows at once.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use espalier_kernels::cross_entropy::{HeadOptions, linear_log_probabilities};
/// let device = Device::flex();
/// let (hidden, weight) = (Tensor::<2>::ones([1, 3], &device), Tensor::<2>::zeros([4, 3], &device));
/// let log_probability = linear_log_probabilities(hidden, weight, None, &[2], HeadOptions::default()).into_scalar::<f32>();
/// assert!((log_probability + 4f32.ln()).abs() < 1e-6);
/// ```
pub fn linear_log_probabilities(
    hidden: Tensor<2>,
    weight: impl Into<Weight<2>>,
    bias: Option<Tensor<1>>,
    targets: &[u32],
    options: HeadOptions,
) -> Tensor<1> {
    if !fused::on_host(&hidden) {
        let weight = weight.into().into_tensor(&hidden.device());
        let logits = reference::logits(hidden, weight, bias, options);
        return log_probabilities(logits, targets);
    }
    let (weight, stored) = weight.into().into_parts();
    let operator = cpu::LinearLogProbabilities {
        targets: targets.to_vec(),
        options,
        stored,
    };
    match bias {
        None => fused::two(hidden, weight, operator),
        Some(bias) => fused::three(hidden, weight, bias, operator),
    }
}

/// The cross-entropy of `targets`: the negative sum of their log-probabilities, `[1]`.
///
/// Shapes as in [`linear_log_probabilities`]. A sum, not a mean: the caller divides by the number of targets of the whole
/// optimisation step. The gradients are computed together with the loss, so that no logit is computed twice.
pub fn linear_cross_entropy(
    hidden: Tensor<2>,
    weight: impl Into<Weight<2>>,
    bias: Option<Tensor<1>>,
    targets: &[u32],
    options: HeadOptions,
) -> Tensor<1> {
    if !fused::on_host(&hidden) {
        let weight = weight.into().into_tensor(&hidden.device());
        let logits = reference::logits(hidden, weight, bias, options);
        return cross_entropy(logits, targets, options.regularisation);
    }
    let (weight, stored) = weight.into().into_parts();
    let operator = cpu::LinearCrossEntropy {
        targets: targets.to_vec(),
        options,
        stored,
    };
    match bias {
        None => fused::two(hidden, weight, operator),
        Some(bias) => fused::three(hidden, weight, bias, operator),
    }
}

/// The cross-entropy of `targets` `[tokens]` under `logits` `[tokens, vocabulary]`: `[1]`.
pub fn cross_entropy(
    logits: Tensor<2>,
    targets: &[u32],
    regularisation: Regularisation,
) -> Tensor<1> {
    let Regularisation {
        z_loss,
        label_smoothing,
    } = regularisation;
    let mut sum = -log_probabilities(logits.clone(), targets).sum();
    if label_smoothing != 0.0 {
        let of_all =
            reference::log_normalisers(logits.clone()).sum() - logits.clone().mean_dim(1).sum();
        sum = sum * (1.0 - label_smoothing) + of_all * label_smoothing;
    }
    if z_loss == 0.0 {
        sum
    } else {
        sum + reference::log_normalisers(logits).powi_scalar(2).sum() * z_loss
    }
}

/// Log-probability of `targets` `[tokens]` under `logits` `[tokens, vocabulary]`, in f32: `[tokens]`.
pub fn log_probabilities(logits: Tensor<2>, targets: &[u32]) -> Tensor<1> {
    let targets = integers(targets, &logits.device());
    reference::log_probabilities(logits, targets)
}

fn integers(values: &[u32], device: &Device) -> Tensor<1, Int> {
    let values: Vec<i32> = values.iter().map(|v| *v as i32).collect();
    let count = values.len();
    Tensor::from_data(TensorData::new(values, [count]), &device.clone().inner())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::agree;
    use proptest::prelude::*;

    #[test]
    fn uniform_logits_cost_the_log_of_the_vocabulary() {
        let device = Device::flex();
        let loss = -log_probabilities(Tensor::ones([3, 4], &device), &[0, 3, 1])
            .sum()
            .into_scalar::<f32>();
        assert!((loss - 3.0 * 4f32.ln()).abs() < 1e-6);
    }

    /// Logits 10, 100 and 0 by way of an identity head.
    #[test]
    fn logits_are_capped_as_in_gemma2() {
        let device = Device::flex();
        let hidden = Tensor::<2>::from_floats([[10.0, 100.0, 0.0]; 3], &device);
        let options = HeadOptions {
            softcap: Some(50.0),
            ..HeadOptions::default()
        };
        let found =
            linear_log_probabilities(hidden, Tensor::eye(3, &device), None, &[0, 1, 2], options);
        // The highest stands so far above the others that log-probabilities are the distances from it.
        let expected = [9.8688 - 48.2014, 0.0, -48.2014];
        for (found, expected) in found
            .into_data()
            .try_to_vec::<f32>()
            .unwrap()
            .iter()
            .zip(expected)
        {
            assert!(
                (found - expected).abs() < 1e-4,
                "{found} against {expected}"
            );
        }
    }

    /// By hand: log-probabilities of logits 2, 1 and 0 are -0.407606, -1.407606 and -2.407606, their mean -1.407606.
    #[test]
    fn a_smoothed_target_shares_its_weight_with_all() {
        let device = Device::flex();
        let hidden = Tensor::<2>::from_floats([[2.0, 1.0, 0.0]], &device)
            .autodiff()
            .require_grad();
        let regularisation = Regularisation {
            label_smoothing: 0.1,
            ..Regularisation::default()
        };
        let options = HeadOptions {
            regularisation,
            ..HeadOptions::default()
        };
        let loss =
            linear_cross_entropy(hidden.clone(), Tensor::eye(3, &device), None, &[0], options);
        assert!(
            (loss.clone().into_scalar::<f32>() - (0.9 * 0.407606 + 0.1 * 1.407606)).abs() < 1e-5
        );
        let gradient = hidden
            .grad(&loss.backward())
            .unwrap()
            .into_data()
            .try_into_vec::<f32>()
            .unwrap();
        // Probabilities less targets of 0.9333, 0.0333 and 0.0333.
        for (value, expected) in gradient.iter().zip([
            0.665241 - 0.933333,
            0.244728 - 0.033333,
            0.090031 - 0.033333,
        ]) {
            assert!(
                (value - expected).abs() < 1e-5,
                "{value} against {expected}"
            );
        }
    }

    /// Logits 1000, 999 and -1000 by way of an identity head.
    #[test]
    fn huge_logits_stay_finite_and_the_gradient_is_probability_minus_target() {
        let device = Device::flex();
        let hidden = Tensor::<2>::from_floats([[1000.0, 999.0, -1000.0]], &device)
            .autodiff()
            .require_grad();
        let identity = || Tensor::<2>::eye(3, &device);
        for loss in [
            -linear_log_probabilities(
                hidden.clone(),
                identity(),
                None,
                &[1],
                HeadOptions::default(),
            ),
            linear_cross_entropy(
                hidden.clone(),
                identity(),
                None,
                &[1],
                HeadOptions::default(),
            ),
            -log_probabilities(hidden.clone().matmul(identity()), &[1]),
        ] {
            assert!((loss.clone().into_scalar::<f32>() - 1.313262).abs() < 1e-5);
            let gradient = hidden
                .grad(&loss.backward())
                .unwrap()
                .into_data()
                .try_to_vec::<f32>()
                .unwrap();
            for (value, expected) in gradient.iter().zip([0.731059, -0.731059, 0.0]) {
                assert!((value - expected).abs() < 1e-5);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn agrees_with_the_reference(tokens in 1usize..60, width in 1usize..20, vocabulary in 2usize..90,
            softcap in proptest::option::of(0.3f64..2.0), z_loss in 0.0f64..0.2, label_smoothing in 0.0f64..0.9) {
            let regularisation = Regularisation { z_loss, label_smoothing };
            let options = HeadOptions { softcap, regularisation, ..HeadOptions::default() };
            let targets: Vec<u32> = (0..tokens).map(|i| (i * 31 % vocabulary) as u32).collect();
            let shapes: [&[usize]; 3] = [&[tokens, width], &[vocabulary, width], &[vocabulary]];
            for shapes in [&shapes[..2], &shapes[..]] {
                let bias = |t: &[crate::testing::Leaf]| t.get(2).map(|bias| bias.get::<1>());
                let logits = |t: &[crate::testing::Leaf]| reference::logits(t[0].get(), t[1].get(), bias(t), options);
                agree(shapes, 1e-5, |t| linear_log_probabilities(t[0].get(), t[1].get(), bias(t), &targets, options),
                    |t| log_probabilities(logits(t), &targets));
                agree(shapes, 1e-5, |t| linear_cross_entropy(t[0].get(), t[1].get(), bias(t), &targets, options),
                    |t| cross_entropy(logits(t), &targets, regularisation));
            }
        }

        #[test]
        fn chunks_join(tokens in 257usize..600) {
            // A vocabulary large enough that the rows take several chunks.
            let targets: Vec<u32> = (0..tokens).map(|i| (i * 31 % 20_000) as u32).collect();
            let shapes: [&[usize]; 2] = [&[tokens, 2], &[20_000, 2]];
            let reference = |t: &[crate::testing::Leaf]| {
                log_probabilities(reference::logits(t[0].get(), t[1].get(), None, HeadOptions::default()), &targets)
            };
            agree(&shapes, 1e-5, |t| linear_log_probabilities(t[0].get(), t[1].get(), None, &targets, HeadOptions::default()), reference);
            agree(&shapes, 1e-5, |t| linear_cross_entropy(t[0].get(), t[1].get(), None, &targets, HeadOptions::default()), |t| -reference(t).sum());
        }
    }
}
