//! Tasks: items with one request each, how answers are filtered, and what is measured of them.
//!
//! A [`Task`] is data. Whoever can list items has a task: a task file of lm-evaluation-harness ([`file`](mod@file)), a generated world
//! ([`world`]), or a benchmark with a generator of its own. [`run`](crate::run) asks a model; nothing here knows one.
//!
//! Terms and conventions are lm-evaluation-harness' (EleutherAI, MIT), so that figures can be compared with published ones.

pub mod build;
pub mod data;
pub mod file;
pub mod filter;
pub mod functions;
pub mod literal;
pub mod metric;
pub mod prompt;
pub mod registry;
pub mod ruler;
pub mod sampling;
pub mod world;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use filter::Pipeline;
pub use metric::{Metric, Score};
pub use prompt::{Prompt, Prompting};

/// A benchmark, or one part of it.
#[derive(Debug, Clone)]
pub struct Task {
    /// Its name, unique among the tasks of an evaluation.
    pub name: String,
    /// The name for readers.
    pub alias: String,
    /// The groups it belongs to, outermost first.
    pub groups: Vec<Group>,
    /// The version that its makers gave it; empty where there is none.
    pub version: String,
    /// Labelled examples before each item.
    pub shots: usize,
    /// What is asked.
    pub items: Vec<Item>,
    /// How answers are generated, where they are.
    pub generation: Generation,
    /// Answers drawn for each item.
    pub repeats: usize,
    /// The ways in which generated answers are read; each gives figures of its own.
    pub filters: Vec<Pipeline>,
    /// What is measured.
    pub metrics: Vec<Metric>,
    /// A digest of the definition: the file, or the generator and its options.
    pub definition: String,
}

/// Tasks whose figures are summed up together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Whether larger tasks count more in its mean.
    pub by_size: bool,
    /// The metrics that are averaged; none where the group only lists its tasks.
    pub metrics: Vec<String>,
}

/// One question to a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// Its number in the data, from 0.
    pub number: usize,
    /// The record it was made of.
    pub doc: Value,
    /// What is asked of the model.
    pub request: Request,
}

/// What a model is asked.
#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    /// How likely is a text behind another?
    Likelihood {
        /// What comes before.
        prompt: Prompt,
        /// The text that is scored.
        target: String,
    },
    /// How likely is a whole text, in windows of the model's context?
    Rolling {
        /// The text.
        text: String,
        /// Its words, over which its likelihood is spread.
        words: usize,
        /// Its bytes.
        bytes: usize,
    },
    /// Which of several texts is the likeliest?
    Choice {
        /// What comes before them.
        prompt: Prompt,
        /// What stands between the prompt and each of them, where they differ by that; else empty.
        contexts: Vec<String>,
        /// The texts, as they are scored behind the prompt: with what separates them from it.
        continuations: Vec<String>,
        /// The texts by themselves, whose length normalises.
        choices: Vec<String>,
        /// The right ones, by number; empty where the record names none of them.
        gold: Vec<usize>,
        /// Whether they are scored without the prompt too, behind the first ones.
        alone: bool,
    },
    /// What does the model write?
    Generate {
        /// What it continues or answers.
        prompt: Prompt,
        /// The right answers; any of them will do.
        gold: Vec<String>,
    },
}

impl Request {
    /// What the model reads first; nothing for whole texts.
    pub fn prompt(&self) -> &str {
        match self {
            Self::Likelihood { prompt, .. }
            | Self::Choice { prompt, .. }
            | Self::Generate { prompt, .. } => &prompt.text,
            Self::Rolling { .. } => "",
        }
    }

    /// The prompt with what stands before choice number `choice`.
    pub fn context(&self, choice: usize) -> String {
        let context = match self {
            Self::Choice { contexts, .. } => contexts.get(choice),
            _ => None,
        };
        format!("{}{}", self.prompt(), context.map_or("", String::as_str))
    }

    /// The right answers as texts.
    pub fn gold(&self) -> Vec<&str> {
        match self {
            Self::Likelihood { target, .. } => vec![target],
            Self::Rolling { .. } => Vec::new(),
            Self::Choice { choices, gold, .. } => gold
                .iter()
                .filter_map(|gold| choices.get(*gold).map(String::as_str))
                .collect(),
            Self::Generate { gold, .. } => gold.iter().map(String::as_str).collect(),
        }
    }
}

impl Task {
    /// Whether marks come of running what the model wrote.
    pub fn runs_programs(&self) -> bool {
        let runs = |metric: &Metric| matches!(metric.measure, metric::Measure::Pass(_));
        self.metrics.iter().any(runs)
    }
}

/// How answers are generated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Generation {
    /// Texts that end an answer and are no part of it.
    pub until: Vec<String>,
    /// Most tokens of an answer.
    pub max_tokens: usize,
    /// Temperature; 0 takes the likeliest token.
    pub temperature: f32,
    /// Share of the probability that is kept; 1 keeps all.
    pub top_p: f32,
    /// Likeliest tokens that are kept; 0 keeps all.
    pub top_k: usize,
    /// Whether a prompt that leaves no room for the longest answer loses its beginning; else the answer ends with the context.
    pub cuts_prompt: bool,
}

impl Default for Generation {
    fn default() -> Self {
        Self {
            until: Vec::new(),
            max_tokens: 256,
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            cuts_prompt: true,
        }
    }
}
