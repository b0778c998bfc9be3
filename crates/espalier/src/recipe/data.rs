//! Where a stage's records come from.

use std::{collections::BTreeMap, path::PathBuf};

use espalier_data::{readers::Form, worlds};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Items of a world that are drawn at once: more of these short texts teach nothing, and fill the memory.
pub const MOST_ITEMS: usize = 1 << 24;

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
    /// Share of words of random letters among those of a world's plain texts.
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1.0))]
    pub noise: f64,
    /// Share of the preferences, drawn at random, whose better and worse answer change places: noise, to learn how much of it a loss bears.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub flip: f64,
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
    /// The question, or the text where there is none, with the short answer as its label.
    Label,
    /// A question and the steps of an answer, of which the last may be wrong, each with its label.
    Steps,
    /// What the reward `judge` asks of a question and an answer that is right or wrong; the reply is the right answer and the score.
    Rating,
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
            noise: 0.0,
            flip: 0.0,
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
        let source = self.source()?;
        if let Some(key) = self.keys_beside(source).first() {
            let (kind, belongs) = match source {
                "world" => ("a world", "a file"),
                _ => ("a file", "a world"),
            };
            return Err(Error::usage(format!(
                "`{key}` is a key of {belongs}, but the source is {kind} (`{source}`); leave it out"
            )));
        }
        if !(0.0..=1.0).contains(&self.mistakes) {
            return Err(Error::usage(format!(
                "`mistakes`: {} is outside 0 to 1",
                self.mistakes
            )));
        }
        if !(0.0..1.0).contains(&self.noise) {
            return Err(Error::usage(format!(
                "`noise`: {} is outside 0 to below 1",
                self.noise
            )));
        }
        if !(0.0..=1.0).contains(&self.flip) {
            return Err(Error::usage(format!(
                "`flip`: {} is outside 0 to 1",
                self.flip
            )));
        }
        if self.flip > 0.0 && self.world.is_some() && self.shape != WorldShape::Preference {
            return Err(Error::usage(
                "`flip` turns preferences around; set `as = \"preference\"`",
            ));
        }
        if self.noise > 0.0 && self.shape != WorldShape::Text {
            return Err(Error::usage(
                "`noise` stands between the words of plain texts; set `as = \"text\"`",
            ));
        }
        let items = self.limit.filter(|_| self.world.is_some());
        if let Some(limit) = items.filter(|limit| *limit > MOST_ITEMS) {
            return Err(Error::usage(format!(
                "`limit`: {limit} items of a world are more than {MOST_ITEMS}"
            )));
        }
        if let Some(task) = &self.world {
            worlds::item(task, self.split.parse()?, 0, 0)?;
        }
        Ok(())
    }

    /// The key that names the source.
    fn source(&self) -> Result<&'static str> {
        let sources = [
            ("path", self.path.is_some()),
            ("from", self.from.is_some()),
            ("world", self.world.is_some()),
        ];
        let given: Vec<&str> = of_those_given(&sources);
        match given[..] {
            [source] => Ok(source),
            [] => Err(Error::usage(
                "a data source needs one of `path`, `from` and `world`",
            )),
            _ => Err(Error::usage(format!(
                "a data source has `{}`; give one",
                given.join("` and `")
            ))),
        }
    }

    /// The keys that say something and mean nothing to this kind of source.
    fn keys_beside(&self, source: &str) -> Vec<&'static str> {
        let usual = Self::default();
        match source {
            "world" => of_those_given(&[
                ("form", self.form.is_some()),
                ("columns", !self.columns.is_empty()),
                ("skip_malformed", self.skip_malformed),
            ]),
            _ => of_those_given(&[
                ("as", self.shape != usual.shape),
                ("split", self.split != usual.split),
                ("seed", self.seed.is_some()),
                ("mistakes", self.mistakes != usual.mistakes),
                ("noise", self.noise != usual.noise),
            ]),
        }
    }

    /// The part of a run's seed that data take: what is fixed stays, and what is held out is the same for all seeds.
    pub fn reseed(&mut self, seed: u64) {
        if self.world.is_some() && self.seed.is_none() && self.split == "train" {
            self.seed = Some(seed);
        }
    }
}

/// The keys of those that are given.
fn of_those_given(keys: &[(&'static str, bool)]) -> Vec<&'static str> {
    let given = keys.iter().filter(|(_, given)| *given);
    given.map(|(key, _)| *key).collect()
}
