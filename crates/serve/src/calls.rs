//! Calls of tools in what a model writes, in the dialect of its chat template, piece by piece as the text comes.
//!
//! | dialect | a call |
//! |---|---|
//! | Hermes, Qwen | `<tool_call>{"name": ..., "arguments": {...}}</tool_call>` |
//! | Llama 3 | a text that is `{"name": ..., "parameters": {...}}`, several with `;` between, perhaps behind `<\|python_tag\|>` |
//! | Mistral | `[TOOL_CALLS][{"name": ..., "arguments": {...}}, ...]`, or `[TOOL_CALLS]name[ARGS]{...}` |
//!
//! What begins like a call and turns out to be none is text. Arguments are given on as the model wrote them, byte for byte.

use serde::de::IgnoredAny;
use serde_json::Value;

/// How a template writes calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    Hermes,
    Llama,
    Mistral,
    /// The template renders no tools.
    None,
}

impl Dialect {
    /// The dialect of a template by its source.
    pub fn of(template: &str) -> Self {
        let has = |text: &str| template.contains(text);
        match () {
            () if !has("tools") => Self::None,
            () if has("[TOOL_CALLS]") => Self::Mistral,
            () if has("<tool_call>") => Self::Hermes,
            () => Self::Llama,
        }
    }

    /// Marks that count as text though they may be special tokens.
    pub fn marks(self) -> &'static [&'static str] {
        match self {
            Self::Hermes => &["<tool_call>", "</tool_call>"],
            Self::Llama => &["<|python_tag|>"],
            Self::Mistral => &["[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"],
            Self::None => &[],
        }
    }

    fn opening(self) -> Option<&'static str> {
        match self {
            Self::Hermes => Some("<tool_call>"),
            Self::Mistral => Some("[TOOL_CALLS]"),
            Self::Llama | Self::None => None,
        }
    }
}

/// A call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Call {
    pub name: String,
    /// JSON, as the model wrote it.
    pub arguments: String,
}

/// What a text is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part {
    Text(String),
    Call(Call),
}

/// Reads a text piece by piece.
#[derive(Debug)]
pub(crate) struct CallParser {
    dialect: Dialect,
    held: String,
    /// Whether what is held began with a call's mark.
    inside: bool,
    /// Whether anything was given out.
    begun: bool,
}

impl CallParser {
    pub fn new(dialect: Dialect) -> Self {
        Self {
            dialect,
            held: String::new(),
            inside: false,
            begun: false,
        }
    }

    /// Takes a piece of text; what became certain.
    pub fn push(&mut self, text: &str) -> Vec<Part> {
        self.held.push_str(text);
        let mut parts = Vec::new();
        while let Some(part) = self.next() {
            parts.extend(part);
        }
        parts
    }

    /// The rest, when no more comes.
    pub fn finish(&mut self) -> Vec<Part> {
        let held = std::mem::take(&mut self.held);
        let calls = match (self.dialect, self.inside) {
            (Dialect::Llama, _) => llama_calls(&held),
            // A model that was cut off, or ended without the closing mark.
            (Dialect::Hermes, true) => call_of(held.trim()).map(|call| vec![call]),
            (Dialect::Mistral, true) => mistral_calls(&held),
            _ => None,
        };
        let opening = match self.inside {
            true => self.dialect.opening().unwrap_or_default(),
            false => "",
        };
        match calls {
            Some(calls) => calls.into_iter().map(Part::Call).collect(),
            None if held.is_empty() && opening.is_empty() => Vec::new(),
            None => vec![Part::Text(format!("{opening}{held}"))],
        }
    }

    /// The next certain parts; nothing when more text is needed.
    fn next(&mut self) -> Option<Vec<Part>> {
        match (self.dialect, self.inside) {
            (Dialect::None, _) => self.all_text(),
            (Dialect::Llama, _) => {
                let start = self.held.trim_start();
                let mark = "<|python_tag|>";
                let may_call = start.is_empty()
                    || start.starts_with('{')
                    || mark.starts_with(start)
                    || start.starts_with(mark);
                match !self.begun && may_call {
                    true => None,
                    false => self.all_text(),
                }
            }
            (Dialect::Hermes, true) => {
                let end = self.held.find("</tool_call>")?;
                let rest = self.held.split_off(end + "</tool_call>".len());
                let inner = self.held[..end].to_owned();
                self.held = rest.trim_start_matches('\n').to_owned();
                self.inside = false;
                Some(vec![match call_of(inner.trim()) {
                    Some(call) => Part::Call(call),
                    None => Part::Text(format!("<tool_call>{inner}</tool_call>")),
                }])
            }
            // Nothing comes behind Mistral's calls.
            (Dialect::Mistral, true) => None,
            (Dialect::Hermes | Dialect::Mistral, false) => self.before_mark(),
        }
    }

    /// Text before the mark of a call, or before what may become one.
    fn before_mark(&mut self) -> Option<Vec<Part>> {
        let mark = self.dialect.opening()?;
        if let Some(start) = self.held.find(mark) {
            let rest = self.held.split_off(start + mark.len());
            self.held.truncate(start);
            let text = std::mem::replace(&mut self.held, rest);
            self.inside = true;
            return Some(self.text(text.trim_end_matches('\n')));
        }
        let may_begin = |place: &usize| mark.starts_with(&self.held[*place..]);
        let places = self.held.char_indices().map(|(place, _)| place);
        // Line feeds before a call belong to it.
        let safe = places
            .into_iter()
            .find(may_begin)
            .unwrap_or(self.held.len());
        let safe = self.held[..safe].trim_end_matches('\n').len();
        if safe == 0 {
            return None;
        }
        let rest = self.held.split_off(safe);
        let text = std::mem::replace(&mut self.held, rest);
        Some(self.text(&text))
    }

    fn all_text(&mut self) -> Option<Vec<Part>> {
        match self.held.is_empty() {
            true => None,
            false => {
                let text = std::mem::take(&mut self.held);
                Some(self.text(&text))
            }
        }
    }

    fn text(&mut self, text: &str) -> Vec<Part> {
        self.begun |= !text.is_empty();
        match text.is_empty() {
            true => Vec::new(),
            false => vec![Part::Text(text.to_owned())],
        }
    }
}

/// The first JSON value of a text, as it is written, and what stands behind it.
fn value(text: &str) -> Option<(&str, &str)> {
    let text = text.trim_start();
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<IgnoredAny>();
    values.next()?.ok()?;
    Some(text.split_at(values.byte_offset()))
}

/// The members of an object, as they are written.
fn members(text: &str) -> Option<Vec<(String, &str)>> {
    let mut rest = text.trim_start().strip_prefix('{')?;
    let mut members = Vec::new();
    while !rest.trim_start().starts_with('}') {
        let (name, behind) = value(rest)?;
        let (written, behind) = value(behind.trim_start().strip_prefix(':')?)?;
        members.push((serde_json::from_str(name).ok()?, written));
        let behind = behind.trim_start();
        rest = behind.strip_prefix(',').unwrap_or(behind);
    }
    Some(members)
}

/// The elements of a list, as they are written.
fn elements(text: &str) -> Option<Vec<&str>> {
    let mut rest = text.trim_start().strip_prefix('[')?;
    let mut elements = Vec::new();
    while !rest.trim_start().starts_with(']') {
        let (element, behind) = value(rest)?;
        elements.push(element);
        let behind = behind.trim_start();
        rest = behind.strip_prefix(',').unwrap_or(behind);
    }
    Some(elements)
}

/// A call as an object with `name`, and `arguments` or `parameters`.
fn call_of(text: &str) -> Option<Call> {
    // The text is one value, and nothing else.
    serde_json::from_str::<Value>(text).ok()?;
    let members = members(text)?;
    let member = |names: &[&str]| {
        let found = members
            .iter()
            .find(|(name, _)| names.contains(&name.as_str()));
        found.map(|(_, written)| *written)
    };
    let name = serde_json::from_str(member(&["name"])?).ok()?;
    let written = member(&["arguments", "parameters"]).unwrap_or("{}");
    // Some models write arguments as a text that holds JSON.
    let arguments = match serde_json::from_str(written) {
        Ok(Value::String(inner)) => inner,
        Ok(Value::Null) => "{}".to_owned(),
        _ => written.to_owned(),
    };
    Some(Call { name, arguments })
}

/// A text that is nothing but calls.
fn llama_calls(text: &str) -> Option<Vec<Call>> {
    let text = text.trim();
    let text = text.strip_prefix("<|python_tag|>").unwrap_or(text);
    let mut calls = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let (object, behind) = value(rest)?;
        rest = behind.trim_start_matches([' ', '\n', ';']);
        calls.push(call_of(object)?);
    }
    (!calls.is_empty()).then_some(calls)
}

/// What stands behind `[TOOL_CALLS]`.
fn mistral_calls(text: &str) -> Option<Vec<Call>> {
    let text = text.trim();
    if text.starts_with('[') && !text.starts_with("[TOOL_CALLS]") {
        let calls: Vec<Call> = elements(text)?
            .into_iter()
            .map(call_of)
            .collect::<Option<_>>()?;
        return (!calls.is_empty()).then_some(calls);
    }
    let mut calls = Vec::new();
    for part in text
        .split("[TOOL_CALLS]")
        .filter(|part| !part.trim().is_empty())
    {
        let (name, arguments) = part.split_once("[ARGS]")?;
        let name = name.split("[CALL_ID]").next().unwrap_or(name).trim();
        serde_json::from_str::<Value>(arguments).ok()?;
        calls.push(Call {
            name: name.to_owned(),
            arguments: arguments.trim().to_owned(),
        });
    }
    (!calls.is_empty()).then_some(calls)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(name: &str, arguments: &str) -> Part {
        Part::Call(Call {
            name: name.into(),
            arguments: arguments.into(),
        })
    }

    fn text(text: &str) -> Part {
        Part::Text(text.into())
    }

    /// The parts of a text in pieces of so many characters, with neighbouring texts joined.
    fn parts(dialect: Dialect, whole: &str, size: usize) -> Vec<Part> {
        let mut parser = CallParser::new(dialect);
        let characters: Vec<char> = whole.chars().collect();
        let mut all: Vec<Part> = Vec::new();
        let pieces = characters.chunks(size).map(|piece| piece.iter().collect());
        let mut found: Vec<Part> = pieces
            .flat_map(|piece: String| parser.push(&piece))
            .collect();
        found.extend(parser.finish());
        for part in found {
            match (all.last_mut(), part) {
                (Some(Part::Text(before)), Part::Text(more)) => before.push_str(&more),
                (_, part) => all.push(part),
            }
        }
        all
    }

    #[test]
    fn every_dialect_is_read_however_it_is_cut() {
        let cases: &[(Dialect, &str, Vec<Part>)] = &[
            (
                Dialect::Hermes,
                "Let me see.\n<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 1,  \"b\": {\"c\": \"}\"}}}\n</tool_call>\n<tool_call>{\"name\": \"now\"}</tool_call>",
                vec![
                    text("Let me see."),
                    call("add", "{\"a\": 1,  \"b\": {\"c\": \"}\"}}"),
                    call("now", "{}"),
                ],
            ),
            (
                Dialect::Hermes,
                "a < b and <tool",
                vec![text("a < b and <tool")],
            ),
            (
                Dialect::Hermes,
                "<tool_call>no JSON</tool_call> é",
                vec![text("<tool_call>no JSON</tool_call> é")],
            ),
            (
                Dialect::Hermes,
                "<tool_call>{\"name\": \"x\", \"arg",
                vec![text("<tool_call>{\"name\": \"x\", \"arg")],
            ),
            (
                Dialect::Llama,
                "<|python_tag|>{\"name\": \"add\", \"parameters\": {\"a\": 1}}; {\"name\": \"b\", \"parameters\": {}}",
                vec![call("add", "{\"a\": 1}"), call("b", "{}")],
            ),
            (
                Dialect::Llama,
                "{\"answer\": 4}",
                vec![text("{\"answer\": 4}")],
            ),
            (Dialect::Llama, "It is {4}.", vec![text("It is {4}.")]),
            (
                Dialect::Mistral,
                "[TOOL_CALLS] [{\"name\": \"add\", \"arguments\": {\"a\": [1]}, \"id\": \"abcdefghi\"}]",
                vec![call("add", "{\"a\": [1]}")],
            ),
            (
                Dialect::Mistral,
                "Yes.[TOOL_CALLS]add[ARGS]{\"a\": 1}[TOOL_CALLS]b[CALL_ID]xyz[ARGS]{}",
                vec![text("Yes."), call("add", "{\"a\": 1}"), call("b", "{}")],
            ),
            (Dialect::None, "<tool_call>", vec![text("<tool_call>")]),
        ];
        for (dialect, whole, expected) in cases {
            for size in [1, 2, 3, 7, 1000] {
                assert_eq!(&parts(*dialect, whole, size), expected, "{whole} by {size}");
            }
        }
    }

    #[test]
    fn text_does_not_wait_without_need() {
        let mut parser = CallParser::new(Dialect::Hermes);
        assert_eq!(parser.push("Hello "), [text("Hello ")]);
        assert_eq!(parser.push("<to"), []);
        assert_eq!(parser.push("p>"), [text("<top>")]);
        let mut parser = CallParser::new(Dialect::Llama);
        assert_eq!(parser.push("It"), [text("It")]);
        assert_eq!(parser.push(" {"), [text(" {")]);
    }
}
