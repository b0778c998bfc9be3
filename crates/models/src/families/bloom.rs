//! BLOOM (arXiv 2211.05100): ALiBi instead of positions, a norm over the embedding, and queries, keys and values of each head
//! side by side in one tensor.

use super::config::{CONTEXT_LIMIT, Config, HEAD_LIMIT, LAYER_LIMIT, WIDTH_LIMIT};
use super::{
    Family, Frame, Fused, ModuleNames, QUERY_KEY_VALUE, TensorEntry, attention, even_head_dim,
    table, write_frame,
};
use crate::error::Result;
use crate::spec::{
    Activation, AlibiForm, AlibiSpec, AttentionSpec, BlockSpec, ChannelSpec, MixerSpec, MlpSpec,
    ModelSpec, NormSpec, Residual,
};
use serde_json::{Map, Value, json};

/// The registration of BLOOM.
pub const FAMILY: Family = Family {
    model_type: "bloom",
    architecture: "BloomForCausalLM",
    read,
    write,
    tensors,
    modules: ModuleNames::OF_FILES,
    prefix: "transformer.",
    ignored: &[],
};

/// The key of whether the stream goes on from the norms.
const NORMED_STREAM: &str = "apply_residual_connection_post_layernorm";

fn read(config: &Config) -> Result<ModelSpec> {
    // How the reference computes it, not what.
    let known = [
        "attention_softmax_in_fp32",
        "masked_softmax_fusion",
        "offset_alibi",
        "skip_bias_add",
        "skip_bias_add_qkv",
    ];
    config.ignore(&known);
    config.ignore(&["slow_but_exact", "unk_token_id"]);
    let width = match config.optional_size("hidden_size", WIDTH_LIMIT)? {
        Some(width) => width,
        None => config.size("n_embed", WIDTH_LIMIT)?,
    };
    let heads = read_heads(config)?;
    let head_dim = even_head_dim(config, "n_head", width, heads)?;
    let mixer = MixerSpec::Attention(AttentionSpec {
        alibi: Some(AlibiSpec {
            largest: 8.0,
            form: AlibiForm::Distance,
        }),
        qkv_bias: true,
        output_bias: true,
        ..AttentionSpec::plain(heads, heads, head_dim)
    });
    let channel = ChannelSpec::Mlp(MlpSpec {
        inner: 4 * width,
        activation: Activation::GeluTanh,
        bias: true,
        sub_norm: None,
    });
    let norm = NormSpec::layer(config.positive_or("layer_norm_epsilon", 1e-5)?);
    let block = match config.flag_or(NORMED_STREAM, false)? {
        true => BlockSpec::normed_stream(mixer, channel, norm),
        false => BlockSpec::sequential(mixer, channel, norm),
    };
    let blocks = vec![block; config.size("n_layer", LAYER_LIMIT)?];
    let context = config
        .optional_size("seq_length", CONTEXT_LIMIT)?
        .unwrap_or(2048);
    let frame = Frame {
        width,
        context,
        blocks,
        final_norm: Some(norm),
        tied_by_default: true,
    };
    Ok(ModelSpec {
        embedding_norm: Some(norm),
        ..frame.read(config, &FAMILY)?
    })
}

/// The number of heads, which some files give under two names.
fn read_heads(config: &Config) -> Result<usize> {
    const OTHER: &str = "num_attention_heads";
    let heads = config.optional_size("n_head", HEAD_LIMIT)?;
    match (heads, config.optional_size(OTHER, HEAD_LIMIT)?) {
        (Some(heads), Some(other)) if heads != other => Err(config.error(
            OTHER,
            format!("{other}, but `n_head` says {heads}; remove the wrong one"),
        )),
        (None, Some(other)) => Ok(other),
        (Some(heads), _) => Ok(heads),
        (None, None) => config.size("n_head", HEAD_LIMIT),
    }
}

fn write(spec: &ModelSpec) -> Map<String, Value> {
    let mut map = write_frame(spec, &FAMILY);
    let mut set = |key: &str, value: Value| map.insert(key.to_owned(), value);
    set("hidden_size", json!(spec.width));
    set("n_layer", json!(spec.blocks.len()));
    set(
        "n_head",
        json!(
            spec.blocks
                .first()
                .and_then(attention)
                .map(|attention| attention.heads)
        ),
    );
    set("seq_length", json!(spec.context));
    set("layer_norm_epsilon", json!(spec.norm_epsilon()));
    let residual = spec.blocks.first().map(|block| block.residual);
    set(
        NORMED_STREAM,
        json!(residual == Some(Residual::NormedStream)),
    );
    map
}

fn tensors(spec: &ModelSpec) -> Vec<TensorEntry> {
    const NAMES: &[(&str, &str)] = &[
        ("embedding.", "transformer.word_embeddings."),
        ("embedding_norm.", "transformer.word_embeddings_layernorm."),
        ("final_norm.", "transformer.ln_f."),
        ("head.", "lm_head."),
        ("blocks.", "transformer.h."),
        (".mixer_norm.", ".input_layernorm."),
        (".channel_norm.", ".post_attention_layernorm."),
        (".mixer.query.", ".self_attention.query_key_value."),
        (".mixer.output.", ".self_attention.dense."),
        (".channel.up.", ".mlp.dense_h_to_4h."),
        (".channel.down.", ".mlp.dense_4h_to_h."),
    ];
    let groups = spec
        .blocks
        .first()
        .and_then(attention)
        .map_or(1, |attention| attention.heads);
    table(
        spec,
        NAMES,
        &[Fused {
            parts: QUERY_KEY_VALUE,
            groups,
        }],
    )
}

#[cfg(test)]
mod tests {
    use super::super::tests::{changed, fixture};
    use super::*;

    #[test]
    fn reads_the_fixture() {
        let spec = fixture("bloom-alibi");
        assert!(spec.tied_head && spec.embedding_norm.is_some());
        assert_eq!(
            attention(&spec.blocks[0])
                .unwrap()
                .alibi
                .map(|alibi| alibi.largest),
            Some(8.0)
        );
        let other = json!({ "apply_residual_connection_post_layernorm": true });
        let other = changed("bloom-alibi", other).unwrap();
        assert_eq!(other.blocks[0].residual, Residual::NormedStream);
    }
}
