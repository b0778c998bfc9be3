//! Perplexity over a corpus: sums first, one division at the end.
//!
//! Each document is scored on its own from its second token on, truncated to the model's context; nothing is scored twice.

use espalier_data::encode::Example;
use espalier_engine::score::score;
use espalier_models::model::LanguageModel;

use crate::Result;

/// The likelihood of a corpus.
///
/// ```
/// use espalier_evaluate::perplexity::Perplexity;
/// let perplexity = Perplexity { log_probability: -10.0 * 8f64.ln(), tokens: 10, bytes: 15 };
/// assert!((perplexity.per_token() - 8.0).abs() < 1e-9);
/// assert!((perplexity.bits_per_byte() - 2.0).abs() < 1e-9);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Perplexity {
    /// Sum of natural log-probabilities.
    pub log_probability: f64,
    /// Scored tokens.
    pub tokens: usize,
    /// Bytes of the corpus in UTF-8; 0 when unknown.
    pub bytes: usize,
}

impl Perplexity {
    /// `exp` of the mean negative log-probability of a token.
    pub fn per_token(&self) -> f64 {
        (-self.log_probability / self.tokens.max(1) as f64).exp()
    }

    /// Bits that the model needs for a byte of text, comparable across tokenizers.
    pub fn bits_per_byte(&self) -> f64 {
        -self.log_probability / (self.bytes.max(1) as f64 * std::f64::consts::LN_2)
    }
}

/// Perplexity of `examples`' targets; `bytes` is the corpus' size for bits per byte.
///
/// # Errors
/// When a token id is outside the vocabulary.
pub fn perplexity(
    model: &LanguageModel,
    examples: &[Example],
    bytes: usize,
    batch: usize,
) -> Result<Perplexity> {
    let scores = score(model, examples, batch)?;
    Ok(Perplexity {
        log_probability: scores.iter().map(|score| score.log_probability).sum(),
        tokens: scores.iter().map(|score| score.targets).sum(),
        bytes,
    })
}
