//! Falcon (arXiv 2311.16867): multi-query or grouped attention and a plain feed-forward layer side by side, rotary positions,
//! and queries, keys and values in one tensor whose order depends on the release. The RW models have ALiBi instead, in a form of
//! their own.

use super::config::{
    CONTEXT_LIMIT, Config, HEAD_LIMIT, INNER_LIMIT, LAYER_LIMIT, WIDTH_LIMIT, activation_name,
};
use super::{
    Family, Frame, Fused, ModuleNames, QUERY_KEY_VALUE, TensorEntry, attention, even_head_dim, mlp,
    rope, table, write_frame,
};
use crate::error::Result;
use crate::spec::{
    Activation, AlibiForm, AlibiSpec, AttentionSpec, BlockSpec, ChannelSpec, MixerSpec, MlpSpec,
    ModelSpec, NormSpec, Residual,
};
use serde_json::{Map, Value, json};

/// The registration of Falcon.
pub const FAMILY: Family = Family {
    model_type: "falcon",
    architecture: "FalconForCausalLM",
    read,
    write,
    tensors,
    modules: ModuleNames::OF_FILES,
    prefix: "transformer.",
    ignored: &["rotary.inv_freq", "rotary_emb.inv_freq"],
};

fn read(config: &Config) -> Result<ModelSpec> {
    // Multi-query attention of the first releases has one key head, whatever it says.
    config.ignore(&["num_kv_heads", "multi_query"]);
    // Older names, beside those that count.
    config.ignore(&["n_head", "n_layer"]);
    let width = match config.optional_size("n_embed", WIDTH_LIMIT)? {
        Some(width) => width,
        None => config.size("hidden_size", WIDTH_LIMIT)?,
    };
    let context = config
        .optional_size("max_position_embeddings", CONTEXT_LIMIT)?
        .unwrap_or(2048);
    let bias = config.flag_or("bias", false)?;
    let mixer = MixerSpec::Attention(read_attention(config, width, context, bias)?);
    let channel = ChannelSpec::Mlp(MlpSpec {
        inner: config
            .optional_size("ffn_hidden_size", INNER_LIMIT)?
            .unwrap_or(4 * width),
        activation: config.activation_or("activation", Activation::Gelu)?,
        bias,
        sub_norm: None,
    });
    let norm = NormSpec::layer(config.positive_or("layer_norm_epsilon", 1e-5)?);
    let new = config.flag_or("new_decoder_architecture", false)?;
    let norms = config
        .optional_size("num_ln_in_parallel_attn", 2)?
        .unwrap_or(2);
    let block = match (new, config.flag_or("parallel_attn", true)?) {
        (true, _) if norms == 2 => BlockSpec {
            residual: Residual::Parallel,
            ..BlockSpec::sequential(mixer, channel, norm)
        },
        (true, _) | (false, true) => BlockSpec::parallel(mixer, channel, norm),
        (false, false) => BlockSpec::sequential(mixer, channel, norm),
    };
    let blocks = vec![block; config.size("num_hidden_layers", LAYER_LIMIT)?];
    Frame {
        width,
        context,
        blocks,
        final_norm: Some(norm),
        tied_by_default: true,
    }
    .read(config, &FAMILY)
}

fn read_attention(
    config: &Config,
    width: usize,
    context: usize,
    bias: bool,
) -> Result<AttentionSpec> {
    let heads = config.size("num_attention_heads", HEAD_LIMIT)?;
    let head_dim = even_head_dim(config, "num_attention_heads", width, heads)?;
    let kv_heads = match (
        config.flag_or("new_decoder_architecture", false)?,
        config.flag_or("multi_query", true)?,
    ) {
        (true, _) => config
            .optional_size("num_kv_heads", HEAD_LIMIT)?
            .unwrap_or(heads),
        (false, true) => 1,
        (false, false) => heads,
    };
    if !heads.is_multiple_of(kv_heads) {
        let reason =
            format!("{kv_heads} key heads do not divide the {heads} query heads; choose a divisor");
        return Err(config.error("num_kv_heads", reason));
    }
    let alibi = config.flag_or("alibi", false)?;
    if alibi {
        config.ignore(&["rope_theta", "rope_scaling", "rope_parameters"]);
    }
    let rotary = || rope::read_whole(config, head_dim, context);
    Ok(AttentionSpec {
        rotary: (!alibi).then(rotary).transpose()?,
        alibi: alibi.then_some(AlibiSpec {
            largest: 8.0,
            form: AlibiForm::RoundedPosition,
        }),
        qkv_bias: bias,
        output_bias: bias,
        ..AttentionSpec::plain(heads, kv_heads, head_dim)
    })
}

/// Whether the blocks are those of the larger models: two norms side by side, or grouped keys.
fn is_new(spec: &ModelSpec) -> bool {
    let grouped = |block: &BlockSpec| {
        attention(block)
            .is_some_and(|attention| attention.kv_heads > 1 && attention.kv_heads < attention.heads)
    };
    let two_norms =
        |block: &BlockSpec| block.residual == Residual::Parallel && block.channel_norm.is_some();
    spec.blocks
        .first()
        .is_some_and(|block| grouped(block) || two_norms(block))
}

fn write(spec: &ModelSpec) -> Map<String, Value> {
    let mut map = write_frame(spec, &FAMILY);
    let new = is_new(spec);
    let mut set = |key: &str, value: Value| map.insert(key.to_owned(), value);
    set("hidden_size", json!(spec.width));
    set("num_hidden_layers", json!(spec.blocks.len()));
    set("max_position_embeddings", json!(spec.context));
    set("layer_norm_epsilon", json!(spec.norm_epsilon()));
    set("new_decoder_architecture", json!(new));
    if let Some((block, mlp)) = spec
        .blocks
        .first()
        .and_then(|block| Some((block, mlp(block)?)))
    {
        set("ffn_hidden_size", json!(mlp.inner));
        set("activation", json!(activation_name(mlp.activation)));
        set("bias", json!(mlp.bias));
        set("parallel_attn", json!(block.residual == Residual::Parallel));
        let norms = if block.channel_norm.is_some() { 2 } else { 1 };
        set(
            "num_ln_in_parallel_attn",
            if new { json!(norms) } else { Value::Null },
        );
    }
    if let Some(attention) = spec.blocks.first().and_then(attention) {
        set("num_attention_heads", json!(attention.heads));
        // Only the larger models read it; the others write their query heads.
        set(
            "num_kv_heads",
            json!(if new {
                attention.kv_heads
            } else {
                attention.heads
            }),
        );
        set("multi_query", json!(attention.kv_heads == 1));
        set("alibi", json!(attention.alibi.is_some()));
        let rotary = attention.rotary.as_ref();
        set(
            "rope_parameters",
            rotary.map_or(Value::Null, |rotary| {
                rope::write(rotary, attention.head_dim)
            }),
        );
    }
    map
}

/// One tensor for each parameter, but queries, keys and values in one: all queries first with a single key head, else each
/// key head after its queries.
fn tensors(spec: &ModelSpec) -> Vec<TensorEntry> {
    const NAMES: &[(&str, &str)] = &[
        ("embedding.", "transformer.word_embeddings."),
        ("final_norm.", "transformer.ln_f."),
        ("head.", "lm_head."),
        ("blocks.", "transformer.h."),
        (".mixer.query.", ".self_attention.query_key_value."),
        (".mixer.output.", ".self_attention.dense."),
        (".channel.up.", ".mlp.dense_h_to_4h."),
        (".channel.down.", ".mlp.dense_4h_to_h."),
    ];
    let first = spec.blocks.first();
    let two = first
        .is_some_and(|block| block.residual == Residual::Parallel && block.channel_norm.is_some());
    let norms: &[(&str, &str)] = match two {
        true => &[
            (".mixer_norm.", ".ln_attn."),
            (".channel_norm.", ".ln_mlp."),
        ],
        false => &[
            (".mixer_norm.", ".input_layernorm."),
            (".channel_norm.", ".post_attention_layernorm."),
        ],
    };
    let groups = first
        .and_then(attention)
        .map_or(1, |attention| attention.kv_heads);
    table(
        spec,
        &[norms, NAMES].concat(),
        &[Fused {
            parts: QUERY_KEY_VALUE,
            groups,
        }],
    )
}

#[cfg(test)]
mod tests {
    use super::super::tests::{changed, fixture};
    use super::super::write_config;
    use super::*;

    #[test]
    fn the_releases_differ_in_heads_and_norms() {
        let spec = fixture("falcon-mqa-parallel");
        assert_eq!(attention(&spec.blocks[0]).unwrap().kv_heads, 1);
        assert!(spec.blocks[0].channel_norm.is_none());
        let large = changed(
            "falcon-mqa-parallel",
            json!({ "new_decoder_architecture": true, "num_kv_heads": 2 }),
        )
        .unwrap();
        assert_eq!(attention(&large.blocks[0]).unwrap().kv_heads, 2);
        assert!(
            tensors(&large)
                .iter()
                .any(|entry| entry.name == "transformer.h.0.ln_mlp.weight")
        );
        assert!(tensors(&large).iter().any(|entry| entry.groups == 2));
        write_config(&large).unwrap();
        let rw = json!({ "multi_query": false, "parallel_attn": false });
        write_config(&changed("falcon-mqa-parallel", rw).unwrap()).unwrap();
    }
}
