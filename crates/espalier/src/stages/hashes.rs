//! Hashes of what stages read and leave (XXH3, 128 bits), each file read once.
//!
//! A file whose size and time of modification are those of the last reading has the hash that was found then; these are
//! kept in `hashes.json` in the run's folder. A damaged or foreign one is started anew.

use std::{
    collections::BTreeMap,
    fs::{self, File, Metadata},
    io::Read,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use espalier_engine::sentence_transformers::SentenceTransformer;
use espalier_models::adapter::{self, Adapter};
use serde::{Deserialize, Serialize};
use twox_hash::xxhash3_128;

use super::{model, write_whole};
use crate::{Error, Result, model_path};

/// The version of `hashes.json`.
const FORMAT: u32 = 1;

/// A file that was changed so short a time ago may be changed again without another time of modification, so its hash is not kept.
const SETTLED: Duration = Duration::from_secs(2);

/// Endings of the files that a folder says in how its model computes, and how it reads and writes text: configurations, vocabularies,
/// merges, templates. All of them count, for which of them are read depends on what they say.
const DESCRIPTIONS: [&str; 6] = ["json", "txt", "jinja", "model", "spm", "tiktoken"];

/// Endings of files of weights.
const WEIGHTS: [&str; 4] = ["safetensors", "pth", "pt", "bin"];

/// Where further chat templates lie.
const MORE_TEMPLATES: &str = "additional_chat_templates";

/// The hash of several things, each of which has a name.
pub fn digest<'a>(parts: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let mut hasher = xxhash3_128::Hasher::new();
    for (name, hash) in parts {
        for text in [name, &hash] {
            hasher.write(&(text.len() as u64).to_le_bytes());
            hasher.write(text.as_bytes());
        }
    }
    format!("{:032x}", hasher.finish_128())
}

/// Hashes of files, remembered from one run to the next.
///
/// ```
/// use espalier::stages::hashes::FileHashes;
/// let folder = std::env::temp_dir();
/// let file = folder.join(format!("espalier-hashes-{}", std::process::id()));
/// std::fs::write(&file, "text")?;
/// let mut hashes = FileHashes::open(&folder);
/// let first = hashes.of_file(&file)?;
/// std::fs::write(&file, "another")?;
/// assert_ne!(hashes.of_file(&file)?, first);
/// # std::fs::remove_file(&file)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct FileHashes {
    path: PathBuf,
    known: BTreeMap<String, Known>,
    changed: bool,
}

/// `hashes.json`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    format: u32,
    files: BTreeMap<String, Known>,
}

/// A file as it was when it was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    size: u64,
    /// Nanoseconds since 1970.
    modified: u128,
    hash: String,
}

impl FileHashes {
    /// The hashes that are kept in a run's folder; none where there are none yet.
    pub fn open(folder: &Path) -> Self {
        let path = folder.join("hashes.json");
        let kept = fs::read_to_string(&path).ok();
        let kept = kept.and_then(|text| serde_json::from_str::<Kept>(&text).ok());
        let kept = kept.filter(|kept| kept.format == FORMAT);
        Self {
            path,
            known: kept.map(|kept| kept.files).unwrap_or_default(),
            changed: false,
        }
    }

    /// Writes what was learned; files that are gone are forgotten.
    ///
    /// # Errors
    /// When the disk is full.
    pub fn save(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.changed) {
            return Ok(());
        }
        self.known.retain(|path, _| Path::new(path).exists());
        let kept = Kept {
            format: FORMAT,
            files: self.known.clone(),
        };
        let text = serde_json::to_string_pretty(&kept)
            .map_err(|error| Error::work(format!("{}: {error}", self.path.display())))?;
        write_whole(&self.path, text.as_bytes())
    }

    /// The hash of a file's bytes; 32 hexadecimal digits.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn of_file(&mut self, path: &Path) -> Result<String> {
        let metadata = fs::metadata(path).map_err(Error::file(path))?;
        let whole = std::path::absolute(path).map_err(Error::file(path))?;
        let (size, modified) = (metadata.len(), modified(&metadata));
        let place = whole.to_str().filter(|_| modified.is_some());
        let (Some(place), Some(modified)) = (place, modified) else {
            return read_hash(path);
        };
        if let Some(known) = self.known.get(place)
            && (known.size, known.modified) == (size, modified.as_nanos())
        {
            return Ok(known.hash.clone());
        }
        let hash = read_hash(path)?;
        if is_settled(modified) {
            let modified = modified.as_nanos();
            let known = Known {
                size,
                modified,
                hash: hash.clone(),
            };
            self.known.insert(place.to_owned(), known);
            self.changed = true;
        }
        Ok(hash)
    }

    /// The hash of everything that decides what a tokenizer's folder makes of a text.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn of_tokenizer(&mut self, folder: &Path) -> Result<String> {
        let files = descriptions(folder);
        match files.is_empty() {
            true => Err(Error::usage(format!(
                "tokenizer `{}`: no such folder, or none with a tokenizer, nor the name of an earlier stage",
                folder.display()
            ))),
            false => self.of_files(files, folder),
        }
    }

    /// The hash of everything that decides what a model computes and how it reads and writes text; of an adapter, with its base.
    ///
    /// # Errors
    /// When a file cannot be read, an adapter's base is missing, or adapters name each other as their base.
    pub fn of_model(&mut self, path: &Path) -> Result<String> {
        self.of_model_on(path, &mut Vec::new())
    }

    /// `above` are the adapters that stand on this model.
    fn of_model_on(&mut self, path: &Path, above: &mut Vec<PathBuf>) -> Result<String> {
        if path.is_file() {
            let home = model_path::tokenizer_folder(path, path);
            let files = [path.to_owned()].into_iter().chain(descriptions(&home));
            return self.of_files(files.collect(), &home);
        }
        if !path.is_dir() {
            return Err(model::missing(path));
        }
        let inner = SentenceTransformer::transformer_folder(path)?;
        let path = inner.as_deref().unwrap_or(path);
        let around = SentenceTransformer::files(path)?;
        let own = self.of_files([model_files(path), around].concat(), path)?;
        if !path.join(adapter::CONFIGURATION).is_file() {
            return Ok(own);
        }
        let place = fs::canonicalize(path).map_err(Error::file(path))?;
        if above.contains(&place) {
            return Err(Error::work(format!(
                "{}: the adapter stands on itself: its base, or its base's base, names it again; correct `base_model_name_or_path`",
                path.join(adapter::CONFIGURATION).display()
            )));
        }
        above.push(place);
        let base = adapter::base_folder(path, &Adapter::read(path)?)?;
        let base = self.of_model_on(&base, above)?;
        Ok(digest([("adapter", own), ("base", base)]))
    }

    fn of_files(&mut self, mut files: Vec<PathBuf>, folder: &Path) -> Result<String> {
        files.sort();
        files.dedup();
        let mut parts = Vec::with_capacity(files.len());
        for file in &files {
            let name = file.strip_prefix(folder).unwrap_or(file).to_string_lossy();
            parts.push((name.into_owned(), self.of_file(file)?));
        }
        Ok(digest(
            parts
                .iter()
                .map(|(name, hash)| (name.as_str(), hash.clone())),
        ))
    }
}

fn modified(metadata: &Metadata) -> Option<Duration> {
    metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok()
}

fn is_settled(modified: Duration) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.is_ok_and(|now| modified + SETTLED < now)
}

fn read_hash(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(Error::file(path))?;
    let mut buffer = vec![0; 1 << 20];
    let mut hasher = xxhash3_128::Hasher::new();
    loop {
        match file.read(&mut buffer).map_err(Error::file(path))? {
            0 => return Ok(format!("{:032x}", hasher.finish_128())),
            read => hasher.write(&buffer[..read]),
        }
    }
}

/// The files that describe a folder's model and tokenizer.
fn descriptions(folder: &Path) -> Vec<PathBuf> {
    let templates = files(&folder.join(MORE_TEMPLATES), &DESCRIPTIONS);
    [files(folder, &DESCRIPTIONS), templates].concat()
}

/// All that a model's folder consists of.
fn model_files(folder: &Path) -> Vec<PathBuf> {
    [files(folder, &WEIGHTS), descriptions(folder)].concat()
}

/// The files in a folder whose names end so.
fn files(folder: &Path, endings: &[&str]) -> Vec<PathBuf> {
    let ends = |path: &PathBuf| {
        let ending = path.extension().and_then(|ending| ending.to_str());
        path.is_file() && ending.is_some_and(|ending| endings.contains(&ending))
    };
    entries(folder).filter(ends).collect()
}

/// What lies in a folder; nothing where it cannot be read.
fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    entries.filter_map(|entry| Some(entry.ok()?.path()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes a file whose time of modification lies in the past.
    fn write(path: &Path, text: &str, second: u64) {
        fs::write(path, text).unwrap();
        let time = UNIX_EPOCH + Duration::from_secs(second);
        File::options()
            .append(true)
            .open(path)
            .unwrap()
            .set_modified(time)
            .unwrap();
    }

    #[test]
    fn unchanged_files_are_not_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        write(&path, "one", 1000);
        let mut hashes = FileHashes::open(folder.path());
        let one = hashes.of_file(&path).unwrap();
        hashes.save().unwrap();
        // Another text of the same size and time is not seen: the file was not read.
        write(&path, "two", 1000);
        let mut hashes = FileHashes::open(folder.path());
        assert_eq!(hashes.of_file(&path).unwrap(), one);
        write(&path, "two", 1001);
        let two = hashes.of_file(&path).unwrap();
        assert_ne!(two, one);
        write(&path, "three", 1001);
        assert_ne!(hashes.of_file(&path).unwrap(), two);
    }

    #[test]
    fn fresh_files_are_read_every_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        let mut hashes = FileHashes::open(folder.path());
        fs::write(&path, "one").unwrap();
        let one = hashes.of_file(&path).unwrap();
        fs::write(&path, "two").unwrap();
        assert_ne!(hashes.of_file(&path).unwrap(), one);
    }

    #[test]
    fn a_damaged_or_foreign_file_of_hashes_is_started_anew() {
        let folder = tempfile::tempdir().unwrap();
        let (path, kept) = (
            folder.path().join("data"),
            folder.path().join("hashes.json"),
        );
        write(&path, "one", 1000);
        let mut hashes = FileHashes::open(folder.path());
        let one = hashes.of_file(&path).unwrap();
        hashes.save().unwrap();
        let text = fs::read_to_string(&kept).unwrap();
        let foreign = text
            .replace(&one, "wrong")
            .replace("\"format\": 1", "\"format\": 0");
        for damaged in [&text[..text.len() / 2], "", "[]", &foreign] {
            fs::write(&kept, damaged).unwrap();
            assert_eq!(FileHashes::open(folder.path()).of_file(&path).unwrap(), one);
        }
    }

    #[test]
    fn every_file_of_a_model_counts() {
        let folder = tempfile::tempdir().unwrap();
        let mut hashes = FileHashes::open(folder.path());
        let model = folder.path().join("model");
        fs::create_dir_all(model.join(MORE_TEMPLATES)).unwrap();
        let mut seen = vec![hashes.of_model(&model).unwrap()];
        let more = [
            "model-00001.safetensors",
            "pytorch_model.bin",
            "additional_chat_templates/a.jinja",
            "config.json",
            "generation_config.json",
            "adapter_model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
            "special_tokens_map.json",
            "added_tokens.json",
            "vocab.json",
            "merges.txt",
            "vocab.txt",
            "rwkv_vocab_v20230424.txt",
            "tokenizer.model",
            "spiece.model",
            "source.spm",
            "chat_template.jinja",
            "chat_template.json",
            "sentence_bert_config.json",
            "config_sentence_transformers.json",
            "1_Pooling/config.json",
            "2_Dense/model.safetensors",
        ];
        let module = |path: &str, kind: &str| serde_json::json!({"path": path, "type": kind});
        let modules = serde_json::json!([
            module("", "sentence_transformers.models.Transformer"),
            module("1_Pooling", "sentence_transformers.models.Pooling"),
            module("2_Dense", "sentence_transformers.models.Dense"),
        ]);
        fs::write(model.join("modules.json"), modules.to_string()).unwrap();
        seen.push(hashes.of_model(&model).unwrap());
        for part in ["1_Pooling", "2_Dense"] {
            fs::create_dir(model.join(part)).unwrap();
        }
        for name in more {
            for text in ["{}", "{ }"] {
                fs::write(model.join(name), text).unwrap();
                let hash = hashes.of_model(&model).unwrap();
                assert!(!seen.contains(&hash), "{name}");
                seen.push(hash);
            }
        }
        fs::write(model.join("notes.md"), "nothing").unwrap();
        assert_eq!(seen.last(), Some(&hashes.of_model(&model).unwrap()));
    }

    #[test]
    fn adapters_carry_their_base_and_cannot_stand_on_themselves() {
        let folder = tempfile::tempdir().unwrap();
        let mut hashes = FileHashes::open(folder.path());
        let [a, b] = ["a", "b"].map(|name| folder.path().join(name));
        let write = |folder: &Path, base: &str| {
            fs::create_dir_all(folder).unwrap();
            let text = format!(
                r#"{{"peft_type": "LORA", "r": 1, "target_modules": ["q_proj"], "base_model_name_or_path": "../{base}"}}"#
            );
            fs::write(folder.join(adapter::CONFIGURATION), text).unwrap();
        };
        write(&a, "b");
        fs::create_dir_all(&b).unwrap();
        fs::write(b.join("config.json"), "{}").unwrap();
        let before = hashes.of_model(&a).unwrap();
        fs::write(b.join("config.json"), "{ }").unwrap();
        assert_ne!(hashes.of_model(&a).unwrap(), before);
        write(&b, "a");
        let error = hashes.of_model(&a).unwrap_err().to_string();
        assert!(error.contains("the adapter stands on itself"), "{error}");
    }
}
