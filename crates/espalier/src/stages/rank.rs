//! The stage that sorts preferences from easy to hard, by how sure a model is of them (sDPO, arXiv 2403.19270, section 3).

use std::path::Path;

use espalier_data::{
    encode::{Encoded, Encoder, Example},
    readers::{self, Wanted},
};
use espalier_engine::score::{Score, score};
use espalier_models::model::LanguageModel;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{
    data::{self, Sourced},
    kinds::{ArtifactKind, Input, Output, StageKind, Workplace, keys},
    model,
};
use crate::{
    Error, Result,
    recipe::{DataOptions, shorthand},
};

/// The files that it leaves: all pairs, and either half.
const ALL: &str = "ranked.jsonl";
const EASY: &str = "easy.jsonl";
const HARD: &str = "hard.jsonl";

/// Answers that are scored at once.
const BATCH: usize = 32;

/// Ranking: preferences sorted by the model's log-probability of the better answer less that of the worse, the largest first. The stage
/// leaves the data set `NAME`, and its halves `NAME.easy` and `NAME.hard`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RankStage {
    /// A model or adapter folder, or the name of an earlier stage.
    pub model: String,
    /// Preferences: a path, a table, or a list of these.
    #[serde(deserialize_with = "shorthand::one_or_many")]
    #[schemars(schema_with = "shorthand::one_or_many_schema")]
    pub data: Vec<DataOptions>,
    /// Longest text in tokens; of longer ones the beginning counts.
    #[serde(default = "usual_length")]
    #[schemars(range(min = 2))]
    pub length: usize,
}

fn usual_length() -> usize {
    1024
}

impl StageKind for RankStage {
    fn check(&self) -> Result<()> {
        match (self.length, self.data.is_empty()) {
            (0 | 1, _) => Err(Error::usage("`length` must be at least 2")),
            (_, true) => Err(Error::usage(
                "`data`: give preferences that are to be sorted",
            )),
            _ => Ok(()),
        }
    }

    fn inputs(&mut self) -> Vec<Input<'_>> {
        let data = self.data.iter_mut().map(Input::Data);
        [Input::Model(&mut self.model)]
            .into_iter()
            .chain(data)
            .collect()
    }

    fn outputs(&self) -> Vec<Output> {
        let output = |part, path| Output {
            part,
            kind: ArtifactKind::Data,
            path,
        };
        vec![output("", ALL), output("easy", EASY), output("hard", HARD)]
    }

    fn seed(&mut self) -> Option<&mut u64> {
        None
    }

    fn deciding_keys(&self) -> Result<Value> {
        keys(self)
    }

    fn run(&self, workplace: &mut Workplace) -> Result<Value> {
        let records = data::records(&self.data, Wanted::Pairs, workplace.voice)?;
        let path = Path::new(&self.model);
        let start = model::open(path, &Map::new(), None, None, workplace.device)?;
        let mut model = start.loaded.model;
        model.merge_what_can_be();
        let encoder = Encoder::new(start.tokenizer, self.length);
        let (mut pairs, mut answers) = (Vec::new(), Vec::new());
        for sourced in &records {
            if let Encoded::Pair(pair) = sourced.encoded(&encoder)? {
                pairs.push(sourced);
                answers.extend([pair.chosen, pair.rejected]);
            }
        }
        let left_out = records.len() - pairs.len();
        if left_out > 0 {
            workplace.voice.say(&format!(
                "   {left_out} of {} records left out: they are no pairs of different answers within `length` = {}",
                records.len(),
                self.length
            ));
        }
        let margins = margins(&model, &answers)?;
        let sorted = sorted(pairs, &margins);
        let Some((first, last)) = sorted.first().zip(sorted.last()) else {
            return Err(Error::work(
                "no pair of a better and a worse answer is left to be sorted; check the data, or raise `length`",
            ));
        };
        let (easiest, hardest) = (first.0, last.0);
        let right = margins.iter().filter(|margin| **margin > 0.0).count();
        let middle = sorted.len().div_ceil(2);
        for (file, part) in [
            (ALL, &sorted[..]),
            (EASY, &sorted[..middle]),
            (HARD, &sorted[middle..]),
        ] {
            let lines = part.iter().map(|(_, pair)| readers::to_json(&pair.record));
            readers::write_jsonl(workplace.folder.join(file), lines)?;
        }
        workplace.voice.say(&format!(
            "   {} pairs from a margin of {easiest:.3} to {hardest:.3} nats, {right} of them the right way round; at the middle {:.3}",
            sorted.len(),
            sorted[middle - 1].0
        ));
        Ok(json!({
            "kind": "rank",
            "pairs": sorted.len(),
            "left_out": left_out,
            "right": right as f64 / sorted.len() as f64,
            "easiest": easiest,
            "middle": sorted[middle - 1].0,
            "hardest": hardest,
        }))
    }
}

/// The log-probability of each better answer less that of the worse one, which follows it.
fn margins(model: &LanguageModel, answers: &[Example]) -> Result<Vec<f64>> {
    let scores = score(model, answers, BATCH)?;
    let margin = |pair: &[Score]| pair[0].log_probability - pair[1].log_probability;
    Ok(scores.chunks_exact(2).map(margin).collect())
}

/// The pairs with their margins, the largest first, those with equal ones in their order.
fn sorted<'a>(pairs: Vec<&'a Sourced>, margins: &[f64]) -> Vec<(f64, &'a Sourced)> {
    let mut all: Vec<(f64, &Sourced)> = margins.iter().copied().zip(pairs).collect();
    all.sort_by(|a, b| b.0.total_cmp(&a.0));
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use espalier_data::record::Record;

    #[test]
    fn the_surest_pair_comes_first_and_ties_keep_their_order() {
        let sourced = |text: &str| Sourced {
            record: Record::Text { text: text.into() },
            place: None,
            origin: Value::Null,
        };
        let all = ["a", "b", "c", "d"].map(sourced);
        let found = sorted(all.iter().collect(), &[0.5, -1.0, 2.0, 0.5]);
        let text = |pair: &(f64, &Sourced)| match &pair.1.record {
            Record::Text { text } => text.clone(),
            _ => String::new(),
        };
        assert_eq!(found.iter().map(text).collect::<String>(), "cadb");
    }
}
