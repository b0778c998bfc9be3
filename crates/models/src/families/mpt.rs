//! MPT (MosaicML, 2023): ALiBi, no biases anywhere, and queries, keys and values in one tensor.
//!
//! As in the reference library, the feed-forward layer is four times as wide as the model whatever `expansion_ratio` says.
//! Left out, and refused: normed queries and keys, other scales of the logits, models without ALiBi.

use super::config::{CONTEXT_LIMIT, Config, HEAD_LIMIT, LAYER_LIMIT, WIDTH_LIMIT};
use super::{
    Family, Frame, Fused, ModuleNames, QUERY_KEY_VALUE, TensorEntry, attention, even_head_dim,
    table, whole, write_frame,
};
use crate::error::Result;
use crate::spec::{
    Activation, AlibiForm, AlibiSpec, AttentionSpec, BlockSpec, ChannelSpec, MixerSpec, MlpSpec,
    ModelSpec, NormSpec,
};
use serde_json::{Map, Value, json};

/// The registration of MPT.
pub const FAMILY: Family = Family {
    model_type: "mpt",
    architecture: "MptForCausalLM",
    read,
    write,
    tensors,
    modules: ModuleNames::OF_FILES,
    prefix: "transformer.",
    ignored: &[],
};

fn read(config: &Config) -> Result<ModelSpec> {
    config.refuse("logit_scale")?;
    // ALiBi is the only position that the model has, and the reference widens its layers four times whatever the ratio says; the
    // rest concerns training and memory.
    config.ignore(&[
        "learned_pos_emb",
        "expansion_ratio",
        "embedding_fraction",
        "init_device",
        "init_config",
        "verbose",
    ]);
    let norm = config.optional_text("norm_type")?.unwrap_or("layernorm");
    if !["layernorm", "low_precision_layernorm"].contains(&norm) {
        return Err(config.error(
            "norm_type",
            format!("`{norm}` is not supported; known are layernorm, low_precision_layernorm"),
        ));
    }
    let width = config.size("d_model", WIDTH_LIMIT)?;
    let heads = config.size("n_heads", HEAD_LIMIT)?;
    let head_dim = even_head_dim(config, "n_heads", width, heads)?;
    if !config.flag_or("no_bias", true)? {
        return Err(config.error(
            "no_bias",
            "false is not supported: published models have no biases",
        ));
    }
    let (mut scale, mut slopes, mut clip) = (None, 8.0, None);
    if let Some(attention) = config.optional_object("attn_config")? {
        clip = attention.optional_positive("clip_qkv")?;
        attention.refuse("qk_ln")?;
        attention.refuse("prefix_lm")?;
        if !attention.flag_or("alibi", true)? {
            return Err(attention.error(
                "alibi",
                "false is not supported: the model has no other positions",
            ));
        }
        scale = attention.optional_positive("softmax_scale")?;
        slopes = attention.positive_or("alibi_bias_max", slopes)?;
    }
    let mixer = MixerSpec::Attention(AttentionSpec {
        scale: scale.unwrap_or((head_dim as f64).powf(-0.5)),
        alibi: Some(AlibiSpec {
            largest: slopes,
            form: AlibiForm::Distance,
        }),
        clip,
        ..AttentionSpec::plain(heads, heads, head_dim)
    });
    let channel = ChannelSpec::Mlp(MlpSpec {
        inner: 4 * width,
        activation: Activation::Gelu,
        bias: false,
        sub_norm: None,
    });
    let norm = NormSpec::layer_without_bias(config.positive_or("layer_norm_epsilon", 1e-5)?);
    let blocks =
        vec![BlockSpec::sequential(mixer, channel, norm); config.size("n_layers", LAYER_LIMIT)?];
    let context = config
        .optional_size("max_seq_len", CONTEXT_LIMIT)?
        .unwrap_or(2048);
    Frame {
        width,
        context,
        blocks,
        final_norm: Some(norm),
        tied_by_default: true,
    }
    .read(config, &FAMILY)
}

fn write(spec: &ModelSpec) -> Map<String, Value> {
    let mut map = write_frame(spec, &FAMILY);
    let mut set = |key: &str, value: Value| map.insert(key.to_owned(), value);
    set("d_model", json!(spec.width));
    set("n_layers", json!(spec.blocks.len()));
    set("max_seq_len", json!(spec.context));
    set("layer_norm_epsilon", json!(spec.norm_epsilon()));
    set("no_bias", json!(true));
    if let Some(attention) = spec.blocks.first().and_then(attention) {
        let scale =
            (attention.scale != (attention.head_dim as f64).powf(-0.5)).then_some(attention.scale);
        set("n_heads", json!(attention.heads));
        let slopes = attention.alibi.map(|alibi| whole(alibi.largest));
        set(
            "attn_config",
            json!({
                "alibi": slopes.is_some(),
                "alibi_bias_max": slopes,
                "softmax_scale": scale,
                "clip_qkv": attention.clip,
            }),
        );
    }
    map
}

fn tensors(spec: &ModelSpec) -> Vec<TensorEntry> {
    const NAMES: &[(&str, &str)] = &[
        ("embedding.", "transformer.wte."),
        ("final_norm.", "transformer.norm_f."),
        ("head.", "lm_head."),
        ("blocks.", "transformer.blocks."),
        (".mixer_norm.", ".norm_1."),
        (".channel_norm.", ".norm_2."),
        (".mixer.query.", ".attn.Wqkv."),
        (".mixer.output.", ".attn.out_proj."),
        (".channel.up.", ".ffn.up_proj."),
        (".channel.down.", ".ffn.down_proj."),
    ];
    table(
        spec,
        NAMES,
        &[Fused {
            parts: QUERY_KEY_VALUE,
            groups: 1,
        }],
    )
}

#[cfg(test)]
mod tests {
    use super::super::tests::{changed, fixture};
    use super::*;

    #[test]
    fn what_attention_is_bound_by_is_written() {
        let keys = json!({ "clip_qkv": 6.5, "alibi_bias_max": 4 });
        let spec = changed("mpt-alibi", json!({ "attn_config": keys })).unwrap();
        assert_eq!(attention(&spec.blocks[0]).unwrap().clip, Some(6.5));
        let written = super::super::write_config(&spec).unwrap();
        let written = written["attn_config"].to_string();
        assert!(written.contains("\"clip_qkv\":6.5") && written.contains("\"alibi_bias_max\":4,"));
    }

    #[test]
    fn reads_the_fixture() {
        let spec = fixture("mpt-alibi");
        assert_eq!(spec.final_norm, Some(NormSpec::layer_without_bias(1e-5)));
        assert_eq!(
            (
                super::super::mlp(&spec.blocks[0]).unwrap().inner,
                spec.context
            ),
            (96, 64)
        );
        for wrong in [
            json!({ "clip_qkv": -6.0 }),
            json!({ "qk_ln": true }),
            json!({ "alibi": false }),
        ] {
            let error = changed("mpt-alibi", json!({ "attn_config": wrong }))
                .unwrap_err()
                .to_string();
            assert!(error.contains("key `attn_config."), "{error}");
        }
    }
}
