//! Messages as templates see them.
//!
//! Source: `apply_chat_template` of `transformers` 5, which leaves out what is null and gives the reasoning under each name that
//! templates read.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::record::{Content, Message};

/// Names under which reasoning comes, and under the first two of which templates read it.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// A message as a template's variable.
pub(super) fn value(message: &Message) -> Value {
    let mut fields = Map::new();
    fields.insert("role".into(), message.role.clone().into());
    match &message.content {
        Content::Absent => None,
        Content::Null => fields.insert("content".into(), Value::Null),
        Content::Text(text) => fields.insert("content".into(), text.clone().into()),
        Content::Parts(parts) => fields.insert("content".into(), parts.clone().into()),
    };
    let there = message.rest.iter().filter(|(_, value)| !value.is_null());
    fields.extend(there.map(|(name, value)| (name.clone(), value.clone())));
    let reasoning = REASONING.iter().find_map(|name| fields.get(*name)).cloned();
    if let Some(reasoning) = reasoning {
        fields
            .entry("thinking")
            .or_insert_with(|| reasoning.clone());
        fields.insert("reasoning_content".into(), reasoning);
    }
    Value::Object(fields)
}

/// The messages with the texts of parts joined, where any content has parts and all of these are text.
pub(super) fn joined(messages: &[Message]) -> Option<Vec<Message>> {
    let parts = |message: &&Message| matches!(message.content, Content::Parts(_));
    messages.iter().find(parts)?;
    let join = |message: &Message| {
        let mut message = message.clone();
        if let Content::Parts(parts) = &message.content {
            parts
                .iter()
                .all(|part| part.get("text").is_some())
                .then_some(())?;
            message.content = Content::Text(message.text().into_owned());
        }
        Some(message)
    };
    messages.iter().map(join).collect()
}

/// The messages with texts as lists of one part, for templates that read nothing else: all, and all but the system's.
pub(super) fn in_parts(messages: &[Message]) -> impl Iterator<Item = Vec<Message>> {
    let texts = |message: &Message| matches!(message.content, Content::Text(_));
    let both = messages.iter().any(texts).then_some([true, false]);
    both.into_iter().flatten().map(|all| {
        let wrap = |message: &Message| match &message.content {
            Content::Text(text) if all || message.role != "system" => Message {
                content: Content::Parts(vec![json!({"type": "text", "text": text})]),
                ..message.clone()
            },
            _ => message.clone(),
        };
        messages.iter().map(wrap).collect()
    })
}

/// Whether a rendering shows the text of a message: it has it as it is, or `same` says that it is no longer the same when the text
/// changes. A blank text is shown.
pub(crate) fn shows_text(
    rendered: &str,
    messages: &[Message],
    turn: usize,
    same: &mut dyn FnMut(&[Message]) -> bool,
) -> bool {
    let text = messages[turn].text();
    if rendered.contains(text.trim()) {
        return true;
    }
    let mut changed = messages.to_vec();
    let change = |text: &str| format!("x{text}x");
    match &mut changed[turn].content {
        Content::Text(text) => *text = change(text),
        Content::Parts(parts) => {
            for part in parts {
                if let Some(Value::String(text)) = part.get_mut("text") {
                    *text = change(text);
                }
            }
        }
        Content::Absent | Content::Null => return true,
    }
    !same(&changed)
}

/// A message's reasoning that is no blank, and the name under which it comes.
pub(crate) fn reasoning(message: &Message) -> Option<(&'static str, &str)> {
    let named = |name: &'static str| Some((name, message.rest.get(name)?.as_str()?));
    let mut found = REASONING.into_iter().filter_map(named);
    found.find(|(_, text)| !text.trim().is_empty())
}

/// The messages with contents of none in place of those that are absent, if there are any.
pub(super) fn with_nulls(messages: &[Message]) -> Option<Vec<Message>> {
    let absent = |message: &&Message| message.content == Content::Absent;
    messages.iter().find(absent)?;
    let with_null = |message: &Message| Message {
        content: match &message.content {
            Content::Absent => Content::Null,
            other => other.clone(),
        },
        ..message.clone()
    };
    Some(messages.iter().map(with_null).collect())
}

/// Whether a rendered text shows parts as values, as `{{ message.content }}` writes a list, which no model was tuned on.
pub(crate) fn prints_parts(rendered: &str, messages: &[Message]) -> bool {
    let parts = messages.iter().flat_map(|message| match &message.content {
        Content::Parts(parts) => parts.as_slice(),
        _ => &[],
    });
    let kinds: BTreeSet<&str> = parts
        .filter_map(|part| part.get("type")?.as_str())
        .collect();
    kinds.into_iter().any(|kind| {
        let values = [
            format!("{{'type': '{kind}'"),
            format!("{{\"type\": \"{kind}\""),
        ];
        values.iter().any(|value| {
            rendered.contains(value) && !messages.iter().any(|other| other.text().contains(value))
        })
    })
}

/// Whether a rendered text shows more words for nothing than the same with empty texts.
pub(super) fn prints_nulls(rendered: &str, with_empty_texts: &str) -> bool {
    const WORDS: [&str; 2] = ["None", "null"];
    let count = |text: &str| -> usize { WORDS.iter().map(|word| text.matches(word).count()).sum() };
    count(rendered) > count(with_empty_texts)
}

/// The messages with empty texts in place of contents of none.
pub(super) fn with_empty_texts(messages: &[Message]) -> Vec<Message> {
    let with_text = |message: &Message| Message {
        content: match &message.content {
            Content::Null => Content::Text(String::new()),
            other => other.clone(),
        },
        ..message.clone()
    };
    messages.iter().map(with_text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(message: Value) -> Value {
        value(&serde_json::from_value(message).unwrap())
    }

    #[test]
    fn what_is_null_is_left_out() {
        assert_eq!(
            seen(
                json!({"role": "assistant", "content": null, "tool_calls": null, "name": "n", "weight": 0})
            ),
            json!({"role": "assistant", "name": "n"})
        );
    }

    #[test]
    fn reasoning_has_each_name_that_templates_read() {
        for name in REASONING {
            let message = seen(json!({"role": "assistant", "content": "4", name: "two and two"}));
            assert_eq!(message["thinking"], "two and two", "{name}");
            assert_eq!(message["reasoning_content"], "two and two", "{name}");
        }
    }

    #[test]
    fn parts_are_joined_where_all_are_text() {
        let message = |parts: Value| -> Vec<Message> {
            serde_json::from_value(json!([{"role": "user", "content": parts}])).unwrap()
        };
        let two = message(json!([{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]));
        assert_eq!(joined(&two).unwrap(), [Message::user("a b")]);
        assert_eq!(joined(&[Message::user("a")]), None);
        let thinking = message(json!([{"type": "thinking", "thinking": "a"}]));
        assert_eq!(joined(&thinking), None);
    }

    #[test]
    fn texts_become_parts() {
        let messages = [Message::system("s"), Message::user("u")];
        let [all, but_system]: [Vec<Message>; 2] =
            in_parts(&messages).collect::<Vec<_>>().try_into().unwrap();
        let part = |text: &str| json!([{"type": "text", "text": text}]);
        assert_eq!(value(&all[0])["content"], part("s"));
        assert_eq!(value(&but_system[0])["content"], "s");
        assert_eq!(value(&but_system[1])["content"], part("u"));
        assert_eq!(in_parts(&[]).count(), 0);
        assert!(prints_parts(r#"a [{"type": "text", "text": "u"}]"#, &all));
    }

    #[test]
    fn contents_that_are_absent_become_none() {
        let call: Message =
            serde_json::from_value(json!({"role": "assistant", "tool_calls": [{}]})).unwrap();
        let nulls = with_nulls(&[Message::user("a"), call]).unwrap();
        assert_eq!(nulls[0], Message::user("a"));
        assert_eq!(value(&nulls[1])["content"], Value::Null);
        assert_eq!(
            with_empty_texts(&nulls)[1].content,
            Content::Text(String::new())
        );
        assert_eq!(with_nulls(&[Message::user("a")]), None);
        assert!(prints_nulls("a null", "a ") && !prints_nulls("a null", "a null"));
    }
}
