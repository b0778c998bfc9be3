//! Losses of a policy whose answers were written by an earlier policy: importance ratios, their clipping, the penalty for leaving the
//! reference, and the mean that is taken. Pure functions of log-probabilities; papers and options are those of [`super::grpo`].
//!
//! With `d = new - old` for each token, `w = d` (or its mean over the answer, GSPO), `c = exp(w)` and the advantage `A`:
//! `-min(c A, clip(c, 1 - low, 1 + high) A)` for most; CISPO `-stop(min(c, high)) A new`; SAPO `-(4/T) sigmoid(T (c - 1)) A`.

use burn::tensor::{Tensor, activation::sigmoid};
use espalier_kernels::readback::ReadFloats;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::answers::Answers;

/// The loss of a token, and what it is averaged over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LossType {
    /// The mean over answers of the mean over their tokens (arXiv 2402.03300).
    Grpo,
    /// The sum over tokens, divided by answers times `max_completion_length` (arXiv 2503.20783).
    DrGrpo,
    /// The mean over the tokens of each batch.
    Bnpo,
    /// The mean over the tokens of the whole step (arXiv 2503.14476).
    #[default]
    Dapo,
    /// The mean over answers of the sum over their tokens (arXiv 2602.05261).
    Luspo,
    /// A weighted likelihood whose weights are clipped, a mean over the tokens of the step (arXiv 2506.13585).
    Cispo,
    /// A soft gate in place of clipping, averaged as `grpo` (arXiv 2511.20347).
    Sapo,
}

impl LossType {
    /// The weight of each token in the sum, and the units by which the trainer divides the sum over all batches of the step.
    /// `kept` says of each answer whether it counts.
    pub fn weights(self, lengths: &[f64], kept: &[bool], longest: usize) -> (Vec<f64>, f64) {
        let answers = lengths.len() as f64;
        let counted = lengths.iter().zip(kept).filter(|(_, kept)| **kept);
        let tokens: f64 = counted.map(|(length, _)| length).sum();
        let (weight, units): (&dyn Fn(f64) -> f64, f64) = match self {
            Self::Grpo | Self::Sapo => (&|length| 1.0 / length.max(1.0), answers),
            Self::DrGrpo => (&|_| 1.0 / longest.max(1) as f64, answers),
            Self::Bnpo => (&|_| 1.0 / tokens.max(1.0), tokens.min(1.0)),
            Self::Dapo | Self::Cispo => (&|_| 1.0, tokens),
            Self::Luspo => (&|_| 1.0, answers),
        };
        let of_answer = |(length, kept): (&f64, &bool)| if *kept { weight(*length) } else { 0.0 };
        (lengths.iter().zip(kept).map(of_answer).collect(), units)
    }
}

/// What an importance ratio is taken over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ImportanceLevel {
    /// Each token.
    #[default]
    Token,
    /// The mean over the answer's tokens, shared by all of them (GSPO, arXiv 2507.18071).
    Sequence,
}

/// How far ratios count.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Clip {
    /// Below one.
    pub low: f64,
    /// Above one; of CISPO the largest weight itself.
    pub high: f64,
    /// The largest ratio of all, where there is one.
    pub delta: Option<f64>,
}

/// Log-probabilities of the tokens of answers, `[tokens]` each; all but `new` are constants.
#[derive(Debug, Clone)]
pub struct LogProbabilities {
    /// Of the policy that is trained.
    pub new: Tensor<1>,
    /// Of the policy that wrote the answers.
    pub old: Tensor<1>,
    /// Of the reference.
    pub reference: Tensor<1>,
}

/// The loss of each token, `[tokens]`, and the ratios, `[tokens]`.
#[derive(Debug)]
pub struct TokenLosses {
    /// The loss, not averaged yet.
    pub losses: Tensor<1>,
    /// The ratios `c`.
    pub ratios: Tensor<1>,
}

/// The losses of tokens with these advantages, `[tokens]`.
pub fn token_losses(
    kind: LossType,
    level: ImportanceLevel,
    clip: Clip,
    scores: &LogProbabilities,
    advantages: Tensor<1>,
    answers: &Answers<'_>,
) -> TokenLosses {
    let distance = scores.new.clone() - scores.old.clone();
    let exponent = match level {
        ImportanceLevel::Token => distance,
        ImportanceLevel::Sequence => answers.spread(answers.means(distance)),
    };
    let ratios = exponent.exp();
    let losses = match kind {
        LossType::Cispo => {
            let weight = ratios.clone().inner().clamp_max(clip.high);
            -(scores.new.clone() * (weight * advantages))
        }
        LossType::Sapo => gated(ratios.clone(), advantages),
        LossType::Grpo | LossType::DrGrpo | LossType::Bnpo | LossType::Dapo | LossType::Luspo => {
            clipped(ratios.clone(), advantages, clip)
        }
    };
    TokenLosses { losses, ratios }
}

/// `-min(c A, clip(c) A)`.
pub fn clipped(ratios: Tensor<1>, advantages: Tensor<1>, clip: Clip) -> Tensor<1> {
    let free = match clip.delta {
        Some(delta) => ratios.clone().clamp_max(delta),
        None => ratios.clone(),
    };
    let bounded = ratios.clamp(1.0 - clip.low, 1.0 + clip.high);
    -(free * advantages.clone()).min_pair(bounded * advantages)
}

/// SAPO's temperatures for what is better and what is worse than expected.
const TEMPERATURES: [f64; 2] = [1.0, 1.05];

/// `-(4/T) sigmoid(T (c - 1)) A`.
fn gated(ratios: Tensor<1>, advantages: Tensor<1>) -> Tensor<1> {
    let device = advantages.device();
    let temperature = |advantage: f32| TEMPERATURES[usize::from(advantage <= 0.0)];
    let temperatures: Vec<f64> = advantages
        .clone()
        .floats()
        .into_iter()
        .map(temperature)
        .collect();
    let inverse = super::answers::constant(temperatures.iter().map(|t| 4.0 / t), &device);
    let temperatures = super::answers::constant(temperatures.iter().copied(), &device);
    -(sigmoid((ratios - 1.0) * temperatures) * inverse * advantages)
}

/// `exp(ref - new) - (ref - new) - 1` for each token: never negative, and of the right mean.
pub fn k3(scores: &LogProbabilities) -> Tensor<1> {
    let distance = scores.reference.clone() - scores.new.clone();
    distance.clone().exp() - distance - 1.0
}

/// The shares of tokens whose ratio was clipped: below where the advantage is negative, above where it is positive, either.
pub fn clipped_shares(ratios: &[f32], advantages: &[f32], clip: Clip) -> [f64; 3] {
    let [low, high] = [1.0 - clip.low as f32, 1.0 + clip.high as f32];
    let pairs = || ratios.iter().zip(advantages);
    let below = pairs().filter(|(c, a)| **c < low && **a < 0.0).count() as f64;
    let above = pairs().filter(|(c, a)| **c > high && **a > 0.0).count() as f64;
    [below, above, below + above]
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    const ROWS: [usize; 5] = [0, 0, 0, 1, 1];
    const OLD: [f32; 5] = [-1.0, -2.0, -0.5, -1.5, -0.7];
    const NEW: [f32; 5] = [-0.7, -2.1, -0.45, -1.9, -0.6];
    const REFERENCE: [f32; 5] = [-1.1, -2.0, -0.6, -1.4, -0.8];
    const USUAL: Clip = Clip {
        low: 0.2,
        high: 0.2,
        delta: None,
    };

    /// Loss and gradients of two answers of three and two tokens.
    fn worked(
        kind: LossType,
        level: ImportanceLevel,
        beta: f64,
        new: [f32; 5],
        advantages: [f64; 2],
        clip: Clip,
    ) -> (f32, Vec<f32>) {
        let device = Device::flex();
        let answers = Answers::new(&ROWS, 2, &device);
        let leaf = Tensor::<1>::from_floats(new, &device)
            .autodiff()
            .require_grad();
        let scores = LogProbabilities {
            new: leaf.clone(),
            old: Tensor::from_floats(OLD, &device),
            reference: Tensor::from_floats(REFERENCE, &device),
        };
        let advantages = answers.spread_constant(&advantages);
        let TokenLosses { losses, ratios } =
            token_losses(kind, level, clip, &scores, advantages, &answers);
        let losses = match beta {
            0.0 => losses,
            beta => losses + k3(&scores) * ratios * beta,
        };
        let (weights, units) = kind.weights(answers.lengths(), &[true; 2], 4);
        let loss = (losses * answers.spread_constant(&weights)).sum() / units;
        let gradients = loss.backward();
        (
            loss.inner().floats()[0],
            leaf.grad(&gradients).unwrap().floats(),
        )
    }

    #[track_caller]
    fn assert_near(found: (f32, Vec<f32>), loss: f32, gradients: [f32; 5]) {
        let near = |(a, b): (&f32, &f32)| (a - b).abs() < 2e-5;
        assert!(near((&found.0, &loss)), "{found:?}, expected {loss}");
        assert!(
            found.1.iter().zip(&gradients).all(near),
            "{found:?}, expected {gradients:?}"
        );
    }

    #[test]
    fn every_loss_of_two_answers() {
        use ImportanceLevel::{Sequence, Token};
        let cispo = Clip { high: 5.0, ..USUAL };
        for (kind, level, clip, loss, gradients) in [
            (
                LossType::Grpo,
                Token,
                USUAL,
                -0.287_872,
                [0.0, -0.150_806, -0.175_212, 0.0, 0.138_146],
            ),
            (
                LossType::Bnpo,
                Token,
                USUAL,
                -0.440_705,
                [0.0, -0.180_967, -0.210_254, 0.0, 0.110_517],
            ),
            (
                LossType::Dapo,
                Token,
                USUAL,
                -0.440_705,
                [0.0, -0.180_967, -0.210_254, 0.0, 0.110_517],
            ),
            (
                LossType::DrGrpo,
                Token,
                USUAL,
                -0.275_440,
                [0.0, -0.113_105, -0.131_409, 0.0, 0.069_073],
            ),
            (
                LossType::Luspo,
                Token,
                USUAL,
                -1.101_762,
                [0.0, -0.452_419, -0.525_636, 0.0, 0.276_293],
            ),
            (
                LossType::Cispo,
                Token,
                cispo,
                0.469_955,
                [-0.269_972, -0.180_967, -0.210_254, 0.067_032, 0.110_517],
            ),
            (
                LossType::Sapo,
                Token,
                USUAL,
                -0.601_897,
                [-0.218_230, -0.150_465, -0.175_097, 0.081_329, 0.137_726],
            ),
            (
                LossType::Grpo,
                Sequence,
                USUAL,
                -0.328_275,
                [-0.181_151, -0.181_151, -0.181_151, 0.107_588, 0.107_588],
            ),
            (
                LossType::Luspo,
                Sequence,
                USUAL,
                -1.200_002,
                [-0.543_452, -0.543_452, -0.543_452, 0.215_177, 0.215_177],
            ),
        ] {
            assert_near(
                worked(kind, level, 0.0, NEW, [1.0, -0.5], clip),
                loss,
                gradients,
            );
        }
    }

    #[test]
    fn the_penalty_is_corrected_by_the_ratio() {
        let found = worked(
            LossType::Grpo,
            ImportanceLevel::Token,
            0.04,
            NEW,
            [1.0, -0.5],
            USUAL,
        );
        assert_near(
            found,
            -0.285_929,
            [0.003_600, -0.151_409, -0.174_161, -0.003_352, 0.140_357],
        );
    }

    #[test]
    fn the_policy_that_wrote_them_has_the_plain_gradient() {
        let found = worked(
            LossType::Grpo,
            ImportanceLevel::Token,
            0.0,
            OLD,
            [1.0, -1.0],
            USUAL,
        );
        assert_near(found, 0.0, [-1.0 / 6.0, -1.0 / 6.0, -1.0 / 6.0, 0.25, 0.25]);
    }

    #[test]
    fn delta_bounds_what_clipping_leaves_free() {
        let ratios = Tensor::<1>::from_floats([3.0, 3.0], &Device::flex());
        let advantages = Tensor::<1>::from_floats([-1.0, 1.0], &Device::flex());
        let clip = Clip {
            delta: Some(2.0),
            ..USUAL
        };
        assert_eq!(
            clipped(ratios.clone(), advantages.clone(), clip).floats(),
            [2.0, -1.2]
        );
        assert_eq!(clipped(ratios, advantages, USUAL).floats(), [3.0, -1.2]);
    }

    #[test]
    fn answers_that_do_not_count_have_no_weight() {
        let (lengths, kept) = ([3.0, 2.0], [true, false]);
        for (kind, weight, units) in [
            (LossType::Grpo, 1.0 / 3.0, 2.0),
            (LossType::Dapo, 1.0, 3.0),
            (LossType::Bnpo, 1.0 / 3.0, 1.0),
            (LossType::DrGrpo, 0.25, 2.0),
            (LossType::Luspo, 1.0, 2.0),
        ] {
            assert_eq!(kind.weights(&lengths, &kept, 4), (vec![weight, 0.0], units));
        }
        assert_eq!(LossType::Dapo.weights(&lengths, &[false; 2], 4).1, 0.0);
    }

    #[test]
    fn what_was_clipped_is_counted() {
        let ratios = [1.349_859, 0.904_837, 1.051_271, 0.670_320, 1.105_171];
        let advantages = [1.0, 1.0, 1.0, -0.5, -0.5];
        assert_eq!(clipped_shares(&ratios, &advantages, USUAL), [1.0, 1.0, 2.0]);
    }
}
