//! Records with labels: texts of a class, words of a class each, answers whose steps are right or wrong.

use serde_json::Value;

use super::fields::{Fields, kind, list, text};
use super::openai::turns;
use super::turns::{Last, check, with_system};
use crate::record::{Label, Message, Record};

/// Most labels of one record.
const DEEPEST: usize = 2;

pub(super) fn read_labelled(fields: &Fields) -> Result<Record, String> {
    let name = if fields.has("label") {
        "label"
    } else {
        "labels"
    };
    Ok(Record::Labelled {
        text: fields.required_text("text")?.to_owned(),
        label: label(name, fields.required(name)?, DEEPEST)?,
    })
}

pub(super) fn read_tagged(fields: &Fields) -> Result<Record, String> {
    let words = if fields.has("tokens") {
        "tokens"
    } else {
        "words"
    };
    let all = ["labels", "ner_tags", "tags"];
    let labels = all.into_iter().find(|name| fields.has(name));
    let labels = labels.unwrap_or("labels");
    let (texts, labels) = pairs(fields, words, labels)?;
    Ok(Record::Tagged {
        words: texts,
        labels,
    })
}

pub(super) fn read_steps(fields: &Fields) -> Result<Record, String> {
    let asking = turns("prompt", fields.required("prompt")?, Message::user)?;
    let prompt = with_system(fields, asking)?;
    check(&prompt, Last::User)?;
    let (steps, labels) = pairs(fields, "completions", "labels")?;
    Ok(Record::Steps {
        prompt,
        steps,
        labels,
    })
}

/// Texts and a label for each.
fn pairs(fields: &Fields, texts: &str, labels: &str) -> Result<(Vec<String>, Vec<Label>), String> {
    let all = list(texts, fields.required(texts)?)?;
    let said = list(labels, fields.required(labels)?)?;
    if all.len() != said.len() {
        return Err(format!(
            "`{texts}` has {} elements and `{labels}` {}; give one for each",
            all.len(),
            said.len()
        ));
    }
    let all = all
        .iter()
        .map(|value| text(texts, value).map(str::to_owned));
    let said = said.iter().map(|value| label(labels, value, 1));
    Ok((
        all.collect::<Result<_, _>>()?,
        said.collect::<Result<_, _>>()?,
    ))
}

/// What is said of one thing; lists of labels hold none themselves.
fn label(name: &str, value: &Value, depth: usize) -> Result<Label, String> {
    match value {
        Value::Bool(flag) => Ok(Label::Flag(*flag)),
        Value::String(class) => Ok(Label::Name(class.clone())),
        Value::Number(number) => match number.as_f64() {
            Some(number) if number.is_finite() => Ok(Label::Number(number)),
            _ => Err(format!("`{name}`: {number} is no number of a class")),
        },
        Value::Array(many) if depth > 1 => {
            let inner = many.iter().map(|value| label(name, value, depth - 1));
            Ok(Label::Many(inner.collect::<Result<_, _>>()?))
        }
        other => Err(format!(
            "`{name}` must be a number, a name, true or false, found {}",
            kind(other)
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Wanted, forms::Form};
    use super::*;
    use serde_json::json;

    fn read(value: Value, wanted: Wanted) -> Result<Record, String> {
        let Value::Object(map) = value else {
            panic!("no object")
        };
        let form = Form::detect(&map, wanted)?;
        form.read(&Fields::new(form, map))
    }

    #[test]
    fn labels_are_read_where_they_are_wanted() {
        let value = json!({"text": "good", "label": "positive"});
        let plain = Record::Text {
            text: "good".into(),
        };
        assert_eq!(read(value.clone(), Wanted::Texts).unwrap(), plain);
        let labelled = Record::Labelled {
            text: "good".into(),
            label: Label::Name("positive".into()),
        };
        assert_eq!(read(value, Wanted::Labels).unwrap(), labelled);
        let many = json!({"text": "x", "labels": [1, 0, 1.0]});
        let Record::Labelled { label, .. } = read(many, Wanted::Labels).unwrap() else {
            panic!("no label")
        };
        assert_eq!(
            label,
            Label::Many([1.0, 0.0, 1.0].map(Label::Number).into())
        );
    }

    #[test]
    fn words_and_steps_have_a_label_each() {
        let tagged = json!({"id": "0", "tokens": ["EU", "rejects"], "ner_tags": [3, 0]});
        let expected = Record::Tagged {
            words: vec!["EU".into(), "rejects".into()],
            labels: [3.0, 0.0].map(Label::Number).into(),
        };
        assert_eq!(read(tagged, Wanted::Labels).unwrap(), expected);
        let steps =
            json!({"prompt": "1+1+1?", "completions": ["1+1=2", "2+1=4"], "labels": [true, false]});
        let expected = Record::Steps {
            prompt: vec![Message::user("1+1+1?")],
            steps: vec!["1+1=2".into(), "2+1=4".into()],
            labels: [true, false].map(Label::Flag).into(),
        };
        assert_eq!(read(steps, Wanted::Labels).unwrap(), expected);
        let error = |value| read(value, Wanted::Labels).unwrap_err();
        let uneven = error(json!({"tokens": ["a"], "labels": [0, 1]}));
        assert!(
            uneven.contains("`tokens` has 1 elements and `labels` 2"),
            "{uneven}"
        );
        let deep = error(json!({"text": "a", "label": {"x": 1}}));
        assert!(deep.contains("found an object"), "{deep}");
        let deep = error(json!({"tokens": ["a"], "labels": [[0]]}));
        assert!(deep.contains("found a list"), "{deep}");
    }
}
