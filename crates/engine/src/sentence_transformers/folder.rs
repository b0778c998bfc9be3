//! The folder of a sentence-transformers model, read and copied.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Component, Path, PathBuf};

use espalier_data::disk;
use serde_json::{Map, Value};

use super::{Dense, Module, Norm, SentencePooling, SentenceTransformer};
use crate::{Error, Result};

const MODULES: &str = "modules.json";
const PROMPTS: &str = "config_sentence_transformers.json";
/// The transformer's own settings; the library looks for all these names.
const SETTINGS: [&str; 7] = [
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
];

/// A folder says something that is not understood.
pub(super) fn wrong(path: &Path, reason: impl Into<String>) -> Error {
    Error::SentenceTransformer(format!("{}: {}", path.display(), reason.into()))
}

/// An entry of `modules.json`.
struct Entry {
    /// The last part of the class's name.
    kind: String,
    /// The folder below the model's; empty for itself.
    path: String,
}

impl Entry {
    /// Whether it has a folder of its own besides the transformer's.
    fn has_folder(&self) -> bool {
        self.kind != "Transformer" && !self.path.is_empty()
    }
}

impl SentenceTransformer {
    /// The folder of the transformer's weights below a folder with a `modules.json`; nothing where there is none.
    ///
    /// # Errors
    /// When `modules.json` is malformed.
    pub fn transformer_folder(folder: &Path) -> Result<Option<PathBuf>> {
        let Some(entries) = entries(folder)? else {
            return Ok(None);
        };
        let transformer = entries.iter().find(|entry| entry.kind == "Transformer");
        Ok(transformer.map(|entry| join(folder, &entry.path)))
    }

    /// What the `modules.json` of a model's folder says, or that of the folder above where the model lies below it; nothing where
    /// there is none.
    ///
    /// # Errors
    /// When a file is malformed, or a module is of a kind that is not read.
    pub fn load(transformer: &Path) -> Result<Option<Self>> {
        home(transformer)?.map_or(Ok(None), |home| read(&home, transformer).map(Some))
    }

    /// The files that [`SentenceTransformer::load`] reads besides the transformer's own.
    ///
    /// # Errors
    /// When `modules.json` is malformed.
    pub fn files(transformer: &Path) -> Result<Vec<PathBuf>> {
        let Some(home) = home(transformer)? else {
            return Ok(Vec::new());
        };
        let mut files = vec![home.join(MODULES), home.join(PROMPTS)];
        files.extend(SETTINGS.map(|name| transformer.join(name)));
        for entry in entries(&home)?.unwrap_or_default() {
            if entry.has_folder() {
                files.extend(contents(&join(&home, &entry.path))?);
            }
        }
        files.retain(|path| path.is_file());
        Ok(files)
    }

    /// Copies what [`SentenceTransformer::load`] reads into the folder of a model that was made of this one; nothing where there is nothing.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub fn copy(transformer: &Path, target: &Path) -> Result<()> {
        let Some(home) = home(transformer)? else {
            return Ok(());
        };
        for entry in entries(&home)?.unwrap_or_default() {
            if entry.has_folder() {
                copy_folder(&join(&home, &entry.path), &join(target, &entry.path))?;
            }
        }
        copy_if_there(&home.join(PROMPTS), &target.join(PROMPTS))?;
        for name in SETTINGS {
            copy_if_there(&transformer.join(name), &target.join(name))?;
        }
        // The transformer itself lies at the top of what is saved.
        let mut list = read_list(&home)?.unwrap_or_default();
        for entry in &mut list {
            if kind(entry) == "Transformer" {
                entry["path"] = "".into();
            }
        }
        let path = target.join(MODULES);
        let text = serde_json::to_string_pretty(&list)
            .map_err(|reason| wrong(&path, reason.to_string()))?;
        disk::write_whole(&path, text.as_bytes())
            .map_err(|source| espalier_data::Error::file(&path, source))?;
        Ok(())
    }
}

/// The folder whose `modules.json` has this folder as its transformer.
fn home(transformer: &Path) -> Result<Option<PathBuf>> {
    let parent = transformer
        .parent()
        .filter(|parent| names(parent, transformer));
    for folder in [Some(transformer), parent].into_iter().flatten() {
        let own = SentenceTransformer::transformer_folder(folder)?;
        if own.is_some_and(|own| same(&own, transformer)) {
            return Ok(Some(folder.to_path_buf()));
        }
    }
    Ok(None)
}

/// Whether the `modules.json` of a folder is a list of modules, one of which lies at `child`. Other programs have files of this name too.
fn names(folder: &Path, child: &Path) -> bool {
    let text = fs::read_to_string(folder.join(MODULES)).unwrap_or_default();
    let list: Vec<Value> = serde_json::from_str(&text).unwrap_or_default();
    let mut paths = list
        .iter()
        .filter_map(|module| module.get("path")?.as_str());
    paths.any(|path| !path.is_empty() && same(&folder.join(path), child))
}

fn same(a: &Path, b: &Path) -> bool {
    let plain = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    plain(a) == plain(b)
}

fn join(folder: &Path, path: &str) -> PathBuf {
    if path.is_empty() {
        folder.to_path_buf()
    } else {
        folder.join(path)
    }
}

fn read(home: &Path, transformer: &Path) -> Result<SentenceTransformer> {
    let (mut pooling, mut modules) = (None, Vec::new());
    for entry in entries(home)?.unwrap_or_default() {
        let folder = join(home, &entry.path);
        let config = || object(&folder.join("config.json"));
        match (entry.kind.as_str(), &pooling) {
            ("Transformer", None) | ("Dropout", _) => {}
            ("Pooling", None) => pooling = Some(SentencePooling::read(&folder, &config()?)?),
            ("Dense", Some(_)) => modules.push(Module::Dense(Dense::read(&folder, &config()?)?)),
            ("LayerNorm", Some(_)) => modules.push(Module::Norm(Norm::read(&folder, &config()?)?)),
            ("Normalize", Some(_)) => modules.push(Module::Normalize),
            (kind, _) => {
                let known =
                    "a Transformer and one Pooling, then Dense, LayerNorm, Dropout and Normalize";
                return Err(wrong(
                    &home.join(MODULES),
                    format!(
                        "a module `{kind}` at `{}` is not read; what is read is {known}",
                        entry.path
                    ),
                ));
            }
        }
    }
    let pooling = pooling.ok_or_else(|| {
        wrong(
            &home.join(MODULES),
            "has no Pooling, so a text has no vector of its own",
        )
    })?;
    let settings = SETTINGS
        .iter()
        .map(|name| transformer.join(name))
        .find(|path| path.is_file());
    let settings = settings.map_or(Ok(Map::new()), |path| object(&path))?;
    let (prompts, default_prompt) = prompts(home)?;
    let transformer = SentenceTransformer {
        pooling,
        modules,
        max_length: max_length(&settings, transformer)?,
        lower_case: settings
            .get("do_lower_case")
            .and_then(Value::as_bool)
            .unwrap_or(false),
        prompts,
        default_prompt,
        truncated: truncated(home)?,
    };
    check_sizes(home, &transformer)?;
    transformer.prompt(None)?;
    Ok(transformer)
}

/// What a layer takes must be what the one before it gives.
fn check_sizes(home: &Path, transformer: &SentenceTransformer) -> Result<()> {
    let mut given: Option<usize> = None;
    for module in &transformer.modules {
        let (takes, gives) = match module {
            Module::Dense(dense) => (dense.inputs(), dense.outputs()),
            Module::Norm(norm) => (norm.width(), norm.width()),
            Module::Normalize => continue,
        };
        if let Some(given) = given.filter(|given| *given != takes) {
            return Err(wrong(
                &home.join(MODULES),
                format!("a module takes vectors of {takes}, but the one before it gives {given}"),
            ));
        }
        given = Some(gives);
    }
    Ok(())
}

/// `max_seq_length`; where it is missing, the tokenizer's limit and the model's positions.
fn max_length(settings: &Map<String, Value>, transformer: &Path) -> Result<Option<usize>> {
    // "No limit" is written as a float of about 1e30.
    let number = |map: &Map<String, Value>, key: &str| {
        map.get(key)?.as_u64().and_then(|n| usize::try_from(n).ok())
    };
    if let Some(length) = number(settings, "max_seq_length") {
        return Ok(Some(length));
    }
    let (tokenizer, model) = (
        object_if_there(&transformer.join("tokenizer_config.json"))?,
        object_if_there(&transformer.join("config.json"))?,
    );
    let positions = ["max_position_embeddings", "n_positions"]
        .iter()
        .find_map(|key| number(&model, key));
    Ok(number(&tokenizer, "model_max_length")
        .into_iter()
        .chain(positions)
        .min())
}

/// The prompts by name, and the name of the default one.
fn prompts(home: &Path) -> Result<(BTreeMap<String, String>, Option<String>)> {
    let config = object_if_there(&home.join(PROMPTS))?;
    let listed = config
        .get("prompts")
        .and_then(Value::as_object)
        .into_iter()
        .flatten();
    let prompts =
        listed.map(|(name, text)| (name.clone(), text.as_str().unwrap_or_default().to_owned()));
    let default = config
        .get("default_prompt_name")
        .and_then(Value::as_str)
        .map(str::to_owned);
    Ok((prompts.collect(), default))
}

/// `truncate_dim`: how many numbers of a vector are kept.
fn truncated(home: &Path) -> Result<Option<usize>> {
    let path = home.join(PROMPTS);
    match object_if_there(&path)?.get("truncate_dim") {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_u64().and_then(|count| usize::try_from(count).ok()) {
            Some(count) if count > 0 => Ok(Some(count)),
            _ => Err(wrong(
                &path,
                format!("`truncate_dim`: {value} is no number of dimensions"),
            )),
        },
    }
}

fn entries(folder: &Path) -> Result<Option<Vec<Entry>>> {
    let Some(list) = read_list(folder)? else {
        return Ok(None);
    };
    let entry = |value: &Value| {
        let path = value
            .get("path")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        // Folders outside the model's are none of its modules.
        let inside = Path::new(&path)
            .components()
            .all(|part| matches!(part, Component::Normal(_)));
        match inside {
            true => Ok(Entry {
                kind: kind(value),
                path,
            }),
            false => Err(wrong(
                &folder.join(MODULES),
                format!("the path `{path}` leaves the folder"),
            )),
        }
    };
    list.iter().map(entry).collect::<Result<Vec<_>>>().map(Some)
}

/// The last part of a class's name: `sentence_transformers.models.Pooling` is a `Pooling`.
fn kind(entry: &Value) -> String {
    let full = entry
        .get("type")
        .and_then(Value::as_str)
        .unwrap_or_default();
    full.rsplit('.').next().unwrap_or(full).to_owned()
}

fn read_list(folder: &Path) -> Result<Option<Vec<Value>>> {
    let path = folder.join(MODULES);
    if !path.is_file() {
        return Ok(None);
    }
    let list =
        serde_json::from_str(&text(&path)?).map_err(|reason| wrong(&path, reason.to_string()))?;
    Ok(Some(list))
}

fn object_if_there(path: &Path) -> Result<Map<String, Value>> {
    if path.is_file() {
        object(path)
    } else {
        Ok(Map::new())
    }
}

fn object(path: &Path) -> Result<Map<String, Value>> {
    serde_json::from_str(&text(path)?).map_err(|reason| wrong(path, reason.to_string()))
}

fn text(path: &Path) -> Result<String> {
    Ok(fs::read_to_string(path).map_err(|source| espalier_data::Error::file(path, source))?)
}

fn copy_if_there(from: &Path, to: &Path) -> Result<()> {
    if !from.is_file() {
        return Ok(());
    }
    let bytes = fs::read(from).map_err(|source| espalier_data::Error::file(from, source))?;
    disk::write_whole(to, &bytes).map_err(|source| espalier_data::Error::file(to, source))?;
    Ok(())
}

/// Copies the files of a module's folder; it has none below it.
fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    disk::create_folder(to).map_err(|source| espalier_data::Error::file(to, source))?;
    for path in contents(from)? {
        if let Some(name) = path.file_name() {
            copy_if_there(&path, &to.join(name))?;
        }
    }
    Ok(())
}

/// What lies in a module's folder; one without settings may have none.
fn contents(folder: &Path) -> Result<Vec<PathBuf>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let failed = |source| Error::from(espalier_data::Error::file(folder, source));
    let entries = fs::read_dir(folder).map_err(failed)?;
    entries
        .map(|entry| Ok(entry.map_err(failed)?.path()))
        .collect()
}
