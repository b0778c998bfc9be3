//! BERT (arXiv 1810.04805): an encoder with norms over the sums, token types, a pooler, and a head that predicts masked
//! tokens.

use super::config::{
    CONTEXT_LIMIT, Config, HEAD_LIMIT, INNER_LIMIT, LAYER_LIMIT, WIDTH_LIMIT, activation_name,
};
use super::{Family, Frame, TensorEntry, attention, even_head_dim, mlp, table, write_frame};
use crate::error::Result;
use crate::spec::{
    Activation, AttentionSpec, BlockSpec, ChannelSpec, HeadTransformSpec, MixerSpec, MlpSpec,
    ModelSpec, NormSpec, PositionSpec,
};
use serde_json::{Map, Value, json};

/// The registration of BERT.
pub const FAMILY: Family = Family {
    model_type: "bert",
    architecture: "BertForMaskedLM",
    read,
    write,
    tensors,
    prefix: "bert.",
    ignored: &[
        "embeddings.position_ids",
        "cls.predictions.decoder.weight",
        "cls.predictions.decoder.bias",
    ],
};

/// Most token types.
const TYPE_LIMIT: usize = 1 << 16;

/// Of the authors' first code, which the multilingual models kept: nothing reads them.
const QUIET: &[&str] = &[
    "directionality",
    "pooler_fc_size",
    "pooler_num_attention_heads",
    "pooler_num_fc_layers",
    "pooler_size_per_head",
    "pooler_type",
];

fn read(config: &Config) -> Result<ModelSpec> {
    config.ignore(QUIET);
    for key in ["is_decoder", "add_cross_attention"] {
        config.refuse(key)?;
    }
    if let Some(kind) = config
        .optional_text("position_embedding_type")?
        .filter(|kind| *kind != "absolute")
    {
        let reason =
            format!("positions of the kind `{kind}` are not supported yet; known is absolute");
        return Err(config.error("position_embedding_type", reason));
    }
    let width = config.size("hidden_size", WIDTH_LIMIT)?;
    let heads = config.size("num_attention_heads", HEAD_LIMIT)?;
    let head_dim = even_head_dim(config, "num_attention_heads", width, heads)?;
    let norm = NormSpec::layer(config.positive_or("layer_norm_eps", 1e-12)?);
    let activation = config.activation_or("hidden_act", Activation::Gelu)?;
    let mixer = MixerSpec::Attention(AttentionSpec {
        qkv_bias: true,
        output_bias: true,
        ..AttentionSpec::plain(heads, heads, head_dim)
    });
    let inner = config.size("intermediate_size", INNER_LIMIT)?;
    let channel = ChannelSpec::Mlp(MlpSpec {
        inner,
        activation,
        bias: true,
    });
    let blocks = vec![
        BlockSpec::post_norm(mixer, channel, norm);
        config.size("num_hidden_layers", LAYER_LIMIT)?
    ];
    let context = config
        .optional_size("max_position_embeddings", CONTEXT_LIMIT)?
        .unwrap_or(512);
    let architectures = config.optional_texts("architectures")?.unwrap_or_default();
    let is = |name: &str| architectures.first() == Some(&name);
    let (headless, pretrained) = (is("BertModel"), is("BertForPreTraining"));
    let frame = Frame {
        width,
        context,
        blocks,
        final_norm: None,
        tied_by_default: true,
    };
    Ok(ModelSpec {
        bidirectional: true,
        positions: Some(PositionSpec::Learned {
            count: context,
            offset: 0,
        }),
        token_types: Some(
            config
                .optional_size("type_vocab_size", TYPE_LIMIT)?
                .unwrap_or(2),
        ),
        embedding_norm: Some(norm),
        headless,
        head_transform: (!headless).then_some(HeadTransformSpec { activation, norm }),
        head_bias: !headless,
        pooler: headless || pretrained,
        next_sentence: pretrained,
        ..frame.read_decoder(config, &FAMILY)?
    })
}

fn write(spec: &ModelSpec) -> Map<String, Value> {
    let mut map = write_frame(spec, &FAMILY);
    let mut set = |key: &str, value: Value| map.insert(key.to_owned(), value);
    let architecture = match (spec.headless, spec.pooler) {
        (true, _) => "BertModel",
        (false, true) => "BertForPreTraining",
        (false, false) => FAMILY.architecture,
    };
    set("architectures", json!([architecture]));
    set("hidden_size", json!(spec.width));
    set("num_hidden_layers", json!(spec.blocks.len()));
    set(
        "num_attention_heads",
        json!(
            spec.blocks
                .first()
                .and_then(attention)
                .map(|attention| attention.heads)
        ),
    );
    if let Some(mlp) = spec.blocks.first().and_then(mlp) {
        set("intermediate_size", json!(mlp.inner));
        set("hidden_act", json!(activation_name(mlp.activation)));
    }
    set("layer_norm_eps", json!(spec.norm_epsilon()));
    set("max_position_embeddings", json!(spec.context));
    set("type_vocab_size", json!(spec.token_types));
    map
}

fn tensors(spec: &ModelSpec) -> Vec<TensorEntry> {
    const NAMES: &[(&str, &str)] = &[
        ("^embedding.", "bert.embeddings.word_embeddings."),
        ("^positions.", "bert.embeddings.position_embeddings."),
        ("^token_types.", "bert.embeddings.token_type_embeddings."),
        ("^embedding_norm.", "bert.embeddings.LayerNorm."),
        ("^pooler.", "bert.pooler.dense."),
        ("^next_sentence.", "cls.seq_relationship."),
        ("^head_transform.", "cls.predictions.transform.dense."),
        ("^head_norm.", "cls.predictions.transform.LayerNorm."),
        ("^head.weight", "cls.predictions.decoder.weight"),
        ("^head.", "cls.predictions."),
        ("^blocks.", "bert.encoder.layer."),
        (".mixer.output.", ".attention.output.dense."),
        (".mixer_norm.", ".attention.output.LayerNorm."),
        (".mixer.", ".attention.self."),
        (".channel.up.", ".intermediate.dense."),
        (".channel.down.", ".output.dense."),
        (".channel_norm.", ".output.LayerNorm."),
    ];
    let mut entries = table(spec, NAMES, &[]);
    if spec.headless {
        // Files of the bare model leave the prefix out.
        for entry in &mut entries {
            entry.name = entry.name.trim_start_matches(FAMILY.prefix).to_owned();
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::super::tests::{changed, fixture};
    use super::*;

    #[test]
    fn reads_the_fixture() {
        let spec = fixture("bert");
        assert!(spec.headless && spec.pooler && spec.bidirectional && spec.final_norm.is_none());
        assert_eq!(
            (spec.token_types, spec.learned_positions()),
            (Some(2), Some(64))
        );
        assert!(changed("bert", json!({ "position_embedding_type": "relative_key" })).is_err());
        assert!(changed("bert", json!({ "is_decoder": true })).is_err());
    }

    #[test]
    fn the_published_model_has_its_published_count() {
        let sizes = json!({
            "architectures": ["BertForMaskedLM"], "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
            "intermediate_size": 3072, "max_position_embeddings": 512, "vocab_size": 30522,
        });
        let spec = changed("bert", sizes).unwrap();
        assert_eq!(spec.parameter_count(), 109_514_298);
        let names: Vec<String> = tensors(&spec).into_iter().map(|entry| entry.name).collect();
        for name in [
            "cls.predictions.bias",
            "bert.encoder.layer.11.attention.self.query.weight",
        ] {
            assert!(names.iter().any(|n| n == name), "{name}");
        }
    }
}
