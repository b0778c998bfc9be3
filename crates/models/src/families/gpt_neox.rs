//! GPT-NeoX (arXiv 2204.06745) and Pythia (arXiv 2304.01373): attention and feed-forward side by side, each behind its own norm,
//! rotary positions on a part of each head, and queries, keys and values of each head side by side in one tensor.

use super::config::{
    CONTEXT_LIMIT, Config, HEAD_LIMIT, INNER_LIMIT, LAYER_LIMIT, WIDTH_LIMIT, activation_name,
};
use super::module_names::renamed;
use super::{
    Family, Frame, Fused, ModuleNames, QUERY_KEY_VALUE, TensorEntry, attention, even_head_dim, mlp,
    rope, table, write_frame,
};
use crate::error::Result;
use crate::spec::{
    Activation, AttentionSpec, BlockSpec, ChannelSpec, MixerSpec, MlpSpec, ModelSpec, NormSpec,
    Residual,
};
use serde_json::{Map, Value, json};

/// The registration of GPT-NeoX.
pub const FAMILY: Family = Family {
    model_type: "gpt_neox",
    architecture: "GPTNeoXForCausalLM",
    read,
    write,
    tensors,
    modules: ModuleNames::of(in_memory),
    prefix: "gpt_neox.",
    ignored: &[
        "attention.bias",
        "attention.masked_bias",
        "rotary_emb.inv_freq",
    ],
};

/// Today's names of the rotary keys, and the family's own.
const ROTARY: [(&str, &str, f64); 2] = [
    ("rope_theta", "rotary_emb_base", 10_000.0),
    ("partial_rotary_factor", "rotary_pct", 0.25),
];

fn read(config: &Config) -> Result<ModelSpec> {
    let width = config.size("hidden_size", WIDTH_LIMIT)?;
    let context = config
        .optional_size("max_position_embeddings", CONTEXT_LIMIT)?
        .unwrap_or(2048);
    let norm = NormSpec::layer(config.positive_or("layer_norm_eps", 1e-5)?);
    let mixer = MixerSpec::Attention(read_attention(config, width, context)?);
    let channel = ChannelSpec::Mlp(MlpSpec {
        inner: config.size("intermediate_size", INNER_LIMIT)?,
        activation: config.activation_or("hidden_act", Activation::Gelu)?,
        bias: true,
        sub_norm: None,
    });
    let residual = match config.flag_or("use_parallel_residual", true)? {
        true => Residual::Parallel,
        false => Residual::Sequential,
    };
    let block = BlockSpec {
        residual,
        ..BlockSpec::sequential(mixer, channel, norm)
    };
    Frame {
        width,
        context,
        blocks: vec![block; config.size("num_hidden_layers", LAYER_LIMIT)?],
        final_norm: Some(norm),
        tied_by_default: false,
    }
    .read(config, &FAMILY)
}

fn read_attention(config: &Config, width: usize, context: usize) -> Result<AttentionSpec> {
    // The class has a key head for every query head.
    config.ignore(&["num_key_value_heads"]);
    let heads = config.size("num_attention_heads", HEAD_LIMIT)?;
    let head_dim = even_head_dim(config, "num_attention_heads", width, heads)?;
    let mut rotary = config.clone();
    for (today, own, default) in ROTARY {
        let value = config.positive_or(own, default)?;
        rotary = rotary.with_defaults(&[(today, json!(value))]);
    }
    let bias = config.flag_or("attention_bias", true)?;
    Ok(AttentionSpec {
        rotary: Some(rope::read(&rotary, head_dim, context)?),
        qkv_bias: bias,
        output_bias: bias,
        ..AttentionSpec::plain(heads, heads, head_dim)
    })
}

fn write(spec: &ModelSpec) -> Map<String, Value> {
    let mut map = write_frame(spec, &FAMILY);
    let mut set = |key: &str, value: Value| map.insert(key.to_owned(), value);
    set("hidden_size", json!(spec.width));
    set("num_hidden_layers", json!(spec.blocks.len()));
    set("max_position_embeddings", json!(spec.context));
    set("layer_norm_eps", json!(spec.norm_epsilon()));
    let Some(first) = spec.blocks.first() else {
        return map;
    };
    set(
        "use_parallel_residual",
        json!(first.residual == Residual::Parallel),
    );
    if let Some(mlp) = mlp(first) {
        set("intermediate_size", json!(mlp.inner));
        set("hidden_act", json!(activation_name(mlp.activation)));
    }
    if let Some(attention) = attention(first) {
        set("num_attention_heads", json!(attention.heads));
        set("attention_bias", json!(attention.qkv_bias));
        if let Some(rotary) = &attention.rotary {
            set(
                "rope_parameters",
                rope::write_with_share(rotary, attention.head_dim),
            );
        }
    }
    map
}

fn tensors(spec: &ModelSpec) -> Vec<TensorEntry> {
    const NAMES: &[(&str, &str)] = &[
        ("embedding.", "gpt_neox.embed_in."),
        ("final_norm.", "gpt_neox.final_layer_norm."),
        ("head.", "embed_out."),
        ("blocks.", "gpt_neox.layers."),
        (".mixer_norm.", ".input_layernorm."),
        (".channel_norm.", ".post_attention_layernorm."),
        (".mixer.query.", ".attention.query_key_value."),
        (".mixer.output.", ".attention.dense."),
        (".channel.up.", ".mlp.dense_h_to_4h."),
        (".channel.down.", ".mlp.dense_4h_to_h."),
    ];
    let groups = spec
        .blocks
        .first()
        .and_then(attention)
        .map_or(1, |attention| attention.heads);
    let fused = Fused {
        parts: QUERY_KEY_VALUE,
        groups,
    };
    table(spec, NAMES, &[fused])
}

/// Transformers calls the head as every family's.
fn in_memory(spec: &ModelSpec) -> Vec<TensorEntry> {
    renamed(tensors(spec), &[("^embed_out.", "lm_head.")])
}

#[cfg(test)]
mod tests {
    use super::super::tests::{changed, fixture};
    use super::*;

    #[test]
    fn reads_the_fixtures() {
        let spec = fixture("gpt-neox");
        assert!(
            spec.blocks[0].residual == Residual::Parallel && spec.blocks[0].channel_norm.is_some()
        );
        let sequential = fixture("gpt-neox-sequential");
        assert_eq!(sequential.blocks[0].residual, Residual::Sequential);
        assert!(!attention(&sequential.blocks[0]).unwrap().qkv_bias);
    }

    #[test]
    fn older_files_have_rotary_keys_of_their_own() {
        let old = json!({ "rope_parameters": null, "rotary_pct": 0.5, "rotary_emb_base": 500 });
        let spec = changed("gpt-neox", old).unwrap();
        let rotary = attention(&spec.blocks[0]).unwrap().rotary.clone().unwrap();
        let head_dim = attention(&spec.blocks[0]).unwrap().head_dim;
        assert_eq!((rotary.dim, rotary.theta), (head_dim / 2, 500.0));
    }
}
