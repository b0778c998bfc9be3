//! RecurrentGemma (arXiv 2404.07839), the published Griffin (arXiv 2402.19427): two recurrent blocks, then one with local
//! attention.

use super::config::{Config, HEAD_LIMIT, INNER_LIMIT, LAYER_LIMIT, WIDTH_LIMIT, activation_name};
use super::mamba::{read_context, read_taps, write_context};
use super::{
    Family, Frame, ModuleNames, TensorEntry, attention, block_of, even_head_dim, mlp, rope, table,
    write_frame,
};
use crate::error::Result;
use crate::recurrent::{RecurrentSpec, RgLruSpec};
use crate::spec::{
    Activation, AttentionSpec, BlockSpec, ChannelSpec, MixerSpec, MlpSpec, ModelSpec, NormSpec,
};
use serde_json::{Map, Value, json};

/// The registration of RecurrentGemma.
pub const FAMILY: Family = Family {
    model_type: "recurrent_gemma",
    architecture: "RecurrentGemmaForCausalLM",
    read,
    write,
    tensors,
    modules: ModuleNames::OF_FILES,
    prefix: "model.",
    ignored: &["rotary_emb.inv_freq", "normalizer"],
};

/// Kinds of blocks, in turn.
const KINDS: [&str; 3] = ["recurrent", "recurrent", "attention"];

fn read(config: &Config) -> Result<ModelSpec> {
    config.ignore(&["final_w_init_variance_scale"]);
    // The class scales embeddings in any case.
    config.ignore(&["embeddings_scale_by_sqrt_dim"]);
    let width = config.size("hidden_size", WIDTH_LIMIT)?;
    let norm = NormSpec::RmsNorm {
        epsilon: config.positive_or("rms_norm_eps", 1e-6)?,
        from_one: true,
    };
    let activation = config.activation_or("hidden_activation", Activation::GeluTanh)?;
    let recurrent = MixerSpec::Recurrent(RecurrentSpec::RgLru(read_recurrence(
        config, width, activation,
    )?));
    let attention = MixerSpec::Attention(read_attention(config, width)?);
    let branches = config
        .optional_size("intermediate_size", INNER_LIMIT)?
        .unwrap_or(3 * width);
    if !branches.is_multiple_of(2) {
        return Err(config.error(
            "intermediate_size",
            format!("{branches} channels cannot form two equal branches"),
        ));
    }
    let channel = ChannelSpec::GatedMlp(MlpSpec {
        inner: branches / 2,
        activation,
        bias: true,
        sub_norm: None,
    });
    let kinds = read_kinds(config)?;
    let block = |i: usize| {
        let mixer = if kinds[i % kinds.len()] {
            &attention
        } else {
            &recurrent
        };
        BlockSpec::sequential(mixer.clone(), channel.clone(), norm)
    };
    let blocks = (0..config.size("num_hidden_layers", LAYER_LIMIT)?)
        .map(block)
        .collect();
    let context = read_context(config)?;
    let spec = Frame {
        width,
        context,
        blocks,
        final_norm: Some(norm),
        tied_by_default: true,
    }
    .read(config, &FAMILY)?;
    Ok(ModelSpec {
        embedding_scale: to_bf16((width as f64).sqrt()),
        logit_softcap: Some(config.positive_or("logits_soft_cap", 30.0)?),
        initializer_range: config.positive_or("initializer_range", (width as f64).powf(-0.5))?,
        ..spec
    })
}

/// The factor on embeddings as the published models have it, rounded to bf16.
fn to_bf16(x: f64) -> f64 {
    let bits = (x as f32).to_bits();
    let even = 0x7fff + (bits >> 16 & 1);
    f64::from(f32::from_bits((bits + even) & 0xffff_0000))
}

fn read_recurrence(config: &Config, width: usize, activation: Activation) -> Result<RgLruSpec> {
    let inner = config
        .optional_size("lru_width", INNER_LIMIT)?
        .unwrap_or(width);
    let heads = config.size("num_attention_heads", HEAD_LIMIT)?;
    if !inner.is_multiple_of(heads) {
        return Err(config.error(
            "lru_width",
            format!("{heads} heads do not divide {inner}; choose a multiple"),
        ));
    }
    let gate_variance = config.positive_or("w_init_variance_scale", 0.01)?;
    Ok(RgLruSpec {
        inner,
        heads,
        taps: read_taps(config, "conv1d_width")?,
        activation,
        gate_variance,
    })
}

fn read_attention(config: &Config, width: usize) -> Result<AttentionSpec> {
    let heads = config.size("num_attention_heads", HEAD_LIMIT)?;
    let kv_heads = config
        .optional_size("num_key_value_heads", HEAD_LIMIT)?
        .unwrap_or(heads);
    if !heads.is_multiple_of(kv_heads) {
        let reason =
            format!("{kv_heads} key heads do not divide the {heads} query heads; choose a divisor");
        return Err(config.error("num_key_value_heads", reason));
    }
    let head_dim = even_head_dim(config, "num_attention_heads", width, heads)?;
    if config
        .optional_size("head_dim", HEAD_LIMIT)?
        .is_some_and(|given| given != head_dim)
    {
        return Err(config.error(
            "head_dim",
            format!("expected {head_dim}, the width over the heads"),
        ));
    }
    // Half of each head turns, unless the file says otherwise.
    const SHARE: &str = "partial_rotary_factor";
    let said = config.contains(SHARE)
        || config
            .optional_object("rope_parameters")?
            .is_some_and(|parameters| parameters.contains(SHARE));
    let rotary = match said {
        true => rope::read_any(config, head_dim, read_context(config)?)?,
        false => rope::read_any(
            &config.clone().with(SHARE, json!(0.5)),
            head_dim,
            read_context(config)?,
        )?,
    };
    let window = config
        .optional_size("attention_window_size", super::config::CONTEXT_LIMIT)?
        .unwrap_or(2048);
    Ok(AttentionSpec {
        rotary: Some(rotary),
        window: Some(window),
        qkv_bias: config.flag_or("attention_bias", false)?,
        output_bias: true,
        ..AttentionSpec::plain(heads, kv_heads, head_dim)
    })
}

/// Which blocks, in turn, have attention.
fn read_kinds(config: &Config) -> Result<Vec<bool>> {
    const KEY: &str = "block_types";
    let kinds = config
        .optional_texts(KEY)?
        .unwrap_or_else(|| KINDS.to_vec());
    let kind = |kind: &&str| match *kind {
        "recurrent" => Ok(false),
        "attention" => Ok(true),
        other => Err(config.error(
            KEY,
            format!("unknown `{other}`; known are recurrent and attention"),
        )),
    };
    match kinds.is_empty() {
        true => Err(config.error(KEY, "needs at least one kind")),
        false => kinds.iter().map(kind).collect(),
    }
}

fn write(spec: &ModelSpec) -> Map<String, Value> {
    let mut map = write_frame(spec, &FAMILY);
    let mut set = |key: &str, value: Value| map.insert(key.to_owned(), value);
    set("hidden_size", json!(spec.width));
    set("num_hidden_layers", json!(spec.blocks.len()));
    set("rms_norm_eps", json!(spec.norm_epsilon()));
    set("logits_soft_cap", json!(spec.logit_softcap));
    let is_attention = |block: &BlockSpec| matches!(block.mixer, MixerSpec::Attention(_));
    let kind = |block: &BlockSpec| {
        if is_attention(block) {
            "attention"
        } else {
            "recurrent"
        }
    };
    let kinds: Vec<&str> = spec.blocks.iter().map(kind).collect();
    let usual = kinds.iter().zip(KINDS.iter().cycle()).all(|(a, b)| a == b);
    set(
        "block_types",
        if usual { json!(KINDS) } else { json!(kinds) },
    );
    if let Some(mlp) = spec.blocks.first().and_then(mlp) {
        set("intermediate_size", json!(2 * mlp.inner));
        set("hidden_activation", json!(activation_name(mlp.activation)));
    }
    for block in &spec.blocks {
        if let MixerSpec::Recurrent(RecurrentSpec::RgLru(layer)) = &block.mixer {
            set("lru_width", json!(layer.inner));
            set("num_attention_heads", json!(layer.heads));
            set("conv1d_width", json!(layer.taps));
            set("w_init_variance_scale", json!(layer.gate_variance));
        }
    }
    if let Some(attention) = spec.blocks.iter().find_map(attention) {
        set("num_attention_heads", json!(attention.heads));
        set("num_key_value_heads", json!(attention.kv_heads));
        set("attention_window_size", json!(attention.window));
        set("attention_bias", json!(attention.qkv_bias));
        let rotary = attention.rotary.as_ref();
        set(
            "rope_parameters",
            rotary.map_or(Value::Null, |rotary| {
                rope::write_with_share(rotary, attention.head_dim)
            }),
        );
    }
    write_context(spec, &mut map);
    map
}

fn tensors(spec: &ModelSpec) -> Vec<TensorEntry> {
    let names = [
        ("embedding.", "model.embed_tokens."),
        ("final_norm.", "model.final_norm."),
        ("head.", "lm_head."),
        ("blocks.", "model.layers."),
        (".mixer_norm.", ".temporal_pre_norm."),
        (".channel_norm.", ".channel_pre_norm."),
        (".channel.gate.", ".mlp_block.gate_proj."),
        (".channel.up.", ".mlp_block.up_proj."),
        (".channel.down.", ".mlp_block.down_proj."),
        (".mixer.", ".temporal_block."),
        (".query.", ".q_proj."),
        (".key.", ".k_proj."),
        (".value.", ".v_proj."),
        (".branch.", ".linear_y."),
        (".input.", ".linear_x."),
        (".convolution.", ".conv_1d."),
        (".input_gate.", ".rg_lru.input_gate_"),
        (".recurrence_gate.", ".rg_lru.recurrent_gate_"),
        (".decay", ".rg_lru.recurrent_param"),
    ];
    let mut entries = table(spec, &names, &[]);
    for entry in &mut entries {
        let block = block_of(spec, &entry.parts[0]);
        let is_attention =
            block.is_some_and(|block| matches!(block.mixer, MixerSpec::Attention(_)));
        entry.name = entry.name.replace(
            ".output.",
            if is_attention {
                ".o_proj."
            } else {
                ".linear_out."
            },
        );
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::super::tests::{changed, fixture};
    use super::super::write_config;
    use super::*;

    #[test]
    fn reads_the_fixture() {
        let spec = fixture("recurrent-gemma");
        let attention = attention(&spec.blocks[2]).unwrap();
        assert_eq!(
            (attention.heads, attention.kv_heads, attention.window),
            (4, 1, Some(8))
        );
        // An odd number: four channels turn, with the frequencies of three.
        assert_eq!(attention.rotary.as_ref().unwrap().dim, 3);
        assert_eq!(mlp(&spec.blocks[0]).unwrap().inner, 40);
        assert_eq!(write_config(&spec).unwrap()["block_types"], json!(KINDS));
    }

    #[test]
    fn the_factor_on_embeddings_is_a_bf16() {
        assert_eq!(to_bf16(2560f64.sqrt()), 50.5);
        assert_eq!(
            [3072f64, 2304.0, 2048.0].map(|width| to_bf16(width.sqrt())),
            [55.5, 48.0, 45.25]
        );
        assert_eq!(to_bf16(8.0), 8.0);
    }

    #[test]
    fn other_orders_of_blocks_survive() {
        let spec = changed(
            "recurrent-gemma",
            json!({ "block_types": ["attention", "recurrent"] }),
        )
        .unwrap();
        assert_eq!(
            write_config(&spec).unwrap()["block_types"],
            json!(["attention", "recurrent", "attention"])
        );
        assert!(changed("recurrent-gemma", json!({ "block_types": ["convolution"] })).is_err());
    }
}
