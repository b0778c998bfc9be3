//! The hash of everything that goes into a stage: its recipe, its model, its data.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use espalier_data::{random::fnv, tokenizer::Tokenizer};

use super::Workshop;
use crate::{
    Error, Result, model_path,
    recipe::{DataOptions, Stage},
};

/// Sixteen hexadecimal digits. Keys that change no weight (how often to log or to keep) are left out.
///
/// # Errors
/// When a file that the stage reads cannot be read.
pub fn of_stage(workshop: &Workshop, stage: &Stage) -> Result<String> {
    let mut plain = stage.clone();
    let mut files: Vec<PathBuf> = Vec::new();
    if let Some(train) = &mut plain.train {
        let defaults = espalier_train::options::TrainOptions::default();
        let options = &mut train.options;
        options.log_every = defaults.log_every;
        options.checkpoint_every = defaults.checkpoint_every;
        options.keep_checkpoints = defaults.keep_checkpoints;
        options.evaluate_every = defaults.evaluate_every;
        files.extend(
            train
                .model
                .iter()
                .flat_map(|model| model_files(&workshop.model_path(model))),
        );
        files.extend(
            train
                .new
                .iter()
                .filter_map(|new| Tokenizer::file_in(new.tokenizer.as_ref()?)),
        );
        files.extend(
            train
                .new
                .iter()
                .flat_map(|new| data_files(&new.tokenizer_data)),
        );
        files.extend(data_files(&train.data).chain(data_files(&train.validation)));
    }
    if let Some(evaluate) = &plain.evaluate {
        files.extend(model_files(&workshop.model_path(&evaluate.model)));
        let sources = [&evaluate.data, &evaluate.baseline, &evaluate.preferences];
        files.extend(sources.into_iter().flat_map(|data| data_files(data)));
    }
    if let Some(upcycle) = &plain.upcycle {
        let models = upcycle.donors.iter().chain([&upcycle.model]);
        files.extend(models.flat_map(|model| model_files(&workshop.model_path(model))));
    }
    let mut text = serde_json::to_string(&plain).unwrap_or_default();
    for file in files {
        text.push_str(&format!("|{:016x}", of_file(&file)?));
    }
    Ok(format!("{:016x}", fnv(&text)))
}

fn data_files(data: &[DataOptions]) -> impl Iterator<Item = PathBuf> {
    data.iter().filter_map(|source| source.path.clone())
}

/// The files that decide what a model computes.
fn model_files(folder: &Path) -> Vec<PathBuf> {
    if folder.is_file() {
        let tokenizer = Tokenizer::file_in(&model_path::tokenizer_folder(folder, folder));
        return std::iter::once(folder.to_path_buf())
            .chain(tokenizer)
            .collect();
    }
    let decides = |name: &str| {
        [".safetensors", ".pth", ".bin", "config.json"]
            .iter()
            .any(|end| name.ends_with(end))
    };
    let entries = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()));
    let mut files: Vec<PathBuf> = entries
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| decides(&name.to_string_lossy()))
        })
        .collect();
    files.extend(Tokenizer::file_in(folder));
    files.sort();
    files
}

/// FNV-1a over eight bytes at a time, and the length.
fn of_file(path: &Path) -> Result<u64> {
    let mut file = File::open(path).map_err(Error::file(path))?;
    let mut buffer = vec![0; 1 << 20];
    let (mut hash, mut length) = (0xcbf2_9ce4_8422_2325u64, 0u64);
    loop {
        let read = file.read(&mut buffer).map_err(Error::file(path))?;
        if read == 0 {
            return Ok(hash ^ length);
        }
        length += read as u64;
        for chunk in buffer[..read].chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            hash = (hash ^ u64::from_le_bytes(word)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}
