//! Writing data sets as jsonl, whole or not at all.

use std::io;
use std::path::Path;

use serde_json::{Value, json};

use crate::disk::PartialFile;
use crate::record::Record;
use crate::{Error, Result};

/// A record as a line of jsonl, in the form that reads back as the same record: `text`, `messages`, `preference`, `completion`,
/// `labelled`, `tagged` or `steps`.
///
/// ```
/// use espalier_data::{readers::to_json, record::Record};
/// assert_eq!(to_json(&Record::Text { text: "Hi".into() }).to_string(), r#"{"text":"Hi"}"#);
/// ```
pub fn to_json(record: &Record) -> Value {
    let (mut value, tools) = match record {
        Record::Text { text } => return json!({"text": text}),
        Record::Chat { messages, tools } => (json!({"messages": messages}), tools),
        Record::Preference {
            prompt,
            chosen,
            rejected,
            margin,
            tools,
        } => {
            let mut pair = json!({"prompt": prompt, "chosen": [chosen], "rejected": [rejected]});
            if let Some(margin) = margin {
                pair["margin"] = json!(margin);
            }
            (pair, tools)
        }
        Record::Unpaired {
            prompt,
            answer,
            desirable,
            tools,
        } => (
            json!({"prompt": prompt, "completion": [answer], "label": desirable}),
            tools,
        ),
        Record::Labelled { text, label } => return json!({"text": text, "label": label}),
        Record::Tagged { words, labels } => return json!({"tokens": words, "labels": labels}),
        Record::Steps {
            prompt,
            steps,
            labels,
        } => return json!({"prompt": prompt, "completions": steps, "labels": labels}),
    };
    if let Some(tools) = tools {
        value["tools"] = tools.clone();
    }
    value
}

/// Writes one value a line to a file beside `path`, which then takes its name.
///
/// # Errors
/// When the file cannot be written; nothing is left behind then.
pub fn write_jsonl(path: impl AsRef<Path>, values: impl IntoIterator<Item = Value>) -> Result<()> {
    let path = path.as_ref();
    write_lines(path, values).map_err(|error| Error::file(path, error))
}

fn write_lines(path: &Path, values: impl IntoIterator<Item = Value>) -> io::Result<()> {
    let mut file = PartialFile::create(path)?;
    for value in values {
        file.write(format!("{value}\n").as_bytes())?;
    }
    file.rename()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn writes_lines_and_leaves_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data.jsonl");
        write_jsonl(&path, [json!({"b": 1, "a": "x\ny"}), json!({})]).unwrap();
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            "{\"b\":1,\"a\":\"x\\ny\"}\n{}\n"
        );
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failure_keeps_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("taken");
        fs::create_dir_all(path.join("inside")).unwrap();
        assert!(matches!(
            write_jsonl(&path, [json!(1)]),
            Err(Error::File { .. })
        ));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
