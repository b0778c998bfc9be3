//! RULER: thirteen tasks of long context, made to an exact number of the model's own tokens.
//!
//! Hsieh and others, "RULER: What's the Real Context Size of Your Long-Context Language Models?" (arXiv 2404.06654). Needles in
//! haystacks, chains of variables, common and frequent words, and questions over documents; recall of strings is the score, and
//! a model's effective length the largest at which the mean of the tasks exceeds 85.6 ([`summary`]).
//!
//! Given the authors' data ([`sources`]), prompts are those of the authors' generators to the letter, for they draw as Python does
//! ([`python_random`]); where there is none, stories and facts of our own take the place of the essays and documents, so that all
//! tasks run without a download. It differs where the authors' programs would not come to an end: a length at which the smallest
//! prompt of the usual step does not fit gets a smaller one, and an error where none does. Sentences of the essays end by a rule
//! ([`needles`]), not by NLTK's trained splitter, which moves a needle where the two disagree.

pub mod common_words;
mod fit;
pub mod frequent_words;
pub mod needles;
pub mod python_random;
pub mod questions;
pub mod score;
pub mod sources;
pub mod summary;
pub mod variables;
pub mod words;

use serde_json::{Value, json};

use crate::{Error, Result};
use needles::{Haystack, NeedleOptions, Text};
use score::Match;
use sources::{Documents, Sources};

/// Counts the tokens of a text, without special ones.
pub type Count<'a> = &'a dyn Fn(&str) -> Result<usize>;

/// One of the thirteen tasks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Task {
    /// Its published name, such as `niah_single_1`.
    pub name: &'static str,
    /// One line about it.
    pub description: &'static str,
    /// What is hidden, and where.
    pub kind: Kind,
    /// Tokens that an answer may take; they count towards the length.
    pub answer_tokens: usize,
    /// How an answer is scored.
    pub metric: Match,
}

/// What a task hides.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// Needles in a haystack.
    Needles(NeedleOptions),
    /// A chain of variables of so many hops.
    Variables {
        /// Assignments after the first.
        hops: usize,
    },
    /// Words that occur more often than others.
    CommonWords,
    /// Words whose frequencies fall by Zipf's law with this exponent.
    FrequentWords {
        /// The exponent.
        alpha: f64,
    },
    /// Questions over documents.
    Questions(Documents),
}

const fn needles(
    name: &'static str,
    description: &'static str,
    haystack: Haystack,
    [key, value]: [Text; 2],
    [keys, values, queries]: [usize; 3],
) -> Task {
    let options = NeedleOptions {
        haystack,
        key,
        value,
        keys,
        values,
        queries,
        depth: None,
    };
    Task {
        name,
        description,
        kind: Kind::Needles(options),
        answer_tokens: 128,
        metric: Match::All,
    }
}

const fn other(
    name: &'static str,
    description: &'static str,
    kind: Kind,
    answer_tokens: usize,
    metric: Match,
) -> Task {
    Task {
        name,
        description,
        kind,
        answer_tokens,
        metric,
    }
}

const WORDS_TO_NUMBERS: [Text; 2] = [Text::Words, Text::Numbers];

/// The thirteen tasks, in the published order.
#[rustfmt::skip]
pub const TASKS: [Task; 13] = [
    needles("niah_single_1", "a number in a repeated sentence", Haystack::Noise, WORDS_TO_NUMBERS, [1, 1, 1]),
    needles("niah_single_2", "a number in essays", Haystack::Essay, WORDS_TO_NUMBERS, [1, 1, 1]),
    needles("niah_single_3", "an identifier in essays", Haystack::Essay, [Text::Words, Text::Uuids], [1, 1, 1]),
    needles("niah_multikey_1", "one of four numbers in essays", Haystack::Essay, WORDS_TO_NUMBERS, [4, 1, 1]),
    needles("niah_multikey_2", "one of many numbers", Haystack::Needles, WORDS_TO_NUMBERS, [1, 1, 1]),
    needles("niah_multikey_3", "one of many identifiers", Haystack::Needles, [Text::Uuids, Text::Uuids], [1, 1, 1]),
    needles("niah_multivalue", "four numbers of one key", Haystack::Essay, WORDS_TO_NUMBERS, [1, 4, 1]),
    needles("niah_multiquery", "the numbers of four keys", Haystack::Essay, WORDS_TO_NUMBERS, [1, 1, 4]),
    other("vt", "variables that have one value by a chain of four assignments", Kind::Variables { hops: 4 }, 30, Match::All),
    other("cwe", "the ten words that are most common", Kind::CommonWords, 120, Match::All),
    other("fwe", "the three words that are most frequent", Kind::FrequentWords { alpha: 2.0 }, 50, Match::All),
    other("qa_1", "questions over one document among many", Kind::Questions(Documents::Squad), 32, Match::Part),
    other("qa_2", "questions over two documents among many", Kind::Questions(Documents::HotpotQa), 32, Match::Part),
];

/// The task of a name.
///
/// # Errors
/// When there is none; the message names the nearest.
pub fn task(name: &str) -> Result<&'static Task> {
    let found = TASKS.iter().find(|task| task.name == name);
    found.ok_or_else(|| {
        let names = TASKS.iter().map(|task| task.name);
        let hint = espalier_data::nearest::suggestion(name, names.clone());
        let known: Vec<&str> = names.collect();
        Error::Ruler(format!(
            "no task `{name}`{hint}; there are: {}",
            known.join(", ")
        ))
    })
}

/// How prompts are made.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Tokens of prompt and answer together.
    pub length: usize,
    /// Prompts.
    pub samples: usize,
    /// The seed; the published one is 42.
    pub seed: u64,
    /// What the chat template puts before and after the task; the answer's beginning comes after it.
    pub template: [String; 2],
}

impl Options {
    /// So many prompts of a length, of the published seed and without a template.
    pub fn new(length: usize, samples: usize) -> Self {
        Self {
            length,
            samples,
            seed: 42,
            template: Default::default(),
        }
    }
}

/// A prompt and what its answer should say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Its number.
    pub index: usize,
    /// The prompt, but for the beginning of its answer.
    pub input: String,
    /// What the answer should say.
    pub outputs: Vec<String>,
    /// Tokens of prompt and answer.
    pub length: usize,
    /// The beginning of the answer, which the prompt ends with.
    pub answer_prefix: String,
    /// Tokens of the prompt before the first mention of the first output; of needles alone.
    pub answer_position: Option<usize>,
}

impl Sample {
    /// The whole prompt.
    pub fn prompt(&self) -> String {
        format!("{}{}", self.input, self.answer_prefix)
    }

    /// The line of the authors' data files.
    pub fn to_json(&self) -> Value {
        let mut line = json!({
            "index": self.index,
            "input": self.input,
            "outputs": self.outputs,
            "length": self.length,
            "length_w_model_temp": self.length,
            "answer_prefix": self.answer_prefix,
        });
        if let Some(position) = self.answer_position {
            line["token_position_answer"] = position.into();
        }
        line
    }
}

/// Prompts of a task.
///
/// ```
/// use espalier_evaluate::ruler::{Options, samples, sources::Sources, task};
/// let words = |text: &str| Ok(text.split_whitespace().count());
/// let samples = samples(task("vt")?, &Options::new(1024, 2), &Sources::generated(), &words)?;
/// assert!(samples.iter().all(|sample| sample.length <= 1024 && sample.outputs.len() == 5));
/// # Ok::<(), espalier_evaluate::Error>(())
/// ```
///
/// # Errors
/// When the length is too short for the task, or the authors' files were asked for and are not there.
pub fn samples(
    task: &Task,
    options: &Options,
    sources: &Sources,
    count: Count,
) -> Result<Vec<Sample>> {
    match task.kind {
        Kind::Needles(needle) => needles::samples(task, needle, options, sources, count),
        Kind::Variables { hops } => variables::samples(task, hops, options, count),
        Kind::CommonWords => common_words::samples(task, options, sources, count),
        Kind::FrequentWords { alpha } => frequent_words::samples(task, alpha, options, count),
        Kind::Questions(documents) => questions::samples(task, documents, options, sources, count),
    }
}

/// Replaces each `{slot}` of a template by its value, once and without looking into the values.
fn fill(template: &str, slots: &[(&str, &str)]) -> String {
    let mut text = String::with_capacity(template.len());
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('{') {
        text.push_str(before);
        let Some((slot, behind)) = after.split_once('}') else {
            break;
        };
        let value = slots.iter().find(|(name, _)| *name == slot);
        text.push_str(value.map_or("", |(_, value)| value));
        rest = behind;
    }
    text + rest
}

#[cfg(test)]
mod tests;
