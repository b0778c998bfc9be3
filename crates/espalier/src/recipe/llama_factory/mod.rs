//! LLaMA-Factory's training files (arXiv 2403.13372), read as recipes of one stage.
//!
//! `keys.rs` has a line for every key: what it becomes here, or that it changes nothing of what is computed. A key that means something and
//! has no counterpart is an error that names it, with all others of its kind, and nothing is run. `options.rs` has those of training,
//! `preferences.rs` those of preferences, `ppo.rs` those of answers that are rewarded; `data_sets.rs` reads `dataset_info.json`.

mod data_sets;
mod keys;
mod options;
mod ppo;
mod preferences;

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use toml::{Table, Value as Toml};

use crate::{Error, Result};

/// The largest file that is read, in bytes.
const LARGEST_FILE: u64 = 1 << 20;

/// A training file as a recipe.
#[derive(Debug, Clone, PartialEq)]
pub struct Translated {
    /// The recipe, in TOML.
    pub recipe: String,
    /// What the user should know, a sentence each.
    pub remarks: Vec<String>,
}

/// The keys of a training file, and what has become of them.
struct Reading {
    path: PathBuf,
    keys: Map<String, Value>,
    taken: Vec<String>,
    /// What has no counterpart: the key as it was given, and why.
    refused: Vec<String>,
    remarks: Vec<String>,
}

/// Reads a training file, YAML or JSON, as a recipe.
///
/// # Errors
/// When it cannot be read, a value has the wrong type, or keys have no counterpart.
pub fn translate(path: &Path) -> Result<Translated> {
    let mut reading = Reading::open(path)?;
    let table = keys::recipe(&mut reading)?;
    reading.refuse_rest()?;
    let recipe = toml::to_string(&table).map_err(|error| reading.error(&error.to_string()))?;
    Ok(Translated {
        recipe,
        remarks: reading.remarks,
    })
}

impl Reading {
    fn open(path: &Path) -> Result<Self> {
        let wrong = |reason: String| Error::usage(format!("{}: {reason}", path.display()));
        let size = std::fs::metadata(path).map_err(|error| wrong(error.to_string()))?;
        if size.len() > LARGEST_FILE {
            return Err(wrong("too large for a training file".into()));
        }
        let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
        let keys: Map<String, Value> =
            serde_saphyr::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        Ok(Self {
            path: path.to_owned(),
            keys,
            taken: Vec::new(),
            refused: Vec::new(),
            remarks: Vec::new(),
        })
    }

    fn error(&self, reason: &str) -> Error {
        Error::usage(format!("{}: {reason}", self.path.display()))
    }

    fn wrong(&self, key: &str, expected: &str) -> Error {
        let found = &self.keys[key];
        self.error(&format!("`{key}`: {found} is not {expected}"))
    }

    /// The value of a key, unless it is null.
    fn take(&mut self, key: &str) -> Option<Value> {
        self.taken.push(key.to_owned());
        self.keys.get(key).filter(|value| !value.is_null()).cloned()
    }

    fn text(&mut self, key: &str) -> Result<Option<String>> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(key, "a text")),
        }
    }

    fn flag(&mut self, key: &str) -> Result<bool> {
        match self.take(key) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(_) => Err(self.wrong(key, "true or false")),
        }
    }

    /// A number; YAML of Python takes `1e-4` for a text, and those who write it mean the number.
    fn number(&mut self, key: &str) -> Result<Option<f64>> {
        let number = match self.take(key) {
            None => return Ok(None),
            Some(Value::Number(number)) => number.as_f64(),
            Some(Value::String(text)) => text.parse().ok(),
            Some(_) => None,
        };
        match number {
            Some(number) => Ok(Some(number)),
            None => Err(self.wrong(key, "a number")),
        }
    }

    fn integer(&mut self, key: &str) -> Result<Option<i64>> {
        let number = self.number(key)?;
        match number {
            Some(number) if number.fract() != 0.0 || number.abs() > 1e15 => {
                Err(self.wrong(key, "a whole number"))
            }
            number => Ok(number.map(|number| number as i64)),
        }
    }

    /// A list, or a text with commas.
    fn list(&mut self, key: &str) -> Result<Vec<String>> {
        let items = match self.take(key) {
            None => return Ok(Vec::new()),
            Some(Value::String(text)) => text
                .split(',')
                .map(|item| item.trim().to_owned())
                .filter(|item| !item.is_empty())
                .collect(),
            Some(Value::Array(items)) => {
                let text = |item: &Value| item.as_str().map(str::to_owned);
                items.iter().map(text).collect::<Option<Vec<_>>>()
            }
            .ok_or_else(|| self.wrong(key, "a list of texts"))?,
            Some(_) => return Err(self.wrong(key, "a list of texts")),
        };
        Ok(items)
    }

    /// Says that a key has no counterpart.
    fn refuse(&mut self, key: &str, reason: &str) {
        let value = self.keys.get(key).map(Value::to_string);
        self.refused
            .push(format!("`{key}: {}` {reason}", value.unwrap_or_default()));
    }

    /// Refuses a key that is given with another value than the one that means nothing.
    fn refuse_unless(&mut self, key: &str, harmless: &[Value], reason: &str) {
        if let Some(value) = self.take(key)
            && !harmless.contains(&value)
        {
            self.refuse(key, reason);
        }
    }

    /// The error for all keys without counterpart, unknown ones among them.
    fn refuse_rest(&mut self) -> Result<()> {
        let unknown: Vec<String> = self
            .keys
            .keys()
            .filter(|key| !self.taken.contains(key))
            .cloned()
            .collect();
        for key in unknown {
            self.refuse(&key, "is no key that is known here");
        }
        match self.refused.is_empty() {
            true => Ok(()),
            false => Err(self.error(&format!(
                "what cannot become a recipe: {}; change it, or write a recipe of our own",
                self.refused.join("; ")
            ))),
        }
    }
}

/// Puts a value into a table where there is one.
fn set(table: &mut Table, key: &str, value: Option<impl Into<Toml>>) {
    if let Some(value) = value {
        table.insert(key.to_owned(), value.into());
    }
}

#[cfg(test)]
mod tests;
