//! Two models on the same items: an earlier evaluation's samples beside those of this one.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use espalier_evaluate::{
    statistics::{Comparison, compare},
    tasks::Task,
};
use serde::Serialize;
use serde_json::Value;

use crate::{Error, Result};

/// An earlier evaluation.
#[derive(Debug)]
pub struct Earlier {
    /// The model's name.
    pub name: String,
    folder: PathBuf,
}

/// A figure of both models.
#[derive(Debug, Clone, Serialize)]
pub struct Compared {
    /// The task.
    pub task: String,
    /// Metric and way of reading, as in results.
    pub figure: String,
    /// What was found.
    #[serde(flatten)]
    pub comparison: Comparison,
}

impl Earlier {
    /// The evaluation in a folder, with the name that its results give.
    ///
    /// # Errors
    /// When there is none.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("results.json");
        let text = std::fs::read_to_string(&path).map_err(Error::file(&path))?;
        let results: Value = serde_json::from_str(&text)
            .map_err(|error| Error::work(format!("{}: {error}", path.display())))?;
        let name = results["model"]
            .as_str()
            .unwrap_or("the earlier model")
            .to_owned();
        Ok(Self {
            name,
            folder: folder.to_owned(),
        })
    }

    /// The evaluation in a stage's folder, `03-measure` for example.
    pub fn of_stage(folder: &Path) -> Self {
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        let stage = name.split_once('-').map_or(&*name, |(_, stage)| stage);
        Self {
            name: stage.to_owned(),
            folder: folder.to_owned(),
        }
    }

    /// A task's samples, by what makes items the same; nothing where it was not asked.
    ///
    /// # Errors
    /// When its file is damaged.
    pub fn whole_samples(&self, task: &str) -> Result<Option<HashMap<String, Value>>> {
        let path = self.folder.join(super::samples_name(task));
        if !path.is_file() {
            return Ok(None);
        }
        let text = std::fs::read_to_string(&path).map_err(Error::file(&path))?;
        let mut found = HashMap::new();
        for (number, line) in text.lines().enumerate() {
            let sample: Value = serde_json::from_str(line).map_err(|error| {
                Error::work(format!("{}: line {}: {error}", path.display(), number + 1))
            })?;
            found.insert(identity(&sample), sample);
        }
        Ok(Some(found))
    }
}

/// What makes items of two evaluations the same: the record and its number, whatever template renders it.
pub fn identity(sample: &Value) -> String {
    format!("{} {}", sample["doc_id"], sample["doc"])
}

/// All figures that both have, of the items that both were asked.
///
/// # Errors
/// When there is no such item, or a file is damaged.
pub fn compared(
    earlier: &Earlier,
    tasks: &[Task],
    samples: &[Vec<Value>],
) -> Result<Vec<Compared>> {
    let mut all = Vec::new();
    for (task, samples) in tasks.iter().zip(samples) {
        let Some(others) = earlier.whole_samples(&task.name)? else {
            continue;
        };
        let marks = samples
            .first()
            .and_then(|sample| sample["marks"].as_object());
        let figures: Vec<String> = marks
            .map(|marks| marks.keys().cloned().collect())
            .unwrap_or_default();
        for figure in figures {
            let pair = |sample: &Value| {
                let other = others.get(&identity(sample))?;
                let other = other["marks"].get(&figure)?.as_f64()?;
                Some((other, sample["marks"].get(&figure)?.as_f64()?))
            };
            let pairs: Vec<(f64, f64)> = samples.iter().filter_map(pair).collect();
            if !pairs.is_empty() {
                all.push(Compared {
                    task: task.name.clone(),
                    figure,
                    comparison: compare(&pairs),
                });
            }
        }
    }
    match all.is_empty() {
        false => Ok(all),
        true => Err(Error::usage(format!(
            "`against` {}: it has no item of these tasks; evaluate the other model on the same ones first",
            earlier.folder.display()
        ))),
    }
}
