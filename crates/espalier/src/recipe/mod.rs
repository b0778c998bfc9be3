//! Recipes: one or many stages in a TOML file, every key checked.
//!
//! ```toml
//! output = "runs/greetings"
//!
//! [[stage]]
//! name = "tune"
//! [stage.train]
//! model = "path/to/model"
//! objective = "sft"
//! data = "conversations.jsonl"
//! [stage.train.options]
//! learning_rate = 1e-4
//! ```

pub mod document;
pub mod shorthand;

use std::{collections::BTreeMap, path::PathBuf};

use espalier_data::readers::Form;
use espalier_models::pooling::Pooling;
use espalier_train::{
    adapters::AdapterOptions, objectives::ObjectiveOptions, options::TrainOptions,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A recipe file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The run's folder.
    pub output: PathBuf,
    /// What is done, in order.
    pub stage: Vec<Stage>,
}

/// One stage: a name and one thing to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// Names the stage's folder; later stages may give it as their model.
    pub name: String,
    /// Train a model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train: Option<TrainStage>,
    /// Evaluate a model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluate: Option<EvaluateStage>,
    /// Make a dense model into one with experts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upcycle: Option<UpcycleStage>,
}

/// Upcycling: copies of a dense model's feed-forward layers become experts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UpcycleStage {
    /// A model folder of the families LLaMA or Mistral, or the name of an earlier stage.
    pub model: String,
    /// Models of the same shape that give the experts in turn; `model` gives all of them when absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub donors: Vec<String>,
    /// Experts of every layer; as many as `prompts` has entries, or eight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub experts: Option<usize>,
    /// Experts that each token passes through.
    #[serde(default = "default_active")]
    pub active: usize,
    /// Weight of the load-balance loss in further training.
    #[serde(default = "default_balance")]
    pub balance: f64,
    /// Standard deviation of noise on the copies, as a share of each matrix's own.
    #[serde(default)]
    pub noise: f64,
    /// Seed of routers and noise.
    #[serde(default)]
    pub seed: u64,
    /// What the routers start from.
    #[serde(default)]
    pub gate_mode: GateMode,
    /// For each expert, prompts that it shall answer and prompts that it shall not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prompts: Vec<GatePrompts>,
}

/// What routers start from, by the names of mergekit.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum GateMode {
    /// Small random numbers.
    #[default]
    Random,
    /// The hidden states of the prompts' last tokens.
    Hidden,
    /// The means of the prompts' hidden states.
    HiddenAvg,
    /// The sums of the prompts' embeddings.
    CheapEmbed,
}

/// Prompts that tell what an expert is for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GatePrompts {
    /// What it shall answer.
    pub positive: Vec<String>,
    /// What it shall not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub negative: Vec<String>,
}

fn default_active() -> usize {
    2
}

fn default_balance() -> f64 {
    0.01
}

/// Training: a model, an objective, data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TrainStage {
    /// A model or adapter folder, or the name of an earlier stage; absent when `new` describes a fresh model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// A fresh model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new: Option<NewModel>,
    /// What a step minimises: `pretrain`, `sft`, `dpo`, `mlm`, `mntp`, `seq2seq`, `span_corruption`, `infilling`, `simcse`, or a
    /// table with options such as `{ dpo = { beta = 0.1 } }`.
    #[serde(deserialize_with = "shorthand::name_or_table")]
    pub objective: ObjectiveOptions,
    /// An adapter to train instead of all weights: `lora`, `state`, or a table with options.
    #[serde(
        default,
        deserialize_with = "shorthand::optional_name_or_table",
        skip_serializing_if = "Option::is_none"
    )]
    pub adapter: Option<AdapterOptions>,
    /// Training data: a path, a table, or a list of these.
    #[serde(deserialize_with = "shorthand::one_or_many")]
    pub data: Vec<DataOptions>,
    /// Held-out data; the last `validation_share` of `data` when absent.
    #[serde(
        default,
        deserialize_with = "shorthand::one_or_many",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub validation: Vec<DataOptions>,
    /// Share of `data` that is held out when there is no `validation`.
    #[serde(default)]
    pub validation_share: f64,
    /// Keys of the model's `config.json` that change before it is trained, such as `bidirectional` or `rope_parameters`.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub config: Map<String, Value>,
    /// A chat template: `chatml`, `plain`, or a path to a Jinja file. The tokenizer's own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// How long, how fast and how often.
    #[serde(default)]
    pub options: TrainOptions,
}

/// A fresh model, in the LLaMA form unless `config` describes another, with a byte-level BPE tokenizer trained on the stage's data and on `tokenizer_data`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct NewModel {
    /// Tokens of the vocabulary.
    pub vocabulary: usize,
    /// A `config.json` of any family, as a table, in place of the sizes below; vocabulary and special tokens are filled in.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub config: Map<String, Value>,
    /// Width of the residual stream.
    pub width: usize,
    /// Blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Inner width of the gated feed-forward layer.
    pub inner: usize,
    /// Longest sequence.
    pub context: usize,
    /// Standard deviation of fresh weights.
    pub initializer_range: f64,
    /// A folder whose tokenizer is used instead of training one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<PathBuf>,
    /// What else the tokenizer is trained on besides the stage's data: texts of later stages, so that they are not spelt
    /// letter by letter.
    #[serde(
        deserialize_with = "shorthand::one_or_many",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub tokenizer_data: Vec<DataOptions>,
}

impl Default for NewModel {
    fn default() -> Self {
        Self {
            vocabulary: 2048,
            config: Map::new(),
            width: 256,
            layers: 4,
            heads: 4,
            kv_heads: 2,
            inner: 704,
            context: 512,
            initializer_range: 0.02,
            tokenizer: None,
            tokenizer_data: Vec::new(),
        }
    }
}

/// Where records come from: a file, or a generated world.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DataOptions {
    /// A file of records.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
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
    /// The world's seed.
    pub seed: u64,
    /// Share of a world's demonstrations that carry a natural mistake.
    pub mistakes: f64,
    /// Most records that are read.
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
            form: None,
            columns: BTreeMap::new(),
            skip_malformed: false,
            world: None,
            shape: WorldShape::default(),
            split: "train".into(),
            seed: 0,
            mistakes: 0.0,
            limit: None,
        }
    }
}

/// Evaluation: perplexity on data, accuracy on worlds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EvaluateStage {
    /// A model or adapter folder, or the name of an earlier stage.
    pub model: String,
    /// Keys of the model's `config.json` that change before it is evaluated.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub config: Map<String, Value>,
    /// Data whose perplexity is measured.
    #[serde(
        default,
        deserialize_with = "shorthand::one_or_many",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub data: Vec<DataOptions>,
    /// Data on which a unigram and a 5-gram model are fitted, as baselines of the perplexity.
    #[serde(
        default,
        deserialize_with = "shorthand::one_or_many",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub baseline: Vec<DataOptions>,
    /// Preference pairs: how often is the better answer the likelier one?
    #[serde(
        default,
        deserialize_with = "shorthand::one_or_many",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub preferences: Vec<DataOptions>,
    /// Tasks of generated worlds whose accuracy is measured with greedy answers.
    #[serde(default)]
    pub worlds: Vec<String>,
    /// Tasks of generated worlds whose accuracy is measured with answers sampled at temperature 1.
    #[serde(default)]
    pub sampled_worlds: Vec<String>,
    /// Tasks of generated worlds whose texts are embedded: how often has the nearest other text the same answer?
    #[serde(default)]
    pub retrieval: Vec<String>,
    /// How texts become vectors.
    #[serde(default)]
    pub pooling: Pooling,
    /// The first position whose perplexity counts.
    #[serde(default)]
    pub from: usize,
    /// A chat template for the worlds, as in training; the tokenizer's own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// Seed of the sampled answers.
    #[serde(default)]
    pub seed: u64,
    /// Items of each task.
    #[serde(default = "default_items")]
    pub items: usize,
    /// Longest example in tokens.
    #[serde(default = "default_length")]
    pub length: usize,
}

fn default_items() -> usize {
    200
}

fn default_length() -> usize {
    1024
}
