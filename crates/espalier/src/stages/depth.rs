//! The depth stage: a model of ranges of another's blocks.

use std::path::Path;

use espalier_models::depth::with_blocks;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{
    kinds::{ArtifactKind, Input, Output, StageKind, Workplace, keys},
    model::{self, Origin, Start},
};
use crate::{Error, Result, memory};

/// More than any model has blocks.
pub(super) const MOST_BLOCKS: usize = 1 << 16;

/// A model of another's blocks. `[[0, 6]]` inherits the first six (Inheritune), `[[0, 24], [8, 32]]` lets the middle ones stand twice (depth
/// up-scaling). It is trained further afterwards.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DepthStage {
    /// A model folder, or the name of an earlier stage.
    pub model: String,
    /// Ranges of blocks, in the new order: the first block, counted from 0, and the one behind the last, as mergekit's `layer_range`.
    pub blocks: Vec<[usize; 2]>,
}

impl StageKind for DepthStage {
    fn check(&self) -> Result<()> {
        if self.blocks.is_empty() {
            return Err(Error::usage(
                "`blocks` is empty; give ranges such as [[0, 6]]",
            ));
        }
        for [first, end] in &self.blocks {
            if first >= end {
                return Err(Error::usage(format!(
                    "`blocks`: [{first}, {end}] holds no block; the second number is the one behind the last"
                )));
            }
            check_count("blocks", *end)?;
        }
        let count = self.blocks.iter().map(|[first, end]| end - first).sum();
        check_count("blocks", count)
    }

    fn inputs(&mut self) -> Vec<Input<'_>> {
        vec![Input::Model(&mut self.model)]
    }

    fn outputs(&self) -> Vec<Output> {
        vec![Output {
            part: "",
            kind: ArtifactKind::Model,
            path: "model",
        }]
    }

    fn seed(&mut self) -> Option<&mut u64> {
        None
    }

    fn deciding_keys(&self) -> Result<Value> {
        keys(self)
    }

    fn run(&self, workplace: &mut Workplace) -> Result<Value> {
        let mut start = open(&self.model, workplace)?;
        let kept: Vec<usize> = self
            .blocks
            .iter()
            .flat_map(|[first, end]| *first..*end)
            .collect();
        let parameters = leave(&mut start, &kept, workplace)?;
        let count = kept.len();
        workplace
            .voice
            .say(&format!("   {count} blocks, {parameters} parameters"));
        Ok(json!({"kind": "depth", "blocks": count, "parameters": parameters}))
    }
}

/// Whether so many blocks are a sensible count.
pub(super) fn check_count(key: &str, count: usize) -> Result<()> {
    match (1..=MOST_BLOCKS).contains(&count) {
        true => Ok(()),
        false => Err(Error::usage(format!(
            "`{key}`: {count} is outside 1 to {MOST_BLOCKS}"
        ))),
    }
}

/// The model whose depth is changed; adapters have none.
pub(super) fn open(name: &str, workplace: &Workplace) -> Result<Start> {
    let start = model::open(Path::new(name), &Map::new(), None, None, workplace.device)?;
    match start.loaded.adapter {
        Some(_) => Err(Error::usage(
            "`model`: an adapter has no blocks of its own; merge it into its base first",
        )),
        None => Ok(start),
    }
}

/// Leaves a model of these blocks in the stage's folder, and says how many parameters it has.
pub(super) fn leave(start: &mut Start, kept: &[usize], workplace: &Workplace) -> Result<u64> {
    let spec = start.loaded.model.spec();
    let bytes = 4.0 * spec.parameter_count() as f64 * kept.len() as f64;
    let bytes = bytes / spec.blocks.len().max(1) as f64;
    let asked = format!("a model of {} blocks", kept.len());
    memory::check(asked, bytes, "choose fewer", workplace.device)?;
    let model = with_blocks(&start.loaded.model, kept).map_err(Error::of_request)?;
    model::save(
        &workplace.folder.join("model"),
        &model,
        Origin {
            config: &start.loaded.config,
            generation: &start.loaded.generation,
            base: &start.loaded.base,
        },
        None,
        &start.tokenizer,
    )?;
    Ok(model.spec().parameter_count() as u64)
}
