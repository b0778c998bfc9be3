//! The evaluation stage: tasks, perplexity on data, preferences, labels, retrieval.

mod tasks;

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use espalier_data::{
    encode::{Encoded, Example},
    readers::Wanted,
    worlds::{self, Item, Split},
};
use espalier_engine::{embed::embed, text::TextModel};
use espalier_evaluate::{
    ngram::NgramModel,
    perplexity,
    preference::{preference_accuracy, reward_accuracy},
    retrieval::nearest_neighbour,
    statistics::{Accuracy, wilson},
    world,
};
use espalier_models::{model::LanguageModel, pooling::Pooling};
use espalier_train::{evaluation, objectives::classification::Classify, quantise::QuantiseOptions};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

pub use self::tasks::Keeping;
use super::{
    Voice,
    best_of::Judge,
    classes::Classes,
    data::{self, Sourced},
    hashes::FileHashes,
    kinds::{ArtifactKind, Input, Output, StageKind, Workplace, keys},
    model, report,
};
use crate::{
    Error, Result,
    evaluation::{Choice, shown::share, world_items},
    recipe::{DataOptions, shorthand},
};

/// Rows that are scored or decoded at once.
pub(super) const BATCH: usize = 16;

/// Answers to an item among which a reward model chooses where nothing else is said.
pub(super) const USUAL_ANSWERS: usize = 8;

/// Most answers to an item among which a reward model chooses.
const MOST_ANSWERS: usize = 1024;

/// Evaluation: tasks, perplexity on data, preferences, labels, retrieval.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EvaluateStage {
    /// A model or adapter folder, or the name of an earlier stage.
    pub model: String,
    /// Keys of the model's `config.json` that change before it is evaluated.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub config: Map<String, Value>,
    /// Round the linear maps of the (base) model's blocks to four bits while they are read: `nf4`, `fp4`, or a table such as
    /// `{ nf4 = { double = false } }`.
    #[serde(
        default,
        deserialize_with = "shorthand::optional_name_or_table",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(schema_with = "shorthand::name_or_table_schema::<QuantiseOptions>")]
    pub quantise: Option<QuantiseOptions>,
    /// Data whose perplexity is measured.
    #[serde(
        default,
        deserialize_with = "shorthand::one_or_many",
        skip_serializing_if = "Vec::is_empty"
    )]
    #[schemars(schema_with = "shorthand::one_or_many_schema")]
    pub data: Vec<DataOptions>,
    /// Data on which a unigram and a 5-gram model are fitted, as baselines of the perplexity.
    #[serde(
        default,
        deserialize_with = "shorthand::one_or_many",
        skip_serializing_if = "Vec::is_empty"
    )]
    #[schemars(schema_with = "shorthand::one_or_many_schema")]
    pub baseline: Vec<DataOptions>,
    /// Preference pairs: how often is the better answer the likelier one, or of a reward model the one with the larger score?
    #[serde(
        default,
        deserialize_with = "shorthand::one_or_many",
        skip_serializing_if = "Vec::is_empty"
    )]
    #[schemars(schema_with = "shorthand::one_or_many_schema")]
    pub preferences: Vec<DataOptions>,
    /// Data with labels: how often does a classifier choose the right one?
    #[serde(
        default,
        deserialize_with = "shorthand::one_or_many",
        skip_serializing_if = "Vec::is_empty"
    )]
    #[schemars(schema_with = "shorthand::one_or_many_schema")]
    pub labels: Vec<DataOptions>,
    /// Tasks, as `espalier eval` takes them: generated worlds such as `sentence/2`, `gsm8k`, task files of lm-evaluation-harness, or names of
    /// tasks, groups and tags in `include`.
    #[serde(default)]
    pub tasks: Vec<String>,
    /// Folders of task files, searched with the folders in them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub include: Vec<PathBuf>,
    /// The folder in which the tasks' data sets are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_data: Option<PathBuf>,
    /// The first items of each task alone, a share of them when below 1; of worlds 200 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub limit: Option<f64>,
    /// Labelled examples before each item of a task file; each task's own number when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shots: Option<usize>,
    /// Seed by which labelled examples are chosen.
    #[serde(default = "default_shots_seed")]
    pub shots_seed: u64,
    /// Apply the chat template to prompts of task files; those of worlds have it where there is one.
    #[serde(default)]
    pub chat: bool,
    /// With `chat`: labelled examples are turns of their own.
    #[serde(default)]
    pub multiturn: bool,
    /// What a system message says before a task's description.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// Most tokens of a generated answer; each task's own number when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub max_tokens: Option<usize>,
    /// Run the programs that the model writes, for tasks that mark them so.
    #[serde(default)]
    pub allow_code: bool,
    /// An earlier evaluation, a stage or the folder of `espalier eval`: compare the two models on the tasks, item by item.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub against: Option<String>,
    /// Tasks of generated worlds whose accuracy is measured with answers sampled at temperature 1.
    #[serde(default)]
    pub sampled_worlds: Vec<String>,
    /// A reward model that chooses among several answers to each item of `sampled_worlds`: a folder, or the name of an earlier stage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reward: Option<String>,
    /// Answers among which the reward model chooses; 8 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = MOST_ANSWERS))]
    pub best_of: Option<usize>,
    /// A model over the same tokens, or the name of an earlier stage: how far is the model from it? The mean log-ratio of the answers to
    /// `sampled_worlds`, in nats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub divergence_from: Option<String>,
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
    /// Longest example in tokens.
    #[serde(default = "default_length")]
    #[schemars(range(min = 2))]
    pub length: usize,
}

fn default_shots_seed() -> u64 {
    1234
}

fn default_length() -> usize {
    1024
}

impl StageKind for EvaluateStage {
    fn check(&self) -> Result<()> {
        if self.length < 2 || self.max_tokens == Some(0) {
            return Err(Error::usage(
                "`length` must be at least 2, and `max_tokens` at least 1",
            ));
        }
        if let Some(count) = self.best_of {
            if !(1..=MOST_ANSWERS).contains(&count) {
                return Err(Error::usage(format!(
                    "`best_of`: {count} is outside 1 to {MOST_ANSWERS}"
                )));
            }
            if self.reward.is_none() {
                return Err(Error::usage(
                    "`best_of` says among how many answers a reward model chooses; name one as `reward`, or leave it out",
                ));
            }
        }
        if self.reward.is_some() && self.sampled_worlds.is_empty() {
            return Err(Error::usage(
                "`reward` chooses among answers to `sampled_worlds`, of which there is none",
            ));
        }
        if !self.baseline.is_empty() && self.data.is_empty() {
            return Err(Error::usage(
                "`baseline` stands beside the perplexity of `data`, of which there is none",
            ));
        }
        let tasks = self.tasks.iter().chain(&self.sampled_worlds);
        let nothing = tasks.chain(&self.retrieval).next().is_none();
        if nothing && self.data.is_empty() && self.preferences.is_empty() && self.labels.is_empty()
        {
            return Err(Error::usage(
                "the stage measures nothing; give one of `tasks`, `data`, `preferences`, `labels`, `sampled_worlds`, `retrieval`",
            ));
        }
        if self.against.is_some() && self.tasks.is_empty() && self.sampled_worlds.is_empty() {
            return Err(Error::usage(
                "`against` compares answers to `tasks` or `sampled_worlds`, of which there are none",
            ));
        }
        if self.divergence_from.is_some() && self.sampled_worlds.is_empty() {
            return Err(Error::usage(
                "`divergence_from` is measured on the answers to `sampled_worlds`, of which there are none",
            ));
        }
        for task in self.sampled_worlds.iter().chain(&self.retrieval) {
            worlds::item(task, Split::Test, 0, 0)
                .map_err(|error| Error::usage(error.to_string()))?;
        }
        self.choice().check()
    }

    fn inputs(&mut self) -> Vec<Input<'_>> {
        let data = self.data.iter_mut().chain(&mut self.baseline);
        let data = data.chain(&mut self.preferences).chain(&mut self.labels);
        let data = data.map(Input::Data);
        let template = self.template.iter_mut().map(Input::Template);
        let reward = self.reward.iter_mut().chain(&mut self.divergence_from);
        let others = reward.map(Input::Model);
        let model = [Input::Model(&mut self.model)].into_iter().chain(others);
        let against = self.against.iter_mut().map(Input::Evaluation);
        model.chain(data).chain(template).chain(against).collect()
    }

    fn outputs(&self) -> Vec<Output> {
        vec![Output {
            part: "",
            kind: ArtifactKind::Report,
            path: "figures.json",
        }]
    }

    fn seed(&mut self) -> Option<&mut u64> {
        Some(&mut self.seed)
    }

    fn deciding_keys(&self) -> Result<Value> {
        let mut keys = keys(self)?;
        let (definitions, files) = self.choice().files()?;
        if !definitions.is_empty() {
            let mut hashes = FileHashes::open(Path::new(""));
            let files = files.iter().map(|file| hashes.of_file(file));
            keys["definitions"] = definitions.into();
            keys["records"] = files.collect::<Result<Vec<_>>>()?.into();
        }
        Ok(keys)
    }

    fn figures(&self, figures: &Value) -> Vec<(String, f64)> {
        // Bounds and counts of items stand beside the figures, not among them.
        let beside = ["low", "high", "items", "shots"];
        let own = report::numbers(figures).into_iter().filter(|(key, _)| {
            let last = key.rsplit('.').next().unwrap_or(key);
            !beside.contains(&last)
        });
        own.map(|(key, value)| (key.trim_end_matches(".value").to_owned(), value))
            .collect()
    }

    fn run(&self, workplace: &mut Workplace) -> Result<Value> {
        let mut keeping = Keeping::of(&workplace.folder, &workplace.fingerprint)?;
        let result = evaluate(self, &mut keeping, workplace.device, workplace.voice)?;
        keeping.done()?;
        Ok(result)
    }
}

impl EvaluateStage {
    /// A stage that measures nothing of a model yet.
    pub fn of_model(model: &str) -> Self {
        Self {
            model: model.to_owned(),
            config: Map::new(),
            quantise: None,
            data: Vec::new(),
            baseline: Vec::new(),
            preferences: Vec::new(),
            labels: Vec::new(),
            tasks: Vec::new(),
            include: Vec::new(),
            task_data: None,
            limit: None,
            shots: None,
            shots_seed: default_shots_seed(),
            chat: false,
            multiturn: false,
            system: None,
            max_tokens: None,
            allow_code: false,
            against: None,
            sampled_worlds: Vec::new(),
            reward: None,
            best_of: None,
            divergence_from: None,
            retrieval: Vec::new(),
            pooling: Pooling::default(),
            from: 0,
            template: None,
            seed: 0,
            length: default_length(),
        }
    }

    /// The tasks of files and of worlds, answered greedily.
    fn choice(&self) -> Choice<'_> {
        Choice {
            names: &self.tasks,
            include: &self.include,
            data: self.task_data.as_deref(),
            limit: self.limit,
            shots: self.shots,
            shots_seed: self.shots_seed,
            chat: self.chat,
            multiturn: self.multiturn,
            system: self.system.as_deref(),
            max_tokens: self.max_tokens,
            allow_code: self.allow_code,
            sample: false,
        }
    }

    /// Tasks of worlds, with answers sampled at temperature 1.
    pub(super) fn sampled<'a>(&'a self, names: &'a [String]) -> Choice<'a> {
        Choice {
            names,
            sample: true,
            ..self.choice()
        }
    }

    /// Items of a world's task.
    pub(super) fn items(&self) -> usize {
        world_items(self.limit)
    }
}

/// Evaluates a model, whose path is given, and returns the figures.
///
/// # Errors
/// When model or data do not fit.
pub fn evaluate(
    stage: &EvaluateStage,
    keeping: &mut Keeping,
    device: &Device,
    voice: &mut dyn Voice,
) -> Result<Value> {
    let template = stage.template.as_deref();
    let start = model::open(
        Path::new(&stage.model),
        &stage.config,
        stage.quantise,
        template,
        device,
    )?;
    for remark in &start.loaded.remarks {
        voice.say(&format!("   {remark}"));
    }
    let labelled = match stage.labels.is_empty() {
        true => None,
        false => {
            let classes = Classes::of(&start.loaded)?;
            let records = data::records(&stage.labels, Wanted::Labels, voice)?;
            classes.check_all(&records)?;
            Some((classes, records))
        }
    };
    let mut language_model = start.loaded.model;
    language_model.merge_what_can_be();
    let model = TextModel {
        model: language_model,
        tokenizer: start.tokenizer,
    };
    // What else is read is opened before anything is computed: a mistake there should not cost what was measured.
    let reference = stage.divergence_from.as_deref();
    let reference = reference.map(|path| reference_model(path, &model, device));
    let reference = reference.transpose()?;
    let judge = stage.reward.as_deref();
    let judge = judge.map(|path| Judge::open(Path::new(path), stage, device));
    let judge = judge.transpose()?;
    let mut result = Map::from_iter([("kind".to_owned(), "evaluate".into())]);
    if !stage.data.is_empty() {
        result.insert("perplexity".into(), likelihood(&model, stage, voice)?);
    }
    if !stage.preferences.is_empty() {
        result.insert("preferences".into(), preferences(&model, stage, voice)?);
    }
    if let Some((classes, records)) = labelled {
        let found = labels(&model, &classes, &records, stage, voice)?;
        result.insert("labels".into(), found);
    }
    let mut figures = Map::new();
    for task in &stage.retrieval {
        figures.insert(task.clone(), retrieval(&model, task, stage, voice)?);
    }
    if !figures.is_empty() {
        result.insert("retrieval".into(), Value::Object(figures));
    }
    result.extend(tasks::measure(
        &model,
        stage,
        reference.as_ref(),
        keeping,
        voice,
    )?);
    if let Some(judge) = judge {
        let found = judge.best_of(&model, stage, keeping, voice)?;
        result.insert("best_of".into(), found);
    }
    Ok(Value::Object(result))
}

/// The model from which a distance is measured, over the same tokens.
fn reference_model(path: &str, model: &TextModel, device: &Device) -> Result<LanguageModel> {
    let path = Path::new(path);
    model::check_same_tokens(path, &model.tokenizer)?;
    let mut start = model::open(path, &Map::new(), None, None, device)?;
    start.loaded.model.merge_what_can_be();
    Ok(start.loaded.model)
}

/// Encoded records, none of which goes beyond the model's learned positions.
fn load(
    model: &TextModel,
    data: &[DataOptions],
    wanted: Wanted,
    length: usize,
    voice: &mut dyn Voice,
) -> Result<Vec<Encoded>> {
    let records = data::records(data, wanted, voice)?;
    let encoded = data::encode(&model.tokenizer, &records, wanted, length, voice)?;
    let longest = encoded.iter().map(Encoded::longest).max().unwrap_or(0);
    if let Some(remark) = model::beyond_context(model.model.spec(), longest) {
        voice.say(&format!("   {remark}"));
    }
    match model.model.spec().prompt_positions() {
        Some(limit) if longest > limit => Err(Error::work(format!(
            "the longest text has {longest} tokens, but the model has learned {limit} positions; `length` = {limit} keeps the \
             beginning of longer texts"
        ))),
        _ => Ok(encoded),
    }
}

/// Perplexity, beside that of n-gram models where the stage names data for them.
fn likelihood(model: &TextModel, stage: &EvaluateStage, voice: &mut dyn Voice) -> Result<Value> {
    let encoded = load(model, &stage.data, Wanted::Texts, stage.length, voice)?;
    let mut held_out = examples(encoded);
    for example in &mut held_out {
        let skipped = stage.from.min(example.targets.len());
        example.targets[..skipped].fill(false);
    }
    let bytes = perplexity::scored_bytes(&model.tokenizer, &held_out)?;
    let measured = perplexity::perplexity(&model.model, &held_out, bytes, BATCH)?;
    if measured.tokens == 0 {
        return Err(Error::work(format!(
            "no token is left whose perplexity could be measured; give longer texts, or lower `from` (it is {})",
            stage.from
        )));
    }
    let mut figures = json!({
        "per_token": measured.per_token(),
        "bits_per_byte": measured.bits_per_byte(),
        "tokens": measured.tokens,
        "bytes": measured.bytes,
    });
    let mut line = format!(
        "   perplexity {:.3} over {} tokens",
        measured.per_token(),
        measured.tokens
    );
    if !stage.baseline.is_empty() {
        let encoded = load(model, &stage.baseline, Wanted::Texts, stage.length, voice)?;
        let training = examples(encoded);
        for (name, order) in [("unigram", 1), ("5-gram", 5)] {
            let documents = training.iter().map(|example| example.ids.as_slice());
            let baseline = NgramModel::train(order, model.model.spec().vocabulary, documents);
            let perplexity = baseline
                .perplexity(held_out.iter().map(|example| example.ids.as_slice()))
                .per_token();
            line.push_str(&format!(", {name} {perplexity:.3}"));
            figures[name] = perplexity.into();
        }
    }
    voice.say(&line);
    Ok(figures)
}

/// How often the nearest other text of a task has the same answer.
fn retrieval(
    model: &TextModel,
    task: &str,
    stage: &EvaluateStage,
    voice: &mut dyn Voice,
) -> Result<Value> {
    let items = world::items(task, Split::Test, stage.items(), 0)?;
    let encode = |item: &Item| model.tokenizer.encode_ids(&item.text(), true);
    let texts = items
        .iter()
        .map(encode)
        .collect::<std::result::Result<Vec<_>, _>>()?;
    let vectors = embed(&model.model, &texts, stage.pooling, BATCH)?;
    let labels: Vec<String> = items.into_iter().map(|item| item.answer).collect();
    let accuracy = nearest_neighbour(&vectors, &labels);
    voice.say(&format!("   {task}, nearest neighbour: {accuracy}"));
    Ok(figures(&accuracy))
}

/// How often the better answer of a pair is the likelier one, or has the larger score.
fn preferences(model: &TextModel, stage: &EvaluateStage, voice: &mut dyn Voice) -> Result<Value> {
    let encoded = load(
        model,
        &stage.preferences,
        Wanted::Pairs,
        stage.length,
        voice,
    )?;
    let pairs: Vec<_> = encoded
        .into_iter()
        .filter_map(|encoded| match encoded {
            Encoded::Pair(pair) => Some(pair),
            _ => None,
        })
        .collect();
    if pairs.is_empty() {
        return Err(Error::work(
            "`preferences` holds no pair of a better and a worse answer",
        ));
    }
    let accuracy = match model.model.spec().classifier {
        Some(_) => reward_accuracy(&model.model, &pairs, BATCH)?,
        None => preference_accuracy(&model.model, &pairs, BATCH)?,
    };
    voice.say(&format!("   preferences: {accuracy}"));
    Ok(figures(&accuracy))
}

/// Loss and accuracy of a classifier on data with labels.
fn labels(
    model: &TextModel,
    classes: &Classes,
    records: &[Sourced],
    stage: &EvaluateStage,
    voice: &mut dyn Voice,
) -> Result<Value> {
    let (tokenizer, wanted) = (&model.tokenizer, Wanted::Labels);
    let encoded = data::encode(tokenizer, records, wanted, stage.length, voice)?;
    let samples = data::samples(encoded, None, stage.length, Some(classes))?;
    let mut objective = Classify { name: "classify" };
    let (loss, metrics) = evaluation::evaluate(&model.model, &mut objective, &samples, BATCH)?;
    let mut figures = json!({ "loss": loss, "items": samples.len() });
    for (name, value) in metrics {
        match name == "accuracy" {
            true => {
                let correct = (value * samples.len() as f64).round() as u64;
                let (low, high) = wilson(correct, samples.len() as u64);
                voice.say(&format!("   labels: {}", share(value, low, high)));
                (figures["low"], figures["high"]) = (low.into(), high.into());
            }
            false => voice.say(&format!("   {name} {:.1} %", 100.0 * value)),
        }
        figures[name] = value.into();
    }
    Ok(figures)
}

pub(super) fn figures(accuracy: &Accuracy) -> Value {
    let (low, high) = accuracy.interval();
    json!({"accuracy": accuracy.value(), "low": low, "high": high, "items": accuracy.total})
}

/// The examples whose perplexity is measured; a pair counts as its better answer.
pub fn examples(encoded: Vec<Encoded>) -> Vec<Example> {
    let example = |encoded| match encoded {
        Encoded::Example(example) => Some(example),
        Encoded::Pair(pair) => Some(pair.chosen),
        Encoded::Unpaired { example, .. } => Some(example),
        Encoded::Labelled(_) | Encoded::Dropped { .. } => None,
    };
    encoded.into_iter().filter_map(example).collect()
}
