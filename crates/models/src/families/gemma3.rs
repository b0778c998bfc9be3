//! Gemma 3 (arXiv 2503.19786), the text model: Gemma 2 with norms on queries and keys in place of soft caps, windows on five of six
//! layers, and rotary positions of their own on those.

use super::gemma::as_gemma;
use super::gemma2::{rounded, tensors};
use super::llama_layout::{self, IGNORED, PREFIX, Switches, layers};
use super::olmo3::{read_by_type, write_by_type};
use super::{
    Config, Family, ModuleNames, attention, config::CONTEXT_LIMIT, config_keys,
    frame::BIDIRECTIONAL, layer_types, whole,
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

/// The key by which the class reads both ways, as EmbeddingGemma does.
const BOTH_WAYS: &str = "use_bidirectional_attention";

fn read(config: &Config) -> Result<ModelSpec> {
    let both_ways = config.flag_or(BOTH_WAYS, false)?;
    // What `layer_types` says.
    config.ignore(&["_sliding_window_pattern"]);
    let bias = config.flag_or("attention_bias", false)?;
    let window = config.optional_size("sliding_window", CONTEXT_LIMIT)?;
    // The class then takes the key for both directions together, and what is left of it for the distance in each.
    let window = match both_ways {
        true => Some(window.unwrap_or(4096) / 2 + 1),
        false => window,
    };
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
    let mut config = config.with_defaults(&defaults);
    if both_ways {
        config = config.with(BIDIRECTIONAL, json!(true));
    }
    let config = &config;
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
    set(BOTH_WAYS, json!(spec.bidirectional));
    write_by_type(spec, &mut map);
    if spec.bidirectional {
        map.remove(BIDIRECTIONAL);
        let window = spec
            .blocks
            .iter()
            .filter_map(attention)
            .find_map(|a| a.window);
        // Where no layer has a window the key says nothing, but the class computes with it.
        let both = window.map_or(4096, |window| (2 * (window - 1)).max(1));
        map.insert("sliding_window".into(), json!(both));
    }
    map
}

#[cfg(test)]
mod tests {
    use super::super::tests::{changed, fixture};
    use super::*;

    #[test]
    fn a_window_of_both_directions_is_halved_as_in_the_class() {
        let windows = |spec: &ModelSpec| -> Vec<Option<usize>> {
            let all = spec.blocks.iter().filter_map(attention);
            all.map(|attention| attention.window).collect()
        };
        for (window, each) in [(8, 5), (7, 4), (1, 1)] {
            let keys = json!({ "use_bidirectional_attention": true, "sliding_window": window });
            let spec = changed("gemma3", keys).unwrap();
            assert!(spec.bidirectional);
            assert_eq!(windows(&spec)[..2], [Some(each), None]);
            let written = super::super::write_config(&spec).unwrap();
            assert_eq!(written["sliding_window"], (2 * (each - 1)).max(1));
            assert_eq!(written["use_bidirectional_attention"], true);
        }
        // Our own key changes the mask of a decoder and not what its window means; as it is saved the class reads the same.
        let spec = changed(
            "gemma3",
            json!({ "bidirectional": true, "sliding_window": 8 }),
        )
        .unwrap();
        assert_eq!(windows(&spec)[0], Some(8));
        let written = super::super::write_config(&spec).unwrap();
        assert_eq!(written["sliding_window"], 14);
        let decoder = super::super::write_config(&fixture("gemma3")).unwrap();
        assert_eq!(decoder["use_bidirectional_attention"], false);
    }

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
