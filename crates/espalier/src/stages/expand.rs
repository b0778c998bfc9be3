//! The expansion stage: a model gets further blocks that compute nothing yet (LLaMA Pro).

use std::path::Path;

use espalier_models::expansion::expanded;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{
    kinds::{ArtifactKind, Input, Output, StageKind, Workplace, keys},
    model::{self, Origin},
};
use crate::{Error, Result, memory};

/// More than any model has blocks.
const MOST_BLOCKS: usize = 1 << 16;

/// Expansion: after each of so many groups of blocks comes a copy of the last one that leaves the stream as it is, to be trained with
/// `freeze = { layers = .., expanded = true }`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExpandStage {
    /// A model folder, or the name of an earlier stage.
    pub model: String,
    /// Blocks that are added; they divide the model's.
    #[schemars(range(min = 1, max = MOST_BLOCKS))]
    pub blocks: usize,
}

impl StageKind for ExpandStage {
    fn check(&self) -> Result<()> {
        match (1..=MOST_BLOCKS).contains(&self.blocks) {
            true => Ok(()),
            false => Err(Error::usage(format!(
                "`blocks`: {} is outside 1 to {MOST_BLOCKS}",
                self.blocks
            ))),
        }
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
        let start = model::open(
            Path::new(&self.model),
            &Map::new(),
            None,
            None,
            workplace.device,
        )?;
        if start.loaded.adapter.is_some() {
            return Err(Error::usage(
                "`model`: an adapter has no blocks of its own; merge it into its base first",
            ));
        }
        let spec = start.loaded.model.spec();
        let bytes = 8.0 * spec.parameter_count() as f64;
        let asked = format!("`blocks` = {}: a model with so many more", self.blocks);
        memory::check(asked, bytes, "choose fewer", workplace.device)?;
        let model = expanded(&start.loaded.model, self.blocks).map_err(Error::of_request)?;
        let count = model.spec().blocks.len();
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
        let all = model.spec().parameter_count();
        workplace.voice.say(&format!(
            "   {count} blocks, {} of them new, {all} parameters",
            self.blocks
        ));
        Ok(json!({"kind": "expand", "blocks": count, "parameters": all}))
    }
}
