//! The keys and values of one record, with errors that say what is missing and what was found.

use serde_json::{Map, Value};

use super::forms::Form;
use crate::nearest::nearest;

/// Keys named in an error; a record can have any number.
const MOST_KEYS_NAMED: usize = 12;

/// One record of a known form.
pub(super) struct Fields {
    form: Form,
    map: Map<String, Value>,
}

impl Fields {
    pub fn new(form: Form, map: Map<String, Value>) -> Self {
        Self { form, map }
    }

    /// The value of a key; `null` counts as absent.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// The keys that the form does not read, with values that say something.
    pub fn unread(&self) -> impl Iterator<Item = (&str, &Value)> {
        let unread = |(key, value): &(&String, &Value)| {
            !self.form.keys().contains(&key.as_str()) && !says_nothing(value)
        };
        let keys = self.map.iter().filter(unread);
        keys.map(|(key, value)| (key.as_str(), value))
    }

    /// The name of a key that is not read, with what was probably meant.
    pub fn unread_name(&self, key: &str) -> String {
        let missing = self.form.keys().iter().filter(|name| !self.has(name));
        let meant = nearest(key, missing.copied());
        let hint = meant.map_or(String::new(), |name| format!(" (did you mean `{name}`?)"));
        let key: String = key.chars().take(40).collect();
        format!("`{key}`{hint}")
    }

    pub fn required(&self, name: &str) -> Result<&Value, String> {
        self.get(name).ok_or_else(|| self.missing(name))
    }

    /// The text of a key that may be absent.
    pub fn text(&self, name: &str) -> Result<Option<&str>, String> {
        self.get(name).map(|value| text(name, value)).transpose()
    }

    pub fn required_text(&self, name: &str) -> Result<&str, String> {
        text(name, self.required(name)?)
    }

    fn missing(&self, name: &str) -> String {
        format!(
            "{} record without `{name}` ({})",
            self.form,
            found(&self.map, name, self.form.keys())
        )
    }
}

/// `keys found: ...`, and the key that was probably meant by one of them.
pub(super) fn found(map: &Map<String, Value>, missing: &str, known: &[&str]) -> String {
    let keys: Vec<&str> = map.keys().map(String::as_str).collect();
    let strange = || keys.iter().filter(|key| !known.contains(key));
    let meant = strange()
        .find_map(|key| nearest(key, [missing]))
        .or_else(|| strange().find_map(|key| nearest(key, known.iter().copied())));
    let hint = meant
        .map(|meant| format!("; did you mean `{meant}`?"))
        .unwrap_or_default();
    let more = if keys.len() > MOST_KEYS_NAMED {
        ", ..."
    } else {
        ""
    };
    let named: Vec<String> = keys
        .iter()
        .take(MOST_KEYS_NAMED)
        .map(|key| key.chars().take(40).collect())
        .collect();
    let named = if named.is_empty() {
        "none".to_string()
    } else {
        named.join(", ")
    };
    format!("keys found: {named}{more}{hint}")
}

/// The text of a value that must be text.
pub(super) fn text<'a>(name: &str, value: &'a Value) -> Result<&'a str, String> {
    value
        .as_str()
        .ok_or_else(|| format!("`{name}` must be text, found {}", kind(value)))
}

/// The list of a value that must be one.
pub(super) fn list<'a>(name: &str, value: &'a Value) -> Result<&'a Vec<Value>, String> {
    value.as_array().ok_or_else(|| {
        let as_text = value.as_str().map_or("", str::trim_start);
        let hint = match as_text.starts_with('[') {
            true => "; it is a list in quotes: write the list itself",
            false => "",
        };
        format!("`{name}` must be a list, found {}{hint}", kind(value))
    })
}

/// Whether a value is null or empty.
pub(super) fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.iter().all(says_nothing),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

/// The type of a value, in words.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn missing_keys_name_what_was_found_and_meant() {
        let Value::Object(map) = json!({"instruction": "a", "inputs": "b"}) else {
            panic!()
        };
        let fields = Fields::new(Form::Alpaca, map);
        assert_eq!(
            fields.required("output").unwrap_err(),
            "alpaca record without `output` (keys found: instruction, inputs; did you mean `input`?)"
        );
    }

    #[test]
    fn wrong_kinds_are_named() {
        assert_eq!(
            text("output", &json!(3)).unwrap_err(),
            "`output` must be text, found a number"
        );
        assert_eq!(
            list("messages", &json!({})).unwrap_err(),
            "`messages` must be a list, found an object"
        );
        assert_eq!(
            list("messages", &json!(" [{\"role\": \"user\"}]")).unwrap_err(),
            "`messages` must be a list, found text; it is a list in quotes: write the list itself"
        );
        assert_eq!(
            list("messages", &json!("Hello")).unwrap_err(),
            "`messages` must be a list, found text"
        );
    }
}
