//! Checkpoints of a run: the trained weights, the optimiser's moments and the step, in a folder that appears whole.
//!
//! Data order, schedule and random streams are functions of the seed and the step, so nothing else needs keeping.

use std::{
    fs,
    path::{Path, PathBuf},
};

use burn::tensor::Device;
use espalier_models::{
    checkpoint::{Dtype, TensorFile, TensorPlan, TensorWriter},
    model::LanguageModel,
    parameter::Parameters,
};
use serde::{Deserialize, Serialize};

use crate::{Error, Result, optimisers::AdamW};

/// What a checkpoint says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Finished optimiser steps.
    pub step: usize,
    /// Hash of everything that decides the trajectory: options, data, starting weights.
    pub fingerprint: String,
    /// Tokens read so far.
    pub tokens: u64,
}

/// Writes a checkpoint beside its name and renames it, then deletes all but the newest `keep`.
///
/// # Errors
/// When the disk is full; older checkpoints are untouched then.
pub fn write(
    folder: &Path,
    model: &LanguageModel,
    optimiser: &AdamW,
    progress: &Progress,
    keep: usize,
) -> Result<()> {
    let name = folder.join(format!("step-{:08}", progress.step));
    let partial = folder.join("partial");
    let written = write_parts(&partial, model, optimiser, progress);
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
    model: &LanguageModel,
    optimiser: &AdamW,
    progress: &Progress,
) -> Result<()> {
    if partial.exists() {
        fs::remove_dir_all(partial).map_err(Error::file(partial))?;
    }
    fs::create_dir_all(partial).map_err(Error::file(partial))?;
    let mut weights = Vec::new();
    model.visit(&mut |p| {
        if p.is_trainable() {
            weights.push((p.name().to_owned(), p.to_vec()));
        }
    });
    write_vectors(&partial.join("weights.safetensors"), weights)?;
    write_vectors(&partial.join("optimiser.safetensors"), optimiser.state())?;
    let path = partial.join("progress.json");
    let text = serde_json::to_string_pretty(progress).unwrap_or_default();
    fs::write(&path, text).map_err(Error::file(&path))
}

fn write_vectors(path: &Path, vectors: Vec<(String, Vec<f32>)>) -> Result<()> {
    let plan = |(name, values): &(String, Vec<f32>)| TensorPlan {
        name: name.clone(),
        dtype: Dtype::F32,
        shape: vec![values.len()],
    };
    let plans: Vec<TensorPlan> = vectors.iter().map(plan).collect();
    let mut vectors: std::collections::HashMap<_, _> = vectors.into_iter().collect();
    TensorWriter::new(plans)?
        .write_file(path, |name| Ok(vectors.remove(name).unwrap_or_default()))?;
    Ok(())
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

/// Puts the newest checkpoint into model and optimiser; none is not an error.
///
/// # Errors
/// When the newest checkpoint is damaged, or belongs to another recipe, data or model.
pub fn resume(
    folder: &Path,
    model: &mut LanguageModel,
    optimiser: &mut AdamW,
    fingerprint: &str,
) -> Result<Option<Progress>> {
    let Some(newest) = list(folder)?.pop() else {
        return Ok(None);
    };
    let path = newest.join("progress.json");
    let text = fs::read_to_string(&path).map_err(Error::file(&path))?;
    let damaged = |reason: String| Error::Checkpoint {
        path: newest.clone(),
        reason,
    };
    let progress: Progress =
        serde_json::from_str(&text).map_err(|e| damaged(format!("progress.json: {e}")))?;
    if progress.fingerprint != fingerprint {
        return Err(damaged(
            "was written by a run with other options, data or starting weights; give another output folder or delete it"
                .into(),
        ));
    }
    restore_weights(&newest, model)?;
    restore_moments(&newest, optimiser, model.device())?;
    Ok(Some(progress))
}

fn restore_weights(checkpoint: &Path, model: &mut LanguageModel) -> Result<()> {
    let file = TensorFile::open(&checkpoint.join("weights.safetensors"))?;
    let device = model.device().clone();
    let mut failure = None;
    model.visit_mut(&mut |p| {
        if p.is_trainable() {
            match file.read_f32(p.name(), None) {
                Ok(values) if values.len() == p.len() => p.set_data(values, &device),
                Ok(_) => failure = Some(format!("`{}` has another size", p.name())),
                Err(error) => failure = Some(error.to_string()),
            }
        }
    });
    match failure {
        Some(reason) => Err(Error::Checkpoint {
            path: checkpoint.to_owned(),
            reason,
        }),
        None => Ok(()),
    }
}

fn restore_moments(checkpoint: &Path, optimiser: &mut AdamW, device: &Device) -> Result<()> {
    let file = TensorFile::open(&checkpoint.join("optimiser.safetensors"))?;
    let names: Vec<String> = file
        .names()
        .filter_map(|n| n.strip_prefix("first."))
        .map(str::to_owned)
        .collect();
    for name in names {
        let first = file.read_f32(&format!("first.{name}"), None)?;
        let second = file.read_f32(&format!("second.{name}"), None)?;
        optimiser.restore(&name, first, second, device);
    }
    Ok(())
}
