//! DistilBERT (arXiv 1910.01108): a small BERT without token types and pooler, with keys and names of its own.

use super::config::{
    CONTEXT_LIMIT, Config, HEAD_LIMIT, INNER_LIMIT, LAYER_LIMIT, WIDTH_LIMIT, activation_name,
};
use super::encoder_layout;
use super::heads::EncoderHeads;
use super::{Family, Frame, ModuleNames, TensorEntry, attention, even_head_dim, mlp, write_frame};
use crate::error::Result;
use crate::pooling::Pooling;
use crate::spec::{
    Activation, AttentionSpec, BlockSpec, ChannelSpec, ClassifierDenseSpec, HeadTransformSpec,
    MixerSpec, MlpSpec, ModelSpec, NormSpec, PositionSpec,
};
use serde_json::{Map, Value, json};

/// The registration of DistilBERT.
pub const FAMILY: Family = Family {
    model_type: "distilbert",
    architecture: "DistilBertForMaskedLM",
    read,
    write,
    tensors,
    modules: ModuleNames::OF_FILES,
    prefix: PREFIX,
    ignored: &["embeddings.position_ids", "vocab_projector.weight"],
};

/// What stands before names in files that have a head.
const PREFIX: &str = "distilbert.";
/// Of every norm.
const EPSILON: f64 = 1e-12;

fn read(config: &Config) -> Result<ModelSpec> {
    // How a fresh table of positions is filled; `tie_weights_` is read by no version.
    config.ignore(&["sinusoidal_pos_embds", "tie_weights_"]);
    let width = config.size("dim", WIDTH_LIMIT)?;
    let heads = config.size("n_heads", HEAD_LIMIT)?;
    let head_dim = even_head_dim(config, "n_heads", width, heads)?;
    let norm = NormSpec::layer(EPSILON);
    let activation = config.activation_or("activation", Activation::Gelu)?;
    let mixer = MixerSpec::Attention(AttentionSpec {
        qkv_bias: true,
        output_bias: true,
        ..AttentionSpec::plain(heads, heads, head_dim)
    });
    let channel = ChannelSpec::Mlp(MlpSpec {
        inner: config.size("hidden_dim", INNER_LIMIT)?,
        activation,
        bias: true,
        sub_norm: None,
    });
    let context = config
        .optional_size("max_position_embeddings", CONTEXT_LIMIT)?
        .unwrap_or(512);
    let frame = Frame {
        width,
        context,
        blocks: vec![
            BlockSpec::post_norm(mixer, channel, norm);
            config.size("n_layers", LAYER_LIMIT)?
        ],
        final_norm: None,
        tied_by_default: true,
    };
    let spec = ModelSpec {
        positions: Some(PositionSpec::Learned {
            count: context,
            offset: 0,
        }),
        embedding_norm: Some(norm),
        ..frame.read_decoder(config, &FAMILY)?
    };
    let heads = EncoderHeads {
        transform: HeadTransformSpec {
            activation,
            norm,
            bias: true,
        },
        bias: true,
        text_dense: Some(ClassifierDenseSpec {
            activation: Activation::Relu,
            norm: None,
            bias: true,
        }),
        token_dense: None,
        pooling: Pooling::First,
        pooler: false,
    };
    heads.put_on(spec, config, &FAMILY)
}

fn write(spec: &ModelSpec) -> Map<String, Value> {
    let mut map = write_frame(spec, &FAMILY);
    let mut set = |key: &str, value: Value| map.insert(key.to_owned(), value);
    set("dim", json!(spec.width));
    set("n_layers", json!(spec.blocks.len()));
    set("max_position_embeddings", json!(spec.context));
    if let Some((block, mlp)) = spec.blocks.first().and_then(|b| Some((b, mlp(b)?))) {
        set("n_heads", json!(attention(block).map(|a| a.heads)));
        set("hidden_dim", json!(mlp.inner));
        set("activation", json!(activation_name(mlp.activation)));
    }
    map
}

fn tensors(spec: &ModelSpec) -> Vec<TensorEntry> {
    const NAMES: &[(&str, &str)] = &[
        ("^embedding.", "distilbert.embeddings.word_embeddings."),
        ("^positions.", "distilbert.embeddings.position_embeddings."),
        ("^embedding_norm.", "distilbert.embeddings.LayerNorm."),
        ("^classifier.dense.", "pre_classifier."),
        ("^classifier.output.", "classifier."),
        ("^head_transform.", "vocab_transform."),
        ("^head_norm.", "vocab_layer_norm."),
        ("^head.", "vocab_projector."),
        ("^blocks.", "distilbert.transformer.layer."),
        (".mixer_norm.", ".sa_layer_norm."),
        (".mixer.query.", ".attention.q_lin."),
        (".mixer.key.", ".attention.k_lin."),
        (".mixer.value.", ".attention.v_lin."),
        (".mixer.output.", ".attention.out_lin."),
        (".channel.up.", ".ffn.lin1."),
        (".channel.down.", ".ffn.lin2."),
        (".channel_norm.", ".output_layer_norm."),
    ];
    encoder_layout::tensors(spec, PREFIX, NAMES)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{changed, fixture};
    use super::*;

    #[test]
    fn reads_the_fixture() {
        let spec = fixture("distilbert");
        assert!(spec.bidirectional && !spec.headless && spec.token_types.is_none());
        assert!(changed("distilbert", json!({ "n_heads": 7 })).is_err());
    }

    #[test]
    fn the_published_model_has_its_published_count() {
        let sizes = json!({
            "architectures": ["DistilBertForMaskedLM"], "dim": 768, "n_layers": 6, "n_heads": 12, "hidden_dim": 3072,
            "max_position_embeddings": 512, "vocab_size": 30522,
        });
        assert_eq!(
            changed("distilbert", sizes).unwrap().parameter_count(),
            66_985_530
        );
    }
}
