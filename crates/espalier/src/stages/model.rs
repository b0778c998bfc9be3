//! The model that a training stage starts from, and the folder that it leaves behind.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use espalier_data::{
    record::Record,
    template::{CHATML, ChatTemplate},
    tokenizer::{BpeOptions, Tokenizer},
};
use espalier_models::{
    adapter,
    checkpoint::{Dtype, PeftConfig},
    families,
    folder::{self, LoadedModel},
    model::LanguageModel,
    source::Seed,
    spec::ModelSpec,
};

use super::data::text_of;
use crate::{Error, Result, recipe::NewModel};

/// A model with its text front end, ready to be trained.
pub struct Start {
    /// The model and what its folder says.
    pub loaded: LoadedModel,
    /// The tokenizer, with the template that the recipe or the folder gives.
    pub tokenizer: Tokenizer,
}

/// Loads a model or adapter folder with its tokenizer.
///
/// # Errors
/// When a file is missing or damaged.
pub fn open(path: &Path, template: Option<&str>, device: &Device) -> Result<Start> {
    if !path.is_dir() {
        return Err(Error::usage(format!(
            "model `{}` is not a folder, nor the name of an earlier stage",
            path.display()
        )));
    }
    let loaded = folder::load(path, device)?;
    let place = if path.join("tokenizer.json").is_file() { path } else { loaded.base.as_path() };
    let tokenizer = with_template(Tokenizer::load(place)?, template)?;
    check_vocabulary(&tokenizer, &loaded.model)?;
    Ok(Start { loaded, tokenizer })
}

/// A tokenizer with more tokens than the model has rows would fail in the middle of training.
fn check_vocabulary(tokenizer: &Tokenizer, model: &LanguageModel) -> Result<()> {
    let (tokens, rows) = (tokenizer.vocabulary_size(), model.spec().vocabulary);
    match tokens <= rows {
        true => Ok(()),
        false => Err(Error::work(format!(
            "the tokenizer has {tokens} tokens but the model only {rows}; they do not belong together"
        ))),
    }
}

/// A fresh model and, unless the recipe names one, a tokenizer trained on all of `records`.
///
/// # Errors
/// When the sizes make no sense.
pub fn create<'a>(
    new: &NewModel,
    records: impl Iterator<Item = &'a Record> + Send,
    template: Option<&str>,
    seed: u64,
    device: &Device,
) -> Result<Start> {
    let tokenizer = match &new.tokenizer {
        Some(folder) => Tokenizer::load(folder)?,
        None => {
            let options = BpeOptions { vocabulary: new.vocabulary, ..BpeOptions::default() };
            Tokenizer::train_byte_level_bpe(records.map(text_of), &options)?
        }
    };
    let tokenizer = match (template, tokenizer.template()) {
        (None, None) => tokenizer.with_template(ChatTemplate::new(CHATML)?),
        _ => with_template(tokenizer, template)?,
    };
    let spec = specification(new, &tokenizer)?;
    let base = PathBuf::new();
    let model = LanguageModel::build(spec, &mut Seed(seed), device)?;
    let config = (families::by_name("llama")?.write)(model.spec());
    Ok(Start { loaded: LoadedModel { model, config, base, dtype: Dtype::F32, adapter: None }, tokenizer })
}

fn specification(new: &NewModel, tokenizer: &Tokenizer) -> Result<ModelSpec> {
    let sizes = [new.width, new.layers, new.heads, new.kv_heads, new.inner, new.context];
    let fits = sizes.iter().all(|size| (1..=1 << 20).contains(size))
        && new.width.is_multiple_of(new.heads)
        && new.heads.is_multiple_of(new.kv_heads)
        && (new.width / new.heads).is_multiple_of(2);
    if !(new.initializer_range > 0.0 && new.initializer_range.is_finite()) {
        return Err(Error::usage("`new.initializer_range` must be a positive number"));
    }
    if !fits {
        return Err(Error::usage(
            "`new`: all sizes must be positive, `heads` divide `width` into even parts and `kv_heads` divide `heads`",
        ));
    }
    let vocabulary = tokenizer.vocabulary_size();
    let mut spec = ModelSpec::llama(vocabulary, new.width, new.layers, new.heads, new.kv_heads, new.inner, new.context);
    spec.initializer_range = new.initializer_range;
    let id = |token: &Option<String>| tokenizer.id(token.as_deref()?);
    let special = tokenizer.special();
    (spec.bos, spec.pad) = (id(&special.bos), id(&special.pad));
    spec.eos = id(&special.eos).into_iter().collect();
    Ok(spec)
}

/// The tokenizer with another chat template: `chatml`, or the template in a file.
///
/// # Errors
/// When the file cannot be read or is no template.
pub fn with_template(tokenizer: Tokenizer, template: Option<&str>) -> Result<Tokenizer> {
    let source = match template {
        None => return Ok(tokenizer),
        Some("chatml") => CHATML.to_owned(),
        Some(path) => std::fs::read_to_string(path).map_err(Error::file(path))?,
    };
    Ok(tokenizer.with_template(ChatTemplate::new(&source)?))
}

/// Writes the trained model: a whole model folder, or a PEFT folder when an adapter was trained.
///
/// # Errors
/// When the disk is full.
pub fn save(
    folder: &Path,
    model: &LanguageModel,
    loaded: &LoadedModel,
    peft: Option<&PeftConfig>,
    tokenizer: &Tokenizer,
) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(Error::file(folder))?;
    tokenizer.save(folder)?;
    match peft {
        None => Ok(folder::save(model, folder, Some(&loaded.config), Dtype::F32)?),
        Some(peft) => {
            let mut peft = peft.clone();
            peft.base_model = Some(relative_to(folder, &loaded.base));
            Ok(adapter::save(model, loaded.family()?, &peft, folder)?)
        }
    }
}

/// The path from `folder` to `target` where both lie under the working folder, so that they can move together; else absolute.
fn relative_to(folder: &Path, target: &Path) -> String {
    let absolute = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let (folder, target) = (absolute(folder), absolute(target));
    let shared = folder.components().zip(target.components()).take_while(|(a, b)| a == b).count();
    let here = std::env::current_dir().map(|path| absolute(&path).components().count()).unwrap_or(usize::MAX);
    if shared < here {
        return target.to_string_lossy().into_owned();
    }
    let up = folder.components().skip(shared).map(|_| PathBuf::from(".."));
    let path: PathBuf = up.chain(target.components().skip(shared).map(|c| PathBuf::from(c.as_os_str()))).collect();
    path.to_string_lossy().into_owned()
}
