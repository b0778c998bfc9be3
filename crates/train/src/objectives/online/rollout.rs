//! Rollouts: the policy answers prompts with its current weights and adapter, and the answers are scored.
//!
//! Answers are written by [`espalier_engine::decode`] in this process, all prompts of a batch at once. What is drawn follows from the
//! step's own stream, so a step that is repeated has the same answers. Log-probabilities are those of a forward pass of the policy
//! at the sampling temperature, not of the sampler, whose distribution `top_k`, `top_p` and `min_p` cut.

use std::sync::{Mutex, PoisonError};

use burn::tensor::{Device, Tensor};
use espalier_data::{
    encode::Example, packing::Row, random::Random, record::Message, tokenizer::Tokenizer,
};
use espalier_engine::{
    decode::{DecodeOptions, Finish, Generated, decode},
    sampler::SamplerOptions,
    text::end_tokens,
};
use espalier_kernels::readback::ReadFloats;
use espalier_models::{auxiliary_losses::AuxiliaryLosses, model::LanguageModel, taps::Unobserved};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::advantages;
use crate::{
    Error, Result,
    batch::{Sample, TokenBatch},
    choice,
    error::at_least,
    objectives::{
        Batch,
        reference::{self, Reference, ReferenceOptions},
    },
    rewards::{self, Asked, Read, RewardOptions, Rewards, Scores},
};

/// What answers are written by, and scored by.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RolloutOptions {
    /// What scores answers: a list of `world`, or tables such as `{ command = { run = ["python3", "reward.py"] } }`.
    #[serde(deserialize_with = "choice::names_or_tables")]
    #[schemars(schema_with = "choice::names_or_tables_schema::<RewardOptions>")]
    pub rewards: Vec<RewardOptions>,
    /// The weight of each reward in the sum; all count once when absent.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reward_weights: Vec<f64>,
    /// Whose log-probabilities answers are measured against; there is always one, for every run logs how far it has gone from it.
    #[serde(deserialize_with = "reference::named")]
    #[schemars(schema_with = "choice::name_or_table_schema::<ReferenceOptions>")]
    pub reference: ReferenceOptions,
    /// Longest answer in tokens, its end included.
    #[schemars(range(min = 1))]
    pub max_completion_length: usize,
    /// What logits are divided by, when answers are drawn and when they are scored.
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub temperature: f64,
    /// Draw from this many of the likeliest tokens; 0 is all.
    pub top_k: usize,
    /// Draw from the likeliest tokens until their probabilities sum to this; 1 is all.
    #[schemars(extend("exclusiveMinimum" = 0.0), range(max = 1.0))]
    pub top_p: f64,
    /// Draw from tokens at least this many times as likely as the likeliest; 0 is all.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub min_p: f64,
}

impl Default for RolloutOptions {
    fn default() -> Self {
        Self {
            rewards: Vec::new(),
            reward_weights: Vec::new(),
            reference: ReferenceOptions::default(),
            max_completion_length: 256,
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
        }
    }
}

impl RolloutOptions {
    /// Whether the options make sense.
    ///
    /// # Errors
    /// The first that does not.
    pub fn check(&self) -> Result<()> {
        let wrong = |key, reason: String| Err(Error::Option { key, reason });
        at_least("max_completion_length", self.max_completion_length, 1)?;
        if !(self.temperature > 0.0 && self.temperature.is_finite()) {
            let reason = "must be a positive number: greedy answers to a prompt are all the same";
            return wrong("temperature", reason.into());
        }
        if self.reference == ReferenceOptions::None {
            let reason = "there must be one, from which the distance is logged; leave the key out for the start";
            return wrong("reference", reason.into());
        }
        self.reference.check()?;
        self.sampler(0).validate()?;
        rewards::check(&self.rewards, &self.reward_weights)
    }

    /// What rewards and reference read besides the recipe.
    pub fn reads(&mut self) -> Vec<Read<'_>> {
        let rewards = self.rewards.iter_mut().flat_map(RewardOptions::reads);
        rewards.chain(self.reference.reads()).collect()
    }

    fn sampler(&self, seed: u64) -> SamplerOptions {
        SamplerOptions {
            temperature: self.temperature as f32,
            top_k: self.top_k,
            top_p: self.top_p as f32,
            min_p: self.min_p as f32,
            seed,
            ..SamplerOptions::default()
        }
    }
}

/// Column of a prompt: the conversation up to the answer, as JSON.
const MESSAGES: &str = "messages";
/// Column of a prompt: the record that it is from, as JSON.
const RECORD: &str = "record";

/// Column of an answer: its reward; not a number where none of the sources had an opinion.
pub const REWARD: &str = "reward";
/// Column of an answer: whether it ended by itself.
pub const ENDED: &str = "ended";
/// Column of an answer: the reference's log-probability of each token.
pub const REFERENCE: &str = "reference";
/// Column of an answer: the log-probability of each token under the policy that wrote it.
pub const OLD: &str = "old";
/// Column of an answer: its advantage, or that of each token.
pub const ADVANTAGE: &str = "advantage";
/// Column of an answer: the deviation of its group's rewards.
pub const SPREAD: &str = "reward_std";
/// Column of an answer: whether its group's rewards are all equal.
pub const EQUAL: &str = "frac_reward_zero_std";

/// A sample that asks for answers: the tokens of a prompt, the conversation that they are, and the record that it is from.
pub fn prompt(ids: Vec<u32>, messages: &[Message], record: &Value) -> Sample {
    let targets = vec![false; ids.len()];
    let mut sample = Sample::example(&Example::new(ids, targets));
    let messages = json!(messages).to_string();
    sample.columns.set_texts(MESSAGES, vec![messages]);
    sample.columns.set_texts(RECORD, vec![record.to_string()]);
    sample
}

/// A prompt as the policy and the rewards read it.
struct Question {
    ids: Vec<u32>,
    messages: Vec<Message>,
    record: Value,
}

impl Question {
    fn of(sample: &Sample) -> Result<Self> {
        let [row] = sample.rows.as_slice() else {
            let reason = "learns from prompts, not from preference pairs";
            return Err(super::super::wrong(reason));
        };
        let length = row.prompt_length();
        let parsed = |name: &str| -> Result<Value> {
            let text = &sample.columns.texts(name, 1)?[0];
            serde_json::from_str(text).map_err(|error| unreadable(name, &error))
        };
        let messages = serde_json::from_value(parsed(MESSAGES)?);
        Ok(Self {
            ids: row.ids[..length].to_vec(),
            messages: messages.map_err(|error| unreadable(MESSAGES, &error))?,
            record: parsed(RECORD)?,
        })
    }
}

fn unreadable(name: &str, error: &serde_json::Error) -> Error {
    Error::Column {
        name: name.to_owned(),
        reason: error.to_string(),
    }
}

/// Answers to several prompts, those to one prompt together.
#[derive(Debug, Clone)]
pub struct Written {
    /// A row of prompt and answer for each, whose targets are the answer, with columns of numbers.
    pub answers: Vec<Sample>,
    /// Answers to each prompt.
    pub group: usize,
    /// The answers' rewards.
    pub rewards: Vec<Option<f64>>,
    /// The answers to the first prompt, for readers.
    pub shown: Vec<Value>,
}

/// What writes answers and has them scored.
#[derive(Debug)]
pub struct Actor {
    options: RolloutOptions,
    tools: Option<Tools>,
    reference: Reference,
}

#[derive(Debug)]
struct Tools {
    tokenizer: Tokenizer,
    rewards: Mutex<Rewards>,
}

impl Actor {
    /// An actor without tokenizer, rewards and reference.
    pub fn new(options: RolloutOptions) -> Self {
        Self {
            reference: Reference::new(options.reference.clone()),
            options,
            tools: None,
        }
    }

    /// The options.
    pub fn options(&self) -> &RolloutOptions {
        &self.options
    }

    /// Gives it the tokenizer, and builds the rewards.
    ///
    /// # Errors
    /// When a reward makes no sense or cannot be loaded.
    pub fn equip(&mut self, tokenizer: &Tokenizer, device: &Device) -> Result<()> {
        let Self { options, .. } = self;
        let rewards = Rewards::build(&options.rewards, &options.reward_weights, device)?;
        self.tools = Some(Tools {
            tokenizer: tokenizer.clone(),
            rewards: Mutex::new(rewards),
        });
        Ok(())
    }

    /// Keeps the reference. The starting model shares its weights with the policy until training moves them, and for good where an adapter
    /// alone is trained.
    ///
    /// # Errors
    /// When a folder cannot be read.
    pub fn start(&mut self, model: &LanguageModel) -> Result<()> {
        self.reference.start(model, true)
    }

    /// The reference.
    pub fn reference(&self) -> &Reference {
        &self.reference
    }

    /// The same for change.
    pub fn reference_mut(&mut self) -> &mut Reference {
        &mut self.reference
    }

    /// Lets the policy answer each prompt `group` times; `with_old` adds the policy's own log-probabilities.
    ///
    /// # Errors
    /// When a prompt does not fit the model, or a reward fails.
    pub fn write(
        &self,
        policy: &LanguageModel,
        samples: &[&Sample],
        group: usize,
        with_old: bool,
        random: &mut Random,
    ) -> Result<Written> {
        let unready =
            || super::super::wrong("was given no tokenizer; call `equip` before training");
        let tools = self.tools.as_ref().ok_or_else(unready)?;
        let policy = policy.frozen();
        let questions = samples.iter().map(|sample| Question::of(sample));
        let questions = questions.collect::<Result<Vec<_>>>()?;
        let asked: Vec<&Question> = questions
            .iter()
            .flat_map(|question| std::iter::repeat_n(question, group))
            .collect();
        let generated = self.generate(&policy, &asked, &tools.tokenizer, random)?;
        let texts = generated
            .iter()
            .map(|answer| tools.tokenizer.decode(&answer.ids, true));
        let texts = texts.collect::<Result<Vec<_>, _>>()?;
        let scores = tools.score(&asked, &generated, &texts)?;
        let answers = asked
            .iter()
            .zip(&generated)
            .map(|(question, g)| answer(question, g));
        let mut written = Written {
            answers: answers.collect(),
            group,
            rewards: scores.total.clone(),
            shown: shown(&asked, &texts, &scores, group),
        };
        written.describe(&scores);
        if with_old {
            self.set_scores(&policy, &mut written.answers, OLD)?;
        }
        let reference = self.reference.kept().unwrap_or(&policy);
        self.set_scores(reference, &mut written.answers, REFERENCE)?;
        Ok(written)
    }

    fn generate(
        &self,
        policy: &LanguageModel,
        asked: &[&Question],
        tokenizer: &Tokenizer,
        random: &mut Random,
    ) -> Result<Vec<Generated>> {
        let prompts: Vec<Vec<u32>> = asked.iter().map(|question| question.ids.clone()).collect();
        let options = DecodeOptions {
            max_new_tokens: self.options.max_completion_length,
            sampler: self.options.sampler(random.next_u64()),
            end: end_tokens(policy, tokenizer),
        };
        Ok(decode(policy, &prompts, &options, &mut |_, _| true)?)
    }

    /// The log-probabilities of the answers' tokens as a column of theirs.
    fn set_scores(&self, model: &LanguageModel, answers: &mut [Sample], name: &str) -> Result<()> {
        let rows: Vec<&Row> = answers.iter().flat_map(|answer| &answer.rows).collect();
        let batch = TokenBatch::new(&rows);
        let (_, scores, _) = self.scores(model, &batch)?;
        let mut by_row = vec![Vec::new(); rows.len()];
        for (row, score) in batch.rows.iter().zip(scores.floats()) {
            by_row[*row].push(f64::from(score));
        }
        for (answer, scores) in answers.iter_mut().zip(by_row) {
            answer.columns.set_numbers(name, scores);
        }
        Ok(())
    }

    /// The states that predict a batch's targets, `[targets, width]`, the targets' log-probabilities at the sampling temperature,
    /// `[targets]`, and the losses that the model brings along.
    ///
    /// # Errors
    /// When a token id is outside the vocabulary.
    pub fn scores(
        &self,
        model: &LanguageModel,
        batch: &TokenBatch,
    ) -> Result<(Tensor<2>, Tensor<1>, AuxiliaryLosses)> {
        let (hidden, auxiliary) = batch.predicting(model, &mut Unobserved)?;
        let temperature = self.options.temperature;
        let scores = model.log_probabilities_at(hidden.clone(), &batch.targets, temperature)?;
        Ok((hidden, scores, auxiliary))
    }
}

impl Tools {
    fn score(
        &self,
        asked: &[&Question],
        generated: &[Generated],
        texts: &[String],
    ) -> Result<Scores> {
        let answers = asked.iter().zip(generated).zip(texts);
        let answers: Vec<Asked<'_>> = answers
            .map(|((question, generated), text)| Asked {
                messages: &question.messages,
                answer: text,
                tokens: generated.ids.len(),
                record: &question.record,
            })
            .collect();
        let mut rewards = self.rewards.lock().unwrap_or_else(PoisonError::into_inner);
        rewards.score(&answers)
    }
}

/// A row of prompt and answer.
fn answer(question: &Question, generated: &Generated) -> Sample {
    let ids = [question.ids.as_slice(), &generated.ids].concat();
    let mut sample = Sample::example(&Example::answered(ids, question.ids.len()));
    let ended = f64::from(u8::from(generated.finish == Finish::End));
    sample.columns.set_numbers(ENDED, vec![ended]);
    sample
}

/// The answers to the first prompt as lines for readers.
fn shown(asked: &[&Question], texts: &[String], scores: &Scores, group: usize) -> Vec<Value> {
    let line = |number: usize| {
        let by_source = scores.by_source.iter();
        let by_source: serde_json::Map<String, Value> = by_source
            .map(|(name, scores)| ((*name).to_owned(), json!(scores[number])))
            .collect();
        let last = asked[number].messages.last();
        json!({
            "prompt": last.map_or(String::new(), |message| message.text().into_owned()),
            "answer": texts[number],
            "reward": scores.total[number],
            "rewards": by_source,
        })
    };
    (0..group.min(asked.len())).map(line).collect()
}

impl Written {
    /// Adds the columns that metrics are made of.
    fn describe(&mut self, scores: &Scores) {
        let equal = advantages::without_spread(&self.rewards, self.group);
        let spreads: Vec<f64> = self
            .rewards
            .chunks(self.group.max(1))
            .map(|group| {
                advantages::deviation(&group.iter().flatten().copied().collect::<Vec<_>>())
            })
            .collect();
        for (number, answer) in self.answers.iter_mut().enumerate() {
            let of_group = number / self.group.max(1);
            let columns = &mut answer.columns;
            let mut set = |name: &str, value: f64| columns.set_numbers(name, vec![value]);
            set(REWARD, self.rewards[number].unwrap_or(f64::NAN));
            set(SPREAD, spreads[of_group]);
            set(EQUAL, f64::from(u8::from(equal[of_group])));
            for (name, given) in &scores.by_source {
                set(
                    &rewards::source_metric(name),
                    given[number].unwrap_or(f64::NAN),
                );
            }
        }
    }

    /// Sets a column of one number for each answer.
    pub fn set_numbers(&mut self, name: &str, values: &[f64]) {
        for (answer, value) in self.answers.iter_mut().zip(values) {
            answer.columns.set_numbers(name, vec![*value]);
        }
    }
}

/// A batch of answers with their columns; its units are its tokens.
///
/// # Errors
/// When the answers have different columns.
pub fn batch_of(answers: &[&Sample]) -> Result<Batch> {
    let rows: Vec<&Row> = answers.iter().flat_map(|answer| &answer.rows).collect();
    Batch::of_targets(TokenBatch::new(&rows), answers)
}
