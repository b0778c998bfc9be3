//! Sequence to sequence (arXiv 1706.03762): an encoder reads what is given, the decoder learns what is asked for, with
//! teacher forcing.
//!
//! Every answer of a conversation is a pair of its own, whose source is all that stands before it, earlier answers included.
//! Recipe: `transformer.toml`.

use espalier_data::{packing::Row, random::Random};
use espalier_models::model::LanguageModel;
use serde::{Deserialize, Serialize};

use super::{Batch, Loss, Objective, PackedRows, registry::Entry, rows, symbols::Symbols, wrong};
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
    PackedRows::Refused,
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

    /// Every answer of every row.
    fn translations(&self, samples: &[&Sample]) -> Result<TokenBatch> {
        let rows = rows("seq2seq", samples)?;
        let pairs: Vec<_> = rows.into_iter().flat_map(answers).collect();
        Ok(TokenBatch::translations(&pairs, self.start))
    }
}

/// Each run of a row's targets, and all that stands before it.
fn answers(row: &Row) -> Vec<(Vec<u32>, Vec<u32>)> {
    let mut pairs = Vec::new();
    let mut start = 0;
    for run in row.targets.chunk_by(|a, b| a == b) {
        let end = start + run.len();
        if run[0] {
            pairs.push((row.ids[..start].to_vec(), row.ids[start..end].to_vec()));
        }
        start = end;
    }
    pairs
}

impl Objective for SequenceToSequence {
    fn name(&self) -> &'static str {
        "seq2seq"
    }

    fn packed_rows(&self) -> PackedRows {
        ENTRY.packed_rows
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

    #[test]
    fn every_answer_has_all_that_stands_before_it_as_its_source() {
        let objective = SequenceToSequence { start: Some(0) };
        let targets = [false, true, true, false, false, true];
        let example = Example::new(vec![5, 6, 7, 8, 9, 10], targets.to_vec());
        let batch = objective
            .translations(&[&Sample::example(&example)])
            .unwrap();
        let source = batch.input.source.unwrap();
        assert_eq!(source.ids, [5, 0, 0, 0, 0, 5, 6, 7, 8, 9]);
        assert_eq!(batch.input.ids, [0, 6, 0, 0]);
        assert_eq!((batch.targets, batch.rows), (vec![6, 7, 10], vec![0, 0, 1]));
    }
}
