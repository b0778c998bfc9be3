//! The fields of a request, taken one by one with their checks; what is left over at the end is refused by name.
//!
//! `null` stands for a field that is not there.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::error::Refusal;

/// A request's fields.
#[derive(Debug)]
pub(crate) struct Fields {
    map: Map<String, Value>,
}

type Checked<T> = std::result::Result<T, Refusal>;

impl Fields {
    /// Reads a body.
    pub fn parse(body: &[u8]) -> Checked<Self> {
        let text = std::str::from_utf8(body).map_err(|error| {
            let place = error.valid_up_to() + 1;
            Refusal::invalid(format!("the body is not UTF-8: byte {place}"))
        })?;
        match serde_json::from_str(text) {
            Ok(Value::Object(map)) => Ok(Self { map }),
            Ok(_) => Err(Refusal::invalid("the body is not a JSON object")),
            Err(error) => Err(Refusal::invalid(format!("the body is not JSON: {error}"))),
        }
    }

    /// A field.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.map.remove(name).filter(|value| !value.is_null())
    }

    /// A field that stays.
    pub fn peek(&self, name: &str) -> Option<&Value> {
        self.map.get(name)
    }

    /// Gives a field the name that another interface has for it.
    pub fn rename(&mut self, from: &str, to: &str) {
        if let Some(value) = self.map.remove(from) {
            self.map.insert(to.to_owned(), value);
        }
    }

    /// A field that must be there.
    pub fn need(&mut self, name: &str) -> Checked<Value> {
        self.take(name)
            .ok_or_else(|| Refusal::field(name, "this field is required"))
    }

    /// A number.
    pub fn number(&mut self, name: &str, range: RangeInclusive<f64>) -> Checked<Option<f64>> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        match value.as_f64().filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => Err(Refusal::field(
                name,
                format!(
                    "expected a number from {} to {}, found {}",
                    range.start(),
                    range.end(),
                    shown(&value)
                ),
            )),
        }
    }

    /// A whole number.
    pub fn count(&mut self, name: &str, range: RangeInclusive<u64>) -> Checked<Option<u64>> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        match value.as_u64().filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => Err(Refusal::field(
                name,
                match *range.end() {
                    u64::MAX => format!(
                        "expected a whole number from {}, found {}",
                        range.start(),
                        shown(&value)
                    ),
                    end => format!(
                        "expected a whole number from {} to {end}, found {}",
                        range.start(),
                        shown(&value)
                    ),
                },
            )),
        }
    }

    /// Yes or no.
    pub fn flag(&mut self, name: &str) -> Checked<Option<bool>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(Refusal::field(
                name,
                format!("expected true or false, found {}", shown(&other)),
            )),
        }
    }

    /// A text.
    pub fn text(&mut self, name: &str) -> Checked<Option<String>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(Refusal::field(
                name,
                format!("expected a text, found {}", shown(&other)),
            )),
        }
    }

    /// A text, or a list of at most `most`.
    pub fn texts(&mut self, name: &str, most: usize) -> Checked<Vec<String>> {
        let wrong = |found: &Value| {
            let found = shown(found);
            Refusal::field(
                name,
                format!("expected a text or a list of at most {most}, found {found}"),
            )
        };
        match self.take(name) {
            None => Ok(Vec::new()),
            Some(Value::String(text)) => Ok(vec![text]),
            Some(Value::Array(list)) if list.len() <= most => list
                .into_iter()
                .map(|one| match one {
                    Value::String(text) => Ok(text),
                    other => Err(wrong(&other)),
                })
                .collect(),
            Some(other) => Err(wrong(&other)),
        }
    }

    /// A field that may have only the values that change nothing.
    pub fn neutral(&mut self, name: &str, neutral: &[Value], why: &str) -> Checked<()> {
        match self.take(name) {
            Some(value) if !neutral.contains(&value) => Err(Refusal::field(
                name,
                format!("{} is not supported: {why}", shown(&value)),
            )
            .with_code("unsupported_value")),
            _ => Ok(()),
        }
    }

    /// Refuses what is left, but for what changes no answer.
    pub fn finish(mut self, harmless: &[&str]) -> Checked<()> {
        harmless.iter().for_each(|name| _ = self.map.remove(*name));
        self.map.retain(|_, value| !value.is_null());
        let Some(name) = self.map.keys().next() else {
            return Ok(());
        };
        let names: Vec<String> = self.map.keys().map(|name| format!("`{name}`")).collect();
        let names = names.join(", ");
        Err(Refusal::invalid(format!(
            "unknown or unsupported: {names}; leave it out, for nothing is silently ignored here"
        ))
        .at(name)
        .with_code("unsupported_parameter"))
    }
}

/// A value in an error, not longer than a line.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str) -> Fields {
        Fields::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn fields_are_checked_and_the_rest_is_named() {
        let mut given = fields(r#"{"a": 3, "b": null, "c": "x", "d": [1], "user": "u"}"#);
        assert_eq!(given.count("a", 0..=5).unwrap(), Some(3));
        assert_eq!(given.flag("b").unwrap(), None);
        assert_eq!(given.texts("c", 4).unwrap(), ["x"]);
        let left = given.finish(&["user"]).unwrap_err();
        assert!(left.message().contains("`d`"), "{}", left.message());
        assert!(fields(r#"{"a": 9}"#).count("a", 0..=5).is_err());
        assert!(fields(r#"{"a": -1}"#).number("a", 0.0..=2.0).is_err());
        assert!(fields(r#"{"a": ["x", 1]}"#).texts("a", 4).is_err());
        assert!(Fields::parse(b"\"x\xff\"").is_err());
        assert!(Fields::parse(b"[]").is_err());
    }
}
