//! From what a user calls a model to the model: a model folder (sentence-transformers' too), an adapter folder, or what a run left
//! behind.
//!
//! Left out: models of hubs, which are named in the error instead.

use std::path::{Path, PathBuf};
use std::{fs, io};

use burn::tensor::Device;
use espalier_data::{nearest::suggestion, tokenizer::Tokenizer};
use espalier_engine::{sentence_transformers::SentenceTransformer, text::TextModel};
use espalier_kernels::allocator;
use espalier_models::{
    checkpoint::Checkpoint,
    folder::{self, LoadedModel},
};
use espalier_train::quantise::QuantiseOptions;
use serde_json::Map;

use crate::{Error, Result, stages::folder::is_out_of_place};

/// A model that speaks, and where it came from.
#[derive(Debug, Clone)]
pub struct OpenedModel {
    /// Weights, adapters merged, and tokenizer.
    pub text: TextModel,
    /// The folder that was meant, an adapter's own.
    pub folder: PathBuf,
    /// The folder of the weights: the base model's where an adapter was meant.
    pub base: PathBuf,
    /// What the user should know of how the files were read, a sentence each.
    pub remarks: Vec<String>,
}

/// The model or adapter folder that `path` means: itself, its `model/`, or the `model/` of its last stage (`NN-*/model`). A
/// file of weights that explains itself (GGUF, RWKV's) is a model too.
///
/// ```
/// let error = espalier::model_path::resolve_model("some-org/some-model".as_ref()).unwrap_err();
/// assert!(error.to_string().contains("hubs cannot be reached yet"));
/// ```
///
/// # Errors
/// When there is no such folder, or no model in it; the message says what is there and what to do.
pub fn resolve_model(path: &Path) -> Result<PathBuf> {
    check_access(path)?;
    if !path.is_dir() {
        check_weights(path)?;
        return if folder::is_bare(path) {
            Ok(path.to_path_buf())
        } else {
            Err(Error::Work(no_folder(path)))
        };
    }
    let inside = |folder: &Path| {
        [folder.to_path_buf(), folder.join("model")]
            .into_iter()
            .find(|path| is_model(path))
            .or_else(|| {
                SentenceTransformer::transformer_folder(folder)
                    .ok()
                    .flatten()
            })
            .filter(|path| is_model(path))
    };
    let stage = || {
        stages(path)
            .into_iter()
            .rev()
            .find_map(|stage| inside(&stage))
    };
    if let Some(found) = inside(path).or_else(stage) {
        return Ok(found);
    }
    Checkpoint::file_in(path).map_or(Ok(()), |file| check_weights(&file))?;
    // What cannot be looked at is not missing.
    check_access(&path.join("config.json")).or_else(|error| match error {
        Error::Work(_) => Ok(()),
        other => Err(other),
    })?;
    let expected = "has neither config.json nor adapter_config.json nor a lone GGUF file or RWKV's weights, and no finished run's model/";
    Err(Error::Work(format!(
        "{}: {expected}; it holds {}",
        path.display(),
        contents(path).map_err(Error::file(path))?
    )))
}

/// A path as a recipe or another file names it.
///
/// # Errors
/// When it is not UTF-8, so that no text can name it.
pub fn as_text(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| {
        Error::Usage(format!(
            "{}: the path is not UTF-8, and texts can name no others; rename it, or reach it through a link",
            path.display()
        ))
    })
}

/// Whether something is there; the system's reason where it does not let us see.
fn check_access(path: &Path) -> Result<()> {
    match fs::metadata(path) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Error::Work(missing(path))),
        Err(error) => Err(Error::file(path)(error)),
    }
}

/// A damaged file of weights says what is wrong with it.
fn check_weights(file: &Path) -> Result<()> {
    let ending = file.extension().and_then(|ending| ending.to_str());
    if ending.is_some_and(|ending| ["safetensors", "pth", "pt", "gguf"].contains(&ending)) {
        Checkpoint::open(file)?;
    }
    Ok(())
}

/// Loads what `path` means; adapters stay attached.
///
/// # Errors
/// As [`resolve_model`], and when a file is damaged or does not fit the others.
pub fn load_model(path: &Path, device: &Device) -> Result<LoadedModel> {
    load_quantised_model(path, None, device)
}

/// As [`load_model`], with the (base) model's linear maps rounded where `quantise` says how.
///
/// # Errors
/// As [`load_model`].
pub fn load_quantised_model(
    path: &Path,
    quantise: Option<QuantiseOptions>,
    device: &Device,
) -> Result<LoadedModel> {
    let format = quantise.map(QuantiseOptions::format);
    let folder = resolve_model(path)?;
    Ok(folder::load_quantised(
        &folder,
        &Map::new(),
        format,
        device,
    )?)
}

/// Loads what `path` means together with its tokenizer, and merges adapters that can be merged.
///
/// # Errors
/// As [`load_model`], and when the tokenizer is missing or of another model.
pub fn open_text_model(path: &Path, device: &Device) -> Result<OpenedModel> {
    open_quantised_text_model(path, None, device)
}

/// As [`open_text_model`], with the (base) model's linear maps rounded where `quantise` says how; adapters then stay beside them.
///
/// # Errors
/// As [`open_text_model`].
pub fn open_quantised_text_model(
    path: &Path,
    quantise: Option<QuantiseOptions>,
    device: &Device,
) -> Result<OpenedModel> {
    let folder = resolve_model(path)?;
    let mut loaded = load_quantised_model(&folder, quantise, device)?;
    loaded.model.merge_what_can_be();
    let model = loaded.model.frozen();
    let home = tokenizer_folder(&folder, &loaded.base);
    let tokenizer = Tokenizer::load(&home)?;
    allocator::give_back_freed_memory();
    let (tokens, rows) = (tokenizer.vocabulary_size(), model.spec().vocabulary);
    if tokens > rows {
        let fix = "copy the tokenizer files of this model";
        let home = home.display();
        return Err(Error::Work(format!(
            "{home}: the tokenizer has {tokens} tokens but the model {rows} rows; {fix}"
        )));
    }
    Ok(OpenedModel {
        text: TextModel { model, tokenizer },
        folder,
        base: loaded.base,
        remarks: loaded.remarks,
    })
}

/// Where the tokenizer is: in the adapter's folder where it has one, else in the base model's; in a GGUF file itself, and beside any other
/// model that is a file.
pub fn tokenizer_folder(folder: &Path, base: &Path) -> PathBuf {
    let own = Tokenizer::file_in(folder).is_some();
    let home = if own { folder } else { base };
    let has_its_own = Tokenizer::file_in(home).is_some();
    match home.is_file() && !has_its_own {
        true => home
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
            .unwrap_or(Path::new("."))
            .to_path_buf(),
        false => home.to_path_buf(),
    }
}

fn is_model(folder: &Path) -> bool {
    let described = ["config.json", "adapter_config.json"]
        .iter()
        .any(|name| folder.join(name).is_file());
    described || folder::is_bare(folder)
}

/// Stage folders of a run (`01-pretrain`, `02-tune`, ...) by number.
fn stages(run: &Path) -> Vec<PathBuf> {
    let number = |name: &str| {
        name.split_once('-')
            .and_then(|(digits, _)| digits.parse::<u32>().ok())
    };
    let mut stages: Vec<(u32, String)> = names(run)
        .unwrap_or_default()
        .into_iter()
        .filter(|name| !is_out_of_place(name))
        .filter_map(|name| Some((number(&name)?, name)))
        .collect();
    stages.sort();
    stages.into_iter().map(|(_, name)| run.join(name)).collect()
}

/// Names in a folder, sorted.
fn names(folder: &Path) -> io::Result<Vec<String>> {
    let name =
        |entry: io::Result<fs::DirEntry>| Ok(entry?.file_name().to_string_lossy().into_owned());
    let mut names = fs::read_dir(folder)?
        .map(name)
        .collect::<io::Result<Vec<String>>>()?;
    names.sort();
    Ok(names)
}

fn contents(folder: &Path) -> io::Result<String> {
    let names = names(folder)?;
    Ok(match names.len() {
        0 => "nothing".into(),
        1..=8 => names.join(", "),
        count => format!("{}, ... ({count} in all)", names[..8].join(", ")),
    })
}

fn missing(path: &Path) -> String {
    if is_hub_name(path) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        return format!(
            "{}: no such folder here, and model hubs cannot be reached yet; download it, for example with `hf download {} --local-dir {name}`, and give the folder",
            path.display(),
            path.display()
        );
    }
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let known = names(parent).unwrap_or_default();
    let hint = suggestion(
        &path.file_name().unwrap_or_default().to_string_lossy(),
        known.iter().map(String::as_str),
    );
    format!(
        "{}: no such folder{hint}; expected a model folder, an adapter folder or a run's output",
        path.display()
    )
}

/// `organisation/name`, and no folder of the first name here.
fn is_hub_name(path: &Path) -> bool {
    let text = path.to_string_lossy();
    let plain = |part: &str| !part.is_empty() && !part.starts_with(['.', '~']);
    match text.split('/').collect::<Vec<_>>()[..] {
        [organisation, name] => {
            plain(organisation) && plain(name) && !Path::new(organisation).exists()
        }
        _ => false,
    }
}

fn no_folder(path: &Path) -> String {
    let fix = match path.extension().and_then(|ending| ending.to_str()) {
        Some("safetensors" | "pth" | "pt" | "bin" | "json") => "give the folder that it is in",
        Some("toml") => "it looks like a recipe: `espalier run` takes those",
        _ => "expected a folder with config.json and safetensors",
    };
    format!("{}: a file, not a model's folder; {fix}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(path: PathBuf) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "{}").unwrap();
    }

    #[test]
    fn runs_give_their_last_model() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path();
        touch(run.join("2-tune/model/adapter_config.json"));
        touch(run.join("10-align/model/config.json"));
        touch(run.join("11-evaluate/report.html"));
        assert_eq!(resolve_model(run).unwrap(), run.join("10-align/model"));
        assert_eq!(
            resolve_model(&run.join("2-tune")).unwrap(),
            run.join("2-tune/model")
        );
        touch(run.join("model/config.json"));
        assert_eq!(resolve_model(run).unwrap(), run.join("model"));
        touch(run.join("config.json"));
        assert_eq!(resolve_model(run).unwrap(), run);
    }

    #[test]
    fn what_is_no_model_is_explained() {
        let folder = tempfile::tempdir().unwrap();
        touch(folder.path().join("a.gguf"));
        let message = |name: &str| {
            resolve_model(&folder.path().join(name))
                .unwrap_err()
                .to_string()
        };
        assert!(message("").contains("does not begin as a GGUF file does"));
        assert!(message("a.gguf").contains("does not begin as a GGUF file does"));
        assert!(message("b.gguf").contains("did you mean `a.gguf`?"));
        let hub = resolve_model(Path::new("some-org/model-7b"))
            .unwrap_err()
            .to_string();
        assert!(
            hub.contains("`hf download some-org/model-7b --local-dir model-7b`"),
            "{hub}"
        );
        assert!(
            !is_hub_name(Path::new("./a"))
                && !is_hub_name(Path::new("a/b/c"))
                && !is_hub_name(Path::new("a"))
        );
    }

    /// A loop of links stands for any folder or file at which the system refuses a look: root may look at everything else.
    #[cfg(unix)]
    #[test]
    fn what_may_not_be_seen_is_not_called_missing() {
        use std::os::unix::fs::symlink;
        let folder = tempfile::tempdir().unwrap();
        let looped = folder.path().join("looped");
        symlink(&looped, &looped).unwrap();
        let message = |path: &Path| resolve_model(path).unwrap_err().to_string();
        let said = message(&looped);
        assert!(
            said.contains("looped") && said.contains("symbolic links"),
            "{said}"
        );
        let model = folder.path().join("model");
        fs::create_dir(&model).unwrap();
        symlink(model.join("config.json"), model.join("config.json")).unwrap();
        let said = message(&model);
        assert!(
            said.contains("config.json: ") && said.contains("symbolic links"),
            "{said}"
        );
        // A file where a folder is expected.
        fs::write(folder.path().join("file"), "").unwrap();
        let said = message(&folder.path().join("file/model"));
        assert!(said.contains("Not a directory"), "{said}");
        assert!(contents(&folder.path().join("file")).is_err());
    }

    #[test]
    fn an_adapters_own_tokenizer_wins() {
        let folder = tempfile::tempdir().unwrap();
        let (adapter, base) = (folder.path().join("adapter"), folder.path().join("base"));
        assert_eq!(tokenizer_folder(&adapter, &base), base);
        touch(adapter.join("tokenizer.json"));
        assert_eq!(tokenizer_folder(&adapter, &base), adapter);
    }
}
