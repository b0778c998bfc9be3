//! Temperature and cuts, and the order in which they follow.

use espalier_data::random::Random;
use serde::{Deserialize, Serialize};

use super::{SamplerOptions, candidates::Candidates, cuts, xtc};

/// A step from all tokens to those that are drawn from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Divides the logits.
    Temperature,
    /// Logits near the largest.
    TopNSigma,
    /// So many of the likeliest.
    TopK,
    /// The likeliest that hold a share.
    TopP,
    /// Those not much less likely than the likeliest.
    MinP,
    /// Those whose surprise is near the entropy.
    TypicalP,
    /// Those above a probability.
    EpsilonCutoff,
    /// Those above a probability that falls with the entropy.
    EtaCutoff,
    /// Now and then not the likeliest.
    Xtc,
}

impl Step {
    /// The usual order, that of Hugging Face's `transformers`.
    pub const USUAL: [Self; 9] = [
        Self::Temperature,
        Self::TopNSigma,
        Self::TopK,
        Self::TopP,
        Self::MinP,
        Self::TypicalP,
        Self::EpsilonCutoff,
        Self::EtaCutoff,
        Self::Xtc,
    ];

    /// The order of llama.cpp, whose temperature comes last.
    pub const LLAMA_CPP: [Self; 9] = [
        Self::TopNSigma,
        Self::TopK,
        Self::TypicalP,
        Self::TopP,
        Self::MinP,
        Self::EpsilonCutoff,
        Self::EtaCutoff,
        Self::Xtc,
        Self::Temperature,
    ];

    /// Its name, which is also that of its option.
    pub fn name(self) -> &'static str {
        match self {
            Self::Temperature => "temperature",
            Self::TopNSigma => "top_n_sigma",
            Self::TopK => "top_k",
            Self::TopP => "top_p",
            Self::MinP => "min_p",
            Self::TypicalP => "typical_p",
            Self::EpsilonCutoff => "epsilon_cutoff",
            Self::EtaCutoff => "eta_cutoff",
            Self::Xtc => "xtc",
        }
    }

    /// The step of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::USUAL.into_iter().find(|step| step.name() == name)
    }

    /// Whether it does anything with these options.
    pub(super) fn is_on(self, options: &SamplerOptions) -> bool {
        match self {
            Self::Temperature => options.temperature != 1.0 && options.temperature != 0.0,
            Self::TopNSigma => options.top_n_sigma > 0.0,
            Self::TopK => options.top_k > 0,
            Self::TopP => options.top_p < 1.0,
            Self::MinP => options.min_p > 0.0,
            Self::TypicalP => options.typical_p < 1.0,
            Self::EpsilonCutoff => options.epsilon_cutoff > 0.0,
            Self::EtaCutoff => options.eta_cutoff > 0.0,
            Self::Xtc => options.xtc.is_some(),
        }
    }

    pub(super) fn apply(
        self,
        candidates: &mut Candidates,
        options: &SamplerOptions,
        random: &mut Random,
    ) {
        match self {
            Self::Temperature => candidates.heat(options.temperature),
            Self::TopNSigma => cuts::top_n_sigma(candidates, options.top_n_sigma),
            Self::TopK => cuts::top_k(candidates, options.top_k),
            Self::TopP => cuts::top_p(candidates, options.top_p),
            Self::MinP => cuts::min_p(candidates, options.min_p),
            Self::TypicalP => cuts::typical(candidates, options.typical_p),
            Self::EpsilonCutoff => cuts::epsilon(candidates, options.epsilon_cutoff),
            Self::EtaCutoff => cuts::eta(candidates, options.eta_cutoff),
            Self::Xtc => {
                if let Some(options) = options.xtc {
                    xtc::exclude(candidates, options, random);
                }
            }
        }
    }
}
