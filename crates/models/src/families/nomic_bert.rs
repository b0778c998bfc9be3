//! Nomic BERT (arXiv 2402.01613): BERT with rotary positions, gated feed-forward layers and no biases.

use super::config::{
    CONTEXT_LIMIT, Config, HEAD_LIMIT, INNER_LIMIT, LAYER_LIMIT, WIDTH_LIMIT, activation_name,
};
use super::encoder_layout::{bare_where_alone, head_names};
use super::heads::EncoderHeads;
use super::{
    Family, Frame, Fused, ModuleNames, QUERY_KEY_VALUE, TensorEntry, attention, even_head_dim, mlp,
    rope, table, write_frame,
};
use crate::error::Result;
use crate::pooling::Pooling;
use crate::spec::{
    Activation, AttentionSpec, BlockSpec, ChannelSpec, ClassifierDenseSpec, HeadTransformSpec,
    MixerSpec, MlpSpec, ModelSpec, NormSpec,
};
use serde_json::{Map, Value, json};

/// The registration of Nomic BERT.
pub const FAMILY: Family = Family {
    model_type: "nomic_bert",
    architecture: "NomicBertForMaskedLM",
    read,
    write,
    tensors,
    modules: ModuleNames::of(in_memory),
    prefix: PREFIX,
    ignored: &[
        "cls.predictions.decoder.weight",
        "cls.predictions.decoder.bias",
        "rotary_emb.inv_freq",
    ],
};

/// What stands before names in files that have a head.
const PREFIX: &str = "nomic_bert.";
/// Most token types.
const TYPE_LIMIT: usize = 1 << 16;
/// Base of the rotations where the file has none.
const THETA: f64 = 1000.0;

/// The keys of the authors' files, and those that say the same today.
const TODAYS_KEYS: &[(&str, &str)] = &[
    ("n_embd", "hidden_size"),
    ("n_head", "num_attention_heads"),
    ("n_inner", "intermediate_size"),
    ("n_layer", "num_hidden_layers"),
    ("n_positions", "max_position_embeddings"),
    ("layer_norm_epsilon", "layer_norm_eps"),
    ("rotary_emb_base", "rope_theta"),
];

fn read(config: &Config) -> Result<ModelSpec> {
    let config = &todays(config)?;
    let width = config.size("hidden_size", WIDTH_LIMIT)?;
    let norm = NormSpec::layer(config.positive_or("layer_norm_eps", 1e-12)?);
    let context = config
        .optional_size("max_position_embeddings", CONTEXT_LIMIT)?
        .unwrap_or(2048);
    let activation = config.activation_or("hidden_act", Activation::Silu)?;
    let channel = ChannelSpec::GatedMlp(MlpSpec {
        inner: config.size("intermediate_size", INNER_LIMIT)?,
        activation,
        bias: false,
        sub_norm: None,
    });
    let block = BlockSpec::post_norm(mixer(config, width, context)?, channel, norm);
    let frame = Frame {
        width,
        context,
        blocks: vec![block; config.size("num_hidden_layers", LAYER_LIMIT)?],
        final_norm: None,
        tied_by_default: true,
    };
    let types = config
        .optional_size("type_vocab_size", TYPE_LIMIT)?
        .unwrap_or(2);
    let spec = ModelSpec {
        token_types: Some(types),
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
            activation: Activation::Tanh,
            norm: None,
            bias: true,
        }),
        token_dense: None,
        pooling: Pooling::First,
        pooler: false,
    };
    heads.put_on(spec, config, &FAMILY)
}

/// The configuration with the authors' keys in today's form.
fn todays(config: &Config) -> Result<Config> {
    if !config.contains("n_embd") {
        return Ok(config.clone());
    }
    // How the authors' code computes and fills its tables.
    config.ignore(&[
        "dense_seq_output",
        "fused_bias_fc",
        "max_trained_positions",
        "pad_vocab_size_multiple",
        "parallel_block_tied_norm",
        "reorder_and_upcast_attn",
        "use_flash_attn",
        "use_xentropy",
    ]);
    for key in [
        "causal",
        "mlp_fc1_bias",
        "mlp_fc2_bias",
        "parallel_block",
        "prenorm",
        "qkv_proj_bias",
        "rotary_emb_interleaved",
        "rotary_emb_scale_base",
        "rotary_scaling_factor",
        "scale_attn_by_inverse_layer_idx",
        "use_rms_norm",
    ] {
        config.refuse(key)?;
    }
    if config.positive_or("rotary_emb_fraction", 1.0)? != 1.0 {
        let reason = "only 1.0 is supported: the positions turn whole heads";
        return Err(config.error("rotary_emb_fraction", reason));
    }
    if !config.flag_or("scale_attn_weights", true)? {
        return Err(config.error("scale_attn_weights", "false is not supported yet"));
    }
    if let Some(name) = config
        .optional_text("activation_function")?
        .filter(|name| *name != "swiglu")
    {
        let reason = format!("`{name}` is not supported yet; known is swiglu");
        return Err(config.error("activation_function", reason));
    }
    let todays = |new: Config, (old, todays): &(&str, &str)| match config.get(old) {
        Some(value) => new.with(todays, value.clone()),
        None => new,
    };
    Ok(TODAYS_KEYS.iter().fold(config.clone(), todays))
}

fn mixer(config: &Config, width: usize, context: usize) -> Result<MixerSpec> {
    let heads = config.size("num_attention_heads", HEAD_LIMIT)?;
    let head_dim = match config.optional_size("head_dim", HEAD_LIMIT)? {
        Some(head_dim) => head_dim,
        None => even_head_dim(config, "num_attention_heads", width, heads)?,
    };
    if heads.saturating_mul(head_dim) > INNER_LIMIT {
        let reason =
            format!("{heads} heads of width {head_dim} are together wider than {INNER_LIMIT}");
        return Err(config.error("head_dim", reason));
    }
    let theta = config.optional_positive("rope_theta")?.unwrap_or(THETA);
    let config = config.clone().with("rope_theta", json!(theta));
    Ok(MixerSpec::Attention(AttentionSpec {
        rotary: Some(rope::read_whole(&config, head_dim, context)?),
        ..AttentionSpec::plain(heads, heads, head_dim)
    }))
}

fn write(spec: &ModelSpec) -> Map<String, Value> {
    let mut map = write_frame(spec, &FAMILY);
    let mut set = |key: &str, value: Value| map.insert(key.to_owned(), value);
    set("hidden_size", json!(spec.width));
    set("num_hidden_layers", json!(spec.blocks.len()));
    set("max_position_embeddings", json!(spec.context));
    set("type_vocab_size", json!(spec.token_types));
    set("layer_norm_eps", json!(spec.norm_epsilon()));
    if let Some(mlp) = spec.blocks.first().and_then(mlp) {
        set("intermediate_size", json!(mlp.inner));
        set("hidden_act", json!(activation_name(mlp.activation)));
    }
    if let Some(attention) = spec.blocks.first().and_then(attention) {
        set("num_attention_heads", json!(attention.heads));
        set("head_dim", json!(attention.head_dim));
        let rotary = attention.rotary.as_ref();
        let write = |rotary| rope::write(rotary, attention.head_dim);
        set("rope_parameters", rotary.map_or(Value::Null, write));
    }
    map
}

/// The names outside the blocks, which files and modules share.
const OUTER_NAMES: &[(&str, &str)] = &[
    ("^embedding.", "nomic_bert.embeddings.word_embeddings."),
    (
        "^token_types.",
        "nomic_bert.embeddings.token_type_embeddings.",
    ),
    ("^pooler.", "nomic_bert.pooler.dense."),
    ("^classifier.dense.", "nomic_bert.pooler.dense."),
    ("^classifier.output.", "classifier."),
    ("^head_transform.", "cls.predictions.transform.dense."),
    ("^head_norm.", "cls.predictions.transform.layer_norm."),
];

fn tensors(spec: &ModelSpec) -> Vec<TensorEntry> {
    const NAMES: &[(&str, &str)] = &[
        ("^embedding_norm.", "nomic_bert.emb_ln."),
        ("^blocks.", "nomic_bert.encoder.layers."),
        (".mixer_norm.", ".norm1."),
        (".mixer.query.", ".attn.Wqkv."),
        (".mixer.output.", ".attn.out_proj."),
        (".channel_norm.", ".norm2."),
        (".channel.up.", ".mlp.fc11."),
        (".channel.gate.", ".mlp.fc12."),
        (".channel.down.", ".mlp.fc2."),
    ];
    let fused = Fused {
        parts: QUERY_KEY_VALUE,
        groups: 1,
    };
    named(spec, NAMES, &[fused])
}

/// Transformers takes the authors' tensors apart.
fn in_memory(spec: &ModelSpec) -> Vec<TensorEntry> {
    const NAMES: &[(&str, &str)] = &[
        ("^embedding_norm.", "nomic_bert.embeddings.LayerNorm."),
        ("^blocks.", "nomic_bert.layers."),
        (".mixer_norm.", ".post_attention_layernorm."),
        (".mixer.query.", ".self_attn.q_proj."),
        (".mixer.key.", ".self_attn.k_proj."),
        (".mixer.value.", ".self_attn.v_proj."),
        (".mixer.output.", ".self_attn.o_proj."),
        (".channel_norm.", ".post_mlp_layernorm."),
        (".channel.up.", ".mlp.up_proj."),
        (".channel.gate.", ".mlp.gate_proj."),
        (".channel.down.", ".mlp.down_proj."),
    ];
    named(spec, NAMES, &[])
}

fn named(spec: &ModelSpec, names: &[(&str, &str)], fused: &[Fused]) -> Vec<TensorEntry> {
    let head = [
        "cls.predictions.decoder.weight",
        "cls.predictions.bias",
        "cls.predictions.decoder.bias",
    ];
    let names = [OUTER_NAMES, names, &head_names(spec, head)].concat();
    bare_where_alone(spec, PREFIX, table(spec, &names, fused))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{changed, fixture};
    use super::*;

    #[test]
    fn the_authors_keys_say_the_same() {
        let spec = fixture("nomic-bert-base");
        let attention = attention(&spec.blocks[0]).unwrap();
        assert_eq!(attention.rotary.as_ref().unwrap().theta, 1000.0);
        let old = json!({
            "hidden_size": null, "num_attention_heads": null, "intermediate_size": null, "num_hidden_layers": null,
            "max_position_embeddings": null, "layer_norm_eps": null, "rope_parameters": null, "head_dim": null,
            "hidden_act": null, "n_embd": 16, "n_head": attention.heads, "n_inner": mlp(&spec.blocks[0]).unwrap().inner,
            "n_layer": spec.blocks.len(), "n_positions": spec.context, "layer_norm_epsilon": 1e-12,
            "rotary_emb_base": 1000, "rotary_emb_fraction": 1.0, "activation_function": "swiglu", "use_rms_norm": false,
            "causal": false, "prenorm": false, "qkv_proj_bias": false, "use_flash_attn": true, "fused_bias_fc": true,
        });
        assert_eq!(changed("nomic-bert-base", old.clone()).unwrap(), spec);
        let part = json!({ "rope_parameters": { "rope_type": "default", "rope_theta": 1000.0, "partial_rotary_factor": 0.5 } });
        assert_eq!(changed("nomic-bert-base", part).unwrap(), spec);
        let mut part = old.clone();
        part["rotary_emb_fraction"] = json!(0.5);
        assert!(changed("nomic-bert-base", part).is_err());
        let mut prenorm = old;
        prenorm["prenorm"] = json!(true);
        assert!(changed("nomic-bert-base", prenorm).is_err());
    }
}
