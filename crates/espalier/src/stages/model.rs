//! The model that a training stage starts from, and the folder that it leaves behind.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use espalier_data::{
    disk,
    record::Record,
    template::{CHATML, ChatTemplate, PLAIN},
    tokenizer::{BpeOptions, Tokenizer},
};
use espalier_engine::sentence_transformers::SentenceTransformer;
use espalier_models::{
    adapter::Adapter,
    checkpoint::Dtype,
    families::{
        self, Config,
        config::{
            CONTEXT_LIMIT, HEAD_LIMIT, INNER_LIMIT, LAYER_LIMIT, VOCABULARY_LIMIT, WIDTH_LIMIT,
        },
    },
    folder::{self, LoadedModel},
    model::LanguageModel,
    source::Seed,
    spec::ModelSpec,
};
use espalier_train::objectives::symbols::Symbols;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Voice, data::text_of};
use crate::{
    Error, Result, memory, model_path,
    recipe::{DataOptions, shorthand},
};

/// A fresh model, in the LLaMA form unless `config` describes another, with a byte-level BPE tokenizer trained on the stage's data and on `tokenizer_data`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct NewModel {
    /// Tokens of the vocabulary.
    #[schemars(range(min = 1, max = VOCABULARY_LIMIT))]
    pub vocabulary: usize,
    /// A `config.json` of any family, as a table, in place of the sizes below; vocabulary and special tokens are filled in.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub config: Map<String, Value>,
    /// Width of the residual stream.
    #[schemars(range(min = 1, max = WIDTH_LIMIT))]
    pub width: usize,
    /// Blocks.
    #[schemars(range(min = 1, max = LAYER_LIMIT))]
    pub layers: usize,
    /// Query heads.
    #[schemars(range(min = 1, max = HEAD_LIMIT))]
    pub heads: usize,
    /// Key and value heads.
    #[schemars(range(min = 1, max = HEAD_LIMIT))]
    pub kv_heads: usize,
    /// Inner width of the gated feed-forward layer.
    #[schemars(range(min = 1, max = INNER_LIMIT))]
    pub inner: usize,
    /// Longest sequence.
    #[schemars(range(min = 1, max = CONTEXT_LIMIT))]
    pub context: usize,
    /// Standard deviation of fresh weights.
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub initializer_range: f64,
    /// A folder whose tokenizer is used instead of training one, or the name of an earlier stage.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<String>,
    /// What else the tokenizer is trained on besides the stage's data: texts of later stages, so that they are not spelt
    /// letter by letter.
    #[serde(
        deserialize_with = "shorthand::one_or_many",
        skip_serializing_if = "Vec::is_empty"
    )]
    #[schemars(schema_with = "shorthand::one_or_many_schema")]
    pub tokenizer_data: Vec<DataOptions>,
}

impl Default for NewModel {
    fn default() -> Self {
        Self {
            vocabulary: 2048,
            config: Map::new(),
            width: 256,
            layers: 4,
            heads: 4,
            kv_heads: 2,
            inner: 704,
            context: 512,
            initializer_range: 0.02,
            tokenizer: None,
            tokenizer_data: Vec::new(),
        }
    }
}

/// A model with its text front end, ready to be trained.
pub struct Start {
    /// The model and what its folder says.
    pub loaded: LoadedModel,
    /// The tokenizer, with the template that the recipe or the folder gives.
    pub tokenizer: Tokenizer,
}

/// Loads a model or adapter folder with its tokenizer; `changes` replace keys of its `config.json`.
///
/// # Errors
/// When a file is missing or damaged.
pub fn open(
    path: &Path,
    changes: &Map<String, Value>,
    template: Option<&str>,
    device: &Device,
) -> Result<Start> {
    if !path.is_dir() && !folder::is_bare(path) {
        return Err(missing(path));
    }
    let path = &model_path::resolve_model(path)?;
    let loaded = folder::load_changed(path, changes, device)?;
    let place = model_path::tokenizer_folder(path, &loaded.base);
    let tokenizer = with_template(Tokenizer::load(&place)?, template)?;
    check_vocabulary(&tokenizer, &loaded.model)?;
    Ok(Start { loaded, tokenizer })
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
    let added = match wanted - known {
        0 => return Ok(grown_start(start, model, tokenizer)),
        1 => "1 token added".to_owned(),
        count => format!("{count} tokens added"),
    };
    voice.say(&format!("   {added}; {rows}"));
    Ok(grown_start(start, model, tokenizer))
}

fn grown_start(start: Start, model: LanguageModel, tokenizer: Tokenizer) -> Start {
    let loaded = LoadedModel {
        model,
        ..start.loaded
    };
    Start { loaded, tokenizer }
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

/// A fresh model and, unless the recipe names one, a tokenizer trained on all of `records`.
///
/// # Errors
/// When the sizes make no sense.
pub fn create<'a>(
    new: &NewModel,
    records: impl Iterator<Item = &'a Record> + Send,
    special: &[String],
    template: Option<&str>,
    seed: u64,
    device: &Device,
) -> Result<Start> {
    let tokenizer = match &new.tokenizer {
        Some(folder) => Tokenizer::load(Path::new(folder))?,
        None => {
            let usual = BpeOptions::default();
            let special_tokens = usual
                .special_tokens
                .iter()
                .chain(special)
                .cloned()
                .collect();
            let options = BpeOptions {
                vocabulary: new.vocabulary,
                special_tokens,
                ..usual
            };
            Tokenizer::train_byte_level_bpe(records.map(text_of), &options)?
        }
    };
    let tokenizer = match (template, tokenizer.template()) {
        (None, None) => tokenizer.with_template(ChatTemplate::new(CHATML)?),
        _ => with_template(tokenizer, template)?,
    };
    let spec = match new.config.is_empty() {
        true => specification(new, &tokenizer)?,
        false => configured(new, &tokenizer)?,
    };
    check_memory(new, &spec, device)?;
    let base = PathBuf::new();
    let model = LanguageModel::build(spec, &mut Seed(seed), device)?;
    let config = families::write_config(model.spec())?;
    Ok(Start {
        loaded: LoadedModel {
            model,
            config,
            base,
            dtype: Dtype::F32,
            adapter: None,
            generation: Map::new(),
            remarks: Vec::new(),
        },
        tokenizer,
    })
}

/// What `new.config` describes, with the tokenizer's size and special tokens where it leaves them out.
fn configured(new: &NewModel, tokenizer: &Tokenizer) -> Result<ModelSpec> {
    let special = tokenizer.special();
    let id = |token: &Option<String>| tokenizer.id(token.as_deref()?);
    described(
        new,
        tokenizer.vocabulary_size(),
        [&special.bos, &special.eos, &special.pad].map(id),
    )
}

/// Whether `new` describes a model, as far as can be told before there is a tokenizer.
///
/// # Errors
/// When it does not.
pub fn check(new: &NewModel) -> Result<()> {
    // A tokenizer that the recipe names may be the work of an earlier stage, and decides which ids there are.
    match (new.config.is_empty(), new.tokenizer.is_some()) {
        (true, _) => check_sizes(new),
        (false, true) => Ok(()),
        (false, false) => described(new, new.vocabulary, [Some(0); 3]).map(drop),
    }
}

fn described(
    new: &NewModel,
    vocabulary: usize,
    [bos, eos, pad]: [Option<u32>; 3],
) -> Result<ModelSpec> {
    let plain = NewModel {
        vocabulary: new.vocabulary,
        config: new.config.clone(),
        ..NewModel::default()
    };
    let sized = NewModel {
        tokenizer: None,
        tokenizer_data: Vec::new(),
        ..new.clone()
    };
    if sized != plain {
        return Err(Error::usage(
            "`new`: with `config`, sizes belong into it; leave `width`, `layers` and the like out",
        ));
    }
    let filled = [
        ("vocab_size", Some(vocabulary as u32)),
        ("bos_token_id", bos),
        ("eos_token_id", eos),
        ("pad_token_id", pad),
        ("decoder_start_token_id", bos.or(pad).or(eos)),
    ];
    let mut map = new.config.clone();
    for (key, value) in filled {
        if !map.contains_key(key) {
            map.insert(key.to_owned(), value.into());
        }
    }
    let config = Config::from_map(Path::new("new.config"), map);
    let spec = (families::family(&config)?.read)(&config)?;
    config.refuse_unread()?;
    Ok(spec)
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

impl NewModel {
    /// The sizes by name, with the largest that makes sense.
    fn sizes(&self) -> [(&'static str, usize, usize); 7] {
        [
            ("vocabulary", self.vocabulary, VOCABULARY_LIMIT),
            ("width", self.width, WIDTH_LIMIT),
            ("layers", self.layers, LAYER_LIMIT),
            ("heads", self.heads, HEAD_LIMIT),
            ("kv_heads", self.kv_heads, HEAD_LIMIT),
            ("inner", self.inner, INNER_LIMIT),
            ("context", self.context, CONTEXT_LIMIT),
        ]
    }
}

/// Whether the weights of a fresh model and their gradients have room; the error names the size that is the most out of the ordinary.
fn check_memory(new: &NewModel, spec: &ModelSpec, device: &Device) -> Result<()> {
    let usual = NewModel::default().sizes();
    let excess = |((_, value, _), (_, usual, _)): &(_, (_, usize, _))| value / usual;
    let largest = new.sizes().into_iter().zip(usual).max_by_key(excess);
    let asked = match largest.filter(|_| new.config.is_empty()) {
        Some(((name, value, _), _)) => format!("`new.{name}` = {value}: a model of these sizes"),
        None => "`new.config`: this model".to_owned(),
    };
    let bytes = 2.0 * 4.0 * spec.parameter_count() as f64;
    memory::check(asked, bytes, "choose smaller sizes", device)
}

/// Whether the sizes make sense together.
fn check_sizes(new: &NewModel) -> Result<()> {
    let outside = |(_, value, most): &(_, usize, usize)| !(1..=*most).contains(value);
    if let Some((name, value, most)) = new.sizes().into_iter().find(outside) {
        return Err(Error::usage(format!(
            "`new.{name}`: {value} is outside 1 to {most}"
        )));
    }
    let fits = new.width.is_multiple_of(new.heads)
        && new.heads.is_multiple_of(new.kv_heads)
        && (new.width / new.heads).is_multiple_of(2);
    if !(new.initializer_range > 0.0 && new.initializer_range.is_finite()) {
        return Err(Error::usage(
            "`new.initializer_range` must be a positive number",
        ));
    }
    if !fits {
        return Err(Error::usage(
            "`new`: `heads` must divide `width` into even parts, and `kv_heads` must divide `heads`",
        ));
    }
    Ok(())
}

fn specification(new: &NewModel, tokenizer: &Tokenizer) -> Result<ModelSpec> {
    check_sizes(new)?;
    let vocabulary = tokenizer.vocabulary_size();
    let mut spec = ModelSpec::llama(
        vocabulary,
        new.width,
        new.layers,
        new.heads,
        new.kv_heads,
        new.inner,
        new.context,
    );
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
            Ok(adapter.save(model, family, folder)?)
        }
    }
}

/// Where a base model is, for other programs take a relative path for the name of a model on a hub.
fn absolute(path: &Path) -> String {
    let whole = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    whole.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

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
