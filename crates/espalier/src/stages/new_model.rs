//! A fresh model: its sizes and their bounds, its configuration, its tokenizer.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use espalier_data::{
    record::Record,
    template::{CHATML, ChatTemplate},
    tokenizer::{BpeOptions, Tokenizer},
};
use espalier_models::{
    checkpoint::Dtype,
    families::{
        self, Config,
        config::{
            CONTEXT_LIMIT, HEAD_LIMIT, INNER_LIMIT, LAYER_LIMIT, VOCABULARY_LIMIT, WIDTH_LIMIT,
        },
    },
    folder::LoadedModel,
    model::LanguageModel,
    source::Seed,
    spec::{ModelSpec, WeightBits},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    data::text_of,
    model::{Start, with_template},
};
use crate::{
    Error, Result, memory,
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

/// What the stage says of its fresh model beside `new`.
#[derive(Debug, Clone, Copy)]
pub struct Fresh {
    /// What weights are rounded to when they multiply.
    pub bits: Option<WeightBits>,
    /// The seed of the weights.
    pub seed: u64,
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
    fresh: Fresh,
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
    let mut spec = match new.config.is_empty() {
        true => specification(new, &tokenizer)?,
        false => configured(new, &tokenizer)?,
    };
    spec.bits = fresh.bits.or(spec.bits);
    check_memory(new, &spec, device)?;
    let base = PathBuf::new();
    let model =
        LanguageModel::build(spec, &mut Seed(fresh.seed), device).map_err(Error::of_request)?;
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
        added: Vec::new(),
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
