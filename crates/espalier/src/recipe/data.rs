//! Where a stage's records come from.

use std::{collections::BTreeMap, path::PathBuf};

use espalier_data::{readers::Form, worlds};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Where records come from: a file, a data set that an earlier stage left, or a generated world.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DataOptions {
    /// A file of records.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// A data set that an earlier stage left, by its name, such as `tune.validation`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The file's form, when it should not be guessed: `alpaca`, `sharegpt`, `messages`, `preference`, `text`, ...
    #[serde(skip_serializing_if = "Option::is_none")]
    pub form: Option<Form>,
    /// Names of the file's columns, by ours.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub columns: BTreeMap<String, String>,
    /// Leave malformed records out, counted and shown, instead of stopping.
    pub skip_malformed: bool,
    /// A task of a generated world, such as `g8` or `sentence/2`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub world: Option<String>,
    /// What a world's items become.
    #[serde(rename = "as")]
    pub shape: WorldShape,
    /// The world's split.
    pub split: String,
    /// The world's seed; where it is absent, 0, and the run's seed for the split `train` of a recipe with `seeds`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Share of a world's demonstrations that carry a natural mistake.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub mistakes: f64,
    /// Most records that are read; of a world, 1000 when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

/// What a world's items become.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Default,
    Serialize,
    Deserialize,
    clap::ValueEnum,
    schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum WorldShape {
    /// Plain text: the prompt, if any, and the answer.
    Text,
    /// The answer alone, as plain text.
    Answer,
    /// A question and its answer.
    #[default]
    Chat,
    /// A question, its answer, and a worse one.
    Preference,
}

impl Default for DataOptions {
    fn default() -> Self {
        Self {
            path: None,
            from: None,
            form: None,
            columns: BTreeMap::new(),
            skip_malformed: false,
            world: None,
            shape: WorldShape::default(),
            split: "train".into(),
            seed: None,
            mistakes: 0.0,
            limit: None,
        }
    }
}

impl DataOptions {
    /// Whether the options name one source that exists as far as can be told, and every number is within its range.
    ///
    /// # Errors
    /// When they name none or several, or a task or split that no world has.
    pub fn check(&self) -> Result<()> {
        let sources = [
            self.path.is_some(),
            self.from.is_some(),
            self.world.is_some(),
        ];
        if sources.into_iter().filter(|given| *given).count() != 1 {
            return Err(Error::usage(
                "a data source needs one of `path`, `from` and `world`",
            ));
        }
        if !(0.0..=1.0).contains(&self.mistakes) {
            return Err(Error::usage(format!(
                "`mistakes`: {} is outside 0 to 1",
                self.mistakes
            )));
        }
        if let Some(task) = &self.world {
            worlds::item(task, self.split.parse()?, 0, 0)?;
        }
        Ok(())
    }

    /// The part of a run's seed that data take: what is fixed stays, and what is held out is the same for all seeds.
    pub fn reseed(&mut self, seed: u64) {
        if self.seed.is_none() && self.split == "train" {
            self.seed = Some(seed);
        }
    }
}
