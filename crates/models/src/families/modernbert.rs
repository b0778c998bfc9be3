//! ModernBERT (arXiv 2412.13663): an encoder with norms before the mixers, none before the first, rotary positions, gated
//! feed-forward layers, and windows in most layers, whose rotations have a base of their own.

use super::config::{
    CONTEXT_LIMIT, Config, HEAD_LIMIT, INNER_LIMIT, LAYER_LIMIT, WIDTH_LIMIT, activation_name,
};
use super::encoder_layout::bare_where_alone;
use super::heads::EncoderHeads;
use super::{
    Family, Frame, Fused, GATE_UP, ModuleNames, QUERY_KEY_VALUE, TensorEntry, attention,
    even_head_dim, mlp, rope, table, write_frame,
};
use crate::error::Result;
use crate::pooling::Pooling;
use crate::spec::{
    Activation, AttentionSpec, BlockSpec, ChannelSpec, ClassifierDenseSpec, HeadTransformSpec,
    MixerSpec, MlpSpec, ModelSpec, NormSpec, RotarySpec, Subject,
};
use serde_json::{Map, Value, json};

/// The registration of ModernBERT.
pub const FAMILY: Family = Family {
    model_type: "modernbert",
    architecture: "ModernBertForMaskedLM",
    read,
    write,
    tensors,
    modules: ModuleNames::OF_FILES,
    prefix: PREFIX,
    ignored: &["decoder.weight", "rotary_emb.inv_freq"],
};

/// What stands before names in files that have a head.
const PREFIX: &str = "model.";

/// A kind of layer: its name, the old key of its rotations' base, and that base where no file has it.
struct Kind {
    name: &'static str,
    theta_key: &'static str,
    theta: f64,
}

const GLOBAL: Kind = Kind {
    name: "full_attention",
    theta_key: "global_rope_theta",
    theta: 160_000.0,
};
const LOCAL: Kind = Kind {
    name: "sliding_attention",
    theta_key: "local_rope_theta",
    theta: 10_000.0,
};

fn read(config: &Config) -> Result<ModelSpec> {
    // How the reference computes, pads and starts; `layer_types` decides where both are there.
    config.ignore(&[
        "deterministic_flash_attn",
        "global_attn_every_n_layers",
        "initializer_cutoff_factor",
        "layer_norm_eps",
        "position_embedding_type",
        "reference_compile",
        "repad_logits_with_grad",
        "sparse_pred_ignore_index",
        "sparse_prediction",
    ]);
    let width = config.size("hidden_size", WIDTH_LIMIT)?;
    let epsilon = config.positive_or("norm_eps", 1e-5)?;
    let norm = match config.flag_or("norm_bias", false)? {
        true => NormSpec::layer(epsilon),
        false => NormSpec::layer_without_bias(epsilon),
    };
    let context = config
        .optional_size("max_position_embeddings", CONTEXT_LIMIT)?
        .unwrap_or(8192);
    let frame = Frame {
        width,
        context,
        blocks: blocks(config, width, context, norm)?,
        final_norm: Some(norm),
        tied_by_default: true,
    };
    let spec = ModelSpec {
        embedding_norm: Some(norm),
        ..frame.read_decoder(config, &FAMILY)?
    };
    heads(config, norm)?.put_on(spec, config, &FAMILY)
}

fn heads(config: &Config, norm: NormSpec) -> Result<EncoderHeads> {
    let activation = config.activation_or("classifier_activation", Activation::Gelu)?;
    let bias = config.flag_or("classifier_bias", false)?;
    let pooling = match config.optional_text("classifier_pooling")? {
        None | Some("cls") => Pooling::First,
        Some("mean") => Pooling::Mean,
        Some(kind) => {
            let reason = format!("unknown pooling `{kind}`; known are cls and mean");
            return Err(config.error("classifier_pooling", reason));
        }
    };
    let dense = Some(ClassifierDenseSpec {
        activation,
        norm: Some(norm),
        bias,
    });
    Ok(EncoderHeads {
        transform: HeadTransformSpec {
            activation,
            norm,
            bias,
        },
        bias: config.flag_or("decoder_bias", true)?,
        text_dense: dense,
        token_dense: dense,
        pooling,
        pooler: false,
    })
}

fn blocks(config: &Config, width: usize, context: usize, norm: NormSpec) -> Result<Vec<BlockSpec>> {
    let heads = config.size("num_attention_heads", HEAD_LIMIT)?;
    let head_dim = even_head_dim(config, "num_attention_heads", width, heads)?;
    let bias = config.flag_or("attention_bias", false)?;
    let attention = |kind: &Kind, window| -> Result<MixerSpec> {
        Ok(MixerSpec::Attention(AttentionSpec {
            rotary: Some(rotary(config, kind, head_dim, context)?),
            window,
            qkv_bias: bias,
            output_bias: bias,
            ..AttentionSpec::plain(heads, heads, head_dim)
        }))
    };
    // The key counts both directions; a token sees the half of it in each, and itself.
    let seen = config.count_or("local_attention", 128, CONTEXT_LIMIT)?;
    let (global, local) = (
        attention(&GLOBAL, None)?,
        attention(&LOCAL, Some(seen / 2 + 1))?,
    );
    let channel = ChannelSpec::GatedMlp(MlpSpec {
        inner: config.size("intermediate_size", INNER_LIMIT)?,
        activation: config.activation_or("hidden_activation", Activation::Gelu)?,
        bias: config.flag_or("mlp_bias", false)?,
        sub_norm: None,
    });
    let block = |(layer, is_local): (usize, bool)| {
        let mixer = if is_local { &local } else { &global };
        let block = BlockSpec::sequential(mixer.clone(), channel.clone(), norm);
        BlockSpec {
            mixer_norm: block.mixer_norm.filter(|_| layer > 0),
            ..block
        }
    };
    Ok(kinds(config)?.into_iter().enumerate().map(block).collect())
}

/// Which layers have a window.
fn kinds(config: &Config) -> Result<Vec<bool>> {
    let layers = config.size("num_hidden_layers", LAYER_LIMIT)?;
    let every = config
        .optional_size("global_attn_every_n_layers", LAYER_LIMIT)?
        .unwrap_or(3);
    let Some(types) = config.optional_texts("layer_types")? else {
        return Ok((0..layers)
            .map(|layer| !layer.is_multiple_of(every))
            .collect());
    };
    if types.len() != layers {
        let found = types.len();
        let reason = format!("expected one for each of the {layers} layers, found {found}");
        return Err(config.error("layer_types", reason));
    }
    let is_local = |kind: &str| match kind {
        kind if kind == LOCAL.name => Ok(true),
        kind if kind == GLOBAL.name => Ok(false),
        _ => {
            let known = [GLOBAL.name, LOCAL.name].join(" and ");
            Err(config.error(
                "layer_types",
                format!("unknown type `{kind}`; known are {known}"),
            ))
        }
    };
    types.into_iter().map(is_local).collect()
}

/// The rotations of a kind of layer, in today's form or by the old keys.
fn rotary(config: &Config, kind: &Kind, head_dim: usize, context: usize) -> Result<RotarySpec> {
    const KEY: &str = "rope_parameters";
    let own = match config.optional_object(KEY)? {
        Some(all) => all.optional_object(kind.name)?,
        None => config.optional_object("rope_scaling")?,
    };
    let mut parameters = own.map_or_else(Map::new, |own| own.map().clone());
    let theta = config.optional_positive(kind.theta_key)?;
    parameters
        .entry("rope_theta")
        .or_insert(json!(theta.unwrap_or(kind.theta)));
    let config = config.clone().with(KEY, Value::Object(parameters));
    rope::read(&config, head_dim, context)
}

fn write(spec: &ModelSpec) -> Map<String, Value> {
    let mut map = write_frame(spec, &FAMILY);
    let mut set = |key: &str, value: Value| map.insert(key.to_owned(), value);
    set("hidden_size", json!(spec.width));
    set("num_hidden_layers", json!(spec.blocks.len()));
    set("max_position_embeddings", json!(spec.context));
    set("norm_eps", json!(spec.norm_epsilon()));
    set(
        "norm_bias",
        json!(spec.final_norm.is_some_and(NormSpec::has_bias)),
    );
    if let Some((block, mlp)) = spec.blocks.first().and_then(|b| Some((b, mlp(b)?))) {
        set(
            "num_attention_heads",
            json!(attention(block).map(|a| a.heads)),
        );
        set(
            "attention_bias",
            json!(attention(block).is_some_and(|a| a.qkv_bias)),
        );
        set("intermediate_size", json!(mlp.inner));
        set("hidden_activation", json!(activation_name(mlp.activation)));
        set("mlp_bias", json!(mlp.bias));
    }
    let windows = || spec.blocks.iter().filter_map(attention);
    let name = |a: &AttentionSpec| a.window.map_or(GLOBAL.name, |_| LOCAL.name);
    set(
        "layer_types",
        json!(windows().map(name).collect::<Vec<_>>()),
    );
    if let Some(window) = windows().find_map(|a| a.window) {
        set("local_attention", json!(2 * window.saturating_sub(1)));
    }
    // Of a kind of layer that there is none of, the rotations of the other.
    let rotations = |kind: &Kind| {
        let own = windows().find(|a| name(a) == kind.name);
        let any = own.or_else(|| windows().next())?;
        let rotary = any.rotary.as_ref()?;
        Some((kind.name.to_owned(), rope::write(rotary, any.head_dim)))
    };
    let rotations = [GLOBAL, LOCAL].iter().filter_map(rotations).collect();
    set("rope_parameters", Value::Object(rotations));
    write_heads(spec, &mut map);
    map
}

/// The keys of what stands on the encoder; of the encoder alone none.
fn write_heads(spec: &ModelSpec, map: &mut Map<String, Value>) {
    let mut set = |key: &str, value: Value| map.insert(key.to_owned(), value);
    let classifier = spec.classifier.and_then(|classifier| classifier.dense);
    let dense = classifier.map(|dense| (dense.activation, dense.bias));
    let transform = spec.head_transform.map(|t| (t.activation, t.bias));
    if let Some((activation, bias)) = dense.or(transform) {
        set("classifier_activation", json!(activation_name(activation)));
        set("classifier_bias", json!(bias));
    }
    if transform.is_some() {
        set("decoder_bias", json!(spec.head_bias));
    }
    if let Some(Subject::Texts(pooling)) = spec.classifier.map(|classifier| classifier.subject) {
        let name = if pooling == Pooling::Mean {
            "mean"
        } else {
            "cls"
        };
        set("classifier_pooling", json!(name));
    }
}

fn tensors(spec: &ModelSpec) -> Vec<TensorEntry> {
    const NAMES: &[(&str, &str)] = &[
        ("^embedding.", "model.embeddings.tok_embeddings."),
        ("^embedding_norm.", "model.embeddings.norm."),
        ("^final_norm.", "model.final_norm."),
        ("^head.", "decoder."),
        ("^head_transform.", "head.dense."),
        ("^head_norm.", "head.norm."),
        ("^classifier.dense.", "head.dense."),
        ("^classifier.norm.", "head.norm."),
        ("^classifier.output.", "classifier."),
        ("^blocks.", "model.layers."),
        (".mixer_norm.", ".attn_norm."),
        (".mixer.query.", ".attn.Wqkv."),
        (".mixer.output.", ".attn.Wo."),
        (".channel_norm.", ".mlp_norm."),
        (".channel.gate.", ".mlp.Wi."),
        (".channel.down.", ".mlp.Wo."),
    ];
    let fused = [QUERY_KEY_VALUE, GATE_UP].map(|parts| Fused { parts, groups: 1 });
    bare_where_alone(spec, PREFIX, table(spec, NAMES, &fused))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{changed, fixture};
    use super::*;

    #[test]
    fn reads_the_fixture() {
        let spec = fixture("modernbert");
        assert!(spec.blocks[0].mixer_norm.is_none() && spec.blocks[1].mixer_norm.is_some());
        let of = |layer: usize| {
            let attention = attention(&spec.blocks[layer]).unwrap();
            (attention.window, attention.rotary.as_ref().unwrap().theta)
        };
        assert_eq!(of(0), (None, 160_000.0));
        assert_eq!(of(1), (Some(8), 10_000.0));
        assert_eq!(of(3), (None, 160_000.0));
        let wrong = json!({ "layer_types": ["full_attention"] });
        assert!(changed("modernbert", wrong).is_err());
    }

    #[test]
    fn the_keys_of_published_files_are_read() {
        let old = json!({
            "layer_types": null, "rope_parameters": null, "global_attn_every_n_layers": 2, "global_rope_theta": 80000.0,
            "local_rope_theta": 5000.0, "local_attention": 128,
        });
        let spec = changed("modernbert", old).unwrap();
        let of = |layer: usize| {
            let attention = attention(&spec.blocks[layer]).unwrap();
            (attention.window, attention.rotary.as_ref().unwrap().theta)
        };
        assert_eq!((of(1), of(2)), ((Some(65), 5000.0), (None, 80_000.0)));
    }
}
