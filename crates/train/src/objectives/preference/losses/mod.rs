//! The losses of a pair, by the names of TRL: functions of the log-ratios `a` and `b` of its better and worse answer to the reference,
//! or of what a divergence makes of these. `beta` is their scale, `ls(x) = log sigmoid(x)`, `D = a - b`.

pub mod absolute;
pub mod difference;
pub mod distribution;
pub mod divergence;
pub mod mixture;

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// A loss of pairs.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum PairLoss {
    /// `-ls(beta D)`: DPO, arXiv 2305.18290.
    Sigmoid,
    /// `max(0, 1 - beta D)`: SLiC, arXiv 2305.10425.
    Hinge,
    /// `(a / n_w - b / n_l - 1 / (2 beta))^2` with the answers' lengths, as in TRL: IPO, arXiv 2310.12036.
    Ipo,
    /// `(D - 1 / (2 beta))^2`: IPO as in its paper.
    IpoRaw,
    /// `(-(1 - e) ls(beta D) + e ls(-beta D)) / (1 - 2 e)`: unbiased where a share `e` of the pairs is turned round, arXiv 2403.00409.
    Robust,
    /// `-(1 - e) ls(beta D) - e ls(-beta D)`: conservative DPO.
    Cdpo,
    /// `q (ls(beta D) - ln(1 - e)) + (1 - q) (ls(-beta D) - ln e)`, `q = sigmoid(beta D)`: EXO, arXiv 2402.00856.
    ExoPair,
    /// `-ls(beta a) - ls(-beta a) / 2 - ls(-beta b) / 2`: NCA, arXiv 2402.05369.
    NcaPair,
    /// `-ls(beta a) - ls(-beta b)`: BCO without its shift, as in TRL's DPO.
    BcoPair,
    /// `-ls(beta a - d) - ls(d - beta b)`, `d` the mean of all rewards so far, those of the batch included: BCO, arXiv 2404.04656.
    Bco,
    /// `(a - 1 / (2 beta))^2 + (b + 1 / (2 beta))^2`: SPPO, arXiv 2405.00675.
    SppoHard,
    /// `-(1 - e) ls(beta d) - e ls(-beta d)`, `d` the sorted margins of the policy less the sorted ones of the reference, in a forward pass:
    /// AOT, arXiv 2406.05882.
    Aot,
    /// The same, `d` the sorted `a` less the sorted `b`.
    AotUnpaired,
    /// `1 - sigmoid(beta a) + sigmoid(beta b)`: APO, where chosen answers are better than the model's own, arXiv 2408.06266.
    ApoZero,
    /// `sigmoid(beta a) + 1 - sigmoid(beta D)`: APO, where they are worse.
    ApoDown,
    /// `m exp(-beta D) - (1 - m) ls(beta D)`, `m = sigmoid(beta D / tau)`: DiscoPOP, arXiv 2406.08414.
    Discopop,
    /// `-ls(beta (a / n_w - b / n_l))`.
    SigmoidNorm,
    /// The negative log-likelihood of the better answers, a mean over the tokens of the whole step; with `sigmoid` RPO.
    Sft,
}

/// Pairs as losses see them, each vector `[pairs]`.
#[derive(Debug, Clone)]
pub struct Pairs {
    /// `a`: the better answers' log-ratios, or what a divergence makes of them.
    pub chosen: Tensor<1>,
    /// `b`: the worse answers'.
    pub rejected: Tensor<1>,
    /// Tokens of the better answers.
    pub chosen_tokens: Tensor<1>,
    /// Tokens of the worse answers.
    pub rejected_tokens: Tensor<1>,
    /// The policy's log-probability of the better answer less that of the worse.
    pub policy_margins: Tensor<1>,
    /// The reference's.
    pub reference_margins: Tensor<1>,
}

impl Pairs {
    fn difference(&self) -> Tensor<1> {
        self.chosen.clone() - self.rejected.clone()
    }

    fn difference_of_means(&self) -> Tensor<1> {
        self.chosen.clone() / self.chosen_tokens.clone()
            - self.rejected.clone() / self.rejected_tokens.clone()
    }
}

/// The numbers in the formulas.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Constants {
    /// Scale of the log-ratios.
    pub beta: f64,
    /// `e`; what is usual for the loss where absent.
    pub label_smoothing: Option<f64>,
    /// `tau`.
    pub tau: f64,
    /// `d`.
    pub mean_reward: f64,
}

impl PairLoss {
    /// The loss of every pair, `[pairs]`; none of [`PairLoss::Sft`], which is a mean over tokens.
    pub fn of(self, pairs: &Pairs, constants: Constants) -> Option<Tensor<1>> {
        let Constants {
            beta,
            tau,
            mean_reward,
            ..
        } = constants;
        let smoothing = constants.label_smoothing.unwrap_or(self.usual_smoothing());
        let (a, b) = (pairs.chosen.clone(), pairs.rejected.clone());
        let scaled = || pairs.difference() * beta;
        Some(match self {
            Self::Sigmoid => difference::sigmoid(scaled()),
            Self::Hinge => difference::hinge(scaled()),
            Self::Ipo => difference::ipo(pairs.difference_of_means(), beta),
            Self::IpoRaw => difference::ipo(pairs.difference(), beta),
            Self::Robust => difference::robust(scaled(), smoothing),
            Self::Cdpo => difference::smoothed(scaled(), smoothing),
            Self::ExoPair => difference::exo(scaled(), smoothing),
            Self::Discopop => difference::discopop(scaled(), tau),
            Self::SigmoidNorm => difference::sigmoid(pairs.difference_of_means() * beta),
            Self::NcaPair => absolute::nca(a * beta, b * beta),
            Self::BcoPair => absolute::bco(a * beta, b * beta, 0.0),
            Self::Bco => absolute::bco(a * beta, b * beta, mean_reward),
            Self::SppoHard => absolute::sppo(a, b, beta),
            Self::ApoZero => absolute::apo_zero(a * beta, b * beta),
            Self::ApoDown => absolute::apo_down(a * beta, scaled()),
            Self::Aot => {
                let margins = distribution::sorted_difference(
                    pairs.policy_margins.clone(),
                    pairs.reference_margins.clone(),
                );
                difference::smoothed(margins * beta, smoothing)
            }
            Self::AotUnpaired => {
                difference::smoothed(distribution::sorted_difference(a, b) * beta, smoothing)
            }
            Self::Sft => return None,
        })
    }

    /// The label smoothing that is usual.
    fn usual_smoothing(self) -> f64 {
        match self {
            Self::Robust | Self::Cdpo => 0.1,
            Self::ExoPair => 1e-3,
            _ => 0.0,
        }
    }

    /// Whether label smoothing changes it.
    pub fn is_smoothed(self) -> bool {
        matches!(
            self,
            Self::Robust | Self::Cdpo | Self::ExoPair | Self::Aot | Self::AotUnpaired
        )
    }

    /// Whether a pair's loss depends on other pairs of the forward pass.
    pub fn is_of_batch(self) -> bool {
        matches!(self, Self::Aot | Self::AotUnpaired)
    }

    /// Whether it may be a function of another divergence's scores.
    pub fn allows_divergence(self) -> bool {
        matches!(
            self,
            Self::Sigmoid
                | Self::SigmoidNorm
                | Self::Hinge
                | Self::Ipo
                | Self::IpoRaw
                | Self::ExoPair
                | Self::Robust
                | Self::Cdpo
                | Self::Discopop
                | Self::Sft
        )
    }
}

#[cfg(test)]
mod tests;
