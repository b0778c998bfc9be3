//! The end of an answer: what the model learns to write last must be a token at which generation ends, or its answers never do.

use std::collections::BTreeMap;

use espalier_data::{
    encode::{Encoded, Encoder},
    record::Record,
    tokenizer::Tokenizer,
};
use espalier_engine::text::end_tokens;
use espalier_models::model::LanguageModel;
use espalier_train::objectives::ObjectiveOptions;

use super::{Voice, data::Sourced};
use crate::{Error, Result};

/// Conversations that are looked at: what ends a turn is the template's, and the same in all of them.
const PROBES: usize = 64;

/// What the answers of a data set end with.
#[derive(Debug, Clone, PartialEq, Eq)]
enum End {
    /// A token at which generation ends.
    Known,
    /// A token that stands for nothing else, and could be one.
    Marker(u32),
    /// Ordinary text; the last that is learned.
    Text(String),
}

/// Makes sure that answers learned from these records end. A mark that is one token becomes an end token of the model.
///
/// # Errors
/// When answers end in ordinary text.
pub fn settle(
    model: &mut LanguageModel,
    tokenizer: &Tokenizer,
    records: &[Sourced],
    objective: &ObjectiveOptions,
    voice: &mut dyn Voice,
) -> Result<()> {
    use ObjectiveOptions::{Cpo, Distill, Dpo, Kto, Orpo, Seq2seq, Sft};
    if !matches!(
        objective,
        Sft(_) | Distill(_) | Dpo(_) | Kto(_) | Orpo(_) | Cpo(_) | Seq2seq(_)
    ) {
        return Ok(());
    }
    let Some(end) = usual_end(model, tokenizer, records) else {
        return Ok(());
    };
    match end {
        End::Known => Ok(()),
        End::Marker(id) => {
            let token = tokenizer.token(id).unwrap_or_default();
            voice.say(&format!(
                "   answers end with `{token}` ({id}), which was no end token of the model; it becomes one in generation_config.json"
            ));
            let mut ends = model.spec().eos.clone();
            ends.push(id);
            model.set_end_tokens(ends);
            Ok(())
        }
        End::Text(text) => Err(Error::work(format!(
            "the chat template ends answers with ordinary text ({text:?}), not with a token at which generation ends, so the trained model would never stop; \
             make the template's mark a token of its own (`--add-tokens MARK` of `train`, `add_tokens = [\"MARK\"]` in a recipe), \
             or choose a template that fits the model (`template = \"plain\"` ends with the tokenizer's end token)"
        ))),
    }
}

/// What most of the conversations end with; nothing where there are none to learn from.
fn usual_end(model: &LanguageModel, tokenizer: &Tokenizer, records: &[Sourced]) -> Option<End> {
    let encoder = Encoder::new(tokenizer.clone(), usize::MAX);
    let ends = end_tokens(model, tokenizer);
    let known = |id: u32| ends.contains(&id);
    let conversations = records
        .iter()
        .map(|sourced| &sourced.record)
        .filter(|record| !matches!(record, Record::Text { .. }));
    let mut counts: BTreeMap<String, (usize, End)> = BTreeMap::new();
    for record in conversations.take(PROBES) {
        // A record that cannot be encoded is told of where all are.
        let Ok(encoded) = encoder.encode(record) else {
            continue;
        };
        if let Some(end) = end_of(&encoded, tokenizer, &known) {
            let key = match &end {
                // Ordinary ends differ from answer to answer.
                End::Text(_) => "text".to_owned(),
                end => format!("{end:?}"),
            };
            counts.entry(key).or_insert((0, end)).0 += 1;
        }
    }
    counts
        .into_values()
        .max_by_key(|(count, _)| *count)
        .map(|(_, end)| end)
}

/// What the last learned turn ends with, blank text behind it aside.
fn end_of(encoded: &Encoded, tokenizer: &Tokenizer, known: &dyn Fn(u32) -> bool) -> Option<End> {
    let example = match encoded {
        Encoded::Example(example) => example,
        Encoded::Pair(pair) => &pair.chosen,
        Encoded::Unpaired { example, .. } => example,
        Encoded::Labelled(_) | Encoded::Dropped { .. } => return None,
    };
    let learned: Vec<u32> = example
        .ids
        .iter()
        .zip(&example.targets)
        .filter_map(|(id, target)| target.then_some(*id))
        .collect();
    let text = |ids: &[u32]| tokenizer.decode(ids, false).unwrap_or_default();
    let is_blank =
        |id: &&u32| !known(**id) && !tokenizer.is_added(**id) && text(&[**id]).trim().is_empty();
    let last = *learned.iter().rev().find(|id| !is_blank(id))?;
    Some(if known(last) {
        End::Known
    } else if tokenizer.is_added(last) {
        End::Marker(last)
    } else {
        End::Text(text(&learned[learned.len().saturating_sub(12)..]))
    })
}
