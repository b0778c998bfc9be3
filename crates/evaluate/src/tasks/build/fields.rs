//! What a task's file says of a record: its question, its answer and its choices, each a field, a template or a function.

use espalier_data::template::render_text;
use serde_json::{Map, Value};

use super::super::{
    functions::{self, MakeText},
    literal::literal,
    prompt::plain_text,
};
use crate::{Error, Result};

/// Where a text or a value comes from.
#[derive(Debug, Clone)]
pub(super) enum Field {
    /// The same for all records.
    Fixed(Value),
    /// A field of the record, or a template.
    Template(String),
    /// A known function.
    Function(MakeText),
    /// Nothing.
    Absent,
}

impl Field {
    pub(super) fn parse(key: &str, value: &Value, folder: &str) -> Result<Self> {
        if let Some(name) = functions::name(value) {
            return MakeText::named(key, folder, name).map(Self::Function);
        }
        Ok(match value {
            Value::Null => Self::Absent,
            Value::String(text) => Self::Template(text.clone()),
            Value::Object(map) => Self::Fixed(map.values().cloned().collect()),
            other => Self::Fixed(other.clone()),
        })
    }

    /// The value for a record, and whether a template made it.
    fn value(&self, doc: &Value) -> Result<(Value, bool)> {
        Ok(match self {
            Self::Fixed(value) => (value.clone(), false),
            Self::Function(function) => (function.apply(doc), false),
            Self::Template(text) => match doc.get(text) {
                Some(value) => (value.clone(), false),
                None => (render(text, doc)?.into(), true),
            },
            Self::Absent => (Value::Null, false),
        })
    }

    pub(super) fn text(&self, doc: &Value) -> Result<String> {
        Ok(match self.value(doc)?.0 {
            Value::Null => String::new(),
            value => plain_text(&value),
        })
    }

    pub(super) fn is_absent(&self) -> bool {
        matches!(self, Self::Absent)
    }

    /// This one, or another where it is absent.
    pub(super) fn or(self, other: &Self) -> Self {
        match self {
            Self::Absent => other.clone(),
            own => own,
        }
    }
}

fn render(template: &str, doc: &Value) -> Result<String> {
    if !template.contains(['{', '}']) {
        return Ok(template.to_owned());
    }
    let nothing = Map::new();
    Ok(render_text(template, doc.as_object().unwrap_or(&nothing))?)
}

/// The question, the answer and the choices of a record.
#[derive(Debug, Clone)]
pub(super) struct Fields {
    pub(super) text: Field,
    pub(super) target: Field,
    pub(super) choices: Field,
    pub(super) prefix: Field,
}

/// A right answer.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Target {
    Number(i64),
    Text(String),
    List(Vec<Value>),
}

impl Fields {
    pub(super) fn choices(&self, doc: &Value) -> Result<Option<Vec<String>>> {
        if self.choices.is_absent() {
            return Ok(None);
        }
        let (value, made) = self.choices.value(doc)?;
        let value = match (made, &value) {
            (true, Value::String(text)) => literal(text).unwrap_or(value),
            _ => value,
        };
        match value {
            Value::Array(choices) => Ok(Some(choices.iter().map(plain_text).collect())),
            other => Err(Error::task(format!(
                "`doc_to_choice` gives {other}, which is no list"
            ))),
        }
    }

    /// The number of the right choice, where the question is one: the choices are contexts of one answer then.
    pub(super) fn right_context(&self, doc: &Value) -> Result<Option<i64>> {
        if self.choices.is_absent() {
            return Ok(None);
        }
        let (value, made) = self.text.value(doc)?;
        let digits = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_digit());
        Ok(match value {
            Value::Number(number) => number.as_i64(),
            Value::String(text) if made && digits(&text) => text.parse().ok(),
            _ => None,
        })
    }

    pub(super) fn target(&self, doc: &Value) -> Result<Target> {
        let (value, made) = self.target.value(doc)?;
        Ok(match value {
            Value::Bool(flag) => Target::Number(i64::from(flag)),
            Value::Number(number) => match number.as_i64() {
                Some(whole) => Target::Number(whole),
                None => Target::Text(number.to_string()),
            },
            Value::Array(list) => Target::List(list),
            Value::String(text) if made => self.target_of_template(text),
            Value::String(text) => Target::Text(text),
            Value::Null => Target::Text(String::new()),
            other => Target::Text(other.to_string()),
        })
    }

    fn target_of_template(&self, text: String) -> Target {
        let digits = !text.is_empty() && text.chars().all(|c| c.is_ascii_digit());
        if let (true, false, Ok(number)) = (digits, self.choices.is_absent(), text.parse()) {
            return Target::Number(number);
        }
        let listed = text.len() >= 2 && text.starts_with('[') && text.ends_with(']');
        match listed.then(|| literal(&text)).flatten() {
            Some(Value::Array(list)) => Target::List(list),
            _ => Target::Text(text),
        }
    }

    /// The answer of a labelled example.
    pub(super) fn answer(&self, doc: &Value) -> Result<String> {
        let choices = self.choices(doc)?;
        Ok(match self.target(doc)? {
            Target::Text(text) => text,
            Target::List(list) => list.first().map(plain_text).unwrap_or_default(),
            Target::Number(number) => match choices {
                Some(choices) => chosen(&choices, number)?.to_owned(),
                None => number.to_string(),
            },
        })
    }
}

pub(super) fn chosen(choices: &[String], number: i64) -> Result<&str> {
    let choice = usize::try_from(number)
        .ok()
        .and_then(|number| choices.get(number));
    choice.map(String::as_str).ok_or_else(|| {
        Error::task(format!(
            "`doc_to_target` gives {number}, and there are {} choices",
            choices.len()
        ))
    })
}

pub(super) fn as_text(target: &Target) -> String {
    match target {
        Target::Number(number) => number.to_string(),
        Target::Text(text) => text.clone(),
        Target::List(list) => Value::Array(list.clone()).to_string(),
    }
}

/// Numbers of the right choices; those that are none are left out.
pub(super) fn right(choices: &[String], target: &Target) -> Vec<usize> {
    let place = |number: i64| {
        usize::try_from(number)
            .ok()
            .filter(|place| *place < choices.len())
    };
    match target {
        Target::Number(number) => place(*number).into_iter().collect(),
        Target::Text(text) => choices
            .iter()
            .position(|choice| choice == text)
            .into_iter()
            .collect(),
        Target::List(list) => list
            .iter()
            .filter_map(Value::as_i64)
            .filter_map(place)
            .collect(),
    }
}
