//! OpenAI's form, `messages` of `{role, content}`, and preference pairs over it in the form of TRL.

use serde_json::Value;

use super::fields::{Fields, kind, list, text};
use super::refused::{learned, refuse_turn_keys};
use super::turns::{Last, check, role, with_system};
use crate::record::{Content, Message, Record};

pub(super) fn read_messages(fields: &Fields) -> Result<Record, String> {
    let messages = listed("messages", fields.required("messages")?)?;
    let messages = with_system(fields, messages)?;
    check(&messages, Last::Assistant)?;
    Ok(Record::Chat {
        messages,
        tools: tools(fields)?,
    })
}

/// `prompt`, `chosen` and `rejected`, each text or messages. The prompt is the given one with the common start of the two
/// answers, which may repeat it.
pub(super) fn read_preference(fields: &Fields) -> Result<Record, String> {
    let given = fields
        .get("prompt")
        .map(|prompt| turns("prompt", prompt, Message::user))
        .transpose()?;
    let chosen = turns("chosen", fields.required("chosen")?, Message::assistant)?;
    let rejected = turns("rejected", fields.required("rejected")?, Message::assistant)?;
    let common = common_start(&chosen, &rejected);
    let shared = &chosen[..common];
    let mut prompt = given.unwrap_or_default();
    if shared.starts_with(&prompt) {
        prompt.clear();
    }
    prompt.extend_from_slice(shared);
    if prompt.is_empty() {
        return Err(
            "no prompt: give `prompt`, or messages in `chosen` and `rejected` that start alike"
                .to_string(),
        );
    }
    let prompt = with_system(fields, prompt)?;
    check(&prompt, Last::User)?;
    let (chosen, rejected) = (
        answer("chosen", &chosen[common..])?,
        answer("rejected", &rejected[common..])?,
    );
    Ok(Record::Preference {
        prompt,
        chosen,
        rejected,
        margin: margin(fields)?,
        tools: tools(fields)?,
    })
}

/// By how much the better answer is the better one, if that is said.
pub(super) fn margin(fields: &Fields) -> Result<Option<f64>, String> {
    let number = |value: &Value| {
        let number = value.as_f64().filter(|number| number.is_finite());
        number.ok_or_else(|| format!("`margin` must be a number, found {}", kind(value)))
    };
    fields.get("margin").map(number).transpose()
}

/// Number of first messages that are alike; the last one of each is never counted.
fn common_start(chosen: &[Message], rejected: &[Message]) -> usize {
    let most = chosen.len().min(rejected.len()).saturating_sub(1);
    chosen
        .iter()
        .zip(rejected)
        .take(most)
        .take_while(|(left, right)| left == right)
        .count()
}

fn answer(name: &str, messages: &[Message]) -> Result<Message, String> {
    match messages {
        [message] if message.role == "assistant" && !message.learned => Err(format!(
            "the turn of `{name}` is not to be learned, but a preference is about nothing else"
        )),
        [message] if message.role == "assistant" => Ok(message.clone()),
        other => {
            let roles: Vec<&str> = other.iter().map(|message| message.role.as_str()).collect();
            Err(format!(
                "`{name}` must end in one turn of the assistant after the prompt, found [{}]",
                roles.join(", ")
            ))
        }
    }
}

/// Messages, from a list of them or from a text in the role of `speaker`.
pub(super) fn turns(
    name: &str,
    value: &Value,
    speaker: fn(String) -> Message,
) -> Result<Vec<Message>, String> {
    match value {
        Value::String(text) => Ok(vec![speaker(text.clone())]),
        _ => listed(name, value),
    }
}

/// Messages, from a list of them.
fn listed(name: &str, value: &Value) -> Result<Vec<Message>, String> {
    let messages = list(name, value)?.iter().enumerate();
    messages
        .map(|(index, value)| {
            message(value).map_err(|reason| format!("turn {}: {reason}", index + 1))
        })
        .collect()
}

/// One message; fields other than role and content are kept.
pub(super) fn message(value: &Value) -> Result<Message, String> {
    let Value::Object(map) = value else {
        return Err(format!("expected a message, found {}", kind(value)));
    };
    let mut rest = map.clone();
    let speaker = rest
        .shift_remove("role")
        .ok_or("a message without `role`")?;
    let content = content(rest.shift_remove("content").unwrap_or_default())?;
    let role = role(text("role", &speaker)?)?;
    let learned = learned(role, &mut rest)?;
    refuse_turn_keys(&rest)?;
    let says = |name: &&str| {
        rest.get(*name)
            .is_some_and(|value| !value.is_null() && value != &serde_json::json!([]))
    };
    if content == Content::Absent && !["tool_calls", "reasoning_content"].iter().any(says) {
        return Err(format!("a message of the {role} without `content`"));
    }
    Ok(Message {
        role: role.to_string(),
        content,
        learned,
        rest,
    })
}

/// What a message says: text, nothing, or a list of text parts.
fn content(value: Value) -> Result<Content, String> {
    match value {
        Value::Null => Ok(Content::Absent),
        Value::String(text) => Ok(Content::Text(text)),
        Value::Array(parts) => {
            parts.iter().try_for_each(check_part)?;
            Ok(Content::Parts(parts))
        }
        other => Err(format!("`content` must be text, found {}", kind(&other))),
    }
}

/// Parts are text, or thinking as Mistral writes it.
fn check_part(part: &Value) -> Result<(), String> {
    let name = part.get("type").and_then(Value::as_str).unwrap_or("text");
    if matches!(name, "text" | "thinking") && part.get(name).is_some_and(Value::is_string) {
        return Ok(());
    }
    let shown: String = name.chars().take(40).collect();
    Err(match name {
        "text" | "thinking" => format!("`content` has a part without `{shown}`"),
        _ => format!("`content` has parts that are not text: `{shown}`"),
    })
}

/// The tools on offer, from a list or from JSON in a text; bare functions get OpenAI's envelope.
pub(super) fn tools(fields: &Fields) -> Result<Option<Value>, String> {
    let parsed = match fields.get("tools") {
        None => return Ok(None),
        Some(Value::String(text)) if text.trim().is_empty() => return Ok(None),
        Some(Value::String(text)) => serde_json::from_str(text)
            .map_err(|error| format!("`tools` is not valid JSON: {error}"))?,
        Some(value) => value.clone(),
    };
    let tools: Vec<Value> = list("tools", &parsed)?.iter().map(envelope).collect();
    Ok((!tools.is_empty()).then_some(Value::Array(tools)))
}

fn envelope(tool: &Value) -> Value {
    let bare = tool.get("name").is_some() && tool.get("function").is_none();
    if bare {
        serde_json::json!({"type": "function", "function": tool})
    } else {
        tool.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::super::forms::Form;
    use super::*;
    use serde_json::json;

    fn read(value: Value) -> Result<Record, String> {
        let Value::Object(map) = value else {
            panic!("no object")
        };
        let form = if map.contains_key("messages") {
            Form::Messages
        } else {
            Form::Preference
        };
        form.read(&Fields::new(form, map))
    }

    fn pair(prompt: &[&str]) -> Result<Record, String> {
        let roles = ["user", "assistant"];
        let prompt = prompt
            .iter()
            .enumerate()
            .map(|(turn, text)| Message::new(roles[turn % 2], *text))
            .collect();
        let (chosen, rejected) = (Message::assistant("good"), Message::assistant("bad"));
        Ok(Record::Preference {
            prompt,
            chosen,
            rejected,
            margin: None,
            tools: None,
        })
    }

    #[test]
    fn tool_calls_are_kept() {
        let call = json!({"role": "assistant", "content": null, "tool_calls": [{"id": "1"}]});
        let result = json!({"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "r"}]});
        let messages = json!([{"role": "user", "content": "q"}, call, result, {"role": "assistant", "content": "a"}]);
        let record = read(json!({"messages": messages, "tools": "[{\"name\": \"f\"}]"})).unwrap();
        let Record::Chat { messages, tools } = record else {
            panic!("no chat")
        };
        assert_eq!(messages[1].rest["tool_calls"], json!([{"id": "1"}]));
        assert_eq!(
            (&*messages[2].text(), &messages[2].rest["tool_call_id"]),
            ("r", &json!("1"))
        );
        assert_eq!(
            tools,
            Some(json!([{"type": "function", "function": {"name": "f"}}]))
        );
    }

    #[test]
    fn preferences_of_text_and_messages() {
        assert_eq!(
            read(json!({"prompt": "a", "chosen": "good", "rejected": "bad"})),
            pair(&["a"])
        );
        let user = json!({"role": "user", "content": "a"});
        let (good, bad) = (
            json!({"role": "assistant", "content": "good"}),
            json!({"role": "assistant", "content": "bad"}),
        );
        assert_eq!(
            read(json!({"prompt": [user], "chosen": [good], "rejected": [bad]})),
            pair(&["a"])
        );
        assert_eq!(
            read(json!({"chosen": [user, good], "rejected": [user, bad]})),
            pair(&["a"])
        );
        assert_eq!(
            read(json!({"prompt": "a", "chosen": [user, good], "rejected": [user, bad]})),
            pair(&["a"])
        );
        let long = json!({"chosen": [user, good, user, good], "rejected": [user, good, user, bad]});
        assert_eq!(read(long), pair(&["a", "good", "a"]));
    }

    #[test]
    fn errors() {
        assert!(
            read(json!({"chosen": "a", "rejected": "b"}))
                .unwrap_err()
                .starts_with("no prompt")
        );
        assert!(
            read(json!({"prompt": "a", "chosen": "b"}))
                .unwrap_err()
                .contains("without `rejected`")
        );
        assert!(
            read(json!({"prompt": "a", "chosen": [], "rejected": "b"}))
                .unwrap_err()
                .contains("found []")
        );
        let message = read(json!({"messages": [{"role": "user", "content": 3}]})).unwrap_err();
        assert_eq!(message, "turn 1: `content` must be text, found a number");
        assert!(
            read(json!({"messages": [{"role": "user"}]}))
                .unwrap_err()
                .contains("user without `content`")
        );
        for text in ["[{\"role\": \"user\", \"content\": \"a\"}]", "a"] {
            let message = read(json!({"messages": text})).unwrap_err();
            assert!(
                message.starts_with("`messages` must be a list, found text"),
                "{message}"
            );
        }
        let tools = json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "tools": "{"});
        assert!(
            read(tools)
                .unwrap_err()
                .contains("`tools` is not valid JSON")
        );
    }
}
