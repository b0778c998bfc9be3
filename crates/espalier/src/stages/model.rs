//! The model that a training stage starts from, and the folder that it leaves behind.

use std::{ops::Range, path::Path};

use burn::tensor::Device;
use espalier_data::{
    disk,
    template::{CHATML, ChatTemplate, PLAIN},
    tokenizer::Tokenizer,
};
use espalier_engine::sentence_transformers::SentenceTransformer;
use espalier_kernels::allocator;
use espalier_models::{
    adapter::{self, Adapter},
    checkpoint::Dtype,
    families,
    folder::{self, LoadedModel},
    fresh_classifier,
    model::LanguageModel,
    spec::{BlockSpec, MixerSpec, ModelSpec},
};
use espalier_train::{objectives::symbols::Symbols, quantise::QuantiseOptions};
use serde_json::{Map, Value};

use super::Voice;
use crate::{Error, Result, model_path};

/// A model with its text front end, ready to be trained.
pub struct Start {
    /// The model and what its folder says.
    pub loaded: LoadedModel,
    /// The tokenizer, with the template that the recipe or the folder gives.
    pub tokenizer: Tokenizer,
    /// The ids of tokens that were added to both.
    pub added: Vec<u32>,
}

/// Loads a model or adapter folder with its tokenizer; `changes` replace keys of its `config.json`, and `quantise` says how the base is
/// rounded, if it is.
///
/// # Errors
/// When a file is missing or damaged.
pub fn open(
    path: &Path,
    changes: &Map<String, Value>,
    quantise: Option<QuantiseOptions>,
    template: Option<&str>,
    device: &Device,
) -> Result<Start> {
    if !path.is_dir() && !folder::is_bare(path) {
        return Err(missing(path));
    }
    let path = &model_path::resolve_model(path)?;
    let format = quantise.map(QuantiseOptions::format);
    let loaded = folder::load_quantised(path, changes, format, device)?;
    allocator::give_back_freed_memory();
    let place = model_path::tokenizer_folder(path, &loaded.base);
    let tokenizer = with_template(Tokenizer::load(&place)?, template)?;
    check_vocabulary(&tokenizer, &loaded.model)?;
    Ok(Start {
        loaded,
        tokenizer,
        added: Vec::new(),
    })
}

/// Adds tokens to the tokenizer, and rows for them to the model.
///
/// # Errors
/// When a token is empty, the tokenizer cannot grow, or the model is an adapter.
pub fn grow(start: Start, tokens: &[String], voice: &mut dyn Voice) -> Result<Start> {
    if tokens.is_empty() {
        return Ok(start);
    }
    if start.loaded.adapter.is_some() {
        return Err(Error::usage(
            "`add_tokens` changes the base, and the model is an adapter on one; add the tokens to the base, and train the adapter on that",
        ));
    }
    let known = start.tokenizer.vocabulary_size();
    for remark in known_tokens(&start.tokenizer, tokens) {
        voice.say(&format!("   {remark}"));
    }
    let tokenizer = start.tokenizer.with_added(tokens)?;
    let (wanted, old) = (
        tokenizer.vocabulary_size(),
        start.loaded.model.spec().vocabulary,
    );
    let model = start.loaded.model.grown(known, wanted)?;
    let rows = match model.spec().vocabulary - old {
        0 => format!("of the model's {old} rows there are enough"),
        1 => "the model has 1 row more".to_owned(),
        more => format!("the model has {more} rows more"),
    };
    let new = known as u32..wanted as u32;
    let added = match wanted - known {
        0 => return Ok(grown_start(start, model, tokenizer, new)),
        1 => "1 token added".to_owned(),
        count => format!("{count} tokens added"),
    };
    voice.say(&format!("   {added}; {rows}"));
    Ok(grown_start(start, model, tokenizer, new))
}

fn grown_start(start: Start, model: LanguageModel, tokenizer: Tokenizer, new: Range<u32>) -> Start {
    let loaded = LoadedModel {
        model,
        ..start.loaded
    };
    Start {
        loaded,
        tokenizer,
        added: new.collect(),
    }
}

/// What becomes of tokens that the tokenizer has already, a sentence each.
fn known_tokens(tokenizer: &Tokenizer, tokens: &[String]) -> Vec<String> {
    let known = |token: &String| {
        let id = tokenizer.id(token)?;
        Some(match tokenizer.is_special(id) {
            true => format!("`{token}` is a special token already ({id}); it stays as it is"),
            false => format!(
                "`{token}` is a piece of the vocabulary already ({id}); it becomes special and keeps its row"
            ),
        })
    };
    tokens.iter().filter_map(known).collect()
}

/// Tells of texts that are longer than what the model was made for, where it reads them all the same: positions that it never saw mean
/// little to it. A memory of one size has no positions.
pub fn beyond_context(spec: &ModelSpec, longest: usize) -> Option<String> {
    let recurrent = |block: &BlockSpec| matches!(block.mixer, MixerSpec::Recurrent(_));
    let context = spec.context;
    let beyond = longest > context && !spec.blocks.iter().all(recurrent);
    beyond.then(|| {
        format!("texts of up to {longest} tokens go beyond the context of {context} that the model was made for")
    })
}

/// There is no model at a path.
pub fn missing(path: &Path) -> Error {
    Error::usage(format!(
        "model `{}` is not a folder, nor the name of an earlier stage",
        path.display()
    ))
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

/// Whether another model's tokens are those of `tokenizer`, as they have to be where the two predict the same texts.
///
/// # Errors
/// When they are not; the message has the first that differs.
pub fn check_same_tokens(path: &Path, tokenizer: &Tokenizer) -> Result<()> {
    if !path.is_dir() && !folder::is_bare(path) {
        return Err(missing(path));
    }
    let path = &model_path::resolve_model(path)?;
    let base = match path.join(adapter::CONFIGURATION).is_file() {
        true => adapter::base_folder(path, &Adapter::read(path)?)?,
        false => path.clone(),
    };
    let other = Tokenizer::load(&model_path::tokenizer_folder(path, &base))?;
    let count = tokenizer.vocabulary_size().max(other.vocabulary_size()) as u32;
    match (0..count).find(|id| tokenizer.token(*id) != other.token(*id)) {
        None => Ok(()),
        Some(id) => {
            let name = |tokenizer: &Tokenizer| match tokenizer.token(id) {
                Some(token) => format!("`{token}`"),
                None => "nothing".into(),
            };
            Err(Error::work(format!(
                "`{}` has other tokens than the model that is trained: {id} is {} there and {} here; only models over the same vocabulary \
                 can be compared",
                path.display(),
                name(&other),
                name(tokenizer)
            )))
        }
    }
}

/// The tokens that objectives may write.
pub fn symbols(tokenizer: &Tokenizer, model: &LanguageModel) -> Symbols {
    let special = tokenizer.special();
    let named = special.extra.get("mask_token").cloned();
    let masks = named
        .into_iter()
        .chain(["<mask>", "[MASK]", "_"].map(str::to_owned));
    let ends_sentence = |id: &u32| {
        tokenizer
            .token(*id)
            .is_some_and(|token| token.ends_with(['.', '!', '?']))
    };
    let sentinels = (0..)
        .map_while(|i| tokenizer.id(&format!("<extra_id_{i}>")))
        .collect();
    Symbols {
        mask: masks.filter_map(|token| tokenizer.id(&token)).next(),
        sentinels,
        special: tokenizer
            .special_texts()
            .iter()
            .filter_map(|token| tokenizer.id(token))
            .collect(),
        sentence_ends: (0..tokenizer.vocabulary_size() as u32)
            .filter(ends_sentence)
            .collect(),
        vocabulary: tokenizer.vocabulary_size().min(model.spec().vocabulary),
        decoder_start: model
            .spec()
            .encoder
            .as_ref()
            .map(|encoder| encoder.decoder_start),
        starts_with_last: model
            .spec()
            .encoder
            .as_ref()
            .is_some_and(|encoder| encoder.starts_with_last),
        eos: model.spec().eos.first().copied(),
    }
}

/// The tokenizer with another chat template: `chatml`, or the template in a file.
///
/// # Errors
/// When the file cannot be read or is no template.
pub fn with_template(tokenizer: Tokenizer, template: Option<&str>) -> Result<Tokenizer> {
    let source = match template {
        None => return Ok(tokenizer),
        Some("chatml") => CHATML.to_owned(),
        Some("plain") => PLAIN.to_owned(),
        Some(path) => std::fs::read_to_string(path).map_err(Error::file(path))?,
    };
    Ok(tokenizer.with_template(ChatTemplate::new(&source)?))
}

/// Configuration and base folder of a model, for the folder that is written.
#[derive(Debug, Clone, Copy)]
pub struct Origin<'a> {
    /// Its `config.json`, unknown keys included.
    pub config: &'a Map<String, Value>,
    /// Its `generation_config.json`.
    pub generation: &'a Map<String, Value>,
    /// The folder of the base model's weights.
    pub base: &'a Path,
}

/// Writes the trained model: a whole model folder, or an adapter's folder when an adapter was trained.
///
/// # Errors
/// When the disk is full.
pub fn save(
    folder: &Path,
    model: &LanguageModel,
    origin: Origin<'_>,
    adapter: Option<&Adapter>,
    tokenizer: &Tokenizer,
) -> Result<()> {
    disk::create_folder(folder).map_err(Error::file(folder))?;
    tokenizer.save(folder)?;
    match adapter {
        None => {
            SentenceTransformer::copy(origin.base, folder)?;
            Ok(folder::save_from(
                model,
                folder,
                Some(origin.config),
                origin.generation,
                Dtype::F32,
            )?)
        }
        Some(adapter) => {
            let adapter = adapter.clone().based_on(absolute(origin.base));
            let family = families::by_name(&model.spec().family)?;
            folder::save_other_ends(model, origin.base, folder)?;
            if model.spec().classifier.is_some() {
                fresh_classifier::save_names(origin.config, folder)?;
            }
            Ok(adapter.save(model, family, folder)?)
        }
    }
}

/// Where a base model is, for other programs take a relative path for the name of a model on a hub; as it was given where the whole path
/// is no text.
fn absolute(path: &Path) -> String {
    let whole = std::fs::canonicalize(path).ok();
    let whole = whole.as_deref().and_then(Path::to_str);
    whole.map_or_else(|| path.to_string_lossy().into_owned(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use espalier_data::tokenizer::BpeOptions;

    #[test]
    fn tokens_that_are_there_already_are_told_of() {
        let options = BpeOptions {
            vocabulary: 259,
            ..BpeOptions::default()
        };
        let tokenizer = Tokenizer::train_byte_level_bpe(std::iter::empty(), &options).unwrap();
        let end = tokenizer.special().eos.clone().unwrap();
        let (end_id, a) = (tokenizer.id(&end).unwrap(), tokenizer.id("a").unwrap());
        assert_eq!(
            known_tokens(&tokenizer, &["<new>".into(), end.clone(), "a".into()]),
            [
                format!("`{end}` is a special token already ({end_id}); it stays as it is"),
                format!(
                    "`a` is a piece of the vocabulary already ({a}); it becomes special and keeps its row"
                ),
            ]
        );
    }
}
