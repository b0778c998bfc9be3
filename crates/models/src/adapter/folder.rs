//! Adapter folders with the base that they name.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use espalier_kernels::stored::FourBit;
use serde_json::{Map, Value};

use super::{Adapter, CONFIGURATION};
use crate::{
    Error, Result,
    families::Family,
    folder::{self, LoadedModel},
    fresh_classifier,
    model::LanguageModel,
    tied_head::{EMBEDDING, HEAD, tensor_in_memory},
};

/// Loads an adapter folder and its base, see [`base_folder`]. `changes` replace keys of the base's `config.json`, and `quantise` says
/// how its linear maps are rounded, if they are.
///
/// # Errors
/// When a file is missing or damaged, or the adapter does not fit its base.
pub fn load(
    folder: &Path,
    changes: &Map<String, Value>,
    quantise: Option<&'static FourBit>,
    device: &Device,
) -> Result<LoadedModel> {
    let adapter = Adapter::read(folder)?;
    let base = base_folder(folder, &adapter)?;
    if base.join(CONFIGURATION).is_file() {
        return Err(Error::Adapter {
            path: folder.join(CONFIGURATION),
            reason: format!(
                "its base {} is an adapter itself; merge that into its own base first, and name the result here",
                base.display()
            ),
        });
    }
    let mut loaded = folder::load_quantised(&base, changes, quantise, device)?;
    fit_base(&mut loaded, &adapter, folder)?;
    let family = loaded.family()?;
    if let Some(named) = adapter
        .base_model()
        .filter(|named| is_elsewhere(&base, named))
    {
        loaded.remarks.push(format!(
            "{}: the base model is no longer at {named}; {} is taken for it",
            folder.join(CONFIGURATION).display(),
            base.display()
        ));
    }
    loaded.adapter = Some(adapter.load(&mut loaded.model, family, folder)?);
    Ok(loaded)
}

/// Gives the base what the adapter in `folder` needs before it can stand on it: a classifier as large as the adapter's, and rows for its
/// tokens. What the user should know is added to the remarks.
///
/// # Errors
/// When the folder cannot be read, the family has no classifier, or another adapter is attached that would have to be changed.
pub fn fit_base(loaded: &mut LoadedModel, adapter: &Adapter, folder: &Path) -> Result<()> {
    fresh_classifier::for_adapter(loaded, adapter, folder)?;
    let family = loaded.family()?;
    let known = loaded.model.spec().vocabulary;
    let rows = adapter.rows_needed(&loaded.model, family)?;
    let rows = rows.max(whole_rows(&loaded.model, family, adapter, folder)?);
    if rows > known {
        loaded.model = loaded.model.grown(known, rows)?;
        loaded.remarks.push(format!(
            "{}: the adapter has rows for {} more tokens than its base; in PEFT, resize the base first (`resize_token_embeddings({rows})`)",
            folder.display(),
            rows - known
        ));
    }
    let remarks = adapter.remarks(&loaded.model, family);
    loaded.remarks.extend(remarks);
    Ok(())
}

/// The rows of the tables of tokens that the adapter's file holds whole, as PEFT writes them where the vocabulary was resized before
/// training and the embedding is adapted; 0 where it does not hold all that new tokens need.
fn whole_rows(
    model: &LanguageModel,
    family: &Family,
    adapter: &Adapter,
    folder: &Path,
) -> Result<usize> {
    let spec = model.spec();
    let weights = adapter.weights(folder)?;
    let rows = |ours: &str| {
        let name = tensor_in_memory(ours, family, spec)?;
        weights.shape_of_base(&name)?.first().copied()
    };
    let embedding = rows(EMBEDDING);
    let head_is_there = spec.tied_head || spec.headless || rows(HEAD) == embedding;
    Ok(embedding
        .filter(|_| head_is_there && !spec.head_bias)
        .unwrap_or(0))
}

/// Whether a base was found elsewhere than at its absolute path.
fn is_elsewhere(base: &Path, named: &str) -> bool {
    Path::new(named).is_absolute() && base != Path::new(named)
}

/// The base model of an adapter folder: where its configuration says, beside the adapter or in the working folder. A base that was
/// moved together with the adapter is found by the end of its path, in the folders above the adapter.
///
/// # Errors
/// When the configuration names no base model, or there is none where it says.
pub fn base_folder(folder: &Path, adapter: &Adapter) -> Result<PathBuf> {
    let missing = |reason: String| Error::Adapter {
        path: folder.join(CONFIGURATION),
        reason,
    };
    let name = adapter.base_model().filter(|name| !name.trim().is_empty());
    let name = name.ok_or_else(|| {
        let fix = "write the folder of the model that the adapter was trained on there";
        missing(format!(
            "`base_model_name_or_path` is missing or empty; {fix}"
        ))
    })?;
    let beside = folder.join(name);
    let is_there = |path: &PathBuf| path.is_dir() || folder::is_bare(path);
    let mut named = [beside.clone(), PathBuf::from(name)].into_iter();
    let found = named.find(is_there).or_else(|| moved(folder, name));
    found.ok_or_else(|| {
        let fix = "put it there, or change `base_model_name_or_path`";
        let beside = beside.display();
        missing(match Path::new(name).is_absolute() {
            true => {
                format!("base model {beside} is not there, nor further up from the adapter; {fix}")
            }
            false => format!(
                "base model `{name}` is neither at {beside} nor in the working folder; {fix}"
            ),
        })
    })
}

/// The model folder whose path ends as the absolute path `name` does, over two names at least, from the nearest folder above the
/// adapter; longer ends first.
fn moved(folder: &Path, name: &str) -> Option<PathBuf> {
    let name = Path::new(name);
    let parts: Vec<_> = name.components().skip(1).collect();
    if !name.is_absolute() {
        return None;
    }
    let place = std::path::absolute(folder).ok()?;
    let ends = (0..parts.len().saturating_sub(1)).map(|skipped| parts[skipped..].iter().collect());
    let is_model = |path: &PathBuf| {
        *path != place && (path.join("config.json").is_file() || folder::is_bare(path))
    };
    ends.flat_map(|end: PathBuf| place.ancestors().map(move |above| above.join(&end)))
        .find(is_model)
}
