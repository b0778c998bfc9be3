//! Hashes of what stages read and leave (XXH3, 128 bits), each file read once.
//!
//! A file whose size, times and inode are those of the last reading has the hash that was found then; these are kept in
//! `hashes.json` in the run's folder, by the place that links lead to. A damaged or foreign one is started anew. The time of the last
//! change of the inode, which nobody can set, tells of contents that were changed under an old time of modification.

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
const FORMAT: u32 = 2;

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
    /// How old a file must be for its hash to be kept.
    settled: Duration,
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
    state: State,
    hash: String,
}

/// What changes with a file's contents. Where the system has no inodes, sizes and times of modification must do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    size: u64,
    /// Nanoseconds since 1970.
    modified: i128,
    /// When the inode was changed: by every writing and renaming, and by setting the other time.
    changed: i128,
    inode: u64,
    device: u64,
}

impl State {
    #[cfg(unix)]
    fn of(metadata: &Metadata) -> Option<Self> {
        use std::os::unix::fs::MetadataExt;
        let nanoseconds =
            |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
        Some(Self {
            size: metadata.len(),
            modified: nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
            changed: nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
            inode: metadata.ino(),
            device: metadata.dev(),
        })
    }

    #[cfg(not(unix))]
    fn of(metadata: &Metadata) -> Option<Self> {
        let modified = metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
        let modified = i128::try_from(modified.as_nanos()).ok()?;
        Some(Self {
            size: metadata.len(),
            modified,
            changed: modified,
            inode: 0,
            device: 0,
        })
    }

    /// Whether the last change is so long ago.
    fn is_settled(&self, after: Duration) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let last = self.modified.max(self.changed);
        now.is_ok_and(|now| last.saturating_add_unsigned(after.as_nanos()) < now.as_nanos() as i128)
    }
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
            settled: SETTLED,
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
        if !metadata.is_file() {
            return Err(Error::work(format!(
                "{}: a pipe, device or folder; a run reads its files more than once, so write it to a file first",
                path.display()
            )));
        }
        let whole = fs::canonicalize(path).map_err(Error::file(path))?;
        let (Some(place), Some(state)) = (whole.to_str(), State::of(&metadata)) else {
            return read_hash(path);
        };
        if let Some(known) = self.known.get(place)
            && known.state == state
        {
            return Ok(known.hash.clone());
        }
        let hash = read_hash(path)?;
        if state.is_settled(self.settled) {
            let known = Known {
                state,
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

    /// Hashes of files that count as settled at once: no test waits.
    fn open(folder: &Path) -> FileHashes {
        FileHashes {
            settled: Duration::ZERO,
            ..FileHashes::open(folder)
        }
    }

    #[test]
    fn unchanged_files_are_not_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let (path, kept) = (
            folder.path().join("weights"),
            folder.path().join("hashes.json"),
        );
        write(&path, "one", 1000);
        let mut hashes = open(folder.path());
        let one = hashes.of_file(&path).unwrap();
        hashes.save().unwrap();
        // The hash that is kept is believed: the file was not read.
        let text = fs::read_to_string(&kept).unwrap();
        fs::write(&kept, text.replace(&one, "another")).unwrap();
        assert_eq!(open(folder.path()).of_file(&path).unwrap(), "another");
        write(&path, "one", 1001);
        assert_eq!(open(folder.path()).of_file(&path).unwrap(), one);
    }

    #[cfg(unix)]
    #[test]
    fn other_contents_of_the_same_size_and_time_are_seen() {
        use std::os::unix::fs::symlink;
        let folder = tempfile::tempdir().unwrap();
        let [path, other, link] = ["data", "other", "link"].map(|name| folder.path().join(name));
        write(&path, "one", 1000);
        write(&other, "two", 1000);
        symlink(&path, &link).unwrap();
        let mut hashes = open(folder.path());
        let [one, two] = [&path, &other].map(|path| hashes.of_file(path).unwrap());
        assert_ne!(one, two);
        assert_eq!(hashes.of_file(&link).unwrap(), one);
        // A link that leads elsewhere.
        fs::remove_file(&link).unwrap();
        symlink(&other, &link).unwrap();
        assert_eq!(hashes.of_file(&link).unwrap(), two);
        // Another file in the place.
        let third = folder.path().join("third");
        write(&third, "six", 1000);
        fs::rename(&third, &other).unwrap();
        let six = hashes.of_file(&other).unwrap();
        assert!(six != two && hashes.of_file(&link).unwrap() == six);
        // Other bytes in the same file. The clock of files may stand still for some milliseconds.
        std::thread::sleep(Duration::from_millis(20));
        write(&path, "ten", 1000);
        assert_ne!(hashes.of_file(&path).unwrap(), one);
    }

    #[cfg(unix)]
    #[test]
    fn what_is_read_once_only_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let said = FileHashes::open(folder.path())
            .of_file(Path::new("/dev/null"))
            .unwrap_err()
            .to_string();
        assert!(said.contains("write it to a file first"), "{said}");
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
        let mut hashes = open(folder.path());
        let one = hashes.of_file(&path).unwrap();
        hashes.save().unwrap();
        let text = fs::read_to_string(&kept).unwrap();
        let foreign = text
            .replace(&one, "wrong")
            .replace("\"format\": 2", "\"format\": 0");
        for damaged in [&text[..text.len() / 2], "", "[]", &foreign] {
            fs::write(&kept, damaged).unwrap();
            assert_eq!(open(folder.path()).of_file(&path).unwrap(), one);
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
