//! The keys and tensor names that LLaMA and its many relatives share: one decoder with a few switches.

use super::config::{
    CONTEXT_LIMIT, Config, HEAD_LIMIT, INNER_LIMIT, LAYER_LIMIT, WIDTH_LIMIT, activation_name,
};
use super::{
    Family, Frame, TensorEntry, attention, even_head_dim, mlp, rope, routers, table, write_frame,
};
use crate::error::Result;
use crate::spec::{
    Activation, AttentionSpec, BlockSpec, ChannelSpec, MixerSpec, MlpSpec, ModelSpec, NormExtent,
    NormSpec, RotarySpec,
};
use serde_json::{Map, Value, json};

/// What base-model files leave out before tensor names.
pub(super) const PREFIX: &str = "model.";
/// Buffers that old files carry.
pub(super) const IGNORED: &[&str] = &["rotary_emb.inv_freq"];

/// Where the families differ.
pub(super) struct Switches {
    /// `max_position_embeddings` where the file has none.
    pub context: usize,
    /// `head_dim` where the file has none; the width over the heads if this is absent too.
    pub head_dim: Option<usize>,
    /// Biases on queries, keys and values.
    pub qkv_bias: bool,
    /// A bias on the output projection.
    pub output_bias: bool,
    /// Biases on the feed-forward layer.
    pub mlp_bias: bool,
    /// Whether the feed-forward layer has a gate.
    pub gated: bool,
    /// All norms; RMSNorm with `rms_norm_eps` if absent.
    pub norm: Option<NormSpec>,
    /// What norms on queries and keys run over, where there are any.
    pub qk_norm: Option<NormExtent>,
    /// Whether a part of each head may rotate alone.
    pub partial: bool,
    /// Whether neighbouring channels rotate together.
    pub interleaved: bool,
    /// How norms and parts stand in a block.
    pub block: fn(MixerSpec, ChannelSpec, NormSpec) -> BlockSpec,
    /// `tie_word_embeddings` where the file has none.
    pub tied: bool,
    /// The window of each block.
    pub windows: Vec<Option<usize>>,
}

impl Switches {
    /// Those of a family with no biases, no norms on queries and keys, no windows, and a head of its own.
    pub fn plain(config: &Config, context: usize) -> Result<Self> {
        Ok(Self {
            context,
            head_dim: None,
            qkv_bias: false,
            output_bias: false,
            mlp_bias: false,
            gated: true,
            norm: None,
            qk_norm: None,
            partial: false,
            interleaved: false,
            block: BlockSpec::sequential,
            tied: false,
            windows: vec![None; layers(config)?],
        })
    }
}

/// The number of blocks.
pub(super) fn layers(config: &Config) -> Result<usize> {
    config.size("num_hidden_layers", LAYER_LIMIT)
}

/// Reads a configuration of `family`.
pub(super) fn read(config: &Config, family: &Family, switches: &Switches) -> Result<ModelSpec> {
    let width = config.size("hidden_size", WIDTH_LIMIT)?;
    let context = config
        .optional_size("max_position_embeddings", CONTEXT_LIMIT)?
        .unwrap_or(switches.context);
    let norm = match switches.norm {
        Some(norm) => norm,
        None => NormSpec::rms(config.positive_or("rms_norm_eps", 1e-6)?),
    };
    let attention = read_attention(config, switches, width, context, norm)?;
    let activation = config.activation_or("hidden_act", Activation::Silu)?;
    let mlp = MlpSpec {
        inner: config.size("intermediate_size", INNER_LIMIT)?,
        activation,
        bias: switches.mlp_bias,
        sub_norm: None,
    };
    let channel = match switches.gated {
        true => ChannelSpec::GatedMlp(mlp),
        false => ChannelSpec::Mlp(mlp),
    };
    let block = |window: &Option<usize>| {
        let mixer = MixerSpec::Attention(AttentionSpec {
            window: *window,
            ..attention.clone()
        });
        (switches.block)(mixer, channel.clone(), norm)
    };
    let mut blocks: Vec<BlockSpec> = switches.windows.iter().map(block).collect();
    routers::read_depths(config, &mut blocks)?;
    Frame {
        width,
        context,
        blocks,
        final_norm: Some(norm),
        tied_by_default: switches.tied,
    }
    .read(config, family)
}

fn read_attention(
    config: &Config,
    switches: &Switches,
    width: usize,
    context: usize,
    norm: NormSpec,
) -> Result<AttentionSpec> {
    let heads = config.size("num_attention_heads", HEAD_LIMIT)?;
    let kv_heads = config
        .optional_size("num_key_value_heads", HEAD_LIMIT)?
        .unwrap_or(heads);
    if !heads.is_multiple_of(kv_heads) {
        let reason =
            format!("{kv_heads} key heads do not divide the {heads} query heads; choose a divisor");
        return Err(config.error("num_key_value_heads", reason));
    }
    let head_dim = head_dim(config, switches, width, heads)?;
    let rotary = match switches.partial {
        true => rope::read(config, head_dim, context)?,
        false => rope::read_whole(config, head_dim, context)?,
    };
    let rotary = RotarySpec {
        interleaved: switches.interleaved,
        ..rotary
    };
    Ok(AttentionSpec {
        rotary: Some(rotary),
        qkv_bias: switches.qkv_bias,
        output_bias: switches.output_bias,
        qk_norm: switches.qk_norm.map(|_| norm),
        qk_norm_extent: switches.qk_norm.unwrap_or(NormExtent::Head),
        ..AttentionSpec::plain(heads, kv_heads, head_dim)
    })
}

fn head_dim(config: &Config, switches: &Switches, width: usize, heads: usize) -> Result<usize> {
    let head_dim = match config
        .optional_size("head_dim", HEAD_LIMIT)?
        .or(switches.head_dim)
    {
        Some(head_dim) => head_dim,
        None => even_head_dim(config, "num_attention_heads", width, heads)?,
    };
    if heads
        .checked_mul(head_dim)
        .is_none_or(|all| all > INNER_LIMIT)
    {
        let reason =
            format!("{heads} heads of width {head_dim} are together wider than {INNER_LIMIT}");
        return Err(config.error("head_dim", reason));
    }
    Ok(head_dim)
}

/// Writes the keys that the families share.
pub(super) fn write(spec: &ModelSpec, family: &Family) -> Map<String, Value> {
    let mut map = write_frame(spec, family);
    let mut set = |key: &str, value: Value| map.insert(key.to_owned(), value);
    set("hidden_size", json!(spec.width));
    set("num_hidden_layers", json!(spec.blocks.len()));
    set("max_position_embeddings", json!(spec.context));
    set("rms_norm_eps", json!(spec.norm_epsilon()));
    set("attention_dropout", json!(0.0));
    if let Some(mlp) = spec.blocks.first().and_then(mlp) {
        set("intermediate_size", json!(mlp.inner));
        set("hidden_act", json!(activation_name(mlp.activation)));
    }
    if let Some(attention) = spec.blocks.first().and_then(attention) {
        set("num_attention_heads", json!(attention.heads));
        set("num_key_value_heads", json!(attention.kv_heads));
        set("head_dim", json!(attention.head_dim));
        let all = spec.blocks.iter().filter_map(super::attention);
        let rotary = all.filter_map(|attention| attention.rotary.as_ref()).next();
        let write = |rotary| rope::write(rotary, attention.head_dim);
        set(
            "rope_parameters",
            rotary.map_or_else(rope::write_none, write),
        );
    }
    routers::write_depths(&spec.blocks, &mut map);
    map
}

/// As [`write`], for families that turn a part of each head where nothing is said of it.
pub(super) fn write_partial(spec: &ModelSpec, family: &Family) -> Map<String, Value> {
    let mut map = write(spec, family);
    if let Some(attention) = spec.blocks.first().and_then(attention)
        && let Some(rotary) = &attention.rotary
    {
        let parameters = rope::write_with_share(rotary, attention.head_dim);
        map.insert("rope_parameters".into(), parameters);
    }
    map
}

/// Gives the value of one key to another, as which a family knows it.
pub(super) fn rename_key(map: &mut Map<String, Value>, from: &str, to: &str) {
    if let Some(value) = map.remove(from) {
        map.insert(to.to_owned(), value);
    }
}

/// Whether the first block has biases on its queries, keys and values.
pub(super) fn qkv_bias(spec: &ModelSpec) -> bool {
    spec.blocks
        .first()
        .and_then(attention)
        .is_some_and(|attention| attention.qkv_bias)
}

/// Whether the first block has biases on its feed-forward layer.
pub(super) fn mlp_bias(spec: &ModelSpec) -> bool {
    spec.blocks
        .first()
        .and_then(mlp)
        .is_some_and(|mlp| mlp.bias)
}

/// Whether the first block has biases on its attention's output projection.
pub(super) fn output_bias(spec: &ModelSpec) -> bool {
    spec.blocks
        .first()
        .and_then(attention)
        .is_some_and(|attention| attention.output_bias)
}

/// Our names and those of the files.
pub(super) const NAMES: &[(&str, &str)] = &[
    ("embedding.", "model.embed_tokens."),
    ("final_norm.", "model.norm."),
    ("head.", "lm_head."),
    ("blocks.", "model.layers."),
    (".depth.router.", ".mod_router."),
    (".depth.predictor.up.", ".mod_predictor.0."),
    (".depth.predictor.down.", ".mod_predictor.2."),
    (".mixer_norm.", ".input_layernorm."),
    (".channel_norm.", ".post_attention_layernorm."),
    (".mixer.", ".self_attn."),
    (".query.", ".q_proj."),
    (".key.", ".k_proj."),
    (".value.", ".v_proj."),
    (".output.", ".o_proj."),
    (".query_norm.", ".q_norm."),
    (".key_norm.", ".k_norm."),
    (".channel.", ".mlp."),
    (".gate.", ".gate_proj."),
    (".up.", ".up_proj."),
    (".down.", ".down_proj."),
];

/// The tensors, one for each parameter.
pub(super) fn tensors(spec: &ModelSpec) -> Vec<TensorEntry> {
    table(spec, NAMES, &[])
}
