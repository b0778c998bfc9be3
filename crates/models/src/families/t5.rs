//! T5 and T5 v1.1 (arXiv 1910.10683), mT5 (arXiv 2010.11934) and UMT5: an encoder-decoder with RMSNorm, no biases, unscaled scores,
//! and a bias by distance that all blocks of a stack share, or that each has for itself (UMT5). The encoder serves alone too.

use super::config::{
    CONTEXT_LIMIT, Config, HEAD_LIMIT, INNER_LIMIT, LAYER_LIMIT, WIDTH_LIMIT, activation_name,
};
use super::module_names::renamed;
use super::{
    Family, Frame, ModuleNames, TensorEntry, attention, frame::BIDIRECTIONAL, mlp, rename, table,
    write_frame,
};
use crate::error::Result;
use crate::spec::{
    Activation, AttentionSpec, BlockSpec, ChannelSpec, CrossSpec, EncoderSpec, MixerSpec, MlpSpec,
    ModelSpec, NormSpec, RelativePositionSpec,
};
use serde_json::{Map, Value, json};

/// The registration of T5.
pub const FAMILY: Family = family(
    "t5",
    "T5ForConditionalGeneration",
    |config| read(config, &FAMILY),
    |spec| write(spec, &FAMILY),
);

/// The registration of mT5.
pub const MT5: Family = family(
    "mt5",
    "MT5ForConditionalGeneration",
    |config| read(config, &MT5),
    |spec| write(spec, &MT5),
);

/// The registration of UMT5.
pub const UMT5: Family = family(
    "umt5",
    "UMT5ForConditionalGeneration",
    |config| read(config, &UMT5),
    |spec| write(spec, &UMT5),
);

const fn family(
    model_type: &'static str,
    architecture: &'static str,
    read: fn(&Config) -> Result<ModelSpec>,
    write: fn(&ModelSpec) -> Map<String, Value>,
) -> Family {
    Family {
        model_type,
        architecture,
        read,
        write,
        tensors,
        modules: ModuleNames {
            unread: Some("shared"),
            ..ModuleNames::of(in_memory)
        },
        prefix: "",
        ignored: &[
            "encoder.embed_tokens.weight",
            "decoder.embed_tokens.weight",
            // An old file's table that no version has ever read.
            "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
        ],
    }
}

/// Whether `name` is the architecture of a family of this layout whose encoder stands alone.
pub(super) fn is_encoder(name: &str, family: &Family) -> bool {
    [FAMILY.model_type, MT5.model_type, UMT5.model_type].contains(&family.model_type)
        && name == encoder_architecture(family)
}

fn encoder_architecture(family: &Family) -> String {
    family
        .architecture
        .replace("ForConditionalGeneration", "EncoderModel")
}

/// Most buckets of distances.
const BUCKET_LIMIT: usize = 1 << 16;

fn read(config: &Config, family: &Family) -> Result<ModelSpec> {
    let is_t5 = family.model_type == FAMILY.model_type;
    // Said by `feed_forward_proj` already, or by the family.
    config.ignore(&[
        "dense_act_fn",
        "is_gated_act",
        "is_encoder_decoder",
        "output_past",
    ]);
    let width = config.size("d_model", WIDTH_LIMIT)?;
    let heads = config.size("num_heads", HEAD_LIMIT)?;
    let head_dim = config.size("d_kv", HEAD_LIMIT)?;
    if heads
        .checked_mul(head_dim)
        .is_none_or(|all| all > INNER_LIMIT)
    {
        let reason =
            format!("{heads} heads of width {head_dim} are together wider than {INNER_LIMIT}");
        return Err(config.error("d_kv", reason));
    }
    let norm = NormSpec::rms(config.positive_or("layer_norm_epsilon", 1e-6)?);
    let attention = AttentionSpec {
        scale: 1.0,
        ..AttentionSpec::plain(heads, heads, head_dim)
    };
    let channel = channel(config, if is_t5 { "relu" } else { "gated-gelu" })?;
    let block = BlockSpec::sequential(MixerSpec::Attention(attention.clone()), channel, norm);
    let layers = config.size("num_layers", LAYER_LIMIT)?;
    let buckets = config
        .optional_size("relative_attention_num_buckets", BUCKET_LIMIT)?
        .unwrap_or(32);
    let relative = Some(RelativePositionSpec {
        buckets,
        rows: buckets,
        max_distance: config
            .optional_size("relative_attention_max_distance", CONTEXT_LIMIT)?
            .unwrap_or(128),
        heads,
        per_block: family.model_type == UMT5.model_type,
    });
    let encoder = EncoderSpec {
        blocks: vec![block.clone(); layers],
        positions: None,
        relative,
        embedding_norm: None,
        final_norm: Some(norm),
        decoder_start: config.token("decoder_start_token_id")?.unwrap_or(0),
        starts_with_last: false,
        fixed_padding: false,
        forced_first: config.token("forced_bos_token_id")?,
        forced_last: config.token("forced_eos_token_id")?,
    };
    let cross = Some(CrossSpec { attention, norm });
    let count = config
        .optional_size("num_decoder_layers", LAYER_LIMIT)?
        .unwrap_or(layers);
    let blocks = vec![BlockSpec { cross, ..block }; count];
    let context = config
        .optional_size("n_positions", CONTEXT_LIMIT)?
        .unwrap_or(512);
    let alone = config
        .optional_texts("architectures")?
        .is_some_and(|names| names.first().is_some_and(|name| is_encoder(name, family)));
    let frame = Frame {
        width,
        context,
        blocks: if alone {
            encoder.blocks.clone()
        } else {
            blocks
        },
        final_norm: Some(norm),
        tied_by_default: true,
    };
    let spec = frame.read_decoder(config, family)?;
    // Without the newer key, a head of its own says that the logits are not scaled; files may still have no such head.
    let scaled = config.flag_or("scale_decoder_outputs", spec.tied_head)?
        && family.model_type != MT5.model_type
        && !alone;
    let logit_scale = if scaled {
        (width as f64).powf(-0.5)
    } else {
        1.0
    };
    // Fresh embeddings are as large as normed states, and matrices keep that size.
    let factor = config.positive_or("initializer_factor", 1.0)?;
    let initializer_range = factor * (width as f64).powf(-0.5);
    Ok(ModelSpec {
        relative,
        encoder: Some(encoder).filter(|_| !alone),
        bidirectional: alone,
        headless: alone,
        logit_scale,
        initializer_range,
        embedding_range: Some(factor),
        ..spec
    })
}

/// `feed_forward_proj`: an activation, gated where its name says so; `gated-gelu` stands for the tanh form.
fn channel(config: &Config, default: &str) -> Result<ChannelSpec> {
    const KEY: &str = "feed_forward_proj";
    let inner = config.size("d_ff", INNER_LIMIT)?;
    let name = config.optional_text(KEY)?.unwrap_or(default).to_owned();
    let (gated, name) = match name.strip_prefix("gated-") {
        Some("gelu") => (true, "gelu_new".to_owned()),
        Some(name) => (true, name.to_owned()),
        None => (false, name),
    };
    let activation = config
        .clone()
        .with(KEY, json!(name))
        .activation_or(KEY, Activation::Relu)?;
    let mlp = MlpSpec {
        inner,
        activation,
        bias: false,
        sub_norm: None,
    };
    Ok(if gated {
        ChannelSpec::GatedMlp(mlp)
    } else {
        ChannelSpec::Mlp(mlp)
    })
}

fn write(spec: &ModelSpec, family: &Family) -> Map<String, Value> {
    let mut map = write_frame(spec, family);
    map.remove("initializer_range");
    map.remove(BIDIRECTIONAL);
    let mut set = |key: &str, value: Value| map.insert(key.to_owned(), value);
    if spec.encoder.is_none() {
        set("architectures", json!([encoder_architecture(family)]));
        set("num_layers", json!(spec.blocks.len()));
    }
    set("is_encoder_decoder", json!(spec.encoder.is_some()));
    set("initializer_factor", json!(spec.embedding_range));
    set("d_model", json!(spec.width));
    set("n_positions", json!(spec.context));
    // Of the encoder alone nobody reads how many blocks its decoder would have.
    set("num_decoder_layers", json!(spec.blocks.len()));
    if spec.encoder.is_some() {
        set("scale_decoder_outputs", json!(spec.logit_scale != 1.0));
    }
    set("layer_norm_epsilon", json!(spec.norm_epsilon()));
    if let Some((block, mlp)) = spec
        .blocks
        .first()
        .and_then(|block| Some((block, mlp(block)?)))
    {
        let name = activation_name(mlp.activation);
        let gated = matches!(block.channel, ChannelSpec::GatedMlp(_));
        let gated_name = if name == "gelu_new" {
            "gated-gelu".into()
        } else {
            format!("gated-{name}")
        };
        set("d_ff", json!(mlp.inner));
        set(
            "feed_forward_proj",
            if gated {
                json!(gated_name)
            } else {
                json!(name)
            },
        );
        set("is_gated_act", json!(gated));
        set("dense_act_fn", json!(name));
        set(
            "num_heads",
            json!(attention(block).map(|attention| attention.heads)),
        );
        set(
            "d_kv",
            json!(attention(block).map(|attention| attention.head_dim)),
        );
    }
    if let Some(relative) = spec.relative {
        set("relative_attention_num_buckets", json!(relative.buckets));
        set(
            "relative_attention_max_distance",
            json!(relative.max_distance),
        );
    }
    if let Some(encoder) = &spec.encoder {
        set("num_layers", json!(encoder.blocks.len()));
        set("decoder_start_token_id", json!(encoder.decoder_start));
        if encoder.forced_first.is_some() {
            set("forced_bos_token_id", json!(encoder.forced_first));
        }
        if encoder.forced_last.is_some() {
            set("forced_eos_token_id", json!(encoder.forced_last));
        }
    }
    map
}

fn tensors(spec: &ModelSpec) -> Vec<TensorEntry> {
    const ENCODER: &[(&str, &str)] = &[
        (".channel_norm.", ".layer.1.layer_norm."),
        (".channel.", ".layer.1.DenseReluDense."),
    ];
    const DECODER: &[(&str, &str)] = &[
        (".cross_norm.", ".layer.1.layer_norm."),
        (".cross.", ".layer.1.EncDecAttention."),
        (".channel_norm.", ".layer.2.layer_norm."),
        (".channel.", ".layer.2.DenseReluDense."),
    ];
    const NAMES: &[(&str, &str)] = &[
        (".mixer_norm.", ".layer.0.layer_norm."),
        (".mixer.", ".layer.0.SelfAttention."),
        (
            ".relative_bias.",
            ".layer.0.SelfAttention.relative_attention_bias.",
        ),
        (".query.", ".q."),
        (".key.", ".k."),
        (".value.", ".v."),
        (".output.", ".o."),
        (".down.", ".wo."),
    ];
    let gated = matches!(
        spec.blocks.first().map(|block| &block.channel),
        Some(ChannelSpec::GatedMlp(_))
    );
    let inner: &[(&str, &str)] = if gated {
        &[(".gate.", ".wi_0."), (".up.", ".wi_1.")]
    } else {
        &[(".up.", ".wi.")]
    };
    // Where the encoder stands alone, its blocks are the model's.
    let side = if spec.encoder.is_some() {
        "decoder."
    } else {
        "encoder."
    };
    let place = |ours: &str| {
        let (side, rest) = match ours.strip_prefix("encoder.") {
            Some(rest) => ("encoder.", rest),
            None => (side, ours),
        };
        let theirs = match rest.strip_prefix("blocks.") {
            Some(rest) => format!("{side}block.{rest}"),
            None if rest.starts_with("final_norm.") => {
                format!("{side}{}", rest.replace("final_norm.", "final_layer_norm."))
            }
            None if rest.starts_with("relative_bias.") => format!("{side}block.0.{rest}"),
            None => {
                let named = rest.replace("embedding.", "shared.");
                return named.replace("head.", "lm_head.");
            }
        };
        let own = if side == "encoder." { ENCODER } else { DECODER };
        rename(&theirs, &[own, NAMES, inner].concat())
    };
    let entries = table(spec, &[], &[]).into_iter();
    entries
        .map(|entry| TensorEntry {
            name: place(&entry.name),
            ..entry
        })
        .collect()
}

/// An encoder alone has one table, which its stack looks up.
fn in_memory(spec: &ModelSpec) -> Vec<TensorEntry> {
    let table = match spec.encoder.is_some() {
        true => "shared.",
        false => "encoder.embed_tokens.",
    };
    renamed(tensors(spec), &[("^shared.", table)])
}

#[cfg(test)]
mod tests {
    use super::super::tests::{changed, fixture};
    use super::*;

    #[test]
    fn reads_the_fixtures() {
        let (old, new) = (fixture("t5"), fixture("t5-v1_1"));
        assert!(
            matches!(old.blocks[0].channel, ChannelSpec::Mlp(_))
                && (old.logit_scale - 24f64.powf(-0.5)).abs() < 1e-12
        );
        assert!(
            matches!(new.blocks[0].channel, ChannelSpec::GatedMlp(_)) && new.logit_scale == 1.0
        );
        assert_eq!(attention(&new.blocks[0]).unwrap().scale, 1.0);
        assert!(changed("t5", json!({ "feed_forward_proj": "gated-mish" })).is_err());
    }

    #[test]
    fn later_families_differ_in_a_few_points() {
        let (mt5, umt5) = (fixture("mt5"), fixture("umt5"));
        assert!(mt5.logit_scale == 1.0 && umt5.logit_scale < 1.0);
        let per_block = |spec: &ModelSpec| spec.relative.is_some_and(|r| r.per_block);
        assert!(!per_block(&mt5) && per_block(&umt5));
        let plain = changed("mt5", json!({ "feed_forward_proj": null })).unwrap();
        assert!(matches!(plain.blocks[0].channel, ChannelSpec::GatedMlp(_)));
    }

    #[test]
    fn the_encoder_stands_alone() {
        let spec = fixture("t5-encoder");
        assert!(spec.encoder.is_none() && spec.bidirectional && spec.headless);
        let names: Vec<String> = tensors(&spec).into_iter().map(|entry| entry.name).collect();
        assert!(names.contains(&"encoder.block.1.layer.1.DenseReluDense.wi.weight".to_owned()));
    }
}
