//! The model families: how each one's `config.json` becomes a [`ModelSpec`], and its tensor names become ours.
//!
//! A family is one file and one line in [`FAMILIES`]. Everything else, from loading to training, knows only the spec.

pub mod albert;
pub mod bart;
pub mod bert;
pub mod bigs;
pub mod bitnet;
pub mod bloom;
pub mod cohere;
pub mod cohere2;
pub mod config;
mod config_keys;
pub mod deepseek;
pub mod distilbert;
pub mod electra;
mod encoder_layout;
pub mod exaone4;
pub mod falcon;
mod frame;
pub mod gemma;
pub mod gemma2;
pub mod gemma3;
pub mod glm;
pub mod gpt2;
pub mod gpt_bigcode;
pub mod gpt_neox;
pub mod gpt_oss;
pub mod gptj;
pub mod granite;
pub mod granitemoe;
mod heads;
pub mod jamba;
pub mod jetmoe;
mod layer_types;
pub mod llama;
mod llama_layout;
pub mod m2m_100;
pub mod mamba;
pub mod mamba2;
pub mod mambaformer;
pub mod marian;
pub mod mbart;
pub mod mistral;
pub mod mixtral;
pub mod modernbert;
pub mod module_names;
pub mod mpnet;
pub mod mpt;
pub mod nemotron;
pub mod nomic_bert;
pub mod olmo;
pub mod olmo2;
pub mod olmo3;
pub(crate) mod one_bit;
pub mod openelm;
pub mod opt;
pub mod palm;
pub mod pegasus;
pub mod phi;
pub mod phi3;
pub mod qwen2;
pub mod qwen3;
pub mod qwen_moe;
mod qwen_windows;
pub mod recurrent_gemma;
pub mod roberta;
pub mod rope;
mod routers;
mod rwkv;
pub mod rwkv4;
pub mod rwkv5;
pub mod rwkv6;
pub mod rwkv7;
pub mod smollm3;
pub mod stablelm;
pub mod starcoder2;
mod state_spaces;
pub mod t5;
mod tensor_table;

pub use config::{Config, is_unset};
pub use heads::classifying;
pub use module_names::ModuleNames;
pub use rwkv::bare;
pub use tensor_table::TensorEntry;

use crate::error::{Error, Result};
use crate::spec::{AttentionSpec, BlockSpec, ChannelSpec, MixerSpec, MlpSpec, ModelSpec};
use espalier_data::nearest::nearest_architectures;
use frame::{Frame, write_frame};
use serde_json::{Map, Value, json};
use std::path::Path;
use tensor_table::{Fused, GATE_UP, QUERY_KEY_VALUE, rename, table};

/// What the rest of the crate needs to know of a family.
#[derive(Debug)]
pub struct Family {
    /// `model_type` of `config.json`, and [`ModelSpec::family`].
    pub model_type: &'static str,
    /// `architectures[0]` of `config.json`.
    pub architecture: &'static str,
    /// Reads a configuration.
    pub read: fn(&Config) -> Result<ModelSpec>,
    /// Writes a configuration in today's form; use [`write_config`], which checks that nothing was lost.
    pub write: fn(&ModelSpec) -> Map<String, Value>,
    /// The checkpoint's tensors, in the order of [`ModelSpec::parameters`].
    pub tensors: fn(&ModelSpec) -> Vec<TensorEntry>,
    /// How the modules of transformers, which adapters name, differ from the tensors.
    pub modules: ModuleNames,
    /// What base-model files leave out before tensor names.
    pub prefix: &'static str,
    /// Ends of the names of derived buffers in old files, to be ignored.
    pub ignored: &'static [&'static str],
}

/// All families, one line each.
pub const FAMILIES: &[Family] = &[
    albert::FAMILY,
    bart::FAMILY,
    bert::FAMILY,
    bigs::FAMILY,
    bitnet::FAMILY,
    bloom::FAMILY,
    cohere2::FAMILY,
    cohere::FAMILY,
    deepseek::SECOND,
    deepseek::THIRD,
    distilbert::FAMILY,
    electra::FAMILY,
    exaone4::FAMILY,
    falcon::FAMILY,
    gemma2::FAMILY,
    gemma3::FAMILY,
    gemma::FAMILY,
    glm::FAMILY,
    glm::SECOND,
    gpt2::FAMILY,
    gpt_bigcode::FAMILY,
    gpt_neox::FAMILY,
    gpt_oss::FAMILY,
    gptj::FAMILY,
    granite::FAMILY,
    granitemoe::FAMILY,
    granitemoe::SHARED,
    jamba::FAMILY,
    jetmoe::FAMILY,
    llama::FAMILY,
    m2m_100::FAMILY,
    mamba2::FAMILY,
    mamba::FALCON,
    mamba::FAMILY,
    mambaformer::FAMILY,
    marian::FAMILY,
    mbart::FAMILY,
    mistral::FAMILY,
    mixtral::FAMILY,
    modernbert::FAMILY,
    mpnet::FAMILY,
    mpt::FAMILY,
    nemotron::FAMILY,
    nomic_bert::FAMILY,
    olmo2::FAMILY,
    olmo3::FAMILY,
    olmo::FAMILY,
    openelm::FAMILY,
    opt::FAMILY,
    palm::FAMILY,
    pegasus::FAMILY,
    phi3::FAMILY,
    phi::FAMILY,
    qwen2::FAMILY,
    qwen3::FAMILY,
    qwen_moe::OLMOE,
    qwen_moe::QWEN2,
    qwen_moe::QWEN3,
    recurrent_gemma::FAMILY,
    roberta::CAMEMBERT,
    roberta::FAMILY,
    roberta::XLM_ROBERTA,
    rwkv4::AUTHORS,
    rwkv4::FAMILY,
    rwkv5::FAMILY,
    rwkv6::FAMILY,
    rwkv7::FAMILY,
    smollm3::FAMILY,
    stablelm::FAMILY,
    starcoder2::FAMILY,
    t5::FAMILY,
    t5::MT5,
    t5::UMT5,
];

/// The family of a configuration: by `architectures[0]`, or, where that is absent or unknown, by `model_type`.
///
/// # Errors
/// When neither is known, or the architecture is a head of another kind; the error names the nearest.
pub fn family(config: &Config) -> Result<&'static Family> {
    if config.contains("intervention_types") {
        return Err(config.error(
            "intervention_types",
            "this is pyreft's configuration of an adapter; put an adapter_config.json beside it that says the base model and the positions, such as {\"peft_type\": \"LOREFT\", \"base_model_name_or_path\": \"path/to/base\", \"positions\": \"f7+l7\"}",
        ));
    }
    let architectures = config.optional_texts("architectures")?.unwrap_or_default();
    let model_type = config.optional_text("model_type")?;
    match (architectures.first(), model_type) {
        (Some(&name), model_type) => {
            let named = FAMILIES.iter().find(|family| family.is_architecture(name));
            let typed = || {
                let model_type = model_type.filter(|_| !is_other_head(name))?;
                FAMILIES
                    .iter()
                    .find(|family| family.model_type == model_type)
            };
            named.or_else(typed).ok_or_else(|| unknown(name))
        }
        (None, Some(name)) => by_name(name),
        (None, None) => Err(config.error(
            "architectures",
            "missing; add for example [\"LlamaForCausalLM\"]",
        )),
    }
}

/// Whether the architecture of this name ends in something else than a language model.
fn is_other_head(name: &str) -> bool {
    const LANGUAGE: [&str; 4] = [
        "ForCausalLM",
        "ForMaskedLM",
        "ForConditionalGeneration",
        "ForPreTraining",
    ];
    name.contains("For") && !LANGUAGE.iter().any(|head| name.ends_with(head))
}

/// The family of this `model_type`.
///
/// # Errors
/// When it is not known; the error names the nearest.
pub fn by_name(model_type: &str) -> Result<&'static Family> {
    FAMILIES
        .iter()
        .find(|family| family.model_type == model_type)
        .ok_or_else(|| unknown(model_type))
}

/// The configuration of `spec` in its family's form, with `dtype` float32 until the caller says otherwise.
///
/// ```
/// use espalier_models::families::write_config;
/// use espalier_models::spec::ModelSpec;
/// let mut spec = ModelSpec::llama(512, 64, 2, 4, 2, 160, 128);
/// assert_eq!(write_config(&spec)?["num_key_value_heads"], 2);
/// spec.blocks[1].mixer_norm = Some(espalier_models::spec::NormSpec::layer(1e-5));
/// assert!(write_config(&spec).is_err());
/// # Ok::<(), espalier_models::error::Error>(())
/// ```
///
/// # Errors
/// When the family is not known, or its configuration cannot express the spec, for example blocks of unequal width.
pub fn write_config(spec: &ModelSpec) -> Result<Map<String, Value>> {
    let family = by_name(&spec.family)?;
    let map = (family.write)(spec);
    let again = Config::from_map(Path::new("config.json"), map.clone());
    if !is_of(&again, spec)? {
        let reason = format!(
            "a configuration of the family `{}` cannot express this model",
            spec.family
        );
        return Err(Error::Invalid(format!(
            "{reason}; all blocks must be alike and of the family's kind"
        )));
    }
    Ok(map)
}

/// Whether a configuration of `spec`'s family describes it, but for what the names of the tensors tell.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn is_of(config: &Config, spec: &ModelSpec) -> Result<bool> {
    let again = (by_name(&spec.family)?.read)(config)?;
    let mut again = ModelSpec {
        pooler: spec.pooler,
        next_sentence: spec.next_sentence,
        ..again
    };
    again.take_tables_of(spec);
    Ok(again == *spec)
}

impl Family {
    /// Whether `name` is the architecture, its base model, or one that classifies.
    fn is_architecture(&self, name: &str) -> bool {
        heads::Task::named(name, self).is_some() || t5::is_encoder(name, self)
    }

    /// Whether `name` is the architecture of its model without a head.
    pub(crate) fn is_base_architecture(&self, name: &str) -> bool {
        heads::Task::named(name, self) == Some(heads::Task::Base)
    }

    /// Whether its head predicts masked tokens.
    fn is_masked(&self) -> bool {
        self.architecture.ends_with("ForMaskedLM")
    }
}

/// Names that are offered in place of one that is not known.
const MOST_SUGGESTED: usize = 3;

fn unknown(name: &str) -> Error {
    let name: &str = &name.chars().take(64).collect::<String>();
    let known = FAMILIES
        .iter()
        .flat_map(|family| [family.architecture, family.model_type]);
    let mut nearest = nearest_architectures(name, known);
    nearest.truncate(MOST_SUGGESTED);
    Error::UnknownArchitecture {
        name: name.into(),
        nearest: nearest.into_iter().map(Into::into).collect(),
    }
}

/// A number that readers of such files take as an integer: without a point wherever it is one.
fn whole(number: f64) -> Value {
    match number.fract() == 0.0 && number.abs() < 1e15 {
        true => json!(number as i64),
        false => json!(number),
    }
}

/// The attention of a block, if that is its mixer.
pub(crate) fn attention(block: &BlockSpec) -> Option<&AttentionSpec> {
    match &block.mixer {
        MixerSpec::Attention(attention) => Some(attention),
        MixerSpec::AttentionExperts(_)
        | MixerSpec::LatentAttention(_)
        | MixerSpec::Recurrent(_) => None,
    }
}

/// The sizes of a block's feed-forward layer, or of one expert, where there is one.
pub(crate) fn mlp(block: &BlockSpec) -> Option<&MlpSpec> {
    match &block.channel {
        ChannelSpec::Mlp(mlp) | ChannelSpec::GatedMlp(mlp) => Some(mlp),
        ChannelSpec::SparseExperts(experts) => Some(&experts.expert),
        ChannelSpec::MultiHeadExperts(spec) => Some(&spec.experts.expert),
        ChannelSpec::Rwkv(_) | ChannelSpec::None => None,
    }
}

/// The decoder's block to which our parameter of this name belongs.
fn block_of<'a>(spec: &'a ModelSpec, name: &str) -> Option<&'a BlockSpec> {
    let number = name
        .strip_prefix("blocks.")?
        .split('.')
        .next()?
        .parse::<usize>()
        .ok()?;
    spec.blocks.get(number)
}

/// `width / heads`, which must be whole.
fn even_head_dim(config: &Config, heads_key: &str, width: usize, heads: usize) -> Result<usize> {
    if !width.is_multiple_of(heads) {
        return Err(config.error(
            heads_key,
            format!("{heads} heads do not divide the width {width}; choose a divisor"),
        ));
    }
    Ok(width / heads)
}

#[cfg(test)]
mod published;
#[cfg(test)]
mod saving;

#[cfg(test)]
mod tests;
