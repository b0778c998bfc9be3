//! The kinds of stages: what each must be able to do, and the list of all.
//!
//! A kind is one file beside this one (`upcycle.rs` is the shortest) with the options of its table and an implementation of
//! [`StageKind`], and one line in the list below. Parsing, schema, reference of keys, checks, fingerprints, artifacts and
//! report follow from these.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use espalier_evaluate::report::Section;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    Voice, depth::DepthStage, evaluate::EvaluateStage, expand::ExpandStage, extract::ExtractStage,
    merge::MergeStage, pack::PackStage, prune::PruneStage, rank::RankStage, report,
    train::TrainStage, upcycle::UpcycleStage,
};
use crate::{
    Error, Result,
    recipe::{
        DataOptions, Stage,
        written::{Entry, Repeat},
    },
};

/// What a kind of stage does.
pub trait StageKind {
    /// What can be told before anything runs: nobody wants to hear of it an hour later.
    ///
    /// # Errors
    /// The first option that makes no sense.
    fn check(&self) -> Result<()>;

    /// Everything that the stage reads. References to earlier stages are changed here: repetitions number them, and a stage
    /// that runs finds paths in their place.
    fn inputs(&mut self) -> Vec<Input<'_>>;

    /// Everything that the stage leaves in its folder.
    fn outputs(&self) -> Vec<Output>;

    /// The seed of everything that the stage draws at random.
    fn seed(&mut self) -> Option<&mut u64>;

    /// The keys that decide what comes out; how often to log is none of them.
    ///
    /// # Errors
    /// When a value cannot be written as JSON.
    fn deciding_keys(&self) -> Result<Value>;

    /// Does the work and gives its figures. References are paths by now.
    ///
    /// # Errors
    /// When an input does not fit, or the disk is full.
    fn run(&self, workplace: &mut Workplace) -> Result<Value>;

    /// The numbers among the figures, by dotted key, for tables.
    fn figures(&self, figures: &Value) -> Vec<(String, f64)> {
        report::numbers(figures)
    }

    /// What the report shows besides the table of figures: curves, samples.
    ///
    /// # Errors
    /// When a log cannot be read.
    fn sections(&self, name: &str, folder: &Path, figures: &Value) -> Result<Vec<Section>> {
        let _ = (name, folder, figures);
        Ok(Vec::new())
    }
}

/// Where a stage works.
pub struct Workplace<'a> {
    /// Where tensors live.
    pub device: &'a Device,
    /// The stage's folder.
    pub folder: PathBuf,
    /// The hash of everything that goes into the stage.
    pub fingerprint: String,
    /// Where words go.
    pub voice: &'a mut dyn Voice,
}

/// Something that a stage reads.
#[derive(Debug)]
pub enum Input<'a> {
    /// A model or adapter: a path, or the name of an earlier stage.
    Model(&'a mut String),
    /// A folder with a tokenizer, or the name of an earlier stage that left a model.
    Tokenizer(&'a mut String),
    /// Records.
    Data(&'a mut DataOptions),
    /// A chat template: the name of a built-in one, or a path.
    Template(&'a mut String),
    /// A word of a command, which may be a file.
    Word(&'a str),
    /// What an earlier stage measured, by its name, or the folder of `espalier eval`.
    Evaluation(&'a mut String),
}

impl<'a> Input<'a> {
    /// The text that may name what an earlier stage left.
    pub fn reference(self) -> Option<&'a mut String> {
        match self {
            Self::Model(name) | Self::Tokenizer(name) | Self::Evaluation(name) => Some(name),
            Self::Data(data) => data.from.as_mut(),
            Self::Template(_) | Self::Word(_) => None,
        }
    }
}

/// Something that a stage leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Output {
    /// What is added to the stage's name, behind a dot; nothing for its main result.
    pub part: &'static str,
    /// What it is.
    pub kind: ArtifactKind,
    /// The file or folder in the stage's folder.
    pub path: &'static str,
}

/// What a stage can leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ArtifactKind {
    /// A model or adapter folder.
    Model,
    /// A file of records.
    Data,
    /// The stage's figures as JSON; the run writes them.
    Report,
}

impl ArtifactKind {
    /// With its article, for messages.
    pub fn words(self) -> &'static str {
        match self {
            Self::Model => "a model",
            Self::Data => "a data set",
            Self::Report => "a report",
        }
    }
}

/// Makes the list of kinds: the type of a stage's work, and the tables in which it may be written.
macro_rules! stage_kinds {
    ($($(#[doc = $doc:literal])+ $table:ident: $variant:ident($options:ty),)+) => {
        /// What a stage does.
        #[derive(Debug, Clone, PartialEq)]
        #[allow(clippy::large_enum_variant, reason = "a recipe has few stages")]
        pub enum Kind {
            $($(#[doc = $doc])+ $variant($options),)+
        }

        impl Kind {
            /// The names of all kinds' tables.
            pub const NAMES: &'static [&'static str] = &[$(stringify!($table)),+];

            /// The name of the kind's table.
            pub fn name(&self) -> &'static str {
                match self {
                    $(Self::$variant(_) => stringify!($table),)+
                }
            }

            /// What the kind can do.
            pub fn work(&self) -> &dyn StageKind {
                match self {
                    $(Self::$variant(options) => options,)+
                }
            }

            /// As [`Kind::work`], to change inputs and seed.
            pub fn work_mut(&mut self) -> &mut dyn StageKind {
                match self {
                    $(Self::$variant(options) => options,)+
                }
            }
        }

        /// A stage: its name, and one table named after what it does.
        #[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
        #[serde(deny_unknown_fields)]
        #[schemars(title = "Stage")]
        pub struct StageTable {
            /// Names the stage's folder and what it leaves; later stages refer to it.
            pub name: String,
            /// The name of a stage above: this stage is that one, plus what differs.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub like: Option<String>,
            $($(#[doc = $doc])+
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub $table: Option<$options>,)+
        }

        /// A stage, or a repetition of several: its name, and one table.
        #[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
        #[serde(deny_unknown_fields)]
        #[schemars(title = "Stage or repetition")]
        pub struct EntryTable {
            /// Names the stage's folder and what it leaves; later stages refer to it.
            pub name: String,
            /// The name of a stage above: this stage is that one, plus what differs.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub like: Option<String>,
            $($(#[doc = $doc])+
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub $table: Option<$options>,)+
            /// Go through several stages several times.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub repeat: Option<Repeat>,
        }

        /// What all stages of a kind say unless they say otherwise.
        #[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
        #[serde(deny_unknown_fields)]
        pub struct Defaults {
            $($(#[doc = $doc])+
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub $table: Option<$options>,)+
        }

        impl TryFrom<StageTable> for Stage {
            type Error = String;

            fn try_from(table: StageTable) -> Result<Self, String> {
                let StageTable { name, like, $($table),+ } = table;
                let kinds: Vec<Kind> = [$($table.map(Kind::$variant)),+].into_iter().flatten().collect();
                match (like, <[Kind; 1]>::try_from(kinds)) {
                    (Some(_), _) => Err(format!("stage `{name}`: `like` was not resolved: read the recipe with `document::load`")),
                    (None, Ok([kind])) => Ok(Self { name, kind }),
                    (None, Err(_)) => Err(format!("stage `{name}`: give one of `{}`", Kind::NAMES.join("`, `"))),
                }
            }
        }

        impl From<Stage> for StageTable {
            fn from(stage: Stage) -> Self {
                let mut table = Self { name: stage.name, like: None, $($table: None),+ };
                match stage.kind {
                    $(Kind::$variant(options) => table.$table = Some(options),)+
                }
                table
            }
        }

        impl TryFrom<EntryTable> for Entry {
            type Error = String;

            fn try_from(table: EntryTable) -> Result<Self, String> {
                let EntryTable { name, like, repeat, $($table),+ } = table;
                let plain = StageTable { name, like, $($table),+ };
                match repeat {
                    None => Stage::try_from(plain).map(|stage| Entry::Stage(Box::new(stage))),
                    Some(repeat) if $(plain.$table.is_none())&&+ => Ok(Entry::Repeat(plain.name, repeat)),
                    Some(_) => Err(format!("stage `{}`: nothing can stand beside `repeat`", plain.name)),
                }
            }
        }

        impl From<Entry> for EntryTable {
            fn from(entry: Entry) -> Self {
                match entry {
                    Entry::Stage(stage) => {
                        let StageTable { name, like, $($table),+ } = (*stage).into();
                        Self { name, like, repeat: None, $($table),+ }
                    }
                    Entry::Repeat(name, repeat) => {
                        Self { name, like: None, repeat: Some(repeat), $($table: None),+ }
                    }
                }
            }
        }
    };
}

stage_kinds! {
    /// Train a model.
    train: Train(TrainStage),
    /// Evaluate a model.
    evaluate: Evaluate(EvaluateStage),
    /// Make a dense model into one with experts.
    upcycle: Upcycle(UpcycleStage),
    /// Give a model further blocks that leave its stream as it is.
    expand: Expand(ExpandStage),
    /// Leave out the blocks that change the stream least.
    prune: Prune(PruneStage),
    /// Make a model of ranges of another's blocks.
    depth: Depth(DepthStage),
    /// Merge adapters into their base, or into one adapter.
    merge: Merge(MergeStage),
    /// Make the difference of a tuned model from its base an adapter.
    extract: Extract(ExtractStage),
    /// Keep weights of three or two values in two bits each.
    pack: Pack(PackStage),
    /// Sort preferences from easy to hard, by how sure a model is of them.
    rank: Rank(RankStage),
}

impl Kind {
    /// Adds a run's seed to the stage's own, and gives it to the data that take it.
    pub fn reseed(&mut self, seed: u64) {
        let work = self.work_mut();
        if let Some(own) = work.seed() {
            // A recipe, in which the sum is written down, has 63 bits for it.
            *own = own.wrapping_add(seed) & (u64::MAX >> 1);
        }
        for input in work.inputs() {
            if let Input::Data(data) = input {
                data.reseed(seed);
            }
        }
    }
}

/// The options of a kind as JSON, for [`StageKind::deciding_keys`].
///
/// # Errors
/// When a value has no form in JSON.
pub fn keys(options: &impl Serialize) -> Result<Value> {
    serde_json::to_value(options).map_err(|error| Error::work(format!("recipe: {error}")))
}
