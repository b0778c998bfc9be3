//! The form of Stanford Alpaca: `instruction`, `input`, `output`, with `system`, `history` and ranking as later tools added.

use serde_json::Value;

use super::fields::{Fields, list, text};
use super::openai::{margin, tools};
use super::turns::{Last, check};
use crate::record::{Message, Record};

pub(super) fn read(fields: &Fields) -> Result<Record, String> {
    let mut messages = start(fields)?;
    let tools = tools(fields)?;
    if fields.has("chosen") || fields.has("rejected") {
        check(&messages, Last::User)?;
        let chosen = Message::assistant(fields.required_text("chosen")?);
        let rejected = Message::assistant(fields.required_text("rejected")?);
        return Ok(Record::Preference {
            prompt: messages,
            chosen,
            rejected,
            margin: margin(fields)?,
            tools,
        });
    }
    messages.push(Message::assistant(fields.required_text("output")?));
    check(&messages, Last::Assistant)?;
    Ok(Record::Chat { messages, tools })
}

/// System message, history and the question.
fn start(fields: &Fields) -> Result<Vec<Message>, String> {
    let mut messages = Vec::new();
    messages.extend(
        fields
            .text("system")?
            .filter(|system| !system.is_empty())
            .map(Message::system),
    );
    if let Some(history) = fields.get("history") {
        for pair in list("history", history)? {
            messages.extend(exchange(pair)?);
        }
    }
    let parts = [
        fields.required_text("instruction")?,
        fields.text("input")?.unwrap_or_default(),
    ];
    let parts: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    if parts.is_empty() {
        return Err("`instruction` and `input` are both empty".to_string());
    }
    messages.push(Message::user(parts.join("\n")));
    Ok(messages)
}

/// A question and its answer from the history.
fn exchange(pair: &Value) -> Result<[Message; 2], String> {
    match list("history", pair)?.as_slice() {
        [asked, answered] => Ok([
            Message::user(text("history", asked)?),
            Message::assistant(text("history", answered)?),
        ]),
        other => Err(format!(
            "`history` must hold pairs of question and answer, found a list of {}",
            other.len()
        )),
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
        super::read(&Fields::new(Form::Alpaca, map))
    }

    #[test]
    fn instruction_and_input_are_joined() {
        let record = read(
            json!({"instruction": "Add.", "input": "1 1", "output": "2", "system": "", "history": []}),
        );
        let messages = vec![Message::user("Add.\n1 1"), Message::assistant("2")];
        assert_eq!(
            record,
            Ok(Record::Chat {
                messages,
                tools: None
            })
        );
    }

    #[test]
    fn system_and_history_come_first() {
        let value = json!({"instruction": "c", "output": "d", "system": "s", "history": [["a", "b"]], "input": null});
        let Ok(Record::Chat { messages, .. }) = read(value) else {
            panic!("no chat")
        };
        let turns: Vec<String> = messages
            .iter()
            .map(|message| message.text().into_owned())
            .collect();
        assert_eq!(turns, ["s", "a", "b", "c", "d"]);
        assert_eq!(messages[0].role, "system");
    }

    #[test]
    fn ranking_gives_pairs() {
        let record = read(json!({"instruction": "a", "chosen": "b", "rejected": "c"})).unwrap();
        let Record::Preference {
            prompt,
            chosen,
            rejected,
            ..
        } = record
        else {
            panic!("no pair")
        };
        assert_eq!(
            (prompt, chosen, rejected),
            (
                vec![Message::user("a")],
                Message::assistant("b"),
                Message::assistant("c")
            )
        );
        assert!(
            read(json!({"instruction": "a", "chosen": "b"}))
                .unwrap_err()
                .contains("without `rejected`")
        );
    }

    #[test]
    fn errors() {
        assert!(
            read(json!({"instruction": "a"}))
                .unwrap_err()
                .contains("without `output`")
        );
        assert!(
            read(json!({"instruction": "", "output": "b"}))
                .unwrap_err()
                .contains("both empty")
        );
        let history = json!({"instruction": "a", "output": "b", "history": [["a"]]});
        assert!(read(history).unwrap_err().contains("a list of 1"));
    }
}
