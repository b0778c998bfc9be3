//! Checkpoints of a run: named tensors and the progress, in a folder that appears whole.
//!
//! Data order, schedule and random streams are functions of the seed and the step, so nothing of them needs keeping.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    Error, Result,
    named_tensors::{self, NamedTensor, SavedTensors},
};

/// The form of a checkpoint's folder; others are refused.
pub const FORMAT: u64 = 2;

/// Contents of a checkpoint's `progress.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// [`FORMAT`].
    pub format: u64,
    /// Finished optimiser steps.
    pub step: usize,
    /// Hash of everything that decides the trajectory: options, data, starting weights.
    pub fingerprint: String,
    /// Tokens read so far.
    pub tokens: u64,
    /// Sums of the metrics since the last line of the log, as bits.
    pub metrics: BTreeMap<String, [u64; 2]>,
    /// The objective's state beside its tensors.
    pub objective: Value,
}

impl Progress {
    /// The beginning of a run.
    pub fn start(fingerprint: &str) -> Self {
        Self {
            format: FORMAT,
            step: 0,
            fingerprint: fingerprint.to_owned(),
            tokens: 0,
            metrics: BTreeMap::new(),
            objective: Value::Null,
        }
    }
}

/// The tensors of a checkpoint, each kind in a file of its own: [`NamedTensor`]s to be written, or [`SavedTensors`].
#[derive(Debug)]
pub struct Tensors<T> {
    /// The trained parameters by their keys.
    pub weights: T,
    /// The optimiser's state.
    pub optimiser: T,
    /// The objective's state.
    pub objective: T,
}

const WEIGHTS: &str = "weights.safetensors";
const OPTIMISER: &str = "optimiser.safetensors";
const OBJECTIVE: &str = "objective.safetensors";

/// Writes a checkpoint beside its name and renames it, then deletes all but the newest `keep`.
///
/// # Errors
/// When the disk is full; older checkpoints are untouched then.
pub fn write(
    folder: &Path,
    tensors: &Tensors<Vec<NamedTensor<'_>>>,
    progress: &Progress,
    keep: usize,
) -> Result<()> {
    let name = folder.join(format!("step-{:08}", progress.step));
    let partial = folder.join("partial");
    let written = write_parts(&partial, tensors, progress);
    if written.is_err() {
        let _ = fs::remove_dir_all(&partial);
    }
    written?;
    if name.exists() {
        fs::remove_dir_all(&name).map_err(Error::file(&name))?;
    }
    fs::rename(&partial, &name).map_err(Error::file(&name))?;
    for old in list(folder)?.iter().rev().skip(keep) {
        fs::remove_dir_all(old).map_err(Error::file(old))?;
    }
    Ok(())
}

fn write_parts(
    partial: &Path,
    tensors: &Tensors<Vec<NamedTensor<'_>>>,
    progress: &Progress,
) -> Result<()> {
    if partial.exists() {
        fs::remove_dir_all(partial).map_err(Error::file(partial))?;
    }
    fs::create_dir_all(partial).map_err(Error::file(partial))?;
    named_tensors::write(&partial.join(WEIGHTS), &tensors.weights)?;
    named_tensors::write(&partial.join(OPTIMISER), &tensors.optimiser)?;
    named_tensors::write(&partial.join(OBJECTIVE), &tensors.objective)?;
    let path = partial.join("progress.json");
    let text = serde_json::to_string_pretty(progress).unwrap_or_default();
    fs::write(&path, text).map_err(Error::file(&path))
}

/// The checkpoints of a run, oldest first.
///
/// # Errors
/// When the folder cannot be read.
pub fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).map_err(Error::file(folder))?;
    let is_step = |path: &PathBuf| {
        path.file_name()
            .is_some_and(|n| n.to_string_lossy().starts_with("step-"))
    };
    let mut found: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|e| e.path()))
        .filter(is_step)
        .collect();
    found.sort();
    Ok(found)
}

/// The newest checkpoint; none is not an error.
///
/// # Errors
/// When the newest checkpoint is damaged, of another format, or belongs to another recipe, data or model.
pub fn newest(
    folder: &Path,
    fingerprint: &str,
) -> Result<Option<(Progress, Tensors<SavedTensors>)>> {
    let Some(newest) = list(folder)?.pop() else {
        return Ok(None);
    };
    let progress = read_progress(&newest)?;
    if progress.fingerprint != fingerprint {
        return Err(refused(
            &newest,
            "was written by a run with other options, data or starting weights; give another output folder or delete it"
                .into(),
        ));
    }
    let open = |name: &str| SavedTensors::open(&newest.join(name));
    let tensors = Tensors {
        weights: open(WEIGHTS)?,
        optimiser: open(OPTIMISER)?,
        objective: open(OBJECTIVE)?,
    };
    Ok(Some((progress, tensors)))
}

fn read_progress(checkpoint: &Path) -> Result<Progress> {
    let path = checkpoint.join("progress.json");
    let text = fs::read_to_string(&path).map_err(Error::file(&path))?;
    let damaged = |error: serde_json::Error| refused(checkpoint, format!("progress.json: {error}"));
    let value: Value = serde_json::from_str(&text).map_err(damaged)?;
    let format = value.get("format").and_then(Value::as_u64);
    if format != Some(FORMAT) {
        let found = format.map_or("no number".to_owned(), |format| format!("number {format}"));
        return Err(refused(
            checkpoint,
            format!(
                "was written by another version of espalier (its format has {found}, this one's is {FORMAT}); give another \
                 output folder or delete it"
            ),
        ));
    }
    serde_json::from_value(value).map_err(damaged)
}

fn refused(checkpoint: &Path, reason: String) -> Error {
    Error::Checkpoint {
        path: checkpoint.to_owned(),
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaint(change: impl Fn(&mut Value)) -> String {
        let folder = tempfile::tempdir().unwrap();
        let nothing = || Vec::new();
        let tensors = Tensors {
            weights: nothing(),
            optimiser: nothing(),
            objective: nothing(),
        };
        write(folder.path(), &tensors, &Progress::start("a"), 1).unwrap();
        let path = folder.path().join("step-00000000/progress.json");
        let mut value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        change(&mut value);
        fs::write(&path, value.to_string()).unwrap();
        match newest(folder.path(), "a") {
            Ok(found) => {
                assert_eq!(found.unwrap().0, Progress::start("a"));
                String::new()
            }
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn other_formats_and_runs_are_refused() {
        assert_eq!(complaint(|_| {}), "");
        let old = complaint(|value| drop(value.as_object_mut().unwrap().remove("format")));
        assert!(
            old.contains("its format has no number, this one's is 2"),
            "{old}"
        );
        let other = complaint(|value| value["format"] = 3.into());
        assert!(other.contains("its format has number 3"), "{other}");
        let run = complaint(|value| value["fingerprint"] = "b".into());
        assert!(
            run.contains("other options, data or starting weights"),
            "{run}"
        );
        let unknown = complaint(|value| value["more"] = 1.into());
        assert!(unknown.contains("unknown field `more`"), "{unknown}");
    }
}
