//! Verdicts: whether an answer is a good one, said by `label` (TRL) or `kto_tag` (LLaMA-Factory) beside a conversation.

use serde_json::{Map, Value};

use super::fields::kind;
use crate::record::Record;

/// Keys of a verdict.
pub(super) const KEYS: [&str; 2] = ["label", "kto_tag"];

const GOOD: [&str; 7] = [
    "true",
    "1",
    "good",
    "yes",
    "chosen",
    "desirable",
    "positive",
];
const BAD: [&str; 8] = [
    "false",
    "0",
    "-1",
    "bad",
    "no",
    "rejected",
    "undesirable",
    "negative",
];

/// What a value says of an answer, if it says anything.
pub(super) fn meaning(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(flag) => Some(*flag),
        Value::Number(number) => match number.as_f64() {
            Some(1.0) => Some(true),
            Some(0.0 | -1.0) => Some(false),
            _ => None,
        },
        Value::String(text) => {
            let text = text.trim().to_lowercase();
            let is_among = |words: &[&str]| words.contains(&text.as_str());
            (is_among(&GOOD) || is_among(&BAD)).then(|| is_among(&GOOD))
        }
        _ => None,
    }
}

/// Takes the verdict out of a record, where it has one.
pub(super) fn take(map: &mut Map<String, Value>) -> Result<Option<bool>, String> {
    let mut said = None;
    for key in KEYS {
        let Some(value) = map.shift_remove(key).filter(|value| !value.is_null()) else {
            continue;
        };
        let verdict = meaning(&value).ok_or_else(|| match &value {
            Value::String(_) | Value::Number(_) => {
                format!("`{key}` must be true or false, 1 or 0, found {value}")
            }
            other => format!("`{key}` must be true or false, found {}", kind(other)),
        })?;
        if said.is_some_and(|earlier| earlier != verdict) {
            return Err("`label` and `kto_tag` contradict each other".into());
        }
        said = Some(verdict);
    }
    Ok(said)
}

/// The record as an answer with its verdict; pairs say of both answers what they are.
pub(super) fn judged(record: Record, verdict: Option<bool>) -> Result<Record, String> {
    match (record, verdict) {
        (pair @ Record::Preference { .. }, None) => Ok(pair),
        (Record::Preference { .. }, Some(_)) => {
            Err("`label` stands beside a pair, which says already which answer is better".into())
        }
        (Record::Text { .. }, _) => {
            Err("a text is no answer to a prompt; give `prompt` and `completion`".into())
        }
        (Record::Labelled { .. } | Record::Tagged { .. } | Record::Steps { .. }, _) => {
            Err("labels of texts, words or steps are no verdicts on an answer; give `prompt` and `completion`".into())
        }
        (_, None) => Err("no `label`: say whether the answer is a good one, true or false".into()),
        (
            Record::Chat {
                mut messages,
                tools,
            },
            Some(desirable),
        ) => match messages.pop() {
            Some(answer) if !messages.is_empty() && answer.learned => Ok(Record::Unpaired {
                prompt: messages,
                answer,
                desirable,
                tools,
            }),
            Some(answer) if !answer.learned => Err(
                "the last turn is not to be learned, but a verdict is about nothing else".into(),
            ),
            _ => Err("no prompt stands before the answer".into()),
        },
        (unpaired, Some(_)) => Ok(unpaired),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Message;
    use serde_json::json;

    fn read(value: Value) -> Result<Record, String> {
        let Value::Object(mut map) = value else {
            panic!("no object")
        };
        let verdict = take(&mut map)?;
        let form = super::super::Form::detect(&map, super::super::Wanted::Verdicts)?;
        judged(form.read(&super::super::Fields::new(form, map))?, verdict)
    }

    #[test]
    fn answers_of_every_form_have_verdicts() {
        let expected = |desirable| Record::Unpaired {
            prompt: vec![Message::user("q")],
            answer: Message::assistant("a"),
            desirable,
            tools: None,
        };
        for (label, desirable) in [
            (json!(true), true),
            (json!(false), false),
            (json!(1), true),
            (json!(0), false),
            (json!(-1), false),
            (json!("True"), true),
            (json!("bad"), false),
        ] {
            let turns = json!([{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]);
            let messages =
                json!([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]);
            for record in [
                json!({"prompt": "q", "completion": "a", "label": label}),
                json!({"instruction": "q", "output": "a", "kto_tag": label}),
                json!({"conversations": turns, "kto_tag": label}),
                json!({"messages": messages, "label": label}),
            ] {
                assert_eq!(read(record).unwrap(), expected(desirable));
            }
        }
    }

    #[test]
    fn pairs_stay_pairs_and_the_rest_is_refused() {
        let pair = json!({"prompt": "q", "chosen": "a", "rejected": "b"});
        assert!(matches!(read(pair), Ok(Record::Preference { .. })));
        for (record, part) in [
            (json!({"prompt": "q", "completion": "a"}), "no `label`"),
            (json!({"text": "q", "label": true}), "a text is no answer"),
            (
                json!({"prompt": "q", "completion": "a", "label": "history"}),
                "`label` must be true or false, 1 or 0, found \"history\"",
            ),
            (
                json!({"prompt": "q", "completion": "a", "label": [1]}),
                "`label` must be true or false, found a list",
            ),
            (
                json!({"prompt": "q", "completion": "a", "label": 1, "kto_tag": false}),
                "contradict",
            ),
            (
                json!({"prompt": "q", "chosen": "a", "rejected": "b", "label": true}),
                "beside a pair",
            ),
            (
                json!({"messages": [{"role": "assistant", "content": "a"}], "label": true}),
                "`assistant` at the start",
            ),
        ] {
            let error = read(record).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
