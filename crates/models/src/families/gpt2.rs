//! GPT-2 (Language Models are Unsupervised Multitask Learners, 2019): LayerNorm, learned positions and a plain GELU layer.
//!
//! Its files store matrices `[in, out]`, and queries, keys and values as one. Left out: cross-attention and dropout;
//! `reorder_and_upcast_attn` changes only the rounding of half precision and is ignored.

use super::config::{
    CONTEXT_LIMIT, Config, HEAD_LIMIT, INNER_LIMIT, LAYER_LIMIT, VOCABULARY_LIMIT, WIDTH_LIMIT,
    activation_name,
};
use super::{
    Family, Frame, Fused, ModuleNames, QUERY_KEY_VALUE, TensorEntry, attention, even_head_dim, mlp,
    table, write_frame,
};
use crate::error::Result;
use crate::spec::{
    Activation, AttentionSpec, BlockSpec, ChannelSpec, MixerSpec, MlpSpec, ModelSpec, NormSpec,
    PositionSpec,
};
use serde_json::{Map, Value, json};

/// The registration of GPT-2.
pub const FAMILY: Family = Family {
    model_type: "gpt2",
    architecture: "GPT2LMHeadModel",
    read,
    write,
    tensors,
    modules: ModuleNames::OF_FILES,
    prefix: "transformer.",
    ignored: &["attn.bias", "attn.masked_bias"],
};

fn read(config: &Config) -> Result<ModelSpec> {
    config.ignore(&["n_ctx", "reorder_and_upcast_attn"]);
    let width = config.size("n_embd", WIDTH_LIMIT)?;
    let positions = config.size("n_positions", CONTEXT_LIMIT.min(VOCABULARY_LIMIT))?;
    let layers = config.size("n_layer", LAYER_LIMIT)?;
    let norm = NormSpec::layer(config.positive_or("layer_norm_epsilon", 1e-5)?);
    let channel = ChannelSpec::Mlp(MlpSpec {
        inner: config
            .optional_size("n_inner", INNER_LIMIT)?
            .unwrap_or(4 * width),
        activation: config.activation_or("activation_function", Activation::GeluTanh)?,
        bias: true,
        sub_norm: None,
    });
    let attention = read_attention(config, width)?;
    let by_layer = config.flag_or("scale_attn_by_inverse_layer_idx", false)?;
    let block = |layer: usize| {
        let scale = if by_layer {
            attention.scale / (layer + 1) as f64
        } else {
            attention.scale
        };
        let mixer = MixerSpec::Attention(AttentionSpec {
            scale,
            ..attention.clone()
        });
        BlockSpec::sequential(mixer, channel.clone(), norm)
    };
    let blocks = (0..layers).map(block).collect();
    let frame = Frame {
        width,
        context: positions,
        blocks,
        final_norm: Some(norm),
        tied_by_default: true,
    };
    let positions = Some(PositionSpec::Learned {
        count: positions,
        offset: 0,
    });
    Ok(ModelSpec {
        positions,
        ..frame.read(config, &FAMILY)?
    })
}

fn read_attention(config: &Config, width: usize) -> Result<AttentionSpec> {
    let heads = config.size("n_head", HEAD_LIMIT)?;
    let head_dim = even_head_dim(config, "n_head", width, heads)?;
    let scaled = config.flag_or("scale_attn_weights", true)?;
    Ok(AttentionSpec {
        scale: if scaled {
            (head_dim as f64).powf(-0.5)
        } else {
            1.0
        },
        qkv_bias: true,
        output_bias: true,
        ..AttentionSpec::plain(heads, heads, head_dim)
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
        set(
            "n_inner",
            if mlp.inner == spec.width.saturating_mul(4) {
                Value::Null
            } else {
                json!(mlp.inner)
            },
        );
        set(
            "activation_function",
            json!(activation_name(mlp.activation)),
        );
    }
    let scales: Vec<&AttentionSpec> = spec.blocks.iter().filter_map(attention).collect();
    if let Some(first) = scales.first() {
        set("n_head", json!(first.heads));
        set("scale_attn_weights", json!(first.scale != 1.0));
        set(
            "scale_attn_by_inverse_layer_idx",
            json!(scales.iter().any(|other| other.scale != first.scale)),
        );
    }
    map
}

/// Our names and those of the files.
pub(super) const NAMES: &[(&str, &str)] = &[
    ("embedding.", "transformer.wte."),
    ("positions.", "transformer.wpe."),
    ("final_norm.", "transformer.ln_f."),
    ("head.", "lm_head."),
    ("blocks.", "transformer.h."),
    (".mixer_norm.", ".ln_1."),
    (".channel_norm.", ".ln_2."),
    (".mixer.query.", ".attn.c_attn."),
    (".mixer.output.", ".attn.c_proj."),
    (".channel.up.", ".mlp.c_fc."),
    (".channel.down.", ".mlp.c_proj."),
];

/// One tensor for each parameter, but queries, keys and values in one; matrices are stored `[in, out]`.
fn tensors(spec: &ModelSpec) -> Vec<TensorEntry> {
    let matrix = |name: &String| {
        (name.contains(".mixer.") || name.contains(".channel.")) && name.ends_with(".weight")
    };
    let entries = table(
        spec,
        NAMES,
        &[Fused {
            parts: QUERY_KEY_VALUE,
            groups: 1,
        }],
    )
    .into_iter();
    entries
        .map(|entry| TensorEntry {
            transposed: matrix(&entry.parts[0]),
            ..entry
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{changed, fixture};
    use super::super::write_config;
    use super::*;

    fn scales(spec: &ModelSpec) -> Vec<f64> {
        spec.blocks
            .iter()
            .map(|block| attention(block).unwrap().scale)
            .collect()
    }

    #[test]
    fn reads_the_fixture() {
        let spec = fixture("gpt2");
        assert_eq!(
            (spec.learned_positions(), spec.context, spec.tied_head),
            (Some(64), 64, true)
        );
        assert_eq!(
            (
                mlp(&spec.blocks[0]).unwrap().inner,
                mlp(&spec.blocks[0]).unwrap().activation
            ),
            (96, Activation::GeluTanh)
        );
        assert_eq!(spec.final_norm, Some(NormSpec::layer(1e-5)));
        assert_eq!(scales(&spec), [6f64.powf(-0.5); 3]);
    }

    #[test]
    fn scales_follow_both_switches() {
        let read = |weights: bool, inverse: bool| {
            let keys = json!({ "scale_attn_weights": weights, "scale_attn_by_inverse_layer_idx": inverse });
            let spec = changed("gpt2", keys).unwrap();
            write_config(&spec).unwrap();
            scales(&spec)
        };
        let plain = 6f64.powf(-0.5);
        assert_eq!(read(true, true), [plain, plain / 2.0, plain / 3.0]);
        assert_eq!(read(false, false), [1.0; 3]);
        assert_eq!(read(false, true), [1.0, 0.5, 1.0 / 3.0]);
    }

    #[test]
    fn the_projections_of_attention_are_one_transposed_tensor() {
        let entries = tensors(&fixture("gpt2"));
        let find = |name: &str| entries.iter().find(|entry| entry.name == name).unwrap();
        let weight = find("transformer.h.1.attn.c_attn.weight");
        let parts = ["query", "key", "value"].map(|part| format!("blocks.1.mixer.{part}.weight"));
        assert_eq!((&weight.parts[..], weight.transposed), (&parts[..], true));
        assert!(!find("transformer.h.1.attn.c_attn.bias").transposed);
        assert!(find("transformer.h.0.mlp.c_proj.weight").transposed);
        assert!(
            !find("transformer.h.0.ln_1.weight").transposed
                && !find("transformer.wpe.weight").transposed
        );
    }

    #[test]
    fn other_forms_of_the_model_are_read_or_refused() {
        assert_eq!(
            mlp(&changed("gpt2", json!({ "n_inner": 50 })).unwrap().blocks[0])
                .unwrap()
                .inner,
            50
        );
        let untied = changed("gpt2", json!({ "tie_word_embeddings": false })).unwrap();
        assert!(
            tensors(&untied)
                .iter()
                .any(|entry| entry.name == "lm_head.weight")
        );
        assert!(
            changed("gpt2", json!({ "n_head": 5 }))
                .unwrap_err()
                .to_string()
                .contains("do not divide the width 24")
        );
        assert!(changed("gpt2", json!({ "add_cross_attention": true })).is_err());
    }
}
