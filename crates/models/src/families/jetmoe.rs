//! JetMoE (arXiv 2404.07413): both parts of a block are experts: attention whose query and output projections are chosen for
//! each token, and feed-forward layers.

use super::config::{
    CONTEXT_LIMIT, Config, HEAD_LIMIT, INNER_LIMIT, LAYER_LIMIT, WIDTH_LIMIT, activation_name,
};
use super::{
    Family, Frame, Fused, ModuleNames, TensorEntry, mlp, rope, routers, table, write_frame,
};
use crate::error::Result;
use crate::spec::{
    Activation, AttentionExpertsSpec, BlockSpec, ChannelSpec, ExpertsSpec, MixerSpec, MlpSpec,
    ModelSpec, NormSpec,
};
use serde_json::{Map, Value, json};

/// The registration of JetMoE.
pub const FAMILY: Family = Family {
    model_type: "jetmoe",
    architecture: "JetMoeForCausalLM",
    read,
    write,
    tensors,
    modules: ModuleNames::OF_FILES,
    prefix: "model.",
    ignored: &["rotary_emb.inv_freq"],
};

/// The key of the balance loss's weight.
const BALANCE: &str = "aux_loss_coef";
/// The norms of blocks have this epsilon whatever the file says; the final norm alone reads it.
const BLOCK_EPSILON: f64 = 1e-6;

/// Keys of the code that the first files came with, of which the class asks nothing, or nothing new.
const QUIET: &[&str] = &[
    "bias",
    "glu",
    "layer_norm_epsilon",
    "length",
    "rotary_percent",
];

fn read(config: &Config) -> Result<ModelSpec> {
    config.ignore(QUIET);
    let older = [
        ("intermediate_size", "ffn_hidden_size"),
        ("num_local_experts", "moe_num_experts"),
        ("num_experts_per_tok", "moe_top_k"),
    ];
    let named = older.map(|(today, older)| config.get(older).map(|value| (today, value.clone())));
    let named: Vec<_> = named.into_iter().flatten().collect();
    let config = &config.with_defaults(&named);
    let width = config.size("hidden_size", WIDTH_LIMIT)?;
    let context = config
        .optional_size("max_position_embeddings", CONTEXT_LIMIT)?
        .unwrap_or(4096);
    let kv_heads = config.size("num_key_value_heads", HEAD_LIMIT)?;
    let head_dim = config
        .optional_size("kv_channels", HEAD_LIMIT)?
        .unwrap_or(128);
    if kv_heads
        .checked_mul(head_dim)
        .is_none_or(|all| all > INNER_LIMIT)
    {
        let reason =
            format!("{kv_heads} heads of width {head_dim} are together wider than {INNER_LIMIT}");
        return Err(config.error("kv_channels", reason));
    }
    // Every chosen expert brings a query head for every key head; the file says so again.
    config.ignore(&["num_attention_heads", "head_dim"]);
    let router = routers::read(config)?;
    let mixer = MixerSpec::AttentionExperts(AttentionExpertsSpec {
        router: router.clone(),
        kv_heads,
        head_dim,
        scale: (head_dim as f64).powf(-0.5),
        rotary: Some(rope::read_whole(config, head_dim, context)?),
    });
    let expert = MlpSpec {
        inner: config.size("intermediate_size", INNER_LIMIT)?,
        activation: config.activation_or("activation_function", Activation::Silu)?,
        bias: false,
        sub_norm: None,
    };
    let channel = ChannelSpec::SparseExperts(ExpertsSpec {
        router,
        expert,
        gated: true,
        clamped: None,
        output_bias: true,
        shared: None,
    });
    let block = BlockSpec::sequential(mixer, channel, NormSpec::rms(BLOCK_EPSILON));
    let mut blocks = vec![block; config.size("num_hidden_layers", LAYER_LIMIT)?];
    routers::read_depths(config, &mut blocks)?;
    let final_norm = NormSpec::rms(config.positive_or("rms_norm_eps", 1e-6)?);
    let losses = routers::read_losses(config, BALANCE, 0.01)?;
    let spec = Frame {
        width,
        context,
        blocks,
        final_norm: Some(final_norm),
        tied_by_default: true,
    }
    .read(config, &FAMILY)?;
    Ok(ModelSpec {
        router_losses: Some(losses),
        ..spec
    })
}

fn write(spec: &ModelSpec) -> Map<String, Value> {
    let mut map = write_frame(spec, &FAMILY);
    let mut set = |key: &str, value: Value| map.insert(key.to_owned(), value);
    set("hidden_size", json!(spec.width));
    set("num_hidden_layers", json!(spec.blocks.len()));
    set("max_position_embeddings", json!(spec.context));
    set(
        "rms_norm_eps",
        json!(spec.final_norm.map(NormSpec::epsilon)),
    );
    if let Some(mlp) = spec.blocks.first().and_then(mlp) {
        set("intermediate_size", json!(mlp.inner));
        set(
            "activation_function",
            json!(activation_name(mlp.activation)),
        );
    }
    if let Some(MixerSpec::AttentionExperts(attention)) =
        spec.blocks.first().map(|block| &block.mixer)
    {
        set("num_key_value_heads", json!(attention.kv_heads));
        set(
            "num_attention_heads",
            json!(attention.kv_heads * attention.router.active),
        );
        set("kv_channels", json!(attention.head_dim));
        let rotary = attention.rotary.as_ref();
        set(
            "rope_parameters",
            rotary.map_or(Value::Null, |rotary| {
                rope::write(rotary, attention.head_dim)
            }),
        );
        routers::write(&attention.router, &mut map);
    }
    if let Some(losses) = &spec.router_losses {
        routers::write_losses(losses, BALANCE, &mut map);
    }
    routers::write_depths(&spec.blocks, &mut map);
    map
}

/// One tensor for each parameter, but for keys and values, which share one.
fn tensors(spec: &ModelSpec) -> Vec<TensorEntry> {
    const NAMES: &[(&str, &str)] = &[
        ("embedding.", "model.embed_tokens."),
        ("final_norm.", "model.norm."),
        ("head.", "lm_head."),
        ("blocks.", "model.layers."),
        (".depth.router.", ".mod_router."),
        (".depth.predictor.up.", ".mod_predictor.0."),
        (".depth.predictor.down.", ".mod_predictor.2."),
        (".mixer_norm.", ".input_layernorm."),
        (".channel_norm.", ".post_attention_layernorm."),
        (".mixer.key.", ".self_attention.kv_proj."),
        (".mixer.router.", ".self_attention.experts.router.layer."),
        (
            ".mixer.experts.query.",
            ".self_attention.experts.input_linear.",
        ),
        (
            ".mixer.experts.output.",
            ".self_attention.experts.output_linear.",
        ),
        (".mixer.bias", ".self_attention.experts.bias"),
        (".channel.router.", ".mlp.router.layer."),
        (".channel.experts.up.", ".mlp.input_linear."),
        (".channel.experts.down.", ".mlp.output_linear."),
        (".channel.bias", ".mlp.bias"),
    ];
    table(
        spec,
        NAMES,
        &[Fused {
            parts: &[".mixer.key.", ".mixer.value."],
            groups: 1,
        }],
    )
}

#[cfg(test)]
mod tests {
    use super::super::tests::{changed, fixture};
    use super::super::write_config;
    use super::*;

    #[test]
    fn reads_the_fixture() {
        let spec = fixture("jetmoe");
        let MixerSpec::AttentionExperts(attention) = &spec.blocks[0].mixer else {
            panic!()
        };
        assert_eq!(
            (
                attention.kv_heads,
                attention.head_dim,
                attention.router.experts
            ),
            (2, 8, 4)
        );
        assert!(spec.tied_head && !spec.router_losses.unwrap().added);
        assert_eq!(write_config(&spec).unwrap()["num_attention_heads"], 4);
    }

    #[test]
    fn reads_the_names_of_the_authors_own_code() {
        let older = json!({
            "intermediate_size": null, "ffn_hidden_size": 40,
            "num_local_experts": null, "moe_num_experts": 4,
            "num_experts_per_tok": null, "moe_top_k": 2,
        });
        assert_eq!(changed("jetmoe", older).unwrap(), fixture("jetmoe"));
    }

    #[test]
    fn only_the_final_norm_reads_the_epsilon() {
        let spec = changed("jetmoe", json!({ "rms_norm_eps": 1e-3 })).unwrap();
        assert_eq!(spec.final_norm.unwrap().epsilon(), 1e-3);
        assert_eq!(spec.norm_epsilon(), Some(1e-6));
    }
}
