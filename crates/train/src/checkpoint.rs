//! Checkpoints of a run: named tensors and the progress, in a folder that appears whole.
//!
//! `checksums.json`, written last, has the hash (XXH3) of every other file. A checkpoint that does not agree with it is
//! damaged: it is passed over, and the run goes on from the one before.
//!
//! Data order, schedule and random streams are functions of the seed and the step, so nothing of them needs keeping.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
};

use espalier_data::disk;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use twox_hash::XxHash3_128;

use crate::{
    Error, Result,
    named_tensors::{self, NamedTensor, SavedTensors},
    token_count::TokenCount,
};

/// The form of a checkpoint's folder; others are refused.
pub const FORMAT: u64 = 4;

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
    pub tokens: TokenCount,
    /// Bytes of the log so far.
    pub log: u64,
    /// Bytes of the log of samples so far.
    #[serde(default)]
    pub samples: u64,
    /// Whether the evaluation after the last step is still to be done.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub evaluation_due: bool,
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
            tokens: TokenCount::default(),
            log: 0,
            samples: 0,
            evaluation_due: false,
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
const PROGRESS: &str = "progress.json";
const CHECKSUMS: &str = "checksums.json";

/// A checkpoint that is being written.
const PARTIAL: &str = "partial";
/// What stood under the name of the checkpoint that is being renamed.
const REPLACED: &str = "replaced";

/// Writes a checkpoint beside its name and renames it, then deletes all but the newest `keep`. Nothing is deleted before the new
/// one has its name.
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
    let [partial, replaced] = [PARTIAL, REPLACED].map(|name| folder.join(name));
    let written = write_parts(&partial, tensors, progress);
    if written.is_err() {
        let _ = fs::remove_dir_all(&partial);
    }
    written?;
    // A link that leads nowhere has the name too.
    if name.symlink_metadata().is_ok() {
        remove(&replaced)?;
        disk::rename(&name, &replaced).map_err(Error::file(&name))?;
    }
    disk::rename(&partial, &name).map_err(Error::file(&name))?;
    remove(&replaced)?;
    for old in list(folder)?.iter().rev().skip(keep) {
        remove(old)?;
    }
    Ok(())
}

fn write_parts(
    partial: &Path,
    tensors: &Tensors<Vec<NamedTensor<'_>>>,
    progress: &Progress,
) -> Result<()> {
    remove(partial)?;
    disk::create_folder(partial).map_err(Error::file(partial))?;
    named_tensors::write(&partial.join(WEIGHTS), &tensors.weights)?;
    named_tensors::write(&partial.join(OPTIMISER), &tensors.optimiser)?;
    named_tensors::write(&partial.join(OBJECTIVE), &tensors.objective)?;
    write_json(&partial.join(PROGRESS), progress)?;
    seal(partial)
}

/// Writes the checksums of a checkpoint's files, as they are now.
///
/// # Errors
/// When a file is missing or the disk is full.
pub fn seal(checkpoint: &Path) -> Result<()> {
    write_json(&checkpoint.join(CHECKSUMS), &checksums(checkpoint)?)
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).unwrap_or_default();
    disk::write_whole(path, text.as_bytes()).map_err(Error::file(path))
}

/// The hashes of a checkpoint's files.
fn checksums(checkpoint: &Path) -> Result<BTreeMap<String, String>> {
    let of_file = |name: &str| {
        let hash = checksum(&checkpoint.join(name))?;
        Ok((name.to_owned(), format!("{hash:032x}")))
    };
    let names = [WEIGHTS, OPTIMISER, OBJECTIVE, PROGRESS];
    names.into_iter().map(of_file).collect()
}

fn checksum(path: &Path) -> Result<u128> {
    let mut file = File::open(path).map_err(Error::file(path))?;
    let (mut hasher, mut buffer) = (XxHash3_128::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer).map_err(Error::file(path))? {
            0 => return Ok(hasher.finish_128()),
            count => hasher.write(&buffer[..count]),
        }
    }
}

fn remove(folder: &Path) -> Result<()> {
    disk::remove_folder(folder).map_err(Error::file(folder))
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

/// A checkpoint to go on from.
#[derive(Debug)]
pub struct Whole {
    /// How far the run was.
    pub progress: Progress,
    /// Its tensors.
    pub tensors: Tensors<SavedTensors>,
}

/// The newest whole checkpoint, if there is one, and why newer ones are passed over. What an interrupted [`write()`] left
/// behind is cleared away.
///
/// # Errors
/// When the newest whole checkpoint is of another format, or belongs to another recipe, data or model.
pub fn newest(folder: &Path, fingerprint: &str) -> Result<(Option<Whole>, Vec<String>)> {
    clear_away(folder)?;
    let mut passed_over = Vec::new();
    for checkpoint in list(folder)?.into_iter().rev() {
        match open(&checkpoint, fingerprint)? {
            Ok(whole) => return Ok((Some(whole), passed_over)),
            Err(damage) => passed_over.push(format!(
                "{} is damaged and passed over: {damage}",
                checkpoint.display()
            )),
        }
    }
    Ok((None, passed_over))
}

/// Removes a checkpoint that was not written to its end, and puts back one that was on the way to be replaced.
fn clear_away(folder: &Path) -> Result<()> {
    remove(&folder.join(PARTIAL))?;
    let replaced = folder.join(REPLACED);
    if let Ok(Ok(progress)) = read_progress(&replaced) {
        let name = folder.join(format!("step-{:08}", progress.step));
        if !name.exists() {
            disk::rename(&replaced, &name).map_err(Error::file(&name))?;
        }
    }
    remove(&replaced)
}

/// What is wrong with a checkpoint's files.
type Damage = String;

fn open(checkpoint: &Path, fingerprint: &str) -> Result<Result<Whole, Damage>> {
    let progress = match read_progress(checkpoint)? {
        Ok(progress) => progress,
        Err(damage) => return Ok(Err(damage)),
    };
    if let Err(damage) = verify(checkpoint) {
        return Ok(Err(damage));
    }
    if progress.fingerprint != fingerprint {
        return Err(refused(
            checkpoint,
            "was written by a run with other options, data or starting weights; give another output folder or delete it"
                .into(),
        ));
    }
    let open = |name: &str| SavedTensors::open(&checkpoint.join(name));
    let tensors = Tensors {
        weights: open(WEIGHTS)?,
        optimiser: open(OPTIMISER)?,
        objective: open(OBJECTIVE)?,
    };
    Ok(Ok(Whole { progress, tensors }))
}

/// Compares the files of a checkpoint with their checksums.
fn verify(checkpoint: &Path) -> Result<(), Damage> {
    let text = fs::read_to_string(checkpoint.join(CHECKSUMS));
    let text = text.map_err(|error| format!("{CHECKSUMS}: {error}"))?;
    let expected: BTreeMap<String, String> =
        serde_json::from_str(&text).map_err(|error| format!("{CHECKSUMS}: {error}"))?;
    let found = checksums(checkpoint).map_err(|error| error.to_string())?;
    match found
        .iter()
        .find(|(name, hash)| expected.get(*name) != Some(hash))
    {
        Some((name, _)) => Err(format!("{name} is not as it was written")),
        None => Ok(()),
    }
}

fn read_progress(checkpoint: &Path) -> Result<Result<Progress, Damage>> {
    let damage = |error: &dyn std::fmt::Display| Ok(Err(format!("{PROGRESS}: {error}")));
    let text = match fs::read_to_string(checkpoint.join(PROGRESS)) {
        Ok(text) => text,
        Err(error) => return damage(&error),
    };
    let value: Value = match serde_json::from_str(&text) {
        Ok(value) => value,
        Err(error) => return damage(&error),
    };
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
    serde_json::from_value(value).map_or_else(|error| damage(&error), |progress| Ok(Ok(progress)))
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
    use burn::tensor::{Device, Tensor};

    /// Checkpoints after these steps, all of them kept.
    fn written(steps: &[usize]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for step in steps {
            let number = Tensor::from_floats([*step as f32], &Device::flex());
            let tensors = Tensors {
                weights: vec![NamedTensor::floats("weight", number)],
                optimiser: Vec::new(),
                objective: Vec::new(),
            };
            let progress = Progress {
                step: *step,
                ..Progress::start("a")
            };
            write(folder.path(), &tensors, &progress, 9).unwrap();
        }
        folder
    }

    fn edit(path: &Path, change: impl Fn(&mut Value)) {
        let mut value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
        change(&mut value);
        fs::write(path, value.to_string()).unwrap();
    }

    fn complaint(change: impl Fn(&mut Value)) -> String {
        let folder = written(&[3]);
        edit(&folder.path().join("step-00000003/progress.json"), change);
        match newest(folder.path(), "a") {
            Ok((found, passed_over)) => {
                assert_eq!(found.is_some(), passed_over.is_empty());
                passed_over.concat()
            }
            Err(error) => error.to_string(),
        }
    }

    /// The step to go on from, and what is said.
    fn found(folder: &Path) -> (Option<usize>, String) {
        let (whole, passed_over) = newest(folder, "a").unwrap();
        let step = whole.map(|whole| {
            let weight = whole.tensors.weights.floats("weight", &[1]).unwrap();
            assert_eq!(weight, [whole.progress.step as f32]);
            whole.progress.step
        });
        (step, passed_over.join("; "))
    }

    #[test]
    fn other_formats_and_runs_are_refused() {
        let old = complaint(|value| drop(value.as_object_mut().unwrap().remove("format")));
        assert!(
            old.contains("its format has no number, this one's is 4"),
            "{old}"
        );
        let other = complaint(|value| value["format"] = 2.into());
        assert!(other.contains("its format has number 2"), "{other}");
        let folder = written(&[3]);
        let run = newest(folder.path(), "b").unwrap_err().to_string();
        assert!(
            run.contains("other options, data or starting weights"),
            "{run}"
        );
    }

    #[test]
    fn edited_progress_is_damage() {
        for (key, value) in [("step", 400), ("tokens", 1), ("more", 1)] {
            let said = complaint(|progress| progress[key] = value.into());
            assert!(said.contains("step-00000003 is damaged"), "{said}");
        }
    }

    #[test]
    fn damaged_checkpoints_are_passed_over() {
        let folder = written(&[1, 2, 3]);
        assert_eq!(found(folder.path()), (Some(3), String::new()));
        let of_step = |step: usize| folder.path().join(format!("step-{step:08}"));
        // A flipped bit in the last number.
        let weights = of_step(3).join(WEIGHTS);
        let mut bytes = fs::read(&weights).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&weights, bytes).unwrap();
        let (step, said) = found(folder.path());
        assert_eq!(step, Some(2));
        assert!(said.ends_with("weights.safetensors is not as it was written"));
        fs::remove_file(of_step(2).join(OPTIMISER)).unwrap();
        assert_eq!(found(folder.path()).0, Some(1));
        fs::remove_file(of_step(1).join(CHECKSUMS)).unwrap();
        let (step, said) = found(folder.path());
        assert_eq!((step, said.matches("passed over").count()), (None, 3));
    }

    #[test]
    fn a_kill_while_one_is_replaced_loses_none() {
        let folder = written(&[1, 2]);
        let [name, partial, replaced] =
            ["step-00000002", PARTIAL, REPLACED].map(|name| folder.path().join(name));
        // Killed between the two renames.
        fs::rename(&name, &replaced).unwrap();
        fs::create_dir(&partial).unwrap();
        assert_eq!(found(folder.path()), (Some(2), String::new()));
        assert!(!replaced.exists() && !partial.exists());
        // Killed before the old one was removed.
        fs::create_dir(&replaced).unwrap();
        assert_eq!(found(folder.path()), (Some(2), String::new()));
        assert!(!replaced.exists());
    }
}
