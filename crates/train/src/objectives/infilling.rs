//! BART's denoising (arXiv 1910.13461, section 2.2): spans whose length is drawn from a Poisson distribution are replaced by one
//! mask token each, none-long ones insert one, sentences come in another order where asked, and the decoder writes the whole text.
//!
//! A sentence ends with a token that ends with `.`, `!` or `?`. Recipe: `bart.toml`.

use std::collections::HashSet;

use espalier_data::random::Random;
use espalier_models::model::LanguageModel;
use serde::{Deserialize, Serialize};

use super::{
    Batch, Loss, Objective, PackedRows,
    registry::Entry,
    rows,
    seq2seq::decoder_start,
    symbols::{Symbols, fresh_mask},
    wrong,
};
use crate::{
    Result,
    batch::{Sample, TokenBatch},
    metrics::{ACCURACY, EXACT_MATCH},
};

/// How much is masked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct InfillingOptions {
    /// Share of the tokens that is masked.
    #[schemars(extend("exclusiveMinimum" = 0.0, "exclusiveMaximum" = 1.0))]
    pub share: f64,
    /// Mean length of a masked span, in tokens.
    #[schemars(range(min = 0.1, max = 100.0))]
    pub mean_length: f64,
    /// Whether sentences are put into another order first, as BART's authors do.
    pub permute_sentences: bool,
}

impl Default for InfillingOptions {
    fn default() -> Self {
        Self {
            share: 0.3,
            mean_length: 3.0,
            permute_sentences: false,
        }
    }
}

impl InfillingOptions {
    /// # Errors
    /// When shares or lengths make no sense.
    fn check(&self) -> Result<()> {
        let possible =
            self.share > 0.0 && self.share < 1.0 && (0.1..=100.0).contains(&self.mean_length);
        match possible {
            true => Ok(()),
            false => Err(wrong(
                "`share` lies between 0 and 1, `mean_length` between 0.1 and 100",
            )),
        }
    }
}

/// The objective's registration.
pub const ENTRY: Entry<InfillingOptions> = Entry {
    special_tokens: fresh_mask,
    ..Entry::new(
        &[ACCURACY, EXACT_MATCH],
        PackedRows::Refused,
        InfillingOptions::check,
        |options, symbols| Ok(Box::new(Infilling::new(options.clone(), symbols)?)),
    )
};

/// The objective.
#[derive(Debug, Clone)]
pub struct Infilling {
    options: InfillingOptions,
    special: Vec<u32>,
    sentence_ends: HashSet<u32>,
    mask: u32,
    start: Option<u32>,
}

impl Infilling {
    /// The objective, where the vocabulary has a token to mask with.
    ///
    /// # Errors
    /// When options make no sense, there is no mask token, or the model is no encoder-decoder.
    pub fn new(options: InfillingOptions, symbols: &Symbols) -> Result<Self> {
        options.check()?;
        let mask = symbols
            .mask
            .ok_or_else(|| wrong("`infilling` needs a mask token, such as `<mask>`"))?;
        if options.permute_sentences && symbols.sentence_ends.is_empty() {
            return Err(wrong(
                "`permute_sentences` needs tokens that end with `.`, `!` or `?`",
            ));
        }
        let (special, sentence_ends) = (
            symbols.special.clone(),
            symbols.sentence_ends.iter().copied().collect(),
        );
        Ok(Self {
            options,
            special,
            sentence_ends,
            mask,
            start: decoder_start("infilling", symbols)?,
        })
    }

    /// The text with its sentences in another order; special tokens around it stay where they are.
    fn permuted(&self, text: &[u32], random: &mut Random) -> Vec<u32> {
        let is_text = |id: &u32| !self.special.contains(id);
        let first = text.iter().position(is_text).unwrap_or(text.len());
        let end = text
            .iter()
            .rposition(is_text)
            .map_or(first, |last| last + 1);
        let mut sentences: Vec<&[u32]> = text[first..end]
            .split_inclusive(|id| self.sentence_ends.contains(id))
            .collect();
        random.shuffle(&mut sentences);
        [&text[..first], &sentences.concat(), &text[end..]].concat()
    }

    fn corrupt(&self, text: &[u32], random: &mut Random) -> Vec<u32> {
        let permuted = self
            .options
            .permute_sentences
            .then(|| self.permuted(text, random));
        let text = permuted.as_deref().unwrap_or(text);
        let mut wanted = (text.len() as f64 * self.options.share).round() as usize;
        let mut masked = vec![false; text.len()];
        let mut inserted = vec![false; text.len()];
        // Spans end before what is masked already or must stay, so some draws add nothing.
        for _ in 0..10 * text.len() {
            if wanted == 0 {
                break;
            }
            let start = random.below(text.len());
            let length = poisson(self.options.mean_length, random).min(wanted);
            let stays = |t: &usize| masked[*t] || self.special.contains(&text[*t]);
            let end = (start..(start + length).min(text.len()))
                .find(stays)
                .unwrap_or((start + length).min(text.len()));
            if length == 0 {
                inserted[start] = true;
            }
            masked[start..end].fill(true);
            wanted -= end - start;
        }
        let mut noisy = Vec::with_capacity(text.len());
        for (t, id) in text.iter().enumerate() {
            if inserted[t] && !masked[t] {
                noisy.push(self.mask);
            }
            match masked[t] {
                false => noisy.push(*id),
                true if t == 0 || !masked[t - 1] => noisy.push(self.mask),
                true => {}
            }
        }
        noisy
    }
}

/// A number drawn from the Poisson distribution (Knuth's product of uniform numbers).
fn poisson(mean: f64, random: &mut Random) -> usize {
    let (limit, mut product, mut count) = ((-mean).exp(), random.f(), 0);
    while product > limit {
        product *= random.f();
        count += 1;
    }
    count
}

impl Objective for Infilling {
    fn name(&self) -> &'static str {
        "infilling"
    }

    fn packed_rows(&self) -> PackedRows {
        ENTRY.packed_rows
    }

    fn collate(
        &self,
        _: &LanguageModel,
        samples: &[&Sample],
        random: &mut Random,
    ) -> Result<Batch> {
        let texts = rows("infilling", samples)?;
        let pairs: Vec<_> = texts
            .iter()
            .map(|row| (self.corrupt(&row.ids, random), row.ids.clone()))
            .collect();
        let tokens = TokenBatch::translations(&pairs, self.start);
        Batch::of_targets(tokens, samples)
    }

    fn loss(&self, model: &LanguageModel, batch: &Batch) -> Result<Loss> {
        batch.tokens.loss(model)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_change_places_and_stay_whole() {
        let symbols = Symbols {
            mask: Some(99),
            decoder_start: Some(0),
            special: vec![1, 2],
            sentence_ends: vec![50, 51],
            ..Symbols::default()
        };
        let options = InfillingOptions {
            permute_sentences: true,
            ..InfillingOptions::default()
        };
        let objective = Infilling::new(options.clone(), &symbols).unwrap();
        let text = [1, 10, 11, 50, 12, 51, 13, 14, 15, 2];
        let mut seen = HashSet::new();
        for seed in 0..100 {
            let permuted = objective.permuted(&text, &mut Random::new(seed));
            assert!(permuted[0] == 1 && permuted[9] == 2);
            let has = |part: &[u32]| permuted.windows(part.len()).any(|window| window == part);
            assert!(has(&[10, 11, 50]) && has(&[12, 51]) && has(&[13, 14, 15]));
            seen.insert(permuted);
        }
        assert_eq!(seen.len(), 6);
        assert!(
            Infilling::new(
                options,
                &Symbols {
                    sentence_ends: Vec::new(),
                    ..symbols
                }
            )
            .is_err()
        );
    }

    #[test]
    fn a_third_is_masked_in_spans_of_three() {
        let symbols = Symbols {
            mask: Some(99),
            decoder_start: Some(0),
            special: vec![1],
            ..Symbols::default()
        };
        let objective = Infilling::new(InfillingOptions::default(), &symbols).unwrap();
        let mut random = Random::new(4);
        let (mut kept, mut total, mut lengths) = (0, 0, Vec::new());
        for _ in 0..100 {
            let text: Vec<u32> = (0..1000)
                .map(|i| if i == 999 { 1 } else { 2 + i % 50 })
                .collect();
            let noisy = objective.corrupt(&text, &mut random);
            assert_eq!(noisy.last(), Some(&1));
            kept += noisy.iter().filter(|id| **id != 99).count();
            total += text.len();
        }
        for _ in 0..20_000 {
            lengths.push(poisson(3.0, &mut random) as f64);
        }
        let masked = 1.0 - kept as f64 / total as f64;
        let mean = lengths.iter().sum::<f64>() / lengths.len() as f64;
        assert!(
            (masked - 0.3).abs() < 0.01 && (mean - 3.0).abs() < 0.05,
            "{masked} {mean}"
        );
    }
}
