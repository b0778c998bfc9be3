//! The packing stage: weights that are rounded when they multiply become what they are rounded to, two bits a number.

use std::path::Path;

use espalier_models::packing::packed;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{
    kinds::{ArtifactKind, Input, Output, StageKind, Workplace, keys},
    model::{self, Origin},
};
use crate::{Error, Result};

/// Packing: a model that was trained with `bits` gets weights of two bits, in the layout that transformers reads as BitNet's, and computes
/// as before. It is not trained further, but for adapters beside it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PackStage {
    /// A model folder, or the name of an earlier stage.
    pub model: String,
}

impl StageKind for PackStage {
    fn check(&self) -> Result<()> {
        Ok(())
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
        let (path, changes) = (Path::new(&self.model), Map::new());
        let start = model::open(path, &changes, None, None, workplace.device)?;
        let bytes = |model: &espalier_models::model::LanguageModel| -> usize {
            let parameters = model.parameters();
            parameters.iter().map(|parameter| parameter.bytes()).sum()
        };
        let (model, count) = packed(&start.loaded.model).map_err(Error::of_request)?;
        let (before, after) = (bytes(&start.loaded.model), bytes(&model));
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
        workplace.voice.say(&format!(
            "   {count} weights packed, {:.1} MB of weights became {:.1} MB",
            before as f64 / 1e6,
            after as f64 / 1e6
        ));
        Ok(json!({"kind": "pack", "packed_weights": count, "bytes": after}))
    }
}
