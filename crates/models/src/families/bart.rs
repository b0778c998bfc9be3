//! BART (arXiv 1910.13461): an encoder-decoder with norms over the sums, learned positions, and a bias on the logits that is
//! never trained. The layout serves Marian, mBART, M2M-100 and Pegasus too.

use super::config::{
    CONTEXT_LIMIT, Config, HEAD_LIMIT, INNER_LIMIT, LAYER_LIMIT, WIDTH_LIMIT, activation_name,
};
use super::{
    Family, Frame, ModuleNames, TensorEntry, attention, even_head_dim, mlp, table, write_frame,
};
use crate::error::Result;
use crate::spec::{
    Activation, AttentionSpec, BlockSpec, ChannelSpec, CrossSpec, EncoderSpec, MixerSpec, MlpSpec,
    ModelSpec, NormSpec, PositionSpec,
};
use serde_json::{Map, Value, json};

/// The registration of BART.
pub const FAMILY: Family = Family {
    model_type: "bart",
    architecture: "BartForConditionalGeneration",
    read: read_bart,
    write: write_bart,
    tensors,
    modules: ModuleNames {
        unread: Some("shared"),
        ..ModuleNames::OF_FILES
    },
    prefix: "model.",
    ignored: &["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"],
};

/// Rows of the tables of positions before that of position 0.
pub(super) const OFFSET: usize = 2;
const EPSILON: f64 = 1e-5;

/// Where the families differ.
pub(super) struct Switches {
    /// The positions of a stack for so many tokens.
    pub positions: fn(usize) -> PositionSpec,
    /// Whether there is a norm over the embedding.
    pub embedding_norm: bool,
    /// Whether norms stand before the mixers, and one after each stack, rather than over the sums.
    pub norms_before: bool,
    /// Whether the logits have a bias, which is never trained.
    pub logit_bias: bool,
    /// Whether the decoder is trained to start with the last token of its target.
    pub starts_with_last: bool,
    /// `activation_function` where the file has none.
    pub activation: Activation,
    /// `scale_embedding` where the file has none.
    pub scaled: bool,
}

impl Switches {
    /// Those of BART.
    pub const BART: Self = Self {
        positions: |count| PositionSpec::Learned {
            count,
            offset: OFFSET,
        },
        embedding_norm: true,
        norms_before: false,
        logit_bias: true,
        starts_with_last: false,
        activation: Activation::Gelu,
        scaled: false,
    };
}

fn read_bart(config: &Config) -> Result<ModelSpec> {
    read(config, &FAMILY, &Switches::BART)
}

/// Reads the layout.
pub(super) fn read(config: &Config, family: &Family, switches: &Switches) -> Result<ModelSpec> {
    // Said by the family already.
    let known = [
        "is_encoder_decoder",
        "num_hidden_layers",
        "static_position_embeddings",
        "extra_pos_embeddings",
    ];
    config.ignore(&known);
    check(config, switches)?;
    let width = config.size("d_model", WIDTH_LIMIT)?;
    let norm = NormSpec::layer(EPSILON);
    let activation = config.activation_or("activation_function", switches.activation)?;
    let side = |side: &str| -> Result<(usize, BlockSpec)> {
        let key = format!("{side}_attention_heads");
        let heads = config.size(&key, HEAD_LIMIT)?;
        let head_dim = even_head_dim(config, &key, width, heads)?;
        let plain = AttentionSpec::plain(heads, heads, head_dim);
        let attention = AttentionSpec {
            qkv_bias: true,
            output_bias: true,
            ..plain
        };
        let inner = config.size(&format!("{side}_ffn_dim"), INNER_LIMIT)?;
        let channel = ChannelSpec::Mlp(MlpSpec {
            inner,
            activation,
            bias: true,
            sub_norm: None,
        });
        let cross = (side == "decoder").then(|| CrossSpec {
            attention: attention.clone(),
            norm,
        });
        let join = match switches.norms_before {
            true => BlockSpec::sequential,
            false => BlockSpec::post_norm,
        };
        let block = join(MixerSpec::Attention(attention), channel, norm);
        Ok((
            config.size(&format!("{side}_layers"), LAYER_LIMIT)?,
            BlockSpec { cross, ..block },
        ))
    };
    let (layers, block) = side("decoder")?;
    let blocks = vec![block; layers];
    let (layers, block) = side("encoder")?;
    let context = config
        .optional_size("max_position_embeddings", CONTEXT_LIMIT)?
        .unwrap_or(1024);
    let start = config.token("decoder_start_token_id")?;
    // Generation starts with the beginning of a text where nothing else is said.
    let start = match switches.starts_with_last {
        true => start.or(config.token("bos_token_id")?),
        false => start,
    };
    let embedding_norm = switches.embedding_norm.then_some(norm);
    let final_norm = switches.norms_before.then_some(norm);
    let positions = Some((switches.positions)(context));
    let encoder = EncoderSpec {
        blocks: vec![block; layers],
        positions,
        relative: None,
        embedding_norm,
        final_norm,
        decoder_start: start
            .ok_or_else(|| config.error("decoder_start_token_id", "missing; add it"))?,
        starts_with_last: switches.starts_with_last,
        fixed_padding: true,
        forced_first: config.token("forced_bos_token_id")?,
        forced_last: config.token("forced_eos_token_id")?,
    };
    let frame = Frame {
        width,
        context,
        blocks,
        final_norm,
        tied_by_default: true,
    };
    let scale = config.flag_or("scale_embedding", switches.scaled)?;
    let deviation = config.positive_or("init_std", 0.02)?;
    Ok(ModelSpec {
        positions,
        encoder: Some(encoder),
        embedding_scale: if scale { (width as f64).sqrt() } else { 1.0 },
        embedding_norm,
        head_bias: switches.logit_bias,
        head_bias_fixed: switches.logit_bias,
        initializer_range: deviation,
        ..frame.read_decoder(config, family)?
    })
}

/// Keys of old files that ask for another layout than the family's are refused.
fn check(config: &Config, switches: &Switches) -> Result<()> {
    let mut said = vec![
        ("add_bias_logits", false),
        ("normalize_embedding_before", false),
    ];
    said.extend([
        ("normalize_embedding", switches.embedding_norm),
        ("normalize_before", switches.norms_before),
        ("add_final_layer_norm", switches.norms_before),
    ]);
    for (key, expected) in said {
        if config.flag_or(key, expected)? != expected {
            let reason = format!("{} is not supported by this family", !expected);
            return Err(config.error(key, reason));
        }
    }
    Ok(())
}

fn write_bart(spec: &ModelSpec) -> Map<String, Value> {
    write(spec, &FAMILY)
}

/// Writes the layout.
pub(super) fn write(spec: &ModelSpec, family: &Family) -> Map<String, Value> {
    let mut map = write_frame(spec, family);
    map.remove("initializer_range");
    let mut set = |key: &str, value: Value| map.insert(key.to_owned(), value);
    set("is_encoder_decoder", json!(true));
    set("d_model", json!(spec.width));
    set("max_position_embeddings", json!(spec.context));
    set("scale_embedding", json!(spec.embedding_scale != 1.0));
    set("init_std", json!(spec.initializer_range));
    let mut side = |side: &str, blocks: &[BlockSpec]| {
        set(&format!("{side}_layers"), json!(blocks.len()));
        if let Some((block, mlp)) = blocks.first().and_then(|block| Some((block, mlp(block)?))) {
            set(
                &format!("{side}_attention_heads"),
                json!(attention(block).map(|attention| attention.heads)),
            );
            set(&format!("{side}_ffn_dim"), json!(mlp.inner));
            set(
                "activation_function",
                json!(activation_name(mlp.activation)),
            );
        }
    };
    side("decoder", &spec.blocks);
    if let Some(encoder) = &spec.encoder {
        side("encoder", &encoder.blocks);
        set("decoder_start_token_id", json!(encoder.decoder_start));
        set("forced_bos_token_id", json!(encoder.forced_first));
        set("forced_eos_token_id", json!(encoder.forced_last));
    }
    map
}

/// The tensors of the layout.
pub(super) fn tensors(spec: &ModelSpec) -> Vec<TensorEntry> {
    const NAMES: &[(&str, &str)] = &[
        ("^embedding.", "model.shared."),
        ("^encoder.positions.", "model.encoder.embed_positions."),
        (
            "^encoder.embedding_norm.",
            "model.encoder.layernorm_embedding.",
        ),
        ("^encoder.final_norm.", "model.encoder.layer_norm."),
        ("^encoder.blocks.", "model.encoder.layers."),
        ("^positions.", "model.decoder.embed_positions."),
        ("^embedding_norm.", "model.decoder.layernorm_embedding."),
        ("^final_norm.", "model.decoder.layer_norm."),
        ("^blocks.", "model.decoder.layers."),
        ("^head.weight", "lm_head.weight"),
        ("^head.bias", "final_logits_bias"),
        ("^head.weight", "lm_head.weight"),
        (".mixer_norm.", ".self_attn_layer_norm."),
        (".mixer.", ".self_attn."),
        (".cross_norm.", ".encoder_attn_layer_norm."),
        (".cross.", ".encoder_attn."),
        (".query.", ".q_proj."),
        (".key.", ".k_proj."),
        (".value.", ".v_proj."),
        (".output.", ".out_proj."),
        (".channel.up.", ".fc1."),
        (".channel.down.", ".fc2."),
        (".channel_norm.", ".final_layer_norm."),
    ];
    table(spec, NAMES, &[])
}

#[cfg(test)]
mod tests {
    use super::super::tests::{changed, fixture};
    use super::*;

    #[test]
    fn reads_the_fixture() {
        let spec = fixture("bart");
        let encoder = spec.encoder.as_ref().unwrap();
        assert_eq!(
            (
                encoder.blocks.len(),
                encoder.decoder_start,
                encoder.forced_last
            ),
            (3, 2, Some(2))
        );
        assert_eq!(
            spec.positions,
            Some(PositionSpec::Learned {
                count: 64,
                offset: 2
            })
        );
        assert!(changed("bart", json!({ "decoder_start_token_id": null })).is_err());
        assert!(changed("bart", json!({ "normalize_before": true })).is_err());
    }
}
