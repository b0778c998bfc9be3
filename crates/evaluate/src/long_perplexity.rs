//! LongPPL: perplexity over the tokens that need the far context.
//!
//! Fang and others, "What is Wrong with Perplexity for Long-context Language Modeling?" (arXiv 2410.23771). An evaluator reads a
//! text whole and in short pieces; a token is a key token where the whole text makes it much likelier than the piece, and likely.
//! The perplexity of any model, over its own tokens that lie within the key tokens' characters, is its LongPPL. The evaluator may
//! be another model with another tokenizer. It differs from the authors' program in one token: where a text's first token is a
//! key token, theirs counts the loss of its last.

use std::ops::Range;

use espalier_engine::{score::token_log_probabilities, text::TextModel};
use serde::{Deserialize, Serialize};

use crate::{Result, perplexity::Perplexity};

/// How key tokens are found; the defaults are the published ones.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct KeyOptions {
    /// Tokens of the short context.
    pub short: usize,
    /// Tokens that share a short context, and follow it.
    pub window: usize,
    /// Nats that the whole text must gain over the short context.
    pub gain: f64,
    /// Nats below which the loss of a key token must lie, given the whole text.
    pub loss: f64,
}

impl Default for KeyOptions {
    fn default() -> Self {
        Self {
            short: 4096,
            window: 1024,
            gain: 2.0,
            loss: 2.0,
        }
    }
}

/// The likelihood of a text's key tokens, and of all.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct LongPerplexity {
    /// Over the key tokens; LongPPL is its perplexity for a token.
    pub key: Perplexity,
    /// Over all tokens but the first.
    pub all: Perplexity,
}

impl LongPerplexity {
    /// Adds the likelihood of another text.
    pub fn add(&mut self, other: &Self) {
        for (sum, part) in [(&mut self.key, &other.key), (&mut self.all, &other.all)] {
            sum.log_probability += part.log_probability;
            sum.tokens += part.tokens;
        }
    }
}

/// Spans of characters of `text` that are key to the evaluator, in order and apart.
///
/// # Errors
/// When the text cannot be encoded, or the model gives no likelihoods.
pub fn key_spans(
    evaluator: &TextModel,
    text: &str,
    options: &KeyOptions,
) -> Result<Vec<Range<usize>>> {
    let encoding = evaluator.tokenizer.encode(text, true)?;
    let ids = &encoding.ids;
    let (short, window) = (options.short.max(1), options.window.max(1));
    if ids.len() <= short {
        return Ok(Vec::new());
    }
    let whole = token_log_probabilities(&evaluator.model, ids, short)?;
    let mut piecewise = Vec::with_capacity(whole.len());
    for start in (0..ids.len() - short).step_by(window) {
        let piece = &ids[start..(start + short + window).min(ids.len())];
        piecewise.extend(token_log_probabilities(&evaluator.model, piece, short)?);
    }
    let key = whole.iter().zip(&piecewise).enumerate();
    let key = key.filter(|(_, (whole, piece))| is_key(**whole, **piece, options));
    let spans = key.map(|(place, _)| encoding.offsets[short + place]);
    Ok(merged(spans))
}

/// Whether the whole text makes a token much likelier than the short context, and likely; log-probabilities.
fn is_key(whole: f64, short: f64, options: &KeyOptions) -> bool {
    whole - short > options.gain && -whole < options.loss
}

/// Spans of which one begins where another ends are one.
fn merged(spans: impl Iterator<Item = (usize, usize)>) -> Vec<Range<usize>> {
    let mut merged: Vec<Range<usize>> = Vec::new();
    for (start, end) in spans {
        match merged.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => merged.push(start..end),
        }
    }
    merged
}

/// The likelihood that a model gives the text, and the part within the spans.
///
/// # Errors
/// When the text cannot be encoded, or the model gives no likelihoods.
pub fn long_perplexity(
    model: &TextModel,
    text: &str,
    spans: &[Range<usize>],
) -> Result<LongPerplexity> {
    let encoding = model.tokenizer.encode(text, false)?;
    let scores = token_log_probabilities(&model.model, &encoding.ids, 1)?;
    Ok(within(
        &scores,
        encoding.offsets.get(1..).unwrap_or_default(),
        spans,
    ))
}

/// Sums over tokens with their characters, and over those within the spans.
fn within(scores: &[f64], offsets: &[(usize, usize)], spans: &[Range<usize>]) -> LongPerplexity {
    let perplexity = |scores: &mut dyn Iterator<Item = f64>| {
        let mut perplexity = Perplexity::default();
        for score in scores {
            perplexity.log_probability += score;
            perplexity.tokens += 1;
        }
        perplexity
    };
    let is_within = |(start, end): (usize, usize)| {
        let place = spans.partition_point(|span| span.end < end);
        let span = spans.get(place);
        span.is_some_and(|span| span.start <= start && end <= span.end)
    };
    let key = scores.iter().zip(offsets);
    let mut key = key
        .filter(|(_, span)| is_within(**span))
        .map(|(score, _)| *score);
    LongPerplexity {
        key: perplexity(&mut key),
        all: perplexity(&mut scores.iter().copied()),
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use espalier_data::tokenizer::{BpeOptions, Tokenizer};
    use espalier_models::{model::LanguageModel, source::Seed, spec::ModelSpec};

    use super::*;

    #[test]
    fn key_tokens_gain_by_the_far_context() {
        let options = KeyOptions::default();
        assert!(is_key(-0.1, -2.2, &options));
        assert!(!is_key(-0.1, -2.0, &options)); // gains too little
        assert!(!is_key(-2.5, -9.0, &options)); // is unlikely all the same
        let spans = [(3, 5), (5, 9), (10, 12)];
        assert_eq!(merged(spans.into_iter()), [3..9, 10..12]);
    }

    #[test]
    fn only_tokens_within_the_spans_are_key() {
        let scores = [-1.0, -2.0, -3.0, -4.0, -5.0];
        // The second token lies within, the third reaches out, the fourth is a span of its own, the fifth is behind.
        let offsets = [(0, 3), (3, 6), (6, 10), (12, 14), (14, 15)];
        let found = within(&scores, &offsets, &[3..9, 12..14]);
        assert_eq!((found.key.log_probability, found.key.tokens), (-6.0, 2));
        assert_eq!((found.all.log_probability, found.all.tokens), (-15.0, 5));
        assert_eq!(within(&scores, &offsets, &[]).key, Perplexity::default());
        let mut sum = found;
        sum.add(&found);
        assert_eq!((sum.key.tokens, sum.all.tokens), (4, 10));
    }

    fn model() -> TextModel {
        let options = BpeOptions {
            vocabulary: 259,
            ..Default::default()
        };
        let tokenizer = Tokenizer::train_byte_level_bpe(std::iter::empty(), &options).unwrap();
        let spec = ModelSpec::llama(tokenizer.vocabulary_size(), 16, 2, 2, 1, 32, 256);
        let model = LanguageModel::build(spec, &mut Seed(3), &Device::flex()).unwrap();
        TextModel { model, tokenizer }
    }

    #[test]
    fn short_contexts_are_those_of_the_definition() {
        let model = model();
        let text: String = ('a'..='z').cycle().take(50).collect();
        let options = KeyOptions {
            short: 8,
            window: 3,
            gain: 0.0,
            loss: 1e9,
        };
        let spans = key_spans(&model, &text, &options).unwrap();
        // One token a byte, so that spans are places of tokens.
        let ids = model.tokenizer.encode_ids(&text, true).unwrap();
        assert_eq!(ids.len(), 50);
        let whole = token_log_probabilities(&model.model, &ids, 1).unwrap();
        let is_key = |place: usize| {
            let start = (place - 8) / 3 * 3;
            let piece = token_log_probabilities(&model.model, &ids[start..=place], place - start);
            whole[place - 1] > piece.unwrap()[0]
        };
        let mut places = (8..50).filter(|place| is_key(*place)).peekable();
        assert!(places.peek().is_some());
        assert_eq!(spans, merged(places.map(|place| (place, place + 1))));
        let found = long_perplexity(&model, &text, &spans).unwrap();
        let tokens: usize = spans.iter().map(Range::len).sum();
        assert_eq!((found.key.tokens, found.all.tokens), (tokens, 49));
        assert!(key_spans(&model, "short", &options).unwrap().is_empty());
    }

    #[test]
    fn figures_are_those_of_the_authors_program() {
        let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures");
        let file =
            |name: &str| std::fs::read(format!("{fixtures}/long-perplexity/{name}")).unwrap();
        let reader = |model: &str, tokenizer: &str| {
            let folder = format!("{fixtures}/{model}");
            let loaded = espalier_models::folder::load(folder.as_ref(), &Device::flex()).unwrap();
            TextModel {
                model: loaded.model,
                tokenizer: Tokenizer::from_json(&file(tokenizer)).unwrap(),
            }
        };
        let expected: serde_json::Value = serde_json::from_slice(&file("expected.json")).unwrap();
        let number = |name: &str| expected[name].as_f64().unwrap();
        let text = expected["text"].as_str().unwrap();
        let options = KeyOptions {
            short: number("trunc_len") as usize,
            window: number("sliding_window") as usize,
            gain: number("alpha"),
            loss: -number("beta"),
        };
        let spans = key_spans(&reader("llama", "letters.json"), text, &options).unwrap();
        let theirs: Vec<[usize; 2]> = serde_json::from_value(expected["spans"].clone()).unwrap();
        let ours: Vec<[usize; 2]> = spans.iter().map(|span| [span.start, span.end]).collect();
        assert_eq!(ours, theirs);
        let found = long_perplexity(&reader("gpt2", "pairs.json"), text, &spans).unwrap();
        assert_eq!(found.key.tokens as f64, number("n_key_token"));
        assert_eq!(found.all.tokens as f64 + 1.0, number("n_token"));
        for (ours, theirs) in [(found.key, "longppl"), (found.all, "ppl")] {
            let ratio = ours.per_token() / number(theirs);
            assert!((ratio - 1.0).abs() < 1e-5, "{theirs}: {ratio}");
        }
    }
}
