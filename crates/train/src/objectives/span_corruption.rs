//! Span corruption (T5, arXiv 1910.10683, section 3.1.4): spans of a text are replaced by sentinels, and the decoder writes
//! each sentinel with its span.
//!
//! Recipe: `t5.toml`.

use espalier_data::random::Random;
use espalier_models::{model::LanguageModel, taps::Unobserved};
use serde::{Deserialize, Serialize};

use super::{
    Batch, Loss, Objective, PackedRows,
    registry::Entry,
    rows,
    seq2seq::decoder_start,
    symbols::{Symbols, fresh_sentinels},
    wrong,
};
use crate::{
    Result,
    batch::{Sample, TokenBatch, share},
    metrics::{ACCURACY, EXACT_MATCH, MetricDescription},
};

/// How much is removed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SpanOptions {
    /// Share of the tokens that is removed.
    #[schemars(extend("exclusiveMinimum" = 0.0, "exclusiveMaximum" = 1.0))]
    pub density: f64,
    /// Mean length of a removed span, in tokens.
    #[schemars(range(min = 1.0, max = 1e6))]
    pub mean_length: f64,
}

impl Default for SpanOptions {
    fn default() -> Self {
        Self {
            density: 0.15,
            mean_length: 3.0,
        }
    }
}

impl SpanOptions {
    /// # Errors
    /// When shares or lengths make no sense.
    fn check(&self) -> Result<()> {
        let possible =
            self.density > 0.0 && self.density < 1.0 && (1.0..=1e6).contains(&self.mean_length);
        match possible {
            true => Ok(()),
            false => Err(wrong(
                "`density` lies between 0 and 1, and `mean_length` is at least 1",
            )),
        }
    }
}

/// How often a whole span is right.
const SPAN_MATCH: MetricDescription = MetricDescription::share(
    "span_match",
    "accuracy",
    "share of the spans of which every token and the end are the model's first choice",
);

/// The objective's registration.
pub const ENTRY: Entry<SpanOptions> = Entry {
    special_tokens: fresh_sentinels,
    ..Entry::new(
        &[ACCURACY, EXACT_MATCH, SPAN_MATCH],
        PackedRows::Refused,
        SpanOptions::check,
        |options, symbols| Ok(Box::new(SpanCorruption::new(options.clone(), symbols)?)),
    )
};

/// The objective.
#[derive(Debug, Clone)]
pub struct SpanCorruption {
    options: SpanOptions,
    symbols: Symbols,
    start: Option<u32>,
}

impl SpanCorruption {
    /// The objective, where the vocabulary has sentinels.
    ///
    /// # Errors
    /// When options make no sense, there are no sentinels, or the model is no encoder-decoder.
    pub fn new(options: SpanOptions, symbols: &Symbols) -> Result<Self> {
        options.check()?;
        if symbols.sentinels.is_empty() {
            return Err(wrong(
                "`span_corruption` needs sentinels: tokens named `<extra_id_0>`, `<extra_id_1>` and so on",
            ));
        }
        Ok(Self {
            options,
            symbols: symbols.clone(),
            start: decoder_start("span_corruption", symbols)?,
        })
    }

    /// Source and target of a text without its end token; at most as many spans as there are sentinels.
    fn corrupt(&self, text: &[u32], random: &mut Random) -> (Vec<u32>, Vec<u32>) {
        let length = text.len();
        let noise =
            ((length as f64 * self.options.density).round() as usize).clamp(1, length.max(2) - 1);
        let spans = ((noise as f64 / self.options.mean_length).round() as usize).max(1);
        let spans = spans
            .min(noise)
            .min(length - noise)
            .min(self.symbols.sentinels.len());
        let (kept, removed) = (
            segments(length - noise, spans, random),
            segments(noise, spans, random),
        );
        assemble(text, &kept, &removed, &self.symbols)
    }
}

/// Spans that are kept and spans that are removed take turns, the first one kept.
fn assemble(
    text: &[u32],
    kept: &[usize],
    removed: &[usize],
    symbols: &Symbols,
) -> (Vec<u32>, Vec<u32>) {
    let (mut source, mut target, mut place) = (Vec::new(), Vec::new(), 0);
    for ((kept, removed), sentinel) in kept.iter().zip(removed).zip(&symbols.sentinels) {
        source.extend(&text[place..place + kept]);
        source.push(*sentinel);
        target.push(*sentinel);
        target.extend(&text[place + kept..place + kept + removed]);
        place += kept + removed;
    }
    source.extend(symbols.eos);
    target.extend(symbols.eos);
    (source, target)
}

impl SpanCorruption {
    /// For each removed span whether all of it is right, the token behind it included, which says where it ends.
    fn spans_right(&self, targets: &[u32], right: &[bool]) -> Vec<bool> {
        let ends = |target: u32| {
            self.symbols.sentinels.contains(&target) || Some(target) == self.symbols.eos
        };
        let both: Vec<(u32, bool)> = targets.iter().copied().zip(right.iter().copied()).collect();
        let spans = both.split_inclusive(|(target, _)| ends(*target));
        // A row's first sentinel stands alone: no span is before it.
        spans
            .filter(|span| span.len() > 1)
            .map(|span| span.iter().all(|(_, right)| *right))
            .collect()
    }
}

/// `total` cut at random into `count` parts of at least 1.
fn segments(total: usize, count: usize, random: &mut Random) -> Vec<usize> {
    let places: Vec<usize> = (1..total).collect();
    let mut cuts = random.sample(&places, count - 1);
    cuts.sort_unstable();
    let ends = cuts.iter().copied().chain([total]);
    let starts = std::iter::once(0).chain(cuts.iter().copied());
    starts.zip(ends).map(|(start, end)| end - start).collect()
}

impl Objective for SpanCorruption {
    fn name(&self) -> &'static str {
        "span_corruption"
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
        let body = |ids: &[u32]| match (ids.split_last(), self.symbols.eos) {
            (Some((last, rest)), Some(eos)) if *last == eos => rest.to_vec(),
            _ => ids.to_vec(),
        };
        let texts = rows("span_corruption", samples)?
            .into_iter()
            .map(|row| body(&row.ids));
        // A text of one token has nothing to keep beside what is removed.
        let pairs: Vec<_> = texts
            .filter(|text| text.len() > 1)
            .map(|text| self.corrupt(&text, random))
            .collect();
        let tokens = TokenBatch::translations(&pairs, self.start);
        Batch::of_targets(tokens, samples)
    }

    fn loss(&self, model: &LanguageModel, batch: &Batch) -> Result<Loss> {
        let (mut loss, right) = batch.tokens.loss_and_choices(model, &mut Unobserved)?;
        if !right.is_empty() {
            loss.metrics.push(share(
                SPAN_MATCH.name,
                self.spans_right(&batch.tokens.targets, &right).into_iter(),
            ));
        }
        Ok(loss)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn symbols() -> Symbols {
        let sentinels = vec![100, 101, 102, 103];
        Symbols {
            sentinels,
            eos: Some(1),
            decoder_start: Some(0),
            vocabulary: 200,
            ..Symbols::default()
        }
    }

    #[test]
    fn the_example_of_the_paper_s_form() {
        // a b c d e f with the spans {b c} and {e}.
        let (source, target) = assemble(
            &[10, 11, 12, 13, 14, 15],
            &[1, 1, 1],
            &[2, 1, 0],
            &symbols(),
        );
        assert_eq!(source[..5], [10, 100, 13, 101, 15]);
        // A text that ends with a kept span closes its target with one more sentinel.
        assert_eq!(target, [100, 11, 12, 101, 14, 102, 1]);
        let (source, target) = assemble(&[10, 11, 12, 13, 14], &[1, 1], &[2, 1], &symbols());
        assert_eq!(
            (source, target),
            (vec![10, 100, 13, 101, 1], vec![100, 11, 12, 101, 14, 1])
        );
    }

    #[test]
    fn a_span_is_right_with_its_end() {
        let objective = SpanCorruption::new(SpanOptions::default(), &symbols()).unwrap();
        let targets = [100, 11, 12, 101, 14, 1, 100, 11, 1];
        let mut right = [true; 9];
        assert_eq!(objective.spans_right(&targets, &right), [true, true, true]);
        (right[0], right[3], right[8]) = (false, false, false);
        assert_eq!(
            objective.spans_right(&targets, &right),
            [false, true, false]
        );
    }

    #[test]
    fn source_and_target_give_the_text_again() {
        let objective = SpanCorruption::new(SpanOptions::default(), &symbols()).unwrap();
        let mut random = Random::new(5);
        for length in 2..60 {
            let text: Vec<u32> = (10..10 + length).collect();
            let (source, target) = objective.corrupt(&text, &mut random);
            let spans: Vec<&[u32]> = target[..target.len() - 1]
                .split(|id| *id >= 100)
                .skip(1)
                .collect();
            let restored: Vec<u32> = source[..source.len() - 1]
                .iter()
                .flat_map(|id| {
                    if *id >= 100 {
                        spans[*id as usize - 100].to_vec()
                    } else {
                        vec![*id]
                    }
                })
                .collect();
            assert_eq!(restored, text);
            assert!(spans.iter().all(|span| !span.is_empty()));
        }
    }
}
