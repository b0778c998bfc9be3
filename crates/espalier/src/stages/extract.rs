//! The stage that makes an adapter of what tuning did to a model.

use std::path::Path;

use espalier_models::{
    adapter::low_rank::arithmetic::{Extracted, changed_modules, extract},
    checkpoint::{PeftConfig, peft_config::Targets},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{
    kinds::{ArtifactKind, Input, Output, StageKind, Workplace, keys},
    model::{self, Origin},
};
use crate::{Error, Result};

/// As wide as the widest models.
const LARGEST_RANK: usize = 1 << 16;

/// Extraction: the largest singular values of the difference of a tuned model from its base become a low-rank adapter on that.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExtractStage {
    /// The tuned model: a folder, or the name of an earlier stage.
    pub model: String,
    /// The model that was tuned.
    pub base: String,
    /// Rank of the adapter.
    #[serde(default = "default_rank")]
    #[schemars(range(min = 1, max = LARGEST_RANK))]
    pub rank: usize,
    /// Names of modules, as those of a LoRA; every linear layer but the head when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_modules: Option<Vec<String>>,
    /// Modules that the adapter holds whole, such as `lm_head`; when absent, all that tuning changed and of which no low rank is taken,
    /// such as the table of tokens and norms. An empty list leaves these as the base has them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modules_to_save: Option<Vec<String>>,
}

fn default_rank() -> usize {
    8
}

impl StageKind for ExtractStage {
    fn check(&self) -> Result<()> {
        match (1..=LARGEST_RANK).contains(&self.rank) {
            true => Ok(()),
            false => Err(Error::usage(format!(
                "`rank`: {} is outside 1 to {LARGEST_RANK}",
                self.rank
            ))),
        }
    }

    fn inputs(&mut self) -> Vec<Input<'_>> {
        vec![Input::Model(&mut self.model), Input::Model(&mut self.base)]
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
        let open =
            |path: &str| model::open(Path::new(path), &Map::new(), None, None, workplace.device);
        let mut tuned = open(&self.model)?;
        let mut base = open(&self.base)?;
        if base.loaded.adapter.is_some() {
            return Err(Error::usage(
                "`base` is an adapter, on which no other can stand; merge it into its own base first",
            ));
        }
        tuned
            .loaded
            .model
            .merge_adapters()
            .map_err(Error::of_request)?;
        let targets = match &self.target_modules {
            Some(names) => Targets::List(names.clone()),
            None => Targets::AllLinear,
        };
        let mut config = PeftConfig::new(self.rank, self.rank as f64, targets);
        let family = base.loaded.family()?;
        let model = &mut base.loaded.model;
        config.modules_to_save = match &self.modules_to_save {
            Some(modules) => modules.clone(),
            None => changed_modules(model, &tuned.loaded.model, family, &config)
                .map_err(Error::of_request)?,
        };
        // What was one in the tuned model stays one.
        let spec = model.spec();
        config.ensure_weight_tying =
            spec.tied_head && !spec.headless && !config.modules_to_save.is_empty();
        let whole = config.modules_to_save.clone();
        let found =
            extract(model, &tuned.loaded.model, family, &config).map_err(Error::of_request)?;
        model::save(
            &workplace.folder.join("model"),
            &base.loaded.model,
            Origin {
                config: &base.loaded.config,
                generation: &base.loaded.generation,
                base: &base.loaded.base,
            },
            Some(&found.adapter),
            &tuned.tokenizer,
        )?;
        say(&found, self.rank, &whole, workplace);
        let (share, left) = (found.share, found.left.len());
        Ok(json!({"kind": "extract", "share": share, "whole": whole, "left": left}))
    }
}

fn say(found: &Extracted, rank: usize, whole: &[String], workplace: &mut Workplace) {
    workplace.voice.say(&format!(
        "   rank {rank} has {:.1} % of the change of the adapted weights",
        100.0 * found.share
    ));
    if let Some(first) = whole.first() {
        workplace.voice.say(&format!(
            "   {} modules are kept whole, such as `{first}`",
            whole.len()
        ));
    }
    if let Some(first) = found.left.first() {
        workplace.voice.say(&format!(
            "   {} parameters that tuning changed are left as the base has them, such as `{first}`, and what they learned is lost: leave `modules_to_save` out, or name their modules there",
            found.left.len()
        ));
    }
}
