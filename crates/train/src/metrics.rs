//! The metrics log of a run: one JSON object a line, appended and flushed, cut back to the checkpoint on resume.

use std::{
    fs::{self, File, OpenOptions},
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};

use crate::{Error, Result};

/// An append-only log, `metrics.jsonl`.
#[derive(Debug)]
pub struct MetricsLog {
    path: PathBuf,
    file: File,
}

impl MetricsLog {
    /// Opens the log and keeps only lines up to and including `step`; a torn last line is dropped.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn open(path: &Path, step: usize) -> Result<Self> {
        if path.exists() {
            let kept = lines_up_to(path, step)?;
            let partial = path.with_extension("jsonl.partial");
            fs::write(&partial, kept).map_err(Error::file(&partial))?;
            fs::rename(&partial, path).map_err(Error::file(path))?;
        }
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .map_err(Error::file(path))?;
        Ok(Self {
            path: path.to_owned(),
            file,
        })
    }

    /// Appends one line: `step` and `values`. A number that is not finite becomes null, as JSON has none.
    ///
    /// # Errors
    /// When the disk is full.
    pub fn write(&mut self, step: usize, values: &[(String, f64)]) -> Result<()> {
        let mut object = Map::new();
        object.insert("step".into(), step.into());
        object.extend(
            values
                .iter()
                .map(|(key, value)| (key.clone(), Value::from(*value))),
        );
        let line = format!("{}\n", Value::Object(object));
        self.file
            .write_all(line.as_bytes())
            .map_err(Error::file(&self.path))
    }
}

fn lines_up_to(path: &Path, step: usize) -> Result<String> {
    let file = File::open(path).map_err(Error::file(path))?;
    let mut kept = String::new();
    for line in BufReader::new(file).lines() {
        let line = line.map_err(Error::file(path))?;
        let number = serde_json::from_str::<Value>(&line)
            .ok()
            .and_then(|v| v.get("step").and_then(Value::as_u64));
        if number.is_some_and(|number| number as usize <= step) {
            kept.push_str(&line);
            kept.push('\n');
        }
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resuming_drops_later_and_torn_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut log = MetricsLog::open(&path, 0).unwrap();
        for step in 1..=3 {
            log.write(step, &[("loss".into(), 0.5)]).unwrap();
        }
        fs::write(
            &path,
            fs::read_to_string(&path).unwrap() + "{\"step\": 4, \"lo",
        )
        .unwrap();
        let mut log = MetricsLog::open(&path, 2).unwrap();
        log.write(3, &[("loss".into(), 0.25)]).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(
            text,
            "{\"step\":1,\"loss\":0.5}\n{\"step\":2,\"loss\":0.5}\n{\"step\":3,\"loss\":0.25}\n"
        );
    }
}
