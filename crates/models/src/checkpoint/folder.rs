//! The weights of a model: `model.safetensors` of its folder, the shards that `model.safetensors.index.json` lists, the same
//! two of PyTorch, a single file of either kind under any name, or a GGUF file with the parts that it is spread over.
//!
//! The index decides which tensors count: each must be in the shard it names, and a tensor that only a shard knows is
//! not part of the model.

use super::safetensors::{Dtype, TensorFile, TensorInfo};
use crate::error::{Error, Result};
use espalier_kernels::stored::Stored;
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

/// The file of an unsharded checkpoint.
pub const SINGLE_FILE: &str = "model.safetensors";
/// The list of a sharded checkpoint's tensors.
pub const INDEX_FILE: &str = "model.safetensors.index.json";
/// An index lists a few hundred bytes per tensor; more than this is no index.
const INDEX_LIMIT: u64 = 64 << 20;
/// The two as PyTorch writes them; safetensors win where a folder has both.
const SINGLE_PICKLE: &str = "pytorch_model.bin";
const PICKLE_INDEX: &str = "pytorch_model.bin.index.json";
/// Ends of the names of weight files.
const ENDINGS: [&str; 4] = ["safetensors", "pth", "pt", "gguf"];

/// The tensors of a model, over however many files.
///
/// ```no_run
/// use espalier_models::checkpoint::Checkpoint;
/// let checkpoint = Checkpoint::open("model".as_ref())?;
/// let embedding = checkpoint.read_f32("model.embed_tokens.weight", Some(0..10))?;
/// # Ok::<(), espalier_models::error::Error>(())
/// ```
#[derive(Debug)]
pub struct Checkpoint {
    folder: PathBuf,
    files: Vec<TensorFile>,
    /// For each tensor, which of `files` holds it.
    places: BTreeMap<String, usize>,
}

impl Checkpoint {
    /// Opens the weights in the folder or the file `path`.
    ///
    /// # Errors
    /// When there are none, the index does not match the shards, or a file breaks its format.
    pub fn open(path: &Path) -> Result<Self> {
        let file = if path.is_file() {
            Some(path.to_path_buf())
        } else {
            Self::file_in(path)
        };
        let Some(file) = file else {
            let reason = format!(
                "has neither {SINGLE_FILE} nor {INDEX_FILE}; check that this is a model's folder"
            );
            return Err(Error::checkpoint(path, reason));
        };
        if file.extension().is_some_and(|ending| ending == "json") {
            return Self::open_shards(path, &file);
        }
        let files = with_parts(TensorFile::open(&file)?)?;
        let mut places = BTreeMap::new();
        for (number, file) in files.iter().enumerate() {
            places.extend(file.names().map(|name| (name.to_owned(), number)));
        }
        Ok(Self {
            folder: path.to_path_buf(),
            files,
            places,
        })
    }

    /// The `config.json` that the metadata of a GGUF file stands for; nothing of other files.
    ///
    /// # Errors
    /// When something is missing there, or says what no family has.
    pub fn configuration(&self) -> Result<Option<Map<String, Value>>> {
        let Some((file, contents)) = self
            .files
            .first()
            .and_then(|file| Some((file, file.gguf()?)))
        else {
            return Ok(None);
        };
        let shape = |name: &str| self.info(name).map(|info| info.shape.clone());
        contents
            .configuration(file.map(), &shape)
            .map(Some)
            .map_err(|reason| Error::checkpoint(file.path(), reason))
    }

    /// The file of `folder` with its weights or their index; in a folder without a `config.json` where none has a usual name, the
    /// only one that ends like a file of weights.
    pub fn file_in(folder: &Path) -> Option<PathBuf> {
        let usual =
            [SINGLE_FILE, INDEX_FILE, SINGLE_PICKLE, PICKLE_INDEX].map(|name| folder.join(name));
        usual.into_iter().find(|path| path.is_file()).or_else(|| {
            let entries = std::fs::read_dir(folder)
                .into_iter()
                .flatten()
                .flatten()
                .map(|entry| entry.path());
            let ends = |path: &PathBuf| {
                path.extension()
                    .is_some_and(|ending| ENDINGS.iter().any(|known| ending == *known))
            };
            let mut found = entries.filter(|path| ends(path) && path.is_file());
            let lone = found.next().filter(|_| found.next().is_none());
            lone.filter(|_| !folder.join("config.json").is_file())
        })
    }

    fn open_shards(folder: &Path, index: &Path) -> Result<Self> {
        let (mut files, mut places, mut numbers) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        for (tensor, shard) in read_index(index)? {
            if !numbers.contains_key(&shard) {
                files.push(open_shard(index, folder, &shard)?);
                numbers.insert(shard.clone(), files.len() - 1);
            }
            let number = numbers[&shard];
            if files[number].info(&tensor).is_none() {
                return Err(Error::checkpoint(
                    index,
                    format!("tensor `{tensor}` is not in {shard}; download both again"),
                ));
            }
            places.insert(tensor, number);
        }
        Ok(Self {
            folder: folder.to_path_buf(),
            files,
            places,
        })
    }

    /// The folder, or the file where that was opened.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The tensors' names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.places.keys().map(String::as_str)
    }

    /// The type and shape of the tensor `name`, if the checkpoint has it.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.files.get(*self.places.get(name)?)?.info(name)
    }

    /// The bytes of the tensor `name`, little-endian and row-major.
    ///
    /// # Errors
    /// When the checkpoint lacks the tensor.
    pub fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>> {
        self.file(name)?.bytes(name)
    }

    /// The tensor `name` as `f32`, row-major; only `rows` of its first axis when given.
    ///
    /// # Errors
    /// When the checkpoint lacks the tensor or the rows, or the tensor is not of a floating type.
    pub fn read_f32(&self, name: &str, rows: Option<Range<usize>>) -> Result<Vec<f32>> {
        self.file(name)?.read_f32(name, rows)
    }

    /// The tensor `name` as the file holds it: mapped, and not yet read.
    ///
    /// # Errors
    /// As [`TensorFile::stored`].
    pub fn stored(&self, name: &str) -> Result<Stored> {
        self.file(name)?.stored(name)
    }

    /// The type that most of the elements have; F32 for a checkpoint without tensors.
    pub fn dtype(&self) -> Dtype {
        let mut elements: BTreeMap<Dtype, usize> = BTreeMap::new();
        for info in self.names().filter_map(|name| self.info(name)) {
            *elements.entry(info.dtype).or_default() += info.elements();
        }
        elements
            .into_iter()
            .max_by_key(|(_, count)| *count)
            .map_or(Dtype::F32, |(dtype, _)| dtype)
    }

    /// The name of the format that most of the elements have.
    pub fn format_name(&self) -> String {
        let mut elements: BTreeMap<String, usize> = BTreeMap::new();
        for (name, number) in &self.places {
            let file = &self.files[*number];
            if let (Some(format), Some(info)) = (file.format_name(name), file.info(name)) {
                *elements.entry(format).or_default() += info.elements();
            }
        }
        let most = elements.into_iter().max_by_key(|(_, count)| *count);
        most.map_or("f32".into(), |(format, _)| format)
    }

    /// Whether a matrix lies with its outputs as rows even where the family's files have it transposed.
    pub(crate) fn is_upright(&self, name: &str) -> bool {
        self.file(name).is_ok_and(|file| file.is_upright(name))
    }

    /// Bytes of all tensors together, headers left out.
    pub fn total_bytes(&self) -> u64 {
        let sizes = self
            .places
            .iter()
            .map(|(name, number)| self.files[*number].size(name));
        sizes.sum()
    }

    /// The file that holds the tensor `name`; the folder where none does.
    pub fn path_of(&self, name: &str) -> &Path {
        self.file(name).map_or(&self.folder, TensorFile::path)
    }

    fn file(&self, name: &str) -> Result<&TensorFile> {
        let file = self
            .places
            .get(name)
            .and_then(|number| self.files.get(*number));
        file.ok_or_else(|| {
            Error::checkpoint(
                &self.folder,
                format!("has no tensor `{name}`; check that config.json belongs to these weights"),
            )
        })
    }
}

/// A file with the others that a GGUF file is spread over.
fn with_parts(first: TensorFile) -> Result<Vec<TensorFile>> {
    let path = first.path().to_path_buf();
    let parts = first
        .gguf()
        .map_or(Ok(Vec::new()), |contents| contents.shards(&path));
    let parts = parts.map_err(|reason| Error::checkpoint(&path, reason))?;
    let mut files = vec![first];
    for part in parts {
        let part = path.with_file_name(part);
        if !part.is_file() {
            let reason = format!(
                "its part {} is missing; download it into this folder",
                part.display()
            );
            return Err(Error::checkpoint(&path, reason));
        }
        files.push(TensorFile::open_part(&part, files.first())?);
    }
    Ok(files)
}

/// The `weight_map` of the index at `path`: tensor to shard.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    if std::fs::metadata(path).map_err(Error::file(path))?.len() > INDEX_LIMIT {
        return Err(Error::checkpoint(
            path,
            "larger than 64 MiB, so not an index; download it again",
        ));
    }
    let text = std::fs::read(path).map_err(Error::file(path))?;
    let index: Index = serde_json::from_slice(&text).map_err(|error| {
        Error::checkpoint(
            path,
            format!("not an index of shards ({error}); download it again"),
        )
    })?;
    Ok(index.weight_map)
}

/// Opens a shard, which must be a file of the folder itself.
fn open_shard(index: &Path, folder: &Path, shard: &str) -> Result<TensorFile> {
    let mut components = Path::new(shard).components();
    let plain = matches!(
        (components.next(), components.next()),
        (Some(Component::Normal(_)), None)
    );
    if !plain || shard.contains(['/', '\\', ':']) {
        return Err(Error::checkpoint(
            index,
            format!("shard `{shard}` must be the plain name of a file in this folder"),
        ));
    }
    let path = folder.join(shard);
    if !path.is_file() {
        return Err(Error::checkpoint(
            index,
            format!("shard `{shard}` is missing; download it into this folder"),
        ));
    }
    TensorFile::open(&path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures");

    fn folder_with_index(weight_map: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::copy(
            format!("{FIXTURES}/gpt2/model.safetensors"),
            folder.path().join("shard.safetensors"),
        )
        .unwrap();
        fs::write(
            folder.path().join(INDEX_FILE),
            format!(r#"{{"weight_map":{weight_map}}}"#),
        )
        .unwrap();
        folder
    }

    fn error(folder: &Path) -> String {
        Checkpoint::open(folder).unwrap_err().to_string()
    }

    #[test]
    fn reads_a_single_file() {
        let checkpoint = Checkpoint::open(format!("{FIXTURES}/gpt2").as_ref()).unwrap();
        assert_eq!(checkpoint.dtype(), Dtype::F32);
        assert_eq!(
            checkpoint.info("transformer.wte.weight").unwrap().shape,
            [61, 24]
        );
        assert_eq!(
            checkpoint
                .read_f32("transformer.wte.weight", Some(60..61))
                .unwrap()
                .len(),
            24
        );
        // V d + P d + N (12 d^2 + 13 d) + 2 d numbers of four bytes.
        assert_eq!(
            checkpoint.total_bytes(),
            4 * (61 * 24 + 64 * 24 + 3 * (12 * 576 + 13 * 24) + 48)
        );
        assert!(
            checkpoint
                .read_f32("nothing", None)
                .unwrap_err()
                .to_string()
                .contains("no tensor `nothing`")
        );
    }

    #[test]
    fn the_index_decides_what_counts() {
        let folder = folder_with_index(r#"{"transformer.ln_f.bias":"shard.safetensors"}"#);
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        assert_eq!(
            checkpoint.names().collect::<Vec<_>>(),
            ["transformer.ln_f.bias"]
        );
        assert_eq!(
            checkpoint
                .read_f32("transformer.ln_f.bias", None)
                .unwrap()
                .len(),
            24
        );
    }

    #[test]
    fn missing_shards_and_tensors_are_named() {
        let folder = folder_with_index(r#"{"a":"gone.safetensors"}"#);
        assert!(error(folder.path()).contains("shard `gone.safetensors` is missing"));
        let folder = folder_with_index(r#"{"a":"shard.safetensors"}"#);
        assert!(error(folder.path()).contains("tensor `a` is not in shard.safetensors"));
    }

    #[test]
    fn shards_cannot_escape_the_folder() {
        for shard in [
            "../shard.safetensors",
            "/etc/passwd",
            "a/../shard.safetensors",
            "..",
            ".",
            "",
            "C:\\\\x",
            "a\\\\b",
        ] {
            let folder = folder_with_index(&format!(r#"{{"a":"{shard}"}}"#));
            assert!(
                error(folder.path()).contains("must be the plain name"),
                "{shard}"
            );
        }
    }

    #[test]
    fn broken_indices_and_empty_folders_are_errors() {
        let folder = folder_with_index("[3]");
        assert!(error(folder.path()).contains("not an index of shards"));
        let folder = tempfile::tempdir().unwrap();
        assert!(error(folder.path()).contains("neither model.safetensors"));
        fs::write(folder.path().join("pytorch_model.bin"), b"PK\x03\x04").unwrap();
        assert!(error(folder.path()).contains("not a whole zip archive"));
    }

    #[test]
    fn files_of_pytorch_serve_as_well() {
        let whole = Checkpoint::open(format!("{FIXTURES}/pth/kinds.pth").as_ref()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let lone = folder.path().join("any-name.pth");
        fs::copy(format!("{FIXTURES}/pth/kinds.pth"), &lone).unwrap();
        assert_eq!(Checkpoint::file_in(folder.path()), Some(lone.clone()));
        let read = Checkpoint::open(folder.path()).unwrap();
        assert!(read.names().eq(whole.names()));
        assert_eq!(
            read.total_bytes(),
            whole
                .names()
                .map(|name| whole.bytes(name).unwrap().len() as u64)
                .sum::<u64>()
        );
        // A configuration says what its weights are called.
        fs::write(folder.path().join("config.json"), "{}").unwrap();
        assert_eq!(Checkpoint::file_in(folder.path()), None);
        fs::remove_file(folder.path().join("config.json")).unwrap();
        // Of two unknown names none is the model; the usual name is.
        fs::copy(&lone, folder.path().join("other.pth")).unwrap();
        assert_eq!(Checkpoint::file_in(folder.path()), None);
        fs::write(
            folder.path().join(PICKLE_INDEX),
            r#"{"weight_map":{"row":"other.pth"}}"#,
        )
        .unwrap();
        let read = Checkpoint::open(folder.path()).unwrap();
        assert_eq!(read.names().collect::<Vec<_>>(), ["row"]);
        assert_eq!(
            read.read_f32("row", None).unwrap(),
            whole.read_f32("row", None).unwrap()
        );
    }
}
