//! Generated worlds: corpora that need no download, with unlimited items, exact checkers and splits that cannot leak.
//!
//! A world is one file with a generator and a checker, and one line in [`WORLDS`]. An item is a pure function of its task,
//! split, index and seed. Its *key* names what makes it the same question; a hash of the key decides the split, so no
//! key occurs in two splits. Duplicates inside a split are possible in small key spaces: drop them by key where a set is
//! wanted. Pass or fail is decided by the checker, never by equality with the solution.

use std::fmt;
use std::str::FromStr;

use serde_json::{Map, Value};

use crate::nearest::suggestion;
use crate::random::{Random, fnv, mix};
use crate::record::{Label, Message, Record};
use crate::{Error, Result};

pub mod addition;
pub mod arithmetic;
pub mod brackets;
pub mod constraints;
pub mod countdown;
pub mod dials;
pub mod facts;
pub mod instructions;
pub mod lists;
pub mod memory;
pub mod noise;
pub mod pairs;
pub mod preferences;
pub mod recall;
pub mod sentences;
mod slips;
pub mod slots;
pub mod sorting;
pub mod steps;
pub mod stories;
pub mod symbols;
pub mod topics;
pub mod tracking;

use dials::{Dial, base};

/// Every world. A new one is one file and one line here.
pub const WORLDS: &[World] = &[
    arithmetic::WORLD,
    countdown::WORLD,
    recall::WORLD,
    brackets::WORLD,
    sorting::WORLD,
    facts::WORLD,
    instructions::WORLD,
    sentences::WORLD,
    stories::WORLD,
    symbols::WORLD,
    topics::WORLD,
    pairs::WORLD,
    slots::WORLD,
    memory::WORLD,
    tracking::WORLD,
    addition::WORLD,
];

/// Attempts to draw an item of the wanted split before giving up; about 20 are needed.
const MOST_ATTEMPTS: u64 = 10_000;

/// Which part of a world an item belongs to: 90, 5 and 5 percent of the keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Split {
    /// `train`, for learning.
    Train,
    /// `val`, for choosing.
    Validation,
    /// `test`, for reporting.
    Test,
}

impl fmt::Display for Split {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Train => "train",
            Self::Validation => "val",
            Self::Test => "test",
        })
    }
}

impl FromStr for Split {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "train" => Ok(Self::Train),
            "val" | "validation" => Ok(Self::Validation),
            "test" => Ok(Self::Test),
            other => Err(Error::Invalid(format!(
                "no split `{other}`: expected `train`, `val` or `test`"
            ))),
        }
    }
}

/// An item as a generator draws it, without task, split and index.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Draft {
    /// The question; may be empty.
    pub prompt: String,
    /// The gold text that follows the prompt.
    pub solution: String,
    /// The short answer.
    pub answer: String,
    /// The key: items with the same key are the same question.
    pub key: String,
    /// Whatever else the checker needs.
    pub fields: Map<String, Value>,
}

/// One generated example.
///
/// ```
/// use espalier_data::worlds::{self, Split};
/// let item = worlds::item("g1/1", Split::Train, 0, 0)?;
/// assert_eq!(item.text(), "12 * 6 = 72");
/// assert!(worlds::check(&item, " 72\n")?);
/// # Ok::<(), espalier_data::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// The task, such as `g1/2`.
    pub task: String,
    /// The split it belongs to.
    pub split: Split,
    /// Its number in the split.
    pub index: u64,
    /// The question; empty for free text.
    pub prompt: String,
    /// The gold text that follows the prompt.
    pub solution: String,
    /// The short answer.
    pub answer: String,
    /// The key: items with the same key are the same question; it decides the split.
    pub key: String,
    /// Fields of the task, such as `instruction_id_list` or `support`.
    pub fields: Map<String, Value>,
}

impl Item {
    /// The text for language modelling: prompt, a space and the solution, or the solution alone.
    pub fn text(&self) -> String {
        if self.prompt.is_empty() {
            self.solution.clone()
        } else {
            format!("{} {}", self.prompt, self.solution)
        }
    }

    /// A conversation: the prompt (possibly empty) asked, the solution answered; or the turns that the item has in its field
    /// `turns`, as pairs.
    pub fn record_chat(&self) -> Record {
        Record::Chat {
            messages: self.messages(),
            tools: None,
        }
    }

    /// The conversation up to the last answer, as a model is asked.
    pub fn question(&self) -> Vec<Message> {
        let mut messages = self.messages();
        messages.pop();
        messages
    }

    fn messages(&self) -> Vec<Message> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let turn = |pair: &Value| {
            [
                Message::user(text(&pair[0])),
                Message::assistant(text(&pair[1])),
            ]
        };
        match self.fields.get("turns").and_then(Value::as_array) {
            Some(turns) => turns.iter().flat_map(turn).collect(),
            None => vec![
                Message::user(&self.prompt),
                Message::assistant(&self.solution),
            ],
        }
    }

    /// The text for language modelling as a record.
    pub fn record_text(&self) -> Record {
        Record::Text { text: self.text() }
    }

    /// The question, or where there is none the text, with the short answer as its label.
    pub fn record_label(&self) -> Record {
        let text = match self.prompt.is_empty() {
            true => &self.solution,
            false => &self.prompt,
        };
        Record::Labelled {
            text: text.clone(),
            label: Label::Name(self.answer.clone()),
        }
    }

    /// The item as a line of a data file, the task's own fields last.
    pub fn to_json(&self) -> Value {
        let mut object = Map::new();
        object.insert("task".into(), self.task.clone().into());
        object.insert("split".into(), self.split.to_string().into());
        object.insert("index".into(), self.index.into());
        for (name, text) in [
            ("prompt", &self.prompt),
            ("solution", &self.solution),
            ("answer", &self.answer),
        ] {
            object.insert(name.into(), text.clone().into());
        }
        object.insert("key".into(), self.key.clone().into());
        object.extend(self.fields.clone());
        Value::Object(object)
    }

    /// The item that [`Item::to_json`] wrote.
    ///
    /// # Errors
    /// When a field is missing or of another type.
    pub fn from_json(value: &Value) -> Result<Self> {
        let text = |name: &str| {
            let text = value.get(name).and_then(Value::as_str).map(str::to_owned);
            text.ok_or_else(|| Error::Invalid(format!("the record has no text `{name}`")))
        };
        let index = value.get("index").and_then(Value::as_u64);
        let own = [
            "task", "split", "index", "prompt", "solution", "answer", "key",
        ];
        let others = value.as_object().into_iter().flatten();
        let others = others.filter(|(name, _)| !own.contains(&name.as_str()));
        Ok(Self {
            task: text("task")?,
            split: text("split")?.parse()?,
            index: index
                .ok_or_else(|| Error::Invalid("the record has no number `index`".into()))?,
            prompt: text("prompt")?,
            solution: text("solution")?,
            answer: text("answer")?,
            key: text("key")?,
            fields: others
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect(),
        })
    }

    /// A text field of the task, empty when absent.
    pub(crate) fn field(&self, name: &str) -> &str {
        self.fields
            .get(name)
            .and_then(Value::as_str)
            .unwrap_or_default()
    }
}

/// A family of generated tasks.
#[derive(Debug)]
pub struct World {
    /// Name of the family, such as `g1`.
    pub name: &'static str,
    /// One line about it.
    pub description: &'static str,
    /// The tasks, such as `g1/1`.
    pub tasks: &'static [&'static str],
    /// Numbers that make its tasks easier or harder, as in `g3/8:pairs=32`.
    pub dials: &'static [Dial],
    generate: fn(task: &str, split: Split, random: &mut Random) -> Draft,
    check: fn(item: &Item, output: &str) -> bool,
}

/// The world of a family name (`g1`) or a task (`g1/2`).
///
/// # Errors
/// When there is none; the message names the nearest.
pub fn world(name: &str) -> Result<&'static World> {
    let found = WORLDS
        .iter()
        .find(|world| world.name == name || world.tasks.contains(&base(name)));
    found.ok_or_else(|| unknown_task(base(name)))
}

/// Every task of every world.
pub fn tasks() -> impl Iterator<Item = &'static str> {
    WORLDS.iter().flat_map(|world| world.tasks.iter().copied())
}

fn unknown_task(name: &str) -> Error {
    let known: Vec<&str> = tasks().collect();
    let hint = suggestion(name, tasks());
    Error::Invalid(format!(
        "no generated task `{name}`{hint}; there are: {}",
        known.join(", ")
    ))
}

/// Item number `index` of a split of a task.
///
/// # Errors
/// When there is no such task.
pub fn item(task: &str, split: Split, index: u64, seed: u64) -> Result<Item> {
    let world = WORLDS
        .iter()
        .find(|world| world.tasks.contains(&base(task)))
        .ok_or_else(|| unknown_task(base(task)))?;
    dials::check(task, world.dials)?;
    let draft = (0..MOST_ATTEMPTS)
        .map(|attempt| {
            (world.generate)(
                task,
                split,
                &mut Random::named(&format!("{task}|{split}|{index}|{seed}|{attempt}")),
            )
        })
        .find(|draft| split_of(task, &draft.key) == split)
        .ok_or_else(|| Error::Invalid(format!("`{task}` has no items in the split `{split}`")))?;
    let Draft {
        prompt,
        solution,
        answer,
        key,
        fields,
    } = draft;
    Ok(Item {
        task: task.to_string(),
        split,
        index,
        prompt,
        solution,
        answer,
        key,
        fields,
    })
}

/// Whether `output` is a right answer to the item.
///
/// # Errors
/// When the item's task does not exist.
pub fn check(item: &Item, output: &str) -> Result<bool> {
    Ok((world(&item.task)?.check)(item, output))
}

/// The split of a key: a hash of task and key, so that it depends on nothing else; not on the task's dials.
pub fn split_of(task: &str, key: &str) -> Split {
    match mix(fnv(&format!("{}|{key}", base(task)))) % 100 {
        0..90 => Split::Train,
        90..95 => Split::Validation,
        _ => Split::Test,
    }
}

/// A fingerprint of a task: the FNV hash of its first 100 training items of seed 0.
///
/// # Errors
/// When there is no such task.
pub fn golden_hash(task: &str) -> Result<u64> {
    let items = (0..100)
        .map(|index| item(task, Split::Train, index, 0))
        .collect::<Result<Vec<_>>>()?;
    let lines: Vec<String> = items
        .iter()
        .map(|item| format!("{}\t{}", item.prompt, item.solution))
        .collect();
    Ok(fnv(&lines.join("\n")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn golden_hashes() {
        for (task, hash) in [
            ("g1/1", 0xee02_ce71_e568_fad7),
            ("g1/2", 0xa29d_91c0_e979_c09a),
            ("g1/3", 0xb2cd_2d3e_51a2_f268),
            ("g1/4", 0x2250_0591_9b9c_368f),
            ("g2/3", 0x8df2_8d58_2f0b_2694),
            ("g2/4", 0x0e73_7879_144c_b3cf),
            ("g3/8", 0x5489_97b9_2664_9263),
            ("g3/16", 0x61f4_918f_77b6_6d05),
            ("g4/lm", 0x9a3b_1ed9_52a9_4259),
            ("g4/judge", 0x5e89_14df_ca99_767c),
            ("g4/close", 0x5102_e75a_18a5_10e1),
            ("g5/asc", 0x645f_1f51_9f75_a80d),
            ("g5/desc", 0xaf3f_f028_0ba3_6101),
            ("g5/uniq", 0x1fb0_549d_2c17_7248),
            ("g6/1", 0xa9e7_7c23_2cdd_42c5),
            ("g6/2", 0x5ae1_a8a5_f86e_c25b),
            ("g6/3", 0x211c_7af5_993b_5ba9),
            ("g7/2", 0x534d_b469_abf1_8d70),
            ("g8", 0xc551_a4da_7156_3740),
            ("addition", 0xbf78_30fe_9643_155c),
        ] {
            assert_eq!(golden_hash(task).unwrap(), hash, "{task}");
        }
    }

    #[test]
    fn first_items() {
        let first = |task| item(task, Split::Train, 0, 0).unwrap();
        assert_eq!(first("g1/1").text(), "12 * 6 = 72");
        assert_eq!(first("addition").text(), "81+45= 621");
        let second = first("g1/2");
        assert_eq!(
            second.prompt,
            "Jack has 9 dolls. A friend gives Jack 3 dolls. How many dolls does Jack have now?"
        );
        assert_eq!(second.solution, "9 + 3 = 12\n#### 12");
        assert_eq!(first("g1/3").solution, "8 + 16 = 24\n24 + 17 = 41\n#### 41");
        assert_eq!(
            first("g1/4").solution,
            "8 / 2 = 4\n4 + 23 = 27\n27 - 10 = 17\n17 - 11 = 6\n#### 6"
        );
        assert!(
            first("g6/1")
                .prompt
                .ends_with("Dan is 72 years old. Question: Where does Cleo live? Answer:")
        );
        assert_eq!(first("g6/1").answer, "Milan");
        assert!(
            first("g6/2")
                .prompt
                .ends_with("Question: How old is the best friend of Pam? Answer:")
        );
        assert_eq!(first("g6/2").answer, "77");
        assert!(
            first("g6/3")
                .text()
                .ends_with("the boss of the boss of Olga like? Answer: teal")
        );
        assert!(
            first("g7/2")
                .prompt
                .ends_with("Wrap the whole answer in double quotes. Use only capital letters.")
        );
        assert!(
            first("g7/2")
                .solution
                .starts_with("\"IN A SCHOOL LIVED A LONELY FOX NAMED ROSA. IT WAS")
        );
        assert!(
            first("g8")
                .text()
                .starts_with("In a village lived a gentle duck named Pam. It was a sunny day in")
        );
    }

    #[test]
    fn gold_answers_pass() {
        for task in tasks() {
            for index in 0..10_000 {
                let item = item(task, Split::Train, index, 1).unwrap();
                assert!(check(&item, &item.solution).unwrap(), "{}", item.to_json());
                assert_eq!(
                    check(&item, "").unwrap(),
                    item.task == "g4/close" && item.answer.is_empty(),
                    "an empty answer to {}",
                    item.to_json()
                );
            }
        }
    }

    #[test]
    fn splits_share_no_key() {
        for task in tasks() {
            let keys = |split, count| -> HashSet<String> {
                (0..count)
                    .map(|index| item(task, split, index, 0).unwrap().key)
                    .collect()
            };
            let (train, validation, test) = (
                keys(Split::Train, 10_000),
                keys(Split::Validation, 1000),
                keys(Split::Test, 1000),
            );
            assert!(
                train.is_disjoint(&validation)
                    && train.is_disjoint(&test)
                    && validation.is_disjoint(&test)
            );
        }
    }

    #[test]
    fn items_depend_on_every_argument() {
        let base = item("g1/4", Split::Train, 3, 5).unwrap();
        assert_eq!(base, item("g1/4", Split::Train, 3, 5).unwrap());
        assert_ne!(base.key, item("g1/4", Split::Train, 4, 5).unwrap().key);
        assert_ne!(base.key, item("g1/4", Split::Train, 3, 6).unwrap().key);
        assert_ne!(base.key, item("g1/4", Split::Test, 3, 5).unwrap().key);
    }

    #[test]
    fn unknown_tasks_name_the_nearest() {
        let message = item("sentense/2", Split::Train, 0, 0)
            .unwrap_err()
            .to_string();
        assert!(message.contains("did you mean `sentence/2`?"), "{message}");
        assert!(item("g1", Split::Train, 0, 0).is_err());
        assert_eq!(world("g1").unwrap().name, world("g1/4").unwrap().name);
    }

    #[test]
    fn items_come_back_from_json() {
        for task in tasks() {
            let item = item(task, Split::Validation, 2, 0).unwrap();
            assert_eq!(Item::from_json(&item.to_json()).unwrap(), item);
        }
        let error = Item::from_json(&Value::Null).unwrap_err().to_string();
        assert!(error.contains("no text `task`"), "{error}");
    }

    #[test]
    fn json_has_the_fields_of_the_task() {
        let json = item("g6/2", Split::Test, 0, 0).unwrap().to_json();
        assert_eq!(json["split"], "test");
        assert_eq!(json["support"].as_array().unwrap().len(), 2);
    }
}
