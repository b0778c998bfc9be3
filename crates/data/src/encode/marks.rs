//! Marks in messages: characters that occur nowhere else, put into the texts of messages, so that a rendered conversation says
//! what stands where, whatever a template does between.
//!
//! A text has its mark at its end or one character before it, and where that does not change what is rendered, at its start too. A template that trims, splits, cuts or writes texts as JSON
//! keeps it; one that compares whole texts might not, which shows in the rendered text, once the marks are taken out.

use std::collections::HashMap;

use serde_json::Value;

use crate::record::{Content, Message};

/// Which texts have marks, and where.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Placing {
    /// All, around what is visible.
    Around,
    /// All, behind the last visible character.
    End,
    /// All, before the last visible character.
    Inside,
    /// Those that the assistant does not say, behind the last visible character.
    Given,
    /// None.
    Nowhere,
}

impl Placing {
    /// All, in the order in which they are tried.
    pub const ALL: [Self; 5] = [
        Self::Around,
        Self::End,
        Self::Inside,
        Self::Given,
        Self::Nowhere,
    ];
}

/// Messages with marks.
pub(super) struct Marked {
    pub messages: Vec<Message>,
    /// The marks of each message.
    pub of_message: Vec<Vec<char>>,
    /// The message that each mark belongs to.
    owners: HashMap<char, usize>,
}

/// A rendered text without its marks, and where these stood.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Unmarked {
    pub text: String,
    /// Marks and the bytes of the text before them, in order.
    pub marks: Vec<(char, usize)>,
}

impl Marked {
    /// Marks the messages with characters of `free`; nothing when they do not suffice.
    pub fn new(
        messages: &[Message],
        placing: Placing,
        mut free: impl Iterator<Item = char>,
    ) -> Option<Self> {
        let (mut marked, mut owners) = (messages.to_vec(), HashMap::new());
        let mut of_message = vec![Vec::new(); messages.len()];
        for (index, message) in marked.iter_mut().enumerate() {
            let left_alone = match placing {
                Placing::Around | Placing::End | Placing::Inside => false,
                Placing::Given => message.role == "assistant",
                Placing::Nowhere => true,
            };
            for text in texts(message).into_iter().filter(|_| !left_alone) {
                let mark = free.next()?;
                owners.insert(mark, index);
                of_message[index].push(mark);
                text.into_iter()
                    .for_each(|text| insert(text, mark, placing));
            }
        }
        Some(Self {
            messages: marked,
            of_message,
            owners,
        })
    }

    /// The message that a mark belongs to.
    pub fn owner(&self, mark: char) -> Option<usize> {
        self.owners.get(&mark).copied()
    }

    /// Takes the marks out of a rendered text.
    pub fn unmark(&self, rendered: &str) -> Unmarked {
        let mut unmarked = Unmarked {
            text: String::with_capacity(rendered.len()),
            marks: Vec::new(),
        };
        for character in rendered.chars() {
            if self.owners.contains_key(&character) {
                unmarked.marks.push((character, unmarked.text.len()));
            } else {
                unmarked.text.push(character);
            }
        }
        unmarked
    }
}

/// What a message says that is no blank, by pieces that templates write in one place: content, reasoning, each call of a tool.
fn texts(message: &mut Message) -> Vec<Vec<&mut String>> {
    let mut pieces = vec![match &mut message.content {
        Content::Absent | Content::Null => Vec::new(),
        Content::Text(text) => vec![text],
        Content::Parts(parts) => parts.iter_mut().filter_map(part_text).collect(),
    }];
    for (name, value) in message.rest.iter_mut() {
        match (name.as_str(), value) {
            ("reasoning_content" | "thinking" | "reasoning", Value::String(text)) => {
                pieces.push(vec![text]);
            }
            ("tool_calls", Value::Array(calls)) => pieces.extend(calls.iter_mut().map(call_texts)),
            _ => {}
        }
    }
    for piece in &mut pieces {
        piece.retain(|text| !text.trim().is_empty());
    }
    pieces.retain(|piece| !piece.is_empty());
    pieces
}

fn part_text(part: &mut Value) -> Option<&mut String> {
    match part.get_mut("text")? {
        Value::String(text) => Some(text),
        _ => None,
    }
}

/// The texts in a call's arguments, or else its name, which templates compare more often.
fn call_texts(call: &mut Value) -> Vec<&mut String> {
    let call = match call.get("function").is_some() {
        true => &mut call["function"],
        false => call,
    };
    let Value::Object(fields) = call else {
        return Vec::new();
    };
    let (mut name, mut arguments) = (Vec::new(), Vec::new());
    for (key, value) in fields.iter_mut() {
        match key.as_str() {
            "name" => leaves(value, &mut name),
            "arguments" => leaves(value, &mut arguments),
            _ => {}
        }
    }
    if arguments.is_empty() {
        name
    } else {
        arguments
    }
}

fn leaves<'a>(value: &'a mut Value, found: &mut Vec<&'a mut String>) {
    match value {
        Value::String(text) if !text.trim().is_empty() => found.push(text),
        Value::Array(items) => items.iter_mut().for_each(|item| leaves(item, found)),
        Value::Object(fields) => fields.iter_mut().for_each(|(_, item)| leaves(item, found)),
        _ => {}
    }
}

fn insert(text: &mut String, mark: char, placing: Placing) {
    let end = text.trim_end().len();
    let last = text[..end].chars().next_back().map_or(0, char::len_utf8);
    text.insert(
        if placing == Placing::Inside {
            end - last
        } else {
            end
        },
        mark,
    );
    if placing == Placing::Around {
        text.insert(text.len() - text.trim_start().len(), mark);
    }
}
