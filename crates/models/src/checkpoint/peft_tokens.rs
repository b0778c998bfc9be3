//! The tokens whose rows an adapter trains: PEFT's `trainable_token_indices`, a list or a table by the names of modules.

use std::collections::{BTreeMap, HashSet};

use serde_json::{Value, json};

use crate::{error::Result, families::config::Config};

const KEY: &str = "trainable_token_indices";

/// Tokens whose rows are trained, each once, in the order in which the file has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TrainedTokens {
    /// Rows of the embedding, and of a head that is the embedding.
    OfEmbedding(Vec<u32>),
    /// Rows of the embedding, the head, or both, by the ends of their modules' names.
    ByModule(BTreeMap<String, Vec<u32>>),
}

impl TrainedTokens {
    /// What the file says; nothing where it trains none.
    ///
    /// # Errors
    /// When it is no list of token ids nor a table of such.
    pub(super) fn read(config: &Config) -> Result<Option<Self>> {
        let wrong = || {
            let form =
                "expected a list of token ids, or a table of such by modules' names, each id once";
            config.error(KEY, form)
        };
        let found = match config.get(KEY) {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::Object(modules)) => {
                let module =
                    |(name, list): (&String, &Value)| Some((name.clone(), token_ids(list)?));
                let modules: Option<_> = modules.iter().map(module).collect();
                Self::ByModule(modules.ok_or_else(wrong)?)
            }
            Some(list) => Self::OfEmbedding(token_ids(list).ok_or_else(wrong)?),
        };
        let is_sound = found.lists().all(|list| is_each_once(list));
        match is_sound {
            true => Ok(Some(found)),
            false => Err(wrong()),
        }
    }

    pub(super) fn to_json(&self) -> Value {
        match self {
            Self::OfEmbedding(ids) => json!(ids),
            Self::ByModule(modules) => json!(modules),
        }
    }

    /// The lists of all modules.
    pub fn lists(&self) -> impl Iterator<Item = &Vec<u32>> {
        let (one, more) = match self {
            Self::OfEmbedding(ids) => (Some(ids), None),
            Self::ByModule(modules) => (None, Some(modules.values())),
        };
        one.into_iter().chain(more.into_iter().flatten())
    }
}

fn token_ids(list: &Value) -> Option<Vec<u32>> {
    let id = |id: &Value| u32::try_from(id.as_u64()?).ok();
    let list = list.as_array().filter(|list| !list.is_empty())?;
    list.iter().map(id).collect()
}

/// Whether a list names no token twice.
pub(crate) fn is_each_once(list: &[u32]) -> bool {
    let mut seen = HashSet::new();
    list.iter().all(|id| seen.insert(id))
}
