//! The pruning stage: the blocks that change the stream least are left out.

use std::path::Path;

use espalier_data::{random::Random, readers::Wanted};
use espalier_evaluate::{
    block_distance::{BlockDistances, block_distances},
    report::{HeatMap, Section},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    data,
    depth::{self, MOST_BLOCKS},
    evaluate::examples,
    kinds::{ArtifactKind, Input, Output, StageKind, Workplace, keys},
    model::Start,
};
use crate::{
    Error, Result,
    recipe::{DataOptions, shorthand},
};

/// Depth pruning: blocks are left out, chosen by what texts say of them. Train the model again afterwards, through an adapter on a quantised
/// base for instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PruneStage {
    /// A model folder, or the name of an earlier stage.
    pub model: String,
    /// Blocks that are left out.
    #[schemars(range(min = 1, max = MOST_BLOCKS))]
    pub remove: usize,
    /// How they are chosen.
    #[serde(default)]
    pub by: PruneBy,
    /// Texts on which blocks are compared; `deepest` and `random` need none.
    #[serde(
        default,
        deserialize_with = "shorthand::one_or_many",
        skip_serializing_if = "Vec::is_empty"
    )]
    #[schemars(schema_with = "shorthand::one_or_many_schema")]
    pub data: Vec<DataOptions>,
    /// Most tokens of a text.
    #[serde(default = "default_length")]
    #[schemars(range(min = 1))]
    pub length: usize,
    /// Most texts.
    #[serde(default = "default_texts")]
    #[schemars(range(min = 1))]
    pub texts: usize,
    /// Seed of `random`.
    #[serde(default)]
    pub seed: u64,
}

/// How blocks are chosen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PruneBy {
    /// Blocks one behind the other that turn the last token's stream least (arXiv 2403.17887).
    #[default]
    Angle,
    /// The blocks with the least influence, wherever they are (ShortGPT, arXiv 2403.03853).
    Influence,
    /// The deepest ones but the very last.
    Deepest,
    /// Blocks one behind the other, drawn at random: what the others are to be compared with.
    Random,
}

impl PruneBy {
    fn compares(self) -> bool {
        matches!(self, Self::Angle | Self::Influence)
    }
}

fn default_length() -> usize {
    256
}

fn default_texts() -> usize {
    128
}

impl StageKind for PruneStage {
    fn check(&self) -> Result<()> {
        depth::check_count("remove", self.remove)?;
        if self.length == 0 || self.texts == 0 {
            return Err(Error::usage("`length` and `texts` must be at least 1"));
        }
        match self.by.compares() && self.data.is_empty() {
            true => Err(Error::usage(
                "`data` is missing: blocks are compared on texts; give some, or `by = \"deepest\"`",
            )),
            false => Ok(()),
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
        vec![Output {
            part: "",
            kind: ArtifactKind::Model,
            path: "model",
        }]
    }

    fn seed(&mut self) -> Option<&mut u64> {
        Some(&mut self.seed)
    }

    fn deciding_keys(&self) -> Result<Value> {
        keys(self)
    }

    fn run(&self, workplace: &mut Workplace) -> Result<Value> {
        let mut start = depth::open(&self.model, workplace)?;
        let blocks = start.loaded.model.spec().blocks.len();
        if self.remove >= blocks {
            return Err(Error::usage(format!(
                "`remove`: {} of {blocks} blocks leaves none",
                self.remove
            )));
        }
        let distances = self.distances(&start, workplace)?;
        let removed = self.chosen(blocks, distances.as_ref());
        let kept: Vec<usize> = (0..blocks)
            .filter(|block| !removed.contains(block))
            .collect();
        let parameters = depth::leave(&mut start, &kept, workplace)?;
        let list: Vec<String> = removed.iter().map(usize::to_string).collect();
        workplace.voice.say(&format!(
            "   without blocks {} of 0 to {}: {parameters} parameters",
            list.join(", "),
            blocks - 1
        ));
        let mut figures = json!({
            "kind": "prune",
            "removed": removed,
            "blocks": kept.len(),
            "parameters": parameters,
        });
        if let Some(distances) = distances {
            say(&distances, workplace);
            figures["texts"] = json!(distances.texts);
            figures["angular_distance"] = json!(distances.angular);
            figures["influence"] = json!(distances.influence);
        }
        Ok(figures)
    }

    fn figures(&self, figures: &Value) -> Vec<(String, f64)> {
        let number = |key: &str| Some((key.to_owned(), figures.get(key)?.as_f64()?));
        ["blocks", "parameters"]
            .into_iter()
            .filter_map(number)
            .collect()
    }

    fn sections(&self, name: &str, _: &Path, figures: &Value) -> Result<Vec<Section>> {
        Ok(heat_map(name, figures)
            .map(Section::HeatMap)
            .into_iter()
            .collect())
    }
}

impl PruneStage {
    /// What the texts say, where there are any.
    fn distances(
        &self,
        start: &Start,
        workplace: &mut Workplace,
    ) -> Result<Option<BlockDistances>> {
        if self.data.is_empty() {
            return Ok(None);
        }
        let voice = &mut *workplace.voice;
        let mut records = data::records(&self.data, Wanted::Texts, voice)?;
        records.truncate(self.texts);
        let length = self.length.min(start.loaded.model.spec().context);
        let encoded = data::encode(&start.tokenizer, &records, Wanted::Texts, length, voice)?;
        let texts: Vec<Vec<u32>> = examples(encoded)
            .into_iter()
            .map(|example| example.ids)
            .filter(|ids| !ids.is_empty())
            .collect();
        if texts.is_empty() {
            return Err(Error::work("`data`: there is no text to compare blocks on"));
        }
        let all = texts.len();
        let mut progress = |done: usize| voice.progress("   comparing blocks", done, all, "");
        Ok(Some(block_distances(
            &start.loaded.model,
            &texts,
            &mut progress,
        )?))
    }

    /// The blocks that go, in order.
    fn chosen(&self, blocks: usize, distances: Option<&BlockDistances>) -> Vec<usize> {
        let first = match (self.by, distances) {
            (PruneBy::Influence, Some(distances)) => {
                return distances.least_influential(self.remove);
            }
            (PruneBy::Angle, Some(distances)) => distances.closest(self.remove).map(|(l, _)| l),
            (PruneBy::Random, _) => Some(Random::new(self.seed).below(blocks - self.remove + 1)),
            _ => None,
        };
        let first = first.unwrap_or((blocks - 1).saturating_sub(self.remove));
        (first..first + self.remove).collect()
    }
}

/// The closest blocks of every size, a line each.
fn say(distances: &BlockDistances, workplace: &mut Workplace) {
    for count in 1..distances.influence.len() {
        if let Some((first, distance)) = distances.closest(count) {
            let last = first + count - 1;
            workplace.voice.say(&format!(
                "   {count:>3} blocks: {first} to {last} turn the stream least, by {:.1} % of a half turn",
                100.0 * distance
            ));
        }
    }
}

/// How far so many blocks turn the stream, from each block on.
fn heat_map(name: &str, figures: &Value) -> Option<HeatMap> {
    let rows = figures.get("angular_distance")?.as_array()?;
    let numbers =
        |row: &Value| -> Option<Vec<f64>> { row.as_array()?.iter().map(Value::as_f64).collect() };
    let mut scores: Vec<Vec<f64>> = rows.iter().map(numbers).collect::<Option<_>>()?;
    let columns = scores.first()?.len();
    scores
        .iter_mut()
        .for_each(|row| row.resize(columns, f64::NAN));
    Some(HeatMap {
        title: format!(
            "{name}: angle between what a block is given and what stands so many blocks later, % of a half turn"
        ),
        x_label: "first block".into(),
        y_label: "blocks".into(),
        columns: (0..columns).map(|block| block.to_string()).collect(),
        rows: (1..=scores.len()).map(|count| count.to_string()).collect(),
        scores,
    })
}
