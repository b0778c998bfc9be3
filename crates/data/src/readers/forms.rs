//! The forms of records: their names, keys, detection, and the two that need no file of their own.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::fields::{Fields, found};
use super::refused::refuse_record_keys;
use super::turns::{Last, check, with_system};
use super::{Wanted, alpaca, labels, openai, sharegpt, verdict};
use crate::nearest::suggestion;
use crate::record::{Message, Record};
use crate::{Error, Result};

/// The shape of the records of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// `instruction`, `input`, `output`.
    Alpaca,
    /// `conversations` of `{from, value}`.
    ShareGpt,
    /// `messages` of `{role, content}`, OpenAI's form.
    Messages,
    /// `prompt`, `chosen`, `rejected`.
    Preference,
    /// `prompt` and `completion`, or `question` and `answer`.
    Completion,
    /// `text` and `label`.
    Labelled,
    /// `tokens` and `labels`.
    Tagged,
    /// `prompt`, `completions` and `labels`.
    Steps,
    /// `prompt` alone, of which the answer is asked.
    Prompt,
    /// `text`.
    Text,
}

const FORMS: [(Form, &str, &[&str]); 10] = [
    (
        Form::Alpaca,
        "alpaca",
        &[
            "instruction",
            "input",
            "output",
            "system",
            "history",
            "tools",
            "chosen",
            "rejected",
            "margin",
        ],
    ),
    (
        Form::ShareGpt,
        "sharegpt",
        &[
            "conversations",
            "system",
            "tools",
            "chosen",
            "rejected",
            "margin",
        ],
    ),
    (Form::Messages, "messages", &["messages", "system", "tools"]),
    (
        Form::Preference,
        "preference",
        &["prompt", "chosen", "rejected", "margin", "system", "tools"],
    ),
    (
        Form::Completion,
        "completion",
        &[
            "prompt",
            "completion",
            "question",
            "answer",
            "system",
            "tools",
        ],
    ),
    (Form::Labelled, "labelled", &["text", "label", "labels"]),
    (
        Form::Tagged,
        "tagged",
        &["tokens", "words", "labels", "ner_tags", "tags"],
    ),
    (
        Form::Steps,
        "steps",
        &["prompt", "completions", "labels", "system"],
    ),
    (Form::Prompt, "prompt", &["prompt", "system", "tools"]),
    (Form::Text, "text", &["text"]),
];

impl Form {
    /// The keys that records of this form can have.
    pub(super) fn keys(self) -> &'static [&'static str] {
        FORMS
            .iter()
            .find(|(form, ..)| *form == self)
            .map_or(&[], |(_, _, keys)| *keys)
    }

    /// The form that the keys of a record show. Pairs that are wanted are taken before the conversation that stands beside them, as in
    /// UltraFeedback, and labels that are wanted before the text.
    pub(super) fn detect(map: &Map<String, Value>, wanted: Wanted) -> Result<Self, String> {
        let has = |name| map.contains_key(name);
        let pairs = matches!(wanted, Wanted::Pairs | Wanted::Verdicts);
        let labels = wanted == Wanted::Labels;
        let words = has("tokens") || has("words");
        let tags = has("labels") || has("ner_tags") || has("tags");
        let rules = [
            (labels && words && tags, Self::Tagged),
            (
                labels && has("text") && (has("label") || has("labels")),
                Self::Labelled,
            ),
            (has("completions") && has("labels"), Self::Steps),
            (
                pairs && has("messages") && has("chosen") && has("rejected"),
                Self::Preference,
            ),
            (has("conversations"), Self::ShareGpt),
            (has("messages"), Self::Messages),
            (has("instruction"), Self::Alpaca),
            (has("chosen") && has("rejected"), Self::Preference),
            (has("prompt") && has("completion"), Self::Completion),
            (has("question") && has("answer"), Self::Completion),
            (wanted == Wanted::Prompts && has("prompt"), Self::Prompt),
            (has("text"), Self::Text),
        ];
        rules.iter().find(|(holds, _)| *holds).map(|(_, form)| *form).ok_or_else(|| {
            let known: Vec<&str> = FORMS.iter().flat_map(|(_, _, keys)| keys.iter().copied()).collect();
            let expected = "`messages`, `conversations`, `instruction`, `prompt` and `completion`, `chosen` and `rejected`, or `text`";
            let list = map.iter().find(|(_, value)| value.is_array());
            let hint = match list {
                _ if has("role") && has("content") => {
                    "; a message alone: put the list of them under `messages`".to_string()
                }
                Some((name, _)) if map.len() == 1 => {
                    let name: String = name.chars().take(40).collect();
                    format!("; `{name}` holds a list: write the list alone to a file")
                }
                _ => String::new(),
            };
            format!("the keys show no known form ({}); expected {expected}{hint}", found(map, "", &known))
        })
    }

    pub(super) fn read(self, fields: &Fields) -> Result<Record, String> {
        refuse_record_keys(self, fields)?;
        match self {
            Self::Alpaca => alpaca::read(fields),
            Self::ShareGpt => sharegpt::read(fields),
            Self::Messages => openai::read_messages(fields),
            Self::Preference => openai::read_preference(fields),
            Self::Completion => read_completion(fields),
            Self::Labelled => labels::read_labelled(fields),
            Self::Tagged => labels::read_tagged(fields),
            Self::Steps => labels::read_steps(fields),
            Self::Prompt => read_prompt(fields),
            Self::Text => Ok(Record::Text {
                text: fields.required_text("text")?.to_string(),
            }),
        }
    }
}

/// A conversation that waits for its answer.
fn read_prompt(fields: &Fields) -> Result<Record, String> {
    let asking = openai::turns("prompt", fields.required("prompt")?, Message::user)?;
    let messages = with_system(fields, asking)?;
    check(&messages, Last::User)?;
    Ok(Record::Chat {
        messages,
        tools: openai::tools(fields)?,
    })
}

fn read_completion(fields: &Fields) -> Result<Record, String> {
    let asked = if fields.has("question") && !fields.has("prompt") {
        "question"
    } else {
        "prompt"
    };
    let answered = if asked == "question" {
        "answer"
    } else {
        "completion"
    };
    let asking = openai::turns(asked, fields.required(asked)?, Message::user)?;
    let mut messages = with_system(fields, asking)?;
    messages.extend(openai::turns(
        answered,
        fields.required(answered)?,
        Message::assistant,
    )?);
    check(&messages, Last::Assistant)?;
    Ok(Record::Chat {
        messages,
        tools: openai::tools(fields)?,
    })
}

/// Whether a column name is one of ours.
pub(super) fn check_column(name: &str) -> Result<()> {
    let mut known: Vec<&str> = FORMS
        .iter()
        .flat_map(|(_, _, keys)| keys.iter().copied())
        .chain(verdict::KEYS)
        .collect();
    if known.contains(&name) {
        return Ok(());
    }
    known.sort_unstable();
    known.dedup();
    let hint = suggestion(name, known.iter().copied());
    Err(Error::Invalid(format!(
        "no column `{name}`{hint}; there are: {}",
        known.join(", ")
    )))
}

impl fmt::Display for Form {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(
            FORMS
                .iter()
                .find(|(form, ..)| form == self)
                .map_or("", |(_, name, _)| *name),
        )
    }
}

impl FromStr for Form {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let name = if text == "openai" { "messages" } else { text };
        let names = FORMS.map(|(_, name, _)| name);
        FORMS
            .iter()
            .find(|(_, known, _)| *known == name)
            .map(|(form, ..)| *form)
            .ok_or_else(|| {
                let hint = suggestion(name, names);
                Error::Invalid(format!(
                    "no data form `{text}`{hint}; there are: {}",
                    names.join(", ")
                ))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(value: Value) -> Result<Record, String> {
        let Value::Object(map) = value else {
            panic!("no object")
        };
        let form = Form::detect(&map, Wanted::Texts)?;
        form.read(&Fields::new(form, map))
    }

    #[test]
    fn a_pair_beside_its_conversation_is_read_where_pairs_are_wanted() {
        let turn = |role, content| json!({"role": role, "content": content});
        let record = json!({
            "prompt": "a", "prompt_id": "x", "score_chosen": 8.5, "score_rejected": 5.0,
            "messages": [turn("user", "a"), turn("assistant", "b")],
            "chosen": [turn("user", "a"), turn("assistant", "b")],
            "rejected": [turn("user", "a"), turn("assistant", "c")],
        });
        let Value::Object(map) = record else {
            panic!("no object")
        };
        assert_eq!(Form::detect(&map, Wanted::Texts).unwrap(), Form::Messages);
        let form = Form::detect(&map, Wanted::Pairs).unwrap();
        let expected = Record::Preference {
            prompt: vec![Message::user("a")],
            chosen: Message::assistant("b"),
            rejected: Message::assistant("c"),
            margin: None,
            tools: None,
        };
        assert_eq!(form.read(&Fields::new(form, map)).unwrap(), expected);
    }

    #[test]
    fn names_are_parsed_and_suggested() {
        for (form, name, _) in FORMS {
            assert_eq!(name.parse::<Form>().unwrap(), form);
            assert_eq!(form.to_string(), name);
        }
        assert_eq!("openai".parse::<Form>().unwrap(), Form::Messages);
        assert!(
            "sharegtp"
                .parse::<Form>()
                .unwrap_err()
                .to_string()
                .contains("did you mean `sharegpt`?")
        );
    }

    #[test]
    fn unknown_keys_are_named() {
        let message = read(json!({"massages": []})).unwrap_err();
        assert!(
            message.contains("keys found: massages; did you mean `messages`?"),
            "{message}"
        );
    }

    #[test]
    fn completions_of_text_and_of_messages() {
        let expected = Record::Chat {
            messages: vec![Message::user("a"), Message::assistant("b")],
            tools: None,
        };
        assert_eq!(
            read(json!({"question": "a", "answer": "b"})).unwrap(),
            expected
        );
        let messages = json!({
            "prompt": [{"role": "user", "content": "a"}],
            "completion": [{"role": "assistant", "content": "b"}],
        });
        assert_eq!(read(messages).unwrap(), expected);
        assert!(read(json!({"prompt": "a", "completion": 1})).is_err());
    }
}
