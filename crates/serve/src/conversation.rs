//! Messages and tools of a request, as the chat template understands them.

use espalier_data::{encode::Encoder, record::Message};
use serde_json::{Map, Value};

use crate::{app::Served, calls::Dialect, error::Refusal};

/// Roles that templates know.
const ROLES: [&str; 5] = ["system", "developer", "user", "assistant", "tool"];

/// What a conversation asks for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Asked {
    pub messages: Vec<Message>,
    pub tools: Option<Value>,
}

impl Asked {
    /// The tokens of the conversation up to the assistant's turn.
    pub fn prompt(&self, model: &Served) -> Result<Vec<u32>, Refusal> {
        let template = model.tokenizer.template_for(self.tools.is_some());
        let Some(template) = template else {
            return Err(Refusal::invalid(format!(
                "`{}` has no chat template and cannot converse; use /v1/completions",
                model.name
            )));
        };
        if self.tools.is_some() && model.dialect == Dialect::None {
            return Err(Refusal::field(
                "tools",
                format!("the chat template of `{}` knows no tools", model.name),
            )
            .with_code("unsupported_value"));
        }
        let knows_developers = template.source().contains("developer");
        let mut messages = self.messages.clone();
        for message in &mut messages {
            if message.role == "developer" && !knows_developers {
                message.role = "system".into();
            }
        }
        let encoder = Encoder::new(model.tokenizer.clone(), usize::MAX);
        encoder
            .prompt(&messages, self.tools.as_ref())
            .map_err(|error| Refusal::invalid(error.to_string()).at("messages"))
    }
}

/// Reads OpenAI's messages.
pub(crate) fn messages(value: Value) -> Result<Vec<Message>, Refusal> {
    let Value::Array(list) = value else {
        return Err(Refusal::field("messages", "expected a list"));
    };
    if list.is_empty() {
        return Err(Refusal::field("messages", "expected at least one message"));
    }
    let read = |(number, value): (usize, Value)| {
        message(value).map_err(|reason| {
            let name = format!("messages[{number}]");
            Refusal::field(&name, reason)
        })
    };
    list.into_iter().enumerate().map(read).collect()
}

fn message(value: Value) -> Result<Message, String> {
    let Value::Object(mut map) = value else {
        return Err("expected an object".into());
    };
    map.retain(|_, value| !value.is_null());
    let role = map.get("role").and_then(Value::as_str).unwrap_or_default();
    if !ROLES.contains(&role) {
        return Err(format!("`role` is one of {}", ROLES.join(", ")));
    }
    // What only OpenAI's own models have.
    ["refusal", "audio", "annotations", "function_call"]
        .iter()
        .for_each(|name| _ = map.remove(*name));
    let calls = map.get("tool_calls").and_then(Value::as_array);
    match map.get("content") {
        Some(Value::String(_)) => {}
        Some(Value::Array(parts)) => {
            let text = joined(parts)?;
            map.insert("content".into(), text.into());
        }
        None if calls.is_some_and(|calls| !calls.is_empty()) => {
            map.insert("content".into(), "".into());
        }
        None => return Err("`content` is required".into()),
        Some(_) => return Err("`content` is a text or a list of parts".into()),
    }
    if let Some(Value::Array(calls)) = map.get_mut("tool_calls") {
        calls.iter_mut().for_each(unfold);
    }
    // OpenAI's files give turns a weight; in a request there is nothing to learn.
    map.remove("weight");
    serde_json::from_value(Value::Object(map)).map_err(|error| error.to_string())
}

/// The text of parts, of which there are no others here.
fn joined(parts: &[Value]) -> Result<String, String> {
    let text = |part: &Value| {
        let kind = part.get("type").and_then(Value::as_str).unwrap_or_default();
        let known = ["text", "input_text", "output_text"].contains(&kind);
        let text = part.get("text").and_then(Value::as_str);
        match text.filter(|_| known) {
            Some(text) => Ok(text.to_owned()),
            None => Err(format!(
                "a part of the type `{kind}`: texts alone are understood"
            )),
        }
    };
    parts.iter().map(text).collect()
}

/// Templates want arguments as an object, clients send them as a text.
fn unfold(call: &mut Value) {
    let arguments = call.pointer_mut("/function/arguments");
    if let Some(arguments) = arguments
        && let Some(text) = arguments.as_str()
        && let Ok(object @ Value::Object(_)) =
            serde_json::from_str(if text.trim().is_empty() { "{}" } else { text })
    {
        *arguments = object;
    }
}

/// Reads OpenAI's `tools`.
pub(crate) fn tools(value: Option<Value>) -> Result<Option<Value>, Refusal> {
    let Some(value) = value else { return Ok(None) };
    let Value::Array(list) = &value else {
        return Err(Refusal::field("tools", "expected a list"));
    };
    for (number, tool) in list.iter().enumerate() {
        let name = tool.pointer("/function/name").and_then(Value::as_str);
        let is_function = tool.get("type").and_then(Value::as_str) == Some("function");
        let good = |name: &str| {
            let letters = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
            (1..=64).contains(&name.len()) && name.chars().all(letters)
        };
        if !is_function || !name.is_some_and(good) {
            return Err(Refusal::field(
                &format!("tools[{number}]"),
                "expected {\"type\": \"function\", \"function\": {\"name\": ..., \"parameters\": ...}} with a name of letters, digits, _ and -",
            ));
        }
    }
    Ok((!list.is_empty()).then_some(value))
}

/// OpenAI's `tool_choice`: whether tools are on offer.
pub(crate) fn offers_tools(choice: Option<Value>) -> Result<bool, Refusal> {
    match choice {
        None => Ok(true),
        Some(Value::String(choice)) if choice == "auto" => Ok(true),
        Some(Value::String(choice)) if choice == "none" => Ok(false),
        Some(_) => Err(Refusal::field(
            "tool_choice",
            "`auto` and `none` are understood; a call cannot be forced",
        )
        .with_code("unsupported_value")),
    }
}

/// An object of these fields.
pub(crate) fn object<const N: usize>(fields: [(&str, Value); N]) -> Value {
    let fields = fields.map(|(name, value)| (name.to_owned(), value));
    Value::Object(Map::from_iter(fields))
}
