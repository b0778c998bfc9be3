//! Sequence to sequence (arXiv 1706.03762): an encoder reads what is given, the decoder learns what is asked for, with
//! teacher forcing.
//!
//! The source is what stands before the first target, so conversations and texts serve as they are. Recipe:
//! `transformer.toml`.

use espalier_data::{packing::Row, random::Random};
use espalier_models::model::LanguageModel;
use serde::{Deserialize, Serialize};

use super::{Batch, Loss, Objective, registry::Entry, rows, symbols::Symbols, wrong};
use crate::{
    Result,
    batch::{Sample, TokenBatch},
    metrics::{ACCURACY, EXACT_MATCH},
};

/// The options of sequence to sequence; there are none yet.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SequenceToSequenceOptions {}

/// The objective's registration.
pub const ENTRY: Entry<SequenceToSequenceOptions> = Entry::new(
    &[ACCURACY, EXACT_MATCH],
    |_| Ok(()),
    |_, symbols| Ok(Box::new(SequenceToSequence::new(symbols)?)),
);

/// The objective.
#[derive(Debug, Clone)]
pub struct SequenceToSequence {
    start: Option<u32>,
}

/// The token with which decoders start, or nothing where it is the last of their targets; an error where the model is no
/// encoder-decoder.
pub(super) fn decoder_start(name: &str, symbols: &Symbols) -> Result<Option<u32>> {
    let reason = || format!("`{name}` needs an encoder-decoder, such as T5 or BART");
    let start = symbols.decoder_start.ok_or_else(|| wrong(reason()))?;
    Ok((!symbols.starts_with_last).then_some(start))
}

impl SequenceToSequence {
    /// The objective of an encoder-decoder.
    ///
    /// # Errors
    /// When the model is none.
    pub fn new(symbols: &Symbols) -> Result<Self> {
        Ok(Self {
            start: decoder_start("seq2seq", symbols)?,
        })
    }

    /// What stands before a row's first target, and its targets.
    fn translations(&self, samples: &[&Sample]) -> Result<TokenBatch> {
        let split = |row: &&Row| {
            let first = row
                .targets
                .iter()
                .position(|target| *target)
                .unwrap_or(row.ids.len());
            let asked = (first..row.ids.len())
                .filter(|t| row.targets[*t])
                .map(|t| row.ids[t]);
            (row.ids[..first].to_vec(), asked.collect::<Vec<_>>())
        };
        let pairs: Vec<_> = rows("seq2seq", samples)?.iter().map(split).collect();
        Ok(TokenBatch::translations(&pairs, self.start))
    }
}

impl Objective for SequenceToSequence {
    fn name(&self) -> &'static str {
        "seq2seq"
    }

    fn collate(&self, _: &LanguageModel, samples: &[&Sample], _: &mut Random) -> Result<Batch> {
        Batch::of_targets(self.translations(samples)?, samples)
    }

    fn loss(&self, model: &LanguageModel, batch: &Batch) -> Result<Loss> {
        batch.tokens.loss(model)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use espalier_data::encode::Example;

    #[test]
    fn the_decoder_reads_its_targets_shifted_right() {
        let symbols = Symbols {
            decoder_start: Some(0),
            ..Symbols::default()
        };
        let example = Example::new(vec![5, 6, 7, 8, 9], vec![false, false, true, true, true]);
        let other = Example::new(vec![4, 3], vec![false, true]);
        let samples = [Sample::example(&example), Sample::example(&other)];
        let objective = SequenceToSequence::new(&symbols).unwrap();
        let batch = objective.translations(&[&samples[0], &samples[1]]).unwrap();
        let source = batch.input.source.unwrap();
        assert_eq!(
            (source.ids, source.segments),
            (vec![5, 6, 4, 0], Some(vec![1, 1, 1, 0]))
        );
        assert_eq!(batch.input.ids, [0, 7, 8, 0, 0, 0]);
        let by_language = Symbols {
            starts_with_last: true,
            ..symbols
        };
        let objective = SequenceToSequence::new(&by_language).unwrap();
        let other = objective.translations(&[&samples[0], &samples[1]]).unwrap();
        assert_eq!(other.input.ids, [9, 7, 8, 3, 0, 0]);
        assert_eq!(
            (batch.predictors, batch.targets),
            (vec![0, 1, 2, 3], vec![7, 8, 9, 3])
        );
        assert!(SequenceToSequence::new(&Symbols::default()).is_err());
    }
}
