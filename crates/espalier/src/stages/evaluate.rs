//! The evaluation stage: perplexity on data, accuracy on worlds.

use std::path::Path;

use burn::tensor::Device;
use espalier_data::{
    encode::{Encoded, Encoder, Example},
    readers::Wanted,
    record::{Message, Record},
    worlds::{self, Item, Split},
};
use espalier_engine::{
    embed::embed,
    sampler::SamplerOptions,
    score::{Score, score},
    text::{TextModel, TextOptions},
};
use espalier_evaluate::{
    ngram::NgramModel,
    perplexity,
    preference::{preference_accuracy, reward_accuracy},
    report::Section,
    retrieval::nearest_neighbour,
    statistics::Accuracy,
    world,
};
use espalier_models::{model::LanguageModel, pooling::Pooling};
use espalier_train::{evaluation, objectives::classification::Classify, quantise::QuantiseOptions};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{
    Voice,
    best_of::Judge,
    classes::Classes,
    data::{self, Sourced},
    kinds::{ArtifactKind, Input, Output, StageKind, Workplace, keys},
    model, report,
};
use crate::{
    Error, Result,
    recipe::{DataOptions, data::MOST_ITEMS, shorthand},
};

/// Rows that are scored or decoded at once.
pub(super) const BATCH: usize = 16;

/// Longest answer to an item of a world.
pub(super) const MAX_ANSWER: usize = 160;

/// Answers to an item among which a reward model chooses where nothing else is said.
pub(super) const USUAL_ANSWERS: usize = 8;

/// Most answers to an item among which a reward model chooses.
const MOST_ANSWERS: usize = 1024;

/// Evaluation: perplexity on data, accuracy on worlds.
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
    /// Tasks of generated worlds whose accuracy is measured with greedy answers.
    #[serde(default)]
    pub worlds: Vec<String>,
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
    /// Items of each task.
    #[serde(default = "default_items")]
    #[schemars(range(min = 1, max = MOST_ITEMS))]
    pub items: usize,
    /// Longest example in tokens.
    #[serde(default = "default_length")]
    #[schemars(range(min = 2))]
    pub length: usize,
}

fn default_items() -> usize {
    200
}

fn default_length() -> usize {
    1024
}

impl StageKind for EvaluateStage {
    fn check(&self) -> Result<()> {
        if self.items == 0 || self.length < 2 {
            return Err(Error::usage(
                "`items` must be at least 1 and `length` at least 2",
            ));
        }
        if self.items > MOST_ITEMS {
            return Err(Error::usage(format!(
                "`items`: {} is more than {MOST_ITEMS}",
                self.items
            )));
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
        let tasks = self.worlds.iter().chain(&self.sampled_worlds);
        let nothing = tasks.clone().chain(&self.retrieval).next().is_none();
        if nothing && self.data.is_empty() && self.preferences.is_empty() && self.labels.is_empty()
        {
            return Err(Error::usage(
                "the stage measures nothing; give one of `data`, `preferences`, `labels`, `worlds`, `sampled_worlds`, `retrieval`",
            ));
        }
        if self.divergence_from.is_some() && self.sampled_worlds.is_empty() {
            return Err(Error::usage(
                "`divergence_from` is measured on the answers to `sampled_worlds`, of which there are none",
            ));
        }
        for task in tasks.chain(&self.retrieval) {
            worlds::item(task, Split::Test, 0, 0)
                .map_err(|error| Error::usage(error.to_string()))?;
        }
        Ok(())
    }

    fn inputs(&mut self) -> Vec<Input<'_>> {
        let data = self.data.iter_mut().chain(&mut self.baseline);
        let data = data.chain(&mut self.preferences).chain(&mut self.labels);
        let data = data.map(Input::Data);
        let template = self.template.iter_mut().map(Input::Template);
        let reward = self.reward.iter_mut().chain(&mut self.divergence_from);
        let others = reward.map(Input::Model);
        let model = [Input::Model(&mut self.model)].into_iter().chain(others);
        model.chain(data).chain(template).collect()
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
        keys(self)
    }

    fn run(&self, workplace: &mut Workplace) -> Result<Value> {
        evaluate(self, workplace.device, workplace.voice)
    }

    fn sections(&self, name: &str, _: &Path, figures: &Value) -> Result<Vec<Section>> {
        Ok(report::conversations(name, figures).into_iter().collect())
    }
}

/// Evaluates a model, whose path is given, and returns the figures.
///
/// # Errors
/// When model or data do not fit.
pub fn evaluate(stage: &EvaluateStage, device: &Device, voice: &mut dyn Voice) -> Result<Value> {
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
    for (key, tasks, temperature) in [
        ("worlds", &stage.worlds, 0.0),
        ("sampled_worlds", &stage.sampled_worlds, 1.0),
    ] {
        let mut figures = Map::new();
        let reference = reference.as_ref().filter(|_| temperature > 0.0);
        for task in tasks {
            figures.insert(
                task.clone(),
                accuracy(&model, task, stage, temperature, reference, voice)?,
            );
        }
        if !figures.is_empty() {
            result.insert(key.into(), Value::Object(figures));
        }
    }
    if let Some(judge) = judge {
        let found = judge.best_of(&model, stage, voice)?;
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
    let items = world::items(task, Split::Test, stage.items, 0)?;
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
        voice.say(&format!("   {name} {:.1} %", 100.0 * value));
        figures[name] = value.into();
    }
    Ok(figures)
}

pub(super) fn figures(accuracy: &Accuracy) -> Value {
    let (low, high) = accuracy.interval();
    json!({"accuracy": accuracy.value(), "low": low, "high": high, "items": accuracy.total})
}

fn accuracy(
    model: &TextModel,
    task: &str,
    stage: &EvaluateStage,
    temperature: f32,
    reference: Option<&LanguageModel>,
    voice: &mut dyn Voice,
) -> Result<Value> {
    let items = world::items(task, Split::Test, stage.items, 0)?;
    let sampler = SamplerOptions {
        temperature,
        seed: stage.seed,
        ..SamplerOptions::default()
    };
    let options = TextOptions {
        max_new_tokens: MAX_ANSWER,
        sampler,
        stops: Vec::new(),
    };
    let mut progress = |done: usize| voice.progress(&format!("   {task}"), done, stage.items, "");
    let answers = world::answer(model, &items, &options, BATCH, &mut progress)?;
    let accuracy = world::accuracy(&answers);
    let sample = |answer: &world::Answer| json!({"prompt": answer.item.prompt, "answer": answer.text, "right": answer.right});
    let kind = if temperature == 0.0 {
        "greedy"
    } else {
        "sampled"
    };
    let mut figures = figures(&accuracy);
    let mut distance = String::new();
    if let Some(reference) = reference {
        let (divergence, tokens) = divergence(model, reference, &answers)?;
        distance = format!(", {divergence:.3} nats from the reference");
        figures["divergence"] = divergence.into();
        figures["tokens"] = tokens.into();
    }
    voice.say(&format!("   {task}, {kind}: {accuracy}{distance}"));
    figures["samples"] = answers.iter().take(5).map(sample).collect();
    Ok(figures)
}

/// How far a model is from another one on its own answers, the mean of their log-ratios, and the mean of their tokens.
fn divergence(
    model: &TextModel,
    reference: &LanguageModel,
    answers: &[world::Answer],
) -> Result<(f64, f64)> {
    let encoder = Encoder::new(model.tokenizer.clone(), usize::MAX);
    let mut examples = Vec::with_capacity(answers.len());
    for answer in answers {
        let record = Record::Unpaired {
            prompt: answer.item.question(),
            answer: Message::assistant(&answer.text),
            desirable: answer.right,
            tools: None,
        };
        if let Encoded::Unpaired { example, .. } = encoder.encode(&record)? {
            examples.push(example);
        }
    }
    let scores = [&model.model, reference].map(|model| score(model, &examples, BATCH));
    let [own, other] = scores;
    let (own, other) = (own?, other?);
    let ratio = |(own, other): (&Score, &Score)| own.log_probability - other.log_probability;
    let sum: f64 = own.iter().zip(&other).map(ratio).sum();
    let tokens: usize = examples.iter().map(Example::target_count).sum();
    let count = examples.len().max(1) as f64;
    Ok((sum / count, tokens as f64 / count))
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
