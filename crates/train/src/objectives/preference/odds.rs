//! The odds of an answer, of which ORPO takes the logarithm: `p / (1 - p)` with `ln p` the mean log-probability of a token.

use burn::tensor::{Tensor, activation::softplus};

/// The largest log-probability of which there are odds in f32.
const NEARLY_CERTAIN: f64 = -1.2e-7;

/// `ln(1 - e^x)` for `x < 0`: `ln tanh(-x / 2) + ln(1 + e^x)`, which loses nothing where `e^x` is nearly 1.
fn log_complement(x: Tensor<1>) -> Tensor<1> {
    let x = x.clamp_max(NEARLY_CERTAIN);
    (-x.clone() / 2.0).tanh().log() + softplus(x, 1.0)
}

/// `ln(odds_w / odds_l)` from the mean log-probabilities of better and worse answers, `[pairs]`.
pub fn log_ratio(better: Tensor<1>, worse: Tensor<1>) -> Tensor<1> {
    let odds = |p: Tensor<1>| p.clone() - log_complement(p);
    odds(better) - odds(worse)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objectives::preference::tests::{leaf, near, with_gradients};
    use burn::tensor::activation::log_sigmoid;

    #[test]
    fn worked_example() {
        // Sums -12 and -15 over 6 and 8 tokens; beta 0.1, and the likelihood of the better answer.
        let (better, worse) = (leaf([-12.0]), leaf([-15.0]));
        let (p, q) = (better.clone() / 6.0, worse.clone() / 8.0);
        let ratio = log_ratio(p.clone(), q);
        near(
            &[ratio.clone().inner().into_scalar::<f32>()],
            &[-0.146060],
            "ratio",
        );
        let (loss, gradients) = with_gradients(-p - log_sigmoid(ratio) * 0.1, &[&better, &worse]);
        near(&[loss], &[2.076884], "loss");
        near(&gradients.concat(), &[-0.177007, 0.007920], "gradients");
    }

    #[test]
    fn odds_are_exact_near_certainty_and_finite_at_it() {
        for x in [-1e-6f64, -1e-3, -0.5, -0.7, -3.0, -12.0, -40.0] {
            let expected = (-x.exp_m1()).ln();
            let found = log_complement(leaf([x as f32]))
                .inner()
                .into_scalar::<f32>();
            let error = (f64::from(found) - expected).abs();
            assert!(
                error < 1e-6 * expected.abs().max(1.0),
                "{x}: {found} against {expected}"
            );
        }
        let certain = leaf([0.0]);
        let (loss, gradients) =
            with_gradients(log_ratio(certain.clone(), leaf([-1.0])), &[&certain]);
        assert!(loss.is_finite() && gradients[0][0].is_finite());
    }
}
