//! Rewards: sources of a number for an answer to a prompt.
//!
//! A source is one file here and one line in [`RewardOptions`]: a generated world's checker, a command that talks JSON lines, an
//! HTTP endpoint, a reward model, a judge that is asked in words, and two plain rules. Several are added with weights
//! ([`Rewards`]). A source may have no opinion of an answer (`null`); an answer of which none has an opinion is left out of whatever
//! is learned from the others. A source that fails is an error of the run, with what it said last.

pub mod command;
pub mod endpoint;
pub mod judge;
pub mod model;
pub mod rules;
pub mod world;

use std::{collections::BTreeSet, sync::Mutex};

use burn::tensor::Device;
use espalier_data::record::Message;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use self::{
    command::CommandOptions,
    endpoint::EndpointOptions,
    judge::JudgeOptions,
    model::ModelOptions,
    rules::{LengthOptions, RegexOptions},
    world::WorldOptions,
};
use crate::{Error, Result, metrics::MetricDescription};

/// An answer that is to be scored.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The conversation up to the answer.
    pub messages: &'a [Message],
    /// The answer's text, without special tokens.
    pub answer: &'a str,
    /// The answer's tokens, its end included.
    pub tokens: usize,
    /// The record that the prompt came from, with whatever else its line says.
    pub record: &'a Value,
}

impl Asked<'_> {
    /// The text of the last message, to which the answer replies.
    pub fn prompt(&self) -> String {
        let last = self.messages.last();
        last.map_or(String::new(), |message| message.text().into_owned())
    }

    /// What is sent to a command or an endpoint.
    fn to_json(self) -> Value {
        json!({
            "prompt": self.prompt(),
            "messages": self.messages,
            "completion": self.answer,
            "record": self.record,
        })
    }
}

/// A source of rewards.
pub trait Reward: Send + std::fmt::Debug {
    /// One number for each answer, in order; none where the source has no opinion.
    ///
    /// # Errors
    /// When the source fails.
    fn score(&mut self, answers: &[Asked<'_>]) -> Result<Vec<Option<f64>>>;
}

/// Something outside the recipe that a source of rewards, or an objective, reads.
#[derive(Debug)]
pub enum Read<'a> {
    /// A model folder, or the name of an earlier stage.
    Model(&'a mut String),
    /// A model folder, or the name of an earlier stage, over the tokens of the model that is trained.
    Peer(&'a mut String),
    /// A word that may be a file.
    File(&'a str),
}

/// What the options of a source can do.
trait Source {
    /// Whether they make sense, as far as can be told before anything runs.
    fn check(&self) -> Result<()>;

    /// What they name besides the recipe.
    fn reads(&mut self) -> Vec<Read<'_>> {
        Vec::new()
    }

    /// The source itself.
    fn build(&self, device: &Device) -> Result<Box<dyn Reward>>;
}

/// Registers sources: help, variant, name in recipes and metrics, and options, which are a [`Source`].
macro_rules! sources {
    ($(#[doc = $help:literal] $variant:ident($name:literal, $options:ty)),+ $(,)?) => {
        /// Where a reward comes from.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
        pub enum RewardOptions {
            $(#[doc = $help] #[serde(rename = $name)] $variant($options)),+
        }

        /// The metric of the first source of each kind; [`numbered`] has those of others.
        pub const METRICS: &[MetricDescription] = &[$(of_source(concat!("rewards/", $name, "/mean"))),+];

        impl RewardOptions {
            /// The source's name in metrics.
            pub fn name(&self) -> &'static str {
                match self {
                    $(Self::$variant(_) => $name),+
                }
            }

            /// Whether the options make sense, as far as can be told before anything runs.
            ///
            /// # Errors
            /// The first option that does not.
            pub fn check(&self) -> Result<()> {
                match self {
                    $(Self::$variant(options) => Source::check(options)),+
                }
            }

            /// What the source reads besides the recipe.
            pub fn reads(&mut self) -> Vec<Read<'_>> {
                match self {
                    $(Self::$variant(options) => Source::reads(options)),+
                }
            }

            /// The source itself.
            ///
            /// # Errors
            /// When an option makes no sense, or a model cannot be loaded.
            pub fn build(&self, device: &Device) -> Result<Box<dyn Reward>> {
                match self {
                    $(Self::$variant(options) => Source::build(options, device)),+
                }
            }
        }
    };
}

sources! {
    /// The checker of the generated world that the prompt is from: 1 for a right answer, else 0.
    World("world", WorldOptions),
    /// A program that is asked in JSON lines.
    Command("command", CommandOptions),
    /// A server that is asked by HTTP.
    Endpoint("endpoint", EndpointOptions),
    /// A reward model: a classifier of texts with one label.
    Model("model", ModelOptions),
    /// A model that is asked in words for a score.
    Judge("judge", JudgeOptions),
    /// How near an answer comes to a length.
    Length("length", LengthOptions),
    /// Whether an answer matches a regular expression: 1 or 0.
    Regex("regex", RegexOptions),
}

const fn of_source(name: &'static str) -> MetricDescription {
    let chart = "reward by source";
    MetricDescription::number(name, chart, "reward of this source, mean over answers")
}

/// The name of a source's metric.
pub fn source_metric(source: &str) -> String {
    format!("rewards/{source}/mean")
}

/// The description of the metric of a source that is not the first of its kind, such as `rewards/command-2/mean`.
pub fn numbered(name: &str) -> Option<MetricDescription> {
    let source = name.strip_prefix("rewards/")?.strip_suffix("/mean")?;
    let (kind, number) = source.rsplit_once('-')?;
    number.parse::<usize>().ok()?;
    let first = source_metric(kind);
    let first = METRICS.iter().find(|metric| metric.name == first)?;
    Some(MetricDescription {
        name: interned(name.to_owned()),
        ..*first
    })
}

/// Several sources, added with weights.
#[derive(Debug)]
pub struct Rewards {
    sources: Vec<(&'static str, f64, Box<dyn Reward>)>,
}

/// What the sources say of several answers.
#[derive(Debug, Clone, PartialEq)]
pub struct Scores {
    /// Of each source its name, and a number for each answer.
    pub by_source: Vec<(&'static str, Vec<Option<f64>>)>,
    /// The weighted sums; none where no source has an opinion.
    pub total: Vec<Option<f64>>,
}

impl Rewards {
    /// Builds every source. `weights` has one number for each of them, or none at all: then all count once.
    ///
    /// # Errors
    /// When there is no source, the weights are of another number, or a source cannot be built.
    pub fn build(options: &[RewardOptions], weights: &[f64], device: &Device) -> Result<Self> {
        check(options, weights)?;
        let source = |(index, option): (usize, &RewardOptions)| {
            let earlier = options[..index].iter();
            let number = 1 + earlier.filter(|o| o.name() == option.name()).count();
            let weight = weights.get(index).copied().unwrap_or(1.0);
            let name = match number {
                1 => option.name(),
                _ => interned(format!("{}-{number}", option.name())),
            };
            let built = option.build(device).map_err(|error| named(name, error))?;
            Ok((name, weight, built))
        };
        let sources = options.iter().enumerate().map(source);
        Ok(Self {
            sources: sources.collect::<Result<_>>()?,
        })
    }

    /// Asks every source for every answer.
    ///
    /// # Errors
    /// [`Error::Reward`] with the source's name, when it fails or gives a number that is not finite.
    pub fn score(&mut self, answers: &[Asked<'_>]) -> Result<Scores> {
        let mut scores = Scores {
            by_source: Vec::with_capacity(self.sources.len()),
            total: vec![None; answers.len()],
        };
        for (name, weight, source) in &mut self.sources {
            let given = source.score(answers).map_err(|error| named(name, error))?;
            if given.len() != answers.len() {
                let (found, wanted) = (given.len(), answers.len());
                let reason = format!("gave {found} numbers for {wanted} answers");
                return Err(failed(name, reason));
            }
            for (total, score) in scores.total.iter_mut().zip(&given) {
                match score {
                    Some(score) if !score.is_finite() => {
                        let reason = format!("{score} is no reward; it must be a finite number");
                        return Err(failed(name, reason));
                    }
                    Some(score) => *total = Some(total.unwrap_or(0.0) + *weight * score),
                    None => {}
                }
            }
            scores.by_source.push((name, given));
        }
        Ok(scores)
    }
}

/// Whether sources and weights make sense.
///
/// # Errors
/// When there is no source, the weights are of another number, or an option of a source makes no sense.
pub fn check(options: &[RewardOptions], weights: &[f64]) -> Result<()> {
    if options.is_empty() {
        return Err(Error::Option {
            key: "rewards",
            reason: "nothing says what a good answer is; give at least one source, such as `rewards = [\"world\"]`".into(),
        });
    }
    let fits = weights.is_empty() || weights.len() == options.len();
    if !fits || weights.iter().any(|weight| !weight.is_finite()) {
        return Err(Error::Option {
            key: "reward_weights",
            reason: format!(
                "{} weights for {} rewards; give a number for each, or leave the key out",
                weights.len(),
                options.len()
            ),
        });
    }
    options.iter().try_for_each(RewardOptions::check)
}

/// A text that lives as long as the program; each is kept once.
pub(crate) fn interned(text: String) -> &'static str {
    static KNOWN: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    let mut known = KNOWN
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some(found) = known.get(text.as_str()) {
        return found;
    }
    let kept: &'static str = Box::leak(text.into_boxed_str());
    known.insert(kept);
    kept
}

/// An error of the source `name`.
fn failed(name: &str, reason: impl Into<String>) -> Error {
    Error::Reward {
        source_name: name.to_owned(),
        reason: reason.into(),
    }
}

/// An error under the name of the source that it came from; what is wrong with an option is told of by the option's.
fn named(name: &str, error: Error) -> Error {
    match error {
        Error::Reward { reason, .. } => failed(name, reason),
        error @ Error::Option { .. } => error,
        error => failed(name, error.to_string()),
    }
}

/// A text that fits into a message.
fn shortened(text: &str) -> String {
    const MOST: usize = 200;
    match text.chars().count() > MOST {
        true => format!("{}...", text.chars().take(MOST).collect::<String>()),
        false => text.to_owned(),
    }
}

/// A reward as a program writes it: a number, `null`, or a table with the key `reward`.
fn parsed(value: &Value) -> Option<Option<f64>> {
    match value {
        Value::Null => Some(None),
        Value::Bool(right) => Some(Some(f64::from(u8::from(*right)))),
        Value::Number(number) => number.as_f64().map(Some),
        Value::Object(table) => table.get("reward").and_then(|value| match value {
            Value::Object(_) => None,
            value => parsed(value),
        }),
        Value::String(_) | Value::Array(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objectives::online::rollout::RolloutOptions;

    fn options(text: &str) -> RewardOptions {
        serde_json::from_str(text).unwrap()
    }

    fn asked<'a>(messages: &'a [Message], answer: &'a str) -> Asked<'a> {
        Asked {
            messages,
            answer,
            tokens: answer.len(),
            record: &Value::Null,
        }
    }

    #[test]
    fn several_sources_are_added_with_weights() {
        let sources = [
            options(r#"{"regex": {"pattern": "^a"}}"#),
            options(r#"{"length": {"target": 2}}"#),
            options(r#"{"regex": {"pattern": "b$"}}"#),
        ];
        let mut rewards = Rewards::build(&sources, &[1.0, 0.5, -2.0], &Device::flex()).unwrap();
        let messages = [Message::user("?")];
        let answers = ["ab", "a", "xxxx"].map(|answer| asked(&messages, answer));
        let scores = rewards.score(&answers).unwrap();
        assert_eq!(scores.total, [Some(-1.0), Some(0.75), Some(-0.5)]);
        let names: Vec<&str> = scores.by_source.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["regex", "length", "regex-2"]);
    }

    #[test]
    fn every_source_has_a_metric_however_often_it_stands_there() {
        let known = |name: &str| METRICS.iter().any(|metric| metric.name == name);
        for name in ["world", "command", "endpoint", "model", "judge", "length"] {
            assert!(known(&source_metric(name)), "{name}");
        }
        let second = numbered("rewards/regex-2/mean").unwrap();
        assert_eq!(second.name, "rewards/regex-2/mean");
        assert_eq!(second.chart, METRICS[0].chart);
        for other in [
            "rewards/regex/mean",
            "rewards/odd-2/mean",
            "rewards/margins",
        ] {
            assert_eq!(numbered(other), None, "{other}");
        }
    }

    #[test]
    fn whatever_fails_is_told_of_by_the_sources_name() {
        // The record is no item of a world, and the second of its kind says so.
        let world = || options(r#"{"world": {}}"#);
        let regex = options(r#"{"regex": {"pattern": "a"}}"#);
        let mut rewards = Rewards::build(&[regex, world()], &[], &Device::flex()).unwrap();
        let messages = [Message::user("?")];
        let error = rewards.score(&[asked(&messages, "a")]).unwrap_err();
        assert!(matches!(error, Error::Reward { .. }), "{error:?}");
        // An item that no checker knows is an error of the data, not of the reward's own.
        let record = json!({"task": "no-such-world", "split": "train", "index": 0, "prompt": "", "solution": "", "answer": "", "key": ""});
        let odd = Asked {
            record: &record,
            ..asked(&messages, "a")
        };
        let error = Rewards::build(&[world()], &[], &Device::flex())
            .unwrap()
            .score(&[odd])
            .unwrap_err();
        assert!(
            error.to_string().starts_with("the reward `world`"),
            "{error}"
        );
        let missing = options(r#"{"model": {"path": "no/such/folder"}}"#);
        let error = Rewards::build(&[missing], &[], &Device::flex()).unwrap_err();
        assert!(
            error.to_string().starts_with("the reward `model`"),
            "{error}"
        );
    }

    #[test]
    fn a_bare_name_that_needs_options_says_which() {
        let read = |text: &str| serde_json::from_str::<RolloutOptions>(text);
        let world = read(r#"{"rewards": ["world"]}"#).unwrap();
        assert_eq!(world.rewards, [RewardOptions::World(WorldOptions {})]);
        let error = read(r#"{"rewards": ["command"]}"#).unwrap_err().to_string();
        assert!(
            error.contains(
                "`command` needs `run`; give a table such as { command = { run = ... } }"
            ),
            "{error}"
        );
        let error = read(r#"{"rewards": ["odd"]}"#).unwrap_err().to_string();
        assert!(error.contains("unknown variant `odd`"), "{error}");
    }

    #[test]
    fn no_source_and_wrong_weights_are_refused() {
        let none = Rewards::build(&[], &[], &Device::flex()).unwrap_err();
        assert!(none.to_string().contains("rewards = [\"world\"]"), "{none}");
        let world = options(r#"{"world": {}}"#);
        let weights = Rewards::build(&[world], &[1.0, 2.0], &Device::flex()).unwrap_err();
        assert!(
            weights.to_string().contains("2 weights for 1 rewards"),
            "{weights}"
        );
    }

    #[test]
    fn programs_write_numbers_in_several_ways() {
        let read = |text: &str| parsed(&serde_json::from_str(text).unwrap());
        assert_eq!(read("0.5"), Some(Some(0.5)));
        assert_eq!(read("null"), Some(None));
        assert_eq!(read("true"), Some(Some(1.0)));
        assert_eq!(read(r#"{"reward": -1, "why": "x"}"#), Some(Some(-1.0)));
        assert_eq!(read(r#"{"reward": null}"#), Some(None));
        for wrong in [
            r#""0.5""#,
            "[1]",
            "{}",
            r#"{"reward": "1"}"#,
            r#"{"reward": {"reward": 1}}"#,
        ] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }
}
