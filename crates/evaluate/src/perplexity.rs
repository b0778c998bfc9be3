//! Perplexity over a corpus: sums first, one division at the end.
//!
//! Each document is scored on its own from its second token on, truncated to the model's context; nothing is scored twice.

use espalier_data::{encode::Example, tokenizer::Tokenizer};
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
    /// Bytes of the scored tokens' text in UTF-8; 0 when unknown.
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

/// Perplexity of `examples`' targets; `bytes` is the size of their text, for bits per byte ([`scored_bytes`]).
///
/// # Errors
/// When a token id is outside the vocabulary, or the model sees what it would predict.
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

/// Bytes of text that the targets of `examples` stand for; special tokens have none. A character that several tokens make
/// counts for its last one.
///
/// # Errors
/// When an id cannot be decoded.
pub fn scored_bytes(tokenizer: &Tokenizer, examples: &[Example]) -> Result<usize> {
    let mut bytes = 0;
    for Example { ids, targets } in examples {
        let mut stream = tokenizer.stream();
        let mut scored = false;
        for (place, id) in ids.iter().enumerate() {
            scored = place > 0 && targets[place];
            let piece = stream.push(*id)?;
            bytes += piece.filter(|_| scored).map_or(0, |piece| piece.len());
        }
        let rest = stream.finish()?;
        bytes += rest.filter(|_| scored).map_or(0, |rest| rest.len());
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;
    use espalier_data::tokenizer::BpeOptions;
    use espalier_models::{source::Seed, spec::ModelSpec};

    #[test]
    fn a_model_that_sees_its_targets_has_no_perplexity() {
        let mut spec = ModelSpec::llama(8, 4, 1, 1, 1, 4, 8);
        spec.bidirectional = true;
        let model = LanguageModel::build(spec, &mut Seed(0), &Device::flex()).unwrap();
        let example = Example::new(vec![1, 2], vec![true; 2]);
        let error = perplexity(&model, &[example], 1, 1).unwrap_err();
        assert!(error.to_string().contains("no perplexity"), "{error}");
    }

    #[test]
    fn only_what_is_scored_has_bytes() {
        let options = BpeOptions {
            vocabulary: 259,
            ..Default::default()
        };
        let tokenizer = Tokenizer::train_byte_level_bpe(std::iter::empty(), &options).unwrap();
        let bytes = |text: &str, from: usize, length: usize| {
            let mut ids = tokenizer.encode_ids(text, false).unwrap();
            ids.extend(tokenizer.id("<|im_end|>"));
            ids.truncate(length);
            scored_bytes(&tokenizer, &[Example::answered(ids, from)]).unwrap()
        };
        // One token a byte; the first is never scored, the end has no text.
        assert_eq!(bytes("a tree", 0, 100), 5);
        assert_eq!(bytes("a tree", 2, 100), 4);
        assert_eq!(bytes("a tree", 0, 3), 2);
        assert_eq!(bytes("café", 4, 100), 2);
        assert_eq!(bytes("a tree", 6, 100), 0);
    }
}
