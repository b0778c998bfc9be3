//! The form of ShareGPT: `conversations` of `{from, value}`, with function calls as JSON in a turn of their own.

use serde_json::{Value, json};

use super::fields::{Fields, kind, list, text};
use super::openai::{self, margin, tools};
use super::refused::{learned, refuse_turn_keys};
use super::turns::{Last, check, role, with_system};
use crate::record::{Message, Record};

pub(super) fn read(fields: &Fields) -> Result<Record, String> {
    let mut messages = Vec::new();
    for (index, turn) in list("conversations", fields.required("conversations")?)?
        .iter()
        .enumerate()
    {
        messages.push(message(turn).map_err(|reason| format!("turn {}: {reason}", index + 1))?);
    }
    let messages = with_system(fields, messages)?;
    let tools = tools(fields)?;
    if fields.has("chosen") || fields.has("rejected") {
        check(&messages, Last::User)?;
        let (chosen, rejected) = (answer(fields, "chosen")?, answer(fields, "rejected")?);
        return Ok(Record::Preference {
            prompt: messages,
            chosen,
            rejected,
            margin: margin(fields)?,
            tools,
        });
    }
    check(&messages, Last::Assistant)?;
    Ok(Record::Chat { messages, tools })
}

fn answer(fields: &Fields, name: &str) -> Result<Message, String> {
    let message =
        message(fields.required(name)?).map_err(|reason| format!("`{name}`: {reason}"))?;
    if message.role == "assistant" && message.learned {
        return Ok(message);
    }
    if !message.learned {
        return Err(format!(
            "the turn of `{name}` is not to be learned, but a preference is about nothing else"
        ));
    }
    Err(format!(
        "`{name}` must be the assistant's, found `{}`",
        message.role
    ))
}

fn message(turn: &Value) -> Result<Message, String> {
    let Value::Object(map) = turn else {
        return Err(format!("expected a message, found {}", kind(turn)));
    };
    if map.contains_key("role") {
        return openai::message(turn);
    }
    let mut rest = map.clone();
    let speaker = rest
        .shift_remove("from")
        .ok_or("a message without `from`")?;
    let value = rest
        .shift_remove("value")
        .ok_or("a message without `value`")?;
    let (speaker, value) = (text("from", &speaker)?, text("value", &value)?);
    let calls = match speaker {
        "function_call" => Some(function_calls(value)?),
        _ => None,
    };
    let role = if calls.is_some() {
        "assistant"
    } else {
        role(speaker)?
    };
    let learned = learned(role, &mut rest)?;
    refuse_turn_keys(&rest)?;
    let content = match calls {
        Some(calls) => {
            rest.insert("tool_calls".to_string(), calls);
            String::new()
        }
        None => value.to_string(),
    };
    Ok(Message {
        learned,
        rest,
        ..Message::new(role, content)
    })
}

/// The calls of functions in a turn of the assistant, from the JSON of one call or a list of them.
fn function_calls(value: &str) -> Result<Value, String> {
    let parsed: Value = serde_json::from_str(value)
        .map_err(|error| format!("the function call is not JSON: {error}"))?;
    let calls = if let Value::Array(calls) = parsed {
        calls
    } else {
        vec![parsed]
    };
    if calls.is_empty() || calls.iter().any(|call| call.get("name").is_none()) {
        return Err("a function call without `name`".to_string());
    }
    let calls = calls.iter();
    Ok(calls
        .map(|call| json!({"type": "function", "function": call}))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::super::forms::Form;
    use super::*;

    fn read(value: Value) -> Result<Record, String> {
        let Value::Object(map) = value else {
            panic!("no object")
        };
        super::read(&Fields::new(Form::ShareGpt, map))
    }

    fn turn(from: &str, value: &str) -> Value {
        json!({"from": from, "value": value})
    }

    #[test]
    fn roles_and_function_calls() {
        let call = turn(
            "function_call",
            "{\"name\": \"f\", \"arguments\": {\"x\": 1}}",
        );
        let turns = [
            turn("human", "q"),
            call,
            turn("observation", "1"),
            turn("gpt", "a"),
        ];
        let record = read(json!({"conversations": turns, "system": "s", "tools": ""})).unwrap();
        let Record::Chat { messages, tools } = record else {
            panic!("no chat")
        };
        let roles: Vec<&str> = messages
            .iter()
            .map(|message| message.role.as_str())
            .collect();
        assert_eq!(roles, ["system", "user", "assistant", "tool", "assistant"]);
        assert_eq!(
            messages[2].rest["tool_calls"][0]["function"]["arguments"]["x"],
            1
        );
        assert_eq!(tools, None);
    }

    #[test]
    fn a_leading_system_turn_and_the_column_must_agree() {
        let read = |system: &str| {
            let turns = [turn("system", "mine"), turn("human", "q"), turn("gpt", "a")];
            read(json!({"conversations": turns, "system": system}))
        };
        let Ok(Record::Chat { messages, .. }) = read("mine") else {
            panic!("no chat")
        };
        assert_eq!(messages.len(), 3);
        assert_eq!(messages[0].text(), "mine");
        assert!(read("other").unwrap_err().contains("say different things"));
    }

    #[test]
    fn ranking() {
        let value = json!({"conversations": [turn("human", "q")], "chosen": turn("gpt", "a"), "rejected": turn("gpt", "b")});
        let Ok(Record::Preference {
            prompt,
            chosen,
            rejected,
            ..
        }) = read(value)
        else {
            panic!("no pair")
        };
        assert_eq!(
            (prompt, chosen, rejected),
            (
                vec![Message::user("q")],
                Message::assistant("a"),
                Message::assistant("b")
            )
        );
    }

    #[test]
    fn errors() {
        let wrong = |turns: Value| read(json!({"conversations": turns})).unwrap_err();
        assert!(
            wrong(json!([turn("humans", "q")]))
                .contains("turn 1: no role `humans`; did you mean `human`?")
        );
        assert!(wrong(json!([turn("human", "q")])).contains("must be the assistant's"));
        assert!(wrong(json!([{"value": "q"}])).contains("without `from`"));
        assert!(
            wrong(json!([turn("human", "q"), turn("function_call", "f(1)")]))
                .contains("is not JSON")
        );
    }
}
