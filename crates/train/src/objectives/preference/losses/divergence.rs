//! f-DPO (arXiv 2309.16240): other divergences from the reference than the reverse KL. They change what a log-ratio `x` is worth.

use burn::tensor::{Tensor, activation::log_sigmoid};
use serde::{Deserialize, Serialize};

use crate::{Error, Result, choice};

/// What a log-ratio is worth.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Divergence {
    /// `x`.
    #[default]
    ReverseKl,
    /// `1 - exp(-x)`.
    ForwardKl,
    /// `ln 2 + ls(x)`.
    JsDivergence,
    /// `(exp((alpha - 1) x) - 1) / (alpha - 1)`.
    AlphaDivergence(AlphaOptions),
}

/// The options of the alpha divergence.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AlphaOptions {
    /// `alpha`; 1 is the reverse KL.
    #[schemars(range(min = 0.0, max = 1e3))]
    pub alpha: f64,
}

impl Default for AlphaOptions {
    fn default() -> Self {
        Self { alpha: 0.5 }
    }
}

/// The largest exponent, beyond which f32 has no number.
const LARGEST_EXPONENT: f64 = 80.0;

/// Reads a divergence's bare name or table.
///
/// # Errors
/// When the name is unknown or an option wrong.
pub fn named<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Divergence, D::Error> {
    choice::name_or_table(deserializer)
}

impl Divergence {
    /// Whether the options make sense.
    ///
    /// # Errors
    /// When they do not.
    pub fn check(&self) -> Result<()> {
        match self {
            Self::AlphaDivergence(AlphaOptions { alpha }) if !(0.0..=1e3).contains(alpha) => {
                Err(Error::Option {
                    key: "f_divergence",
                    reason: format!("`alpha`: {alpha} is outside 0 to 1000"),
                })
            }
            _ => Ok(()),
        }
    }

    /// What log-ratios are worth, `[pairs]`.
    pub fn score(self, ratios: Tensor<1>) -> Tensor<1> {
        match self {
            Self::ReverseKl => ratios,
            Self::ForwardKl => -bounded_exp(-ratios) + 1.0,
            Self::JsDivergence => log_sigmoid(ratios) + 2f64.ln(),
            Self::AlphaDivergence(AlphaOptions { alpha: 1.0 }) => ratios,
            Self::AlphaDivergence(AlphaOptions { alpha }) => {
                (bounded_exp(ratios * (alpha - 1.0)) - 1.0) / (alpha - 1.0)
            }
        }
    }
}

fn bounded_exp(exponent: Tensor<1>) -> Tensor<1> {
    exponent.clamp_max(LARGEST_EXPONENT).exp()
}
