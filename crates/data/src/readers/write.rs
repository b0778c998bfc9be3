//! Writing data sets as jsonl, whole or not at all.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::record::Record;
use crate::{Error, Result};

/// A record as a line of jsonl, in the form that reads back as the same record: `text`, `messages` or `preference`.
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
            tools,
        } => (
            json!({"prompt": prompt, "chosen": [chosen], "rejected": [rejected]}),
            tools,
        ),
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
    let partial = partial_name(path);
    let written = write_lines(&partial, values).and_then(|()| fs::rename(&partial, path));
    written.map_err(|error| {
        // The first error is the one to tell.
        let _ = fs::remove_file(&partial);
        Error::file(path, error)
    })
}

fn partial_name(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.partial", std::process::id()));
    path.with_file_name(name)
}

fn write_lines(path: &Path, values: impl IntoIterator<Item = Value>) -> io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    for value in values {
        serde_json::to_writer(&mut file, &value)?;
        file.write_all(b"\n")?;
    }
    file.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

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
