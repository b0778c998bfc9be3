//! Gemma 3 (arXiv 2503.19786), the text model: Gemma 2 with norms on queries and keys in place of soft caps, windows on five of six
//! layers, and rotary positions of their own on those.

use super::gemma::as_gemma;
use super::gemma2::{rounded, tensors};
use super::llama_layout::{self, IGNORED, PREFIX, Switches, layers};
use super::olmo3::{read_by_type, write_by_type};
use super::{
    Config, Family, ModuleNames, attention, config::CONTEXT_LIMIT, config_keys, layer_types, whole,
};
use crate::error::Result;
use crate::spec::{Activation, MixerSpec, ModelSpec, NormExtent};
use serde_json::{Map, Value, json};

/// The registration of Gemma 3.
pub const FAMILY: Family = Family {
    model_type: "gemma3_text",
    architecture: "Gemma3ForCausalLM",
    read,
    write,
    tensors,
    modules: ModuleNames::OF_FILES,
    prefix: PREFIX,
    ignored: IGNORED,
};

/// The key of Gemma 2's cap on the scores.
const SCORE_CAP: &str = "attn_logit_softcapping";

fn read(config: &Config) -> Result<ModelSpec> {
    config.refuse("use_bidirectional_attention")?;
    // What `layer_types` says.
    config.ignore(&["_sliding_window_pattern"]);
    let bias = config.flag_or("attention_bias", false)?;
    let window = config.optional_size("sliding_window", CONTEXT_LIMIT)?;
    let by_pattern = layer_types::every(config, "sliding_window_pattern", 6)?;
    let sliding = layer_types::read(config, layers(config)?, by_pattern)?;
    let window = |sliding: &bool| sliding.then_some(window.unwrap_or(4096));
    let switches = Switches {
        head_dim: Some(256),
        qkv_bias: bias,
        output_bias: bias,
        qk_norm: Some(NormExtent::Head),
        windows: sliding.iter().map(window).collect(),
        ..Switches::plain(config, 131_072)?
    };
    let activation = config.activation_or("hidden_activation", Activation::GeluTanh)?;
    let tied = config.flag_or("tie_word_embeddings", true)?;
    let defaults = [
        ("rope_theta", json!(1e6)),
        ("rope_local_base_freq", json!(1e4)),
    ];
    let config = &config.with_defaults(&defaults);
    let spec = read_by_type(config, &FAMILY, &switches, Some("rope_local_base_freq"))?;
    let mut spec = as_gemma(spec, tied, activation);
    let scale = config
        .positive_or("query_pre_attn_scalar", 256.0)?
        .powf(-0.5);
    // The class knows the key and never uses it.
    if config.optional_positive(SCORE_CAP)?.is_some() {
        config_keys::tell_ignored(config.path(), &[SCORE_CAP]);
    }
    for block in &mut spec.blocks {
        let (mixer_norm, channel_norm) = (block.mixer_norm, block.channel_norm);
        (block.mixer_output_norm, block.channel_output_norm) = (channel_norm, channel_norm);
        if let MixerSpec::Attention(attention) = &mut block.mixer {
            attention.scale = scale;
            attention.qk_norm = mixer_norm;
        }
    }
    Ok(ModelSpec {
        logit_softcap: config.optional_positive("final_logit_softcapping")?,
        ..spec
    })
}

fn write(spec: &ModelSpec) -> Map<String, Value> {
    let mut map = llama_layout::write(spec, &FAMILY);
    llama_layout::rename_key(&mut map, "hidden_act", "hidden_activation");
    let mut set = |key: &str, value: Value| map.insert(key.to_owned(), value);
    set("attention_bias", json!(llama_layout::output_bias(spec)));
    set("final_logit_softcapping", json!(spec.logit_softcap));
    if let Some(first) = spec.blocks.first().and_then(attention) {
        set(
            "query_pre_attn_scalar",
            whole(rounded(first.scale.powi(-2))),
        );
    }
    write_by_type(spec, &mut map);
    map
}

#[cfg(test)]
mod tests {
    use super::super::tests::{changed, fixture};
    use super::*;

    #[test]
    fn older_files_name_the_local_base() {
        let spec = fixture("gemma3");
        let theta = |spec: &ModelSpec, block: usize| {
            attention(&spec.blocks[block])
                .unwrap()
                .rotary
                .as_ref()
                .unwrap()
                .theta
        };
        assert_eq!((theta(&spec, 0), theta(&spec, 1)), (1e4, 1e6));
        let older = json!({ "rope_parameters": null, "layer_types": null, "sliding_window_pattern": 2,
            "rope_theta": 2e6, "rope_local_base_freq": 3e4 });
        let older = changed("gemma3", older).unwrap();
        assert_eq!((theta(&older, 0), theta(&older, 1)), (3e4, 2e6));
        assert!(attention(&older.blocks[1]).unwrap().window.is_none());
        let capped = changed("gemma3", json!({ "attn_logit_softcapping": 50.0 }));
        assert_eq!(capped.unwrap(), spec);
    }
}
