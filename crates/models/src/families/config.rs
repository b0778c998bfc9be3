//! `config.json` with typed access: every wrong value is an error that names the file, the key and what would fit.
//!
//! Sizes are bounded as they are read, so that products of them cannot overflow and nobody allocates a file's fancies. Keys that
//! nobody has read are remembered: what they say might be another model.

use super::{config_keys as keys, layer_types, state_spaces};
use crate::error::{Error, Result};
use crate::spec::Activation;
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Largest configuration file that is read.
const FILE_LIMIT: u64 = 16 << 20;
/// Largest width of the residual stream.
pub const WIDTH_LIMIT: usize = 1 << 20;
/// Most blocks.
pub const LAYER_LIMIT: usize = 4096;
/// Most rows of the embedding table.
pub const VOCABULARY_LIMIT: usize = 1 << 24;
/// Longest context.
pub const CONTEXT_LIMIT: usize = 1 << 30;
/// Most heads, and the widest head.
pub const HEAD_LIMIT: usize = 1 << 16;
/// Largest inner width of a feed-forward layer, and largest `heads * head_dim`.
pub const INNER_LIMIT: usize = 1 << 24;

/// A configuration file as it stands, or one of its nested objects.
///
/// ```
/// use espalier_models::families::Config;
/// let config = Config::parse("config.json".as_ref(), r#"{"hidden_size": 64}"#)?;
/// assert_eq!(config.size("hidden_size", 1024)?, 64);
/// assert!(config.size("hidden_size", 32).is_err());
/// # Ok::<(), espalier_models::error::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Config {
    path: PathBuf,
    prefix: String,
    map: Map<String, Value>,
    /// Full names of the keys that were read, shared with copies and nested objects.
    read: Arc<Mutex<BTreeSet<String>>>,
}

impl Config {
    /// Reads the file at `path`, or `config.json` of the folder at `path`.
    ///
    /// # Errors
    /// When it is missing, larger than 16 MiB or not a JSON object.
    pub fn load(path: &Path) -> Result<Self> {
        let path = if path.is_dir() {
            path.join("config.json")
        } else {
            path.to_path_buf()
        };
        let size = std::fs::metadata(&path).map_err(Error::file(&path))?.len();
        if size > FILE_LIMIT {
            return Err(Error::Invalid(format!(
                "{}: {size} bytes are too many for a configuration",
                path.display()
            )));
        }
        Self::parse(
            &path,
            &std::fs::read_to_string(&path).map_err(Error::file(&path))?,
        )
    }

    /// Parses `text`, which came from `path`.
    ///
    /// # Errors
    /// When the text is not a JSON object.
    pub fn parse(path: &Path, text: &str) -> Result<Self> {
        // Some editors put a byte-order mark before UTF-8.
        let text = text.trim_start_matches('\u{feff}');
        let map = serde_json::from_str(text)
            .or_else(|error| serde_json::from_str(&quoted_infinity(text)).map_err(|_| error))
            .map_err(|error| {
                Error::Invalid(format!("{}: not a JSON object: {error}", path.display()))
            })?;
        Ok(Self::from_map(path, state_spaces::translated(map)))
    }

    /// A configuration that is already in memory; `path` is for messages.
    pub fn from_map(path: &Path, map: Map<String, Value>) -> Self {
        Self {
            path: path.to_path_buf(),
            prefix: String::new(),
            map,
            read: Arc::default(),
        }
    }

    /// Where the configuration came from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All keys and values, unknown ones included.
    pub fn map(&self) -> &Map<String, Value> {
        &self.map
    }

    /// The same configuration with `key` set to `value`.
    pub fn with(mut self, key: &str, value: Value) -> Self {
        self.map.insert(key.to_owned(), value);
        self
    }

    /// The value of `key`, if there is one and it is not null.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.ignore(&[key]);
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// Whether `key` is there, null included.
    pub fn contains(&self, key: &str) -> bool {
        self.ignore(&[key]);
        self.map.contains_key(key)
    }

    /// Counts keys as read that say nothing, or nothing new, to this family.
    pub fn ignore(&self, keys: &[&str]) {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        read.extend(keys.iter().map(|key| format!("{}{key}", self.prefix)));
    }

    /// The same configuration with values for keys that are absent or null.
    pub fn with_defaults(&self, defaults: &[(&str, Value)]) -> Self {
        let absent = defaults.iter().filter(|(key, _)| self.get(key).is_none());
        absent.fold(self.clone(), |config, (key, value)| {
            config.with(key, value.clone())
        })
    }

    /// Looks at the keys that were not read: refuses those that might change what a model computes, by their names, and tells
    /// once of the others, which are ignored. What is known to say nothing, or is not set, is not mentioned.
    ///
    /// # Errors
    /// When there is a key that might change the computation.
    pub fn refuse_unread(&self) -> Result<()> {
        let unread = self.unread();
        let (grave, odd): (Vec<&str>, Vec<&str>) =
            unread.iter().partition(|key| keys::may_matter(key));
        let Some((first, others)) = grave.split_first() else {
            keys::tell_ignored(&self.path, &odd);
            return Ok(());
        };
        let also = if others.is_empty() {
            String::new()
        } else {
            format!(" (as are {})", others.join(", "))
        };
        let fix = "remove what changes nothing of what the model computes";
        Err(self.error(
            first,
            format!("unknown to this family{also}: this may be another model; {fix}"),
        ))
    }

    /// The keys that nobody read, that are set, and that are not known to say nothing.
    pub(crate) fn unread(&self) -> Vec<&str> {
        let read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let no_windows = layer_types::says_no_windows(&self.map);
        let harmless = |key: &str| {
            keys::is_harmless(key) || no_windows && layer_types::OF_WINDOWS.contains(&key)
        };
        let unread = |key: &str| !read.contains(key) && !harmless(key);
        self.map
            .iter()
            .filter(|(key, value)| unread(key) && !is_unset(value))
            .map(|(key, _)| key.as_str())
            .collect()
    }

    /// The full names of the keys that were asked for.
    #[cfg(test)]
    pub(super) fn asked(&self) -> BTreeSet<String> {
        let read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        read.clone()
    }

    /// An error about `key`.
    pub fn error(&self, key: &str, reason: impl Into<String>) -> Error {
        Error::Config {
            path: self.path.clone(),
            key: format!("{}{key}", self.prefix),
            reason: reason.into(),
        }
    }

    fn expected(&self, key: &str, what: &str, found: &Value) -> Error {
        let mut found = found.to_string();
        if let Some((end, _)) = found.char_indices().nth(60) {
            found.truncate(end);
        }
        self.error(key, format!("expected {what}, found {found}"))
    }

    /// The value of `key` where it is there and fits `convert`; `what` names what would.
    fn typed<'a, T>(
        &'a self,
        key: &str,
        what: &str,
        convert: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        convert(value)
            .map(Some)
            .ok_or_else(|| self.expected(key, what, value))
    }

    /// `value`, or an error that `key` is missing.
    fn required<T>(&self, key: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| {
            self.error(
                key,
                "missing; add it, or take the configuration that came with the weights",
            )
        })
    }

    /// An integer from 1 to `limit`, or nothing where the key is absent or null.
    ///
    /// # Errors
    /// When the value is anything else.
    pub fn optional_size(&self, key: &str, limit: usize) -> Result<Option<usize>> {
        let what = format!("an integer from 1 to {limit}");
        self.typed(key, &what, |value| in_range(value, 1, limit))
    }

    /// An integer from 1 to `limit`.
    ///
    /// # Errors
    /// When it is missing or anything else.
    pub fn size(&self, key: &str, limit: usize) -> Result<usize> {
        self.required(key, self.optional_size(key, limit)?)
    }

    /// An integer from 0 to `limit`, or `default`.
    ///
    /// # Errors
    /// When the value is anything else.
    pub fn count_or(&self, key: &str, default: usize, limit: usize) -> Result<usize> {
        let what = format!("an integer from 0 to {limit}");
        Ok(self
            .typed(key, &what, |value| in_range(value, 0, limit))?
            .unwrap_or(default))
    }

    /// A list of integers from 0 to `limit`, or nothing; a single integer is a list of one.
    ///
    /// # Errors
    /// When the value is anything else.
    pub fn optional_counts(&self, key: &str, limit: usize) -> Result<Option<Vec<usize>>> {
        let what = format!("integers from 0 to {limit}");
        self.typed(key, &what, |value| {
            listed(value)
                .iter()
                .map(|value| in_range(value, 0, limit))
                .collect()
        })
    }

    /// A finite number, or nothing.
    ///
    /// # Errors
    /// When the value is anything else.
    pub fn optional_number(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a finite number", |value| {
            value.as_f64().filter(|number| number.is_finite())
        })
    }

    /// A positive number, or nothing.
    ///
    /// # Errors
    /// When the value is anything else.
    pub fn optional_positive(&self, key: &str) -> Result<Option<f64>> {
        let positive = |number: &f64| number.is_finite() && *number > 0.0;
        self.typed(key, "a positive number", |value| {
            value.as_f64().filter(positive)
        })
    }

    /// A list of positive numbers, or nothing.
    ///
    /// # Errors
    /// When the value is anything else.
    pub fn optional_positives(&self, key: &str) -> Result<Option<Vec<f64>>> {
        let positive = |value: &Value| {
            value
                .as_f64()
                .filter(|number| number.is_finite() && *number > 0.0)
        };
        self.typed(key, "positive numbers", |value| {
            listed(value).iter().map(positive).collect()
        })
    }

    /// A positive number, or `default`.
    ///
    /// # Errors
    /// When the value is anything else.
    pub fn positive_or(&self, key: &str, default: f64) -> Result<f64> {
        Ok(self.optional_positive(key)?.unwrap_or(default))
    }

    /// A positive number.
    ///
    /// # Errors
    /// When it is missing or anything else.
    pub fn positive(&self, key: &str) -> Result<f64> {
        self.required(key, self.optional_positive(key)?)
    }

    /// `true` or `false`, or `default`.
    ///
    /// # Errors
    /// When the value is anything else.
    pub fn flag_or(&self, key: &str, default: bool) -> Result<bool> {
        Ok(self
            .typed(key, "true or false", Value::as_bool)?
            .unwrap_or(default))
    }

    /// A string, or nothing.
    ///
    /// # Errors
    /// When the value is anything else.
    pub fn optional_text(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a string", Value::as_str)
    }

    /// A list of strings, or nothing; a single string is a list of one.
    ///
    /// # Errors
    /// When the value is anything else.
    pub fn optional_texts(&self, key: &str) -> Result<Option<Vec<&str>>> {
        self.typed(key, "strings", |value| {
            listed(value).iter().map(Value::as_str).collect()
        })
    }

    /// A nested object, or nothing.
    ///
    /// # Errors
    /// When the value is anything else.
    pub fn optional_object(&self, key: &str) -> Result<Option<Self>> {
        let map = self.typed(key, "an object", Value::as_object)?;
        let prefix = format!("{}{key}.", self.prefix);
        let (path, read) = (&self.path, &self.read);
        Ok(map.map(|map| Self {
            path: path.clone(),
            prefix,
            map: map.clone(),
            read: read.clone(),
        }))
    }

    /// Token ids: a list, one id, or none; -1 also stands for none, as in old LLaMA files.
    ///
    /// # Errors
    /// When the value is anything else.
    pub fn tokens(&self, key: &str) -> Result<Vec<u32>> {
        if self.get(key).and_then(Value::as_i64) == Some(-1) {
            return Ok(Vec::new());
        }
        let token = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let tokens = self.typed(key, "a token id or a list of them", |value| {
            listed(value).iter().map(token).collect()
        })?;
        Ok(tokens.unwrap_or_default())
    }

    /// One token id, or none.
    ///
    /// # Errors
    /// When the value is anything else.
    pub fn token(&self, key: &str) -> Result<Option<u32>> {
        match self.tokens(key)?[..] {
            [] => Ok(None),
            [token] => Ok(Some(token)),
            _ => Err(self.error(key, "expected one token id, found a list; keep the first")),
        }
    }

    /// The nonlinearity that `key` names, or `default`.
    ///
    /// # Errors
    /// When the name is unknown.
    pub fn activation_or(&self, key: &str, default: Activation) -> Result<Activation> {
        let Some(name) = self.optional_text(key)? else {
            return Ok(default);
        };
        Ok(match name {
            "silu" | "swish" => Activation::Silu,
            "gelu" => Activation::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Activation::GeluTanh,
            "relu" => Activation::Relu,
            "relu2" => Activation::Relu2,
            "quick_gelu" => Activation::QuickGelu,
            "sigmoid" => Activation::Sigmoid,
            "tanh" => Activation::Tanh,
            _ => {
                let known = "silu, gelu, gelu_new, gelu_pytorch_tanh, gelu_fast, relu, relu2 and quick_gelu";
                return Err(self.error(
                    key,
                    format!("unknown activation `{name}`; known are {known}"),
                ));
            }
        })
    }

    /// The type of the weights by the file: `dtype`, or `torch_dtype` in older files.
    ///
    /// # Errors
    /// When the value is not a string.
    pub fn dtype(&self) -> Result<Option<&str>> {
        let dtype = self.optional_text("dtype")?;
        dtype.map_or_else(
            || self.optional_text("torch_dtype"),
            |dtype| Ok(Some(dtype)),
        )
    }

    /// Refuses `key` if it is set to anything but null, false or nothing.
    ///
    /// # Errors
    /// When it is set.
    pub fn refuse(&self, key: &str) -> Result<()> {
        match self.get(key) {
            Some(value) if !is_unset(value) => {
                Err(self.error(key, format!("set to {value}, which is not supported yet")))
            }
            _ => Ok(()),
        }
    }
}

/// `text` with the infinities that Python writes as strings, for JSON has none.
fn quoted_infinity(text: &str) -> String {
    let mut inside = false;
    let part = |part: &str| {
        let kept = if inside {
            part.to_owned()
        } else {
            part.replace("Infinity", "\"Infinity\"")
        };
        let before = part.strip_suffix('"');
        let escapes = before.map_or(0, |before| {
            before.len() - before.trim_end_matches('\\').len()
        });
        inside ^= before.is_some() && escapes.is_multiple_of(2);
        kept
    };
    text.split_inclusive('"').map(part).collect()
}

/// Whether a value says nothing: null, false, or an empty text, list or object.
pub fn is_unset(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

/// The key's name in `config.json`'s `hidden_act` and `activation_function`.
pub fn activation_name(activation: Activation) -> &'static str {
    match activation {
        Activation::Silu => "silu",
        Activation::Gelu => "gelu",
        Activation::GeluTanh => "gelu_new",
        Activation::Relu => "relu",
        Activation::Relu2 => "relu2",
        Activation::QuickGelu => "quick_gelu",
        Activation::Sigmoid => "sigmoid",
        Activation::Tanh => "tanh",
    }
}

fn in_range(value: &Value, least: usize, limit: usize) -> Option<usize> {
    let number = usize::try_from(value.as_u64()?).ok()?;
    (least..=limit).contains(&number).then_some(number)
}

fn listed(value: &Value) -> &[Value] {
    value
        .as_array()
        .map_or(std::slice::from_ref(value), Vec::as_slice)
}

#[cfg(test)]
mod tests;
