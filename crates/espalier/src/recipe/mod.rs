//! Recipes: one or many stages in a TOML file, every key checked.
//!
//! ```toml
//! output = "runs/greetings"
//!
//! [defaults.train]                    # what every training stage says unless it says otherwise
//! objective = "sft"
//! data = "conversations.jsonl"
//! options = { steps = 100, learning_rate = 1e-4 }
//!
//! [[stage]]
//! name = "tune"
//! [stage.train]
//! model = "path/to/model"
//!
//! [[stage]]
//! name = "tune-slowly"
//! like = "tune"                       # that stage, plus what differs
//! [stage.train.options]
//! learning_rate = 2e-5
//! ```
//!
//! [`written`] is the language, [`document`] reads it, [`Recipe`] is what it comes to: a list of stages, each of which says
//! everything itself.

pub mod data;
pub mod document;
pub mod keys;
pub mod llama_factory;
pub mod schema;
pub mod shorthand;
pub mod written;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use self::data::{DataOptions, WorldShape};
use self::document::{Complaint, RecipeError};
use crate::stages::{
    artifacts,
    kinds::{Kind, StageTable},
};

/// A recipe, resolved: defaults, likenesses and repetitions have become stages.
///
/// ```
/// use espalier::recipe::{Recipe, document::parse};
/// let text = "
///     output = 'runs/example'
///     [defaults.evaluate]
///     tasks = ['g1/1']
///     [[stage]]
///     name = 'first'
///     evaluate = { model = 'path/to/model' }
///     [[stage]]
///     name = 'more'
///     like = 'first'
///     evaluate = { limit = 500 }
/// ";
/// let recipe: Recipe = parse(text, "example.toml", &[])?;
/// assert_eq!(recipe.stage[1].name, "more");
/// assert_eq!(recipe.stage[1].kind.name(), "evaluate");
/// # Ok::<(), espalier::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "written::RecipeFile", into = "written::RecipeFile")]
pub struct Recipe {
    /// The run's folder.
    pub output: PathBuf,
    /// The whole recipe is run once for each of these, or once where there are none.
    pub seeds: Vec<u64>,
    /// What is done, in order.
    pub stage: Vec<Stage>,
}

impl Recipe {
    /// Reads a recipe file and checks every stage, as far as can be told before any has run.
    ///
    /// # Errors
    /// When the file cannot be read, or is wrong; the error says where.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self, RecipeError> {
        document::load_checked(path, overrides, &Self::check)
    }

    /// As [`Recipe::load`], of a text that is called `name` in messages.
    ///
    /// # Errors
    /// When the text is wrong; the error says where.
    pub fn parse(text: &str, name: &str, overrides: &[String]) -> Result<Self, RecipeError> {
        document::parse_checked(text, name, overrides, &Self::check)
    }

    /// Checks every stage, as far as can be told before any has run.
    ///
    /// # Errors
    /// The first that is wrong.
    pub fn check(&self) -> Result<(), Complaint> {
        for stage in &self.stage {
            let complaint = |error: crate::Error| Complaint {
                stage: stage.name.clone(),
                reason: error.to_string(),
            };
            stage.kind.work().check().map_err(complaint)?;
        }
        artifacts::check_inputs(&self.stage)
    }

    /// The recipe of one seed, in a folder of its own.
    ///
    /// The seed is added to every stage's own. Data take it where the recipe fixes no seed for them and they belong to the
    /// split `train`: what is held out measures all seeds alike.
    pub fn of_seed(&self, seed: u64) -> Self {
        let mut recipe = self.clone();
        recipe.output.push(format!("seed-{seed}"));
        recipe.seeds.clear();
        for stage in &mut recipe.stage {
            stage.kind.reseed(seed);
        }
        recipe
    }
}

/// One stage: a name and one thing to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "StageTable", into = "StageTable")]
pub struct Stage {
    /// Names the stage's folder and what it leaves.
    pub name: String,
    /// What is done.
    pub kind: Kind,
}
