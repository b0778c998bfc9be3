//! OPT (arXiv 2205.01068): learned positions after two rows that stand for nothing, ReLU, biases, and norms before the parts or,
//! in one of the published sizes, after them, where the embedding is narrower than the model too.

use super::config::{
    CONTEXT_LIMIT, Config, HEAD_LIMIT, INNER_LIMIT, LAYER_LIMIT, VOCABULARY_LIMIT, WIDTH_LIMIT,
    activation_name,
};
use super::{
    Family, Frame, ModuleNames, TensorEntry, attention, even_head_dim, mlp, table, write_frame,
};
use crate::error::Result;
use crate::spec::{
    Activation, AttentionSpec, BlockSpec, ChannelSpec, EmbeddingProjectionSpec, MixerSpec, MlpSpec,
    ModelSpec, NormSpec, PositionSpec, Residual,
};
use serde_json::{Map, Value, json};

/// The registration of OPT.
pub const FAMILY: Family = Family {
    model_type: "opt",
    architecture: "OPTForCausalLM",
    read,
    write,
    tensors,
    modules: ModuleNames::OF_FILES,
    prefix: "model.",
    ignored: &[],
};

/// What is added to variances.
const EPSILON: f64 = 1e-5;

fn read(config: &Config) -> Result<ModelSpec> {
    // How old versions of the library set the model up.
    config.ignore(&["init_std", "activation_dropout"]);
    let width = config.size("hidden_size", WIDTH_LIMIT)?;
    let embedded = config.optional_size("word_embed_proj_dim", WIDTH_LIMIT)?;
    let other = embedded.filter(|embedded| *embedded != width);
    let count = config.size(
        "max_position_embeddings",
        CONTEXT_LIMIT.min(VOCABULARY_LIMIT),
    )?;
    let norm = match config.flag_or("layer_norm_elementwise_affine", true)? {
        true => NormSpec::layer(EPSILON),
        false => NormSpec::Standardised { epsilon: EPSILON },
    };
    let before = config.flag_or("do_layer_norm_before", true)?;
    let bias = config.flag_or("enable_bias", true)?;
    let heads = config.size("num_attention_heads", HEAD_LIMIT)?;
    let mixer = MixerSpec::Attention(AttentionSpec {
        qkv_bias: bias,
        output_bias: bias,
        ..AttentionSpec::plain(
            heads,
            heads,
            even_head_dim(config, "num_attention_heads", width, heads)?,
        )
    });
    let channel = ChannelSpec::Mlp(MlpSpec {
        inner: config.size("ffn_dim", INNER_LIMIT)?,
        activation: config.activation_or("activation_function", Activation::Relu)?,
        bias,
        sub_norm: None,
    });
    let block = match before {
        true => BlockSpec::sequential(mixer, channel, norm),
        false => BlockSpec::post_norm(mixer, channel, norm),
    };
    let ends_with_norm = before && !config.flag_or("_remove_final_layer_norm", false)?;
    let spec = Frame {
        width,
        context: count,
        blocks: vec![block; config.size("num_hidden_layers", LAYER_LIMIT)?],
        final_norm: ends_with_norm.then_some(norm),
        tied_by_default: true,
    }
    .read(config, &FAMILY)?;
    Ok(ModelSpec {
        embedding_projection: other.map(EmbeddingProjectionSpec::both_ends),
        positions: Some(PositionSpec::Learned { count, offset: 2 }),
        ..spec
    })
}

fn write(spec: &ModelSpec) -> Map<String, Value> {
    let mut map = write_frame(spec, &FAMILY);
    let mut set = |key: &str, value: Value| map.insert(key.to_owned(), value);
    set("hidden_size", json!(spec.width));
    set("word_embed_proj_dim", json!(spec.outer_width()));
    set("num_hidden_layers", json!(spec.blocks.len()));
    set("max_position_embeddings", json!(spec.context));
    let Some(first) = spec.blocks.first() else {
        return map;
    };
    let before = first.residual != Residual::PostNorm;
    set("do_layer_norm_before", json!(before));
    set(
        "_remove_final_layer_norm",
        json!(before && spec.final_norm.is_none()),
    );
    set(
        "layer_norm_elementwise_affine",
        json!(first.mixer_norm.is_some_and(NormSpec::has_weight)),
    );
    if let Some(mlp) = mlp(first) {
        set("ffn_dim", json!(mlp.inner));
        set(
            "activation_function",
            json!(activation_name(mlp.activation)),
        );
        set("enable_bias", json!(mlp.bias));
    }
    if let Some(attention) = attention(first) {
        set("num_attention_heads", json!(attention.heads));
    }
    map
}

fn tensors(spec: &ModelSpec) -> Vec<TensorEntry> {
    const NAMES: &[(&str, &str)] = &[
        ("^embedding.", "model.decoder.embed_tokens."),
        ("^embedding_projection.", "model.decoder.project_in."),
        ("^output_projection.", "model.decoder.project_out."),
        ("^positions.", "model.decoder.embed_positions."),
        ("^final_norm.", "model.decoder.final_layer_norm."),
        ("^head.", "lm_head."),
        ("^blocks.", "model.decoder.layers."),
        (".mixer_norm.", ".self_attn_layer_norm."),
        (".channel_norm.", ".final_layer_norm."),
        (".mixer.query.", ".self_attn.q_proj."),
        (".mixer.key.", ".self_attn.k_proj."),
        (".mixer.value.", ".self_attn.v_proj."),
        (".mixer.output.", ".self_attn.out_proj."),
        (".channel.up.", ".fc1."),
        (".channel.down.", ".fc2."),
    ];
    table(spec, NAMES, &[])
}

#[cfg(test)]
mod tests {
    use super::super::tests::{changed, fixture};
    use super::*;

    #[test]
    fn norms_stand_before_or_after() {
        assert!(fixture("opt").final_norm.is_some());
        let spec = fixture("opt-post-norm");
        assert!(spec.final_norm.is_none() && spec.blocks[0].residual == Residual::PostNorm);
    }

    #[test]
    fn narrow_embeddings_are_projected_at_both_ends() {
        let spec = changed("opt", json!({ "word_embed_proj_dim": 8 })).unwrap();
        assert_eq!((spec.outer_width(), spec.hidden_width()), (8, 8));
        let names: Vec<String> = tensors(&spec).into_iter().map(|entry| entry.name).collect();
        for name in ["project_in", "project_out"] {
            assert!(names.contains(&format!("model.decoder.{name}.weight")));
        }
        assert_eq!(fixture("opt").embedding_projection, None);
    }
}
