//! GPT-BigCode (SantaCoder, arXiv 2301.03988; StarCoder, arXiv 2305.06161): GPT-2 whose query heads share one key and value head, or,
//! with as many as there are query heads, queries, keys and values of each side by side.

use super::config::{
    CONTEXT_LIMIT, Config, HEAD_LIMIT, INNER_LIMIT, LAYER_LIMIT, VOCABULARY_LIMIT, WIDTH_LIMIT,
    activation_name,
};
use super::{
    Family, Frame, Fused, ModuleNames, QUERY_KEY_VALUE, TensorEntry, attention, even_head_dim,
    gpt2, mlp, table, write_frame,
};
use crate::error::Result;
use crate::spec::{
    Activation, AttentionSpec, BlockSpec, ChannelSpec, MixerSpec, MlpSpec, ModelSpec, NormSpec,
    PositionSpec,
};
use serde_json::{Map, Value, json};

/// The registration of GPT-BigCode.
pub const FAMILY: Family = Family {
    model_type: "gpt_bigcode",
    architecture: "GPTBigCodeForCausalLM",
    read,
    write,
    tensors,
    modules: ModuleNames::OF_FILES,
    prefix: "transformer.",
    ignored: &["attn.bias", "attn.masked_bias"],
};

/// How the reference computes, not what.
const QUIET: &[&str] = &[
    "attention_softmax_in_fp32",
    "scale_attention_softmax_in_fp32",
    "inference_runner",
    "max_batch_size",
    "max_sequence_length",
    "n_ctx",
    "pad_key_length",
    "pre_allocate_kv_cache",
    "validate_runner_input",
    // What `multi_query` says.
    "num_key_value_heads",
];

fn read(config: &Config) -> Result<ModelSpec> {
    config.ignore(QUIET);
    let width = config.size("n_embd", WIDTH_LIMIT)?;
    let count = config.size("n_positions", CONTEXT_LIMIT.min(VOCABULARY_LIMIT))?;
    let norm = NormSpec::layer(config.positive_or("layer_norm_epsilon", 1e-5)?);
    let heads = config.size("n_head", HEAD_LIMIT)?;
    let kv_heads = if config.flag_or("multi_query", true)? {
        1
    } else {
        heads
    };
    let plain = AttentionSpec::plain(
        heads,
        kv_heads,
        even_head_dim(config, "n_head", width, heads)?,
    );
    let scaled = config.flag_or("scale_attn_weights", true)?;
    let mixer = MixerSpec::Attention(AttentionSpec {
        scale: if scaled { plain.scale } else { 1.0 },
        qkv_bias: true,
        output_bias: true,
        ..plain
    });
    let channel = ChannelSpec::Mlp(MlpSpec {
        inner: config
            .optional_size("n_inner", INNER_LIMIT)?
            .unwrap_or(4 * width),
        activation: config.activation_or("activation_function", Activation::GeluTanh)?,
        bias: true,
        sub_norm: None,
    });
    let block = BlockSpec::sequential(mixer, channel, norm);
    let spec = Frame {
        width,
        context: count,
        blocks: vec![block; config.size("n_layer", LAYER_LIMIT)?],
        final_norm: Some(norm),
        tied_by_default: true,
    }
    .read(config, &FAMILY)?;
    Ok(ModelSpec {
        positions: Some(PositionSpec::Learned { count, offset: 0 }),
        ..spec
    })
}

fn write(spec: &ModelSpec) -> Map<String, Value> {
    let mut map = write_frame(spec, &FAMILY);
    let mut set = |key: &str, value: Value| map.insert(key.to_owned(), value);
    set("n_embd", json!(spec.width));
    set("n_layer", json!(spec.blocks.len()));
    set("n_positions", json!(spec.context));
    set("layer_norm_epsilon", json!(spec.norm_epsilon()));
    if let Some(mlp) = spec.blocks.first().and_then(mlp) {
        set("n_inner", json!(mlp.inner));
        set(
            "activation_function",
            json!(activation_name(mlp.activation)),
        );
    }
    if let Some(attention) = spec.blocks.first().and_then(attention) {
        set("n_head", json!(attention.heads));
        set("scale_attn_weights", json!(attention.scale != 1.0));
        set("multi_query", json!(attention.kv_heads == 1));
        set("num_key_value_heads", json!(attention.kv_heads));
    }
    map
}

/// GPT-2's names, but matrices are stored `[out, in]`.
fn tensors(spec: &ModelSpec) -> Vec<TensorEntry> {
    let first = spec.blocks.first().and_then(attention);
    let fused = Fused {
        parts: QUERY_KEY_VALUE,
        groups: first.map_or(1, |attention| attention.kv_heads),
    };
    table(spec, gpt2::NAMES, &[fused])
}

#[cfg(test)]
mod tests {
    use super::super::tests::fixture;
    use super::*;

    #[test]
    fn keys_are_shared_or_not() {
        let kv_heads = |name: &str| attention(&fixture(name).blocks[0]).unwrap().kv_heads;
        assert_eq!(kv_heads("gpt-bigcode"), 1);
        assert!(kv_heads("gpt-bigcode-multi-head") > 1);
    }
}
