//! `stage.json`: what a finished stage read and left.

use std::{collections::BTreeMap, fs, path::Path};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    artifacts::{self, Artifact},
    hashes::FileHashes,
    write_whole,
};
use crate::{Error, Result, recipe::Stage};

/// The version of the record; records of others are not understood.
const FORMAT: u32 = 2;

/// The record's name.
pub const NAME: &str = "stage.json";

/// What is kept of a finished stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    format: u32,
    /// The hash of everything that went into it.
    fingerprint: String,
    /// The hash of everything that it left, by name.
    pub artifacts: BTreeMap<String, String>,
    /// Its figures.
    pub result: Value,
}

/// What became of a stage before.
#[derive(Debug)]
pub enum Past {
    /// It is done, and everything is as it was.
    Done(Record),
    /// It is done, but with other inputs or keys, or what it left is not there any more; the text says which.
    Outdated(String),
    /// It was not begun, or not finished.
    Unfinished,
}

/// Looks at a stage's folder.
pub fn past(folder: &Path, fingerprint: &str, stage: &Stage, hashes: &mut FileHashes) -> Past {
    let Ok(text) = fs::read_to_string(folder.join(NAME)) else {
        return Past::Unfinished;
    };
    let record = match serde_json::from_str::<Record>(&text) {
        Ok(record) if record.format == FORMAT => record,
        _ => {
            let reason = "its record is of another version of espalier, and does not say what the stage read";
            return Past::Outdated(reason.into());
        }
    };
    if record.fingerprint != fingerprint {
        return Past::Outdated("its keys, or what it reads, have changed".into());
    }
    match left(folder, stage, hashes) {
        Ok(artifacts) if artifacts == record.artifacts => Past::Done(record),
        _ => Past::Outdated("what it left has changed or is gone".into()),
    }
}

/// Records that a stage is done.
///
/// # Errors
/// When something that it should have left cannot be read, or the disk is full.
pub fn write(
    folder: &Path,
    fingerprint: String,
    stage: &Stage,
    result: Value,
    hashes: &mut FileHashes,
) -> Result<Record> {
    let record = Record {
        format: FORMAT,
        fingerprint,
        artifacts: left(folder, stage, hashes)?,
        result,
    };
    let text = serde_json::to_string_pretty(&record)
        .map_err(|error| Error::work(format!("{NAME}: {error}")))?;
    write_whole(&folder.join(NAME), format!("{text}\n").as_bytes())?;
    Ok(record)
}

/// The hashes of everything that the stage leaves.
fn left(folder: &Path, stage: &Stage, hashes: &mut FileHashes) -> Result<BTreeMap<String, String>> {
    let outputs = stage.kind.work().outputs();
    let hash = |output| {
        let artifact = Artifact::of(output, folder, hashes)?;
        Ok((artifacts::name(&stage.name, output), artifact.hash))
    };
    outputs.iter().map(hash).collect()
}
