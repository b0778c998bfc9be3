//! Jamba (arXiv 2403.19887): blocks of Mamba with attention now and then, and experts in every other feed-forward layer.

use super::config::{CONTEXT_LIMIT, Config, HEAD_LIMIT, INNER_LIMIT, LAYER_LIMIT, WIDTH_LIMIT};
use super::mamba::{
    INPUT_GATE, LAYER_NAMES, STATE_LIMIT, STEPS_LEFT_OUT, read_rank, read_taps, require_silu,
};
use super::{
    Family, Frame, ModuleNames, TensorEntry, attention, block_of, even_head_dim, mixtral, mlp,
    routers, table, write_frame,
};
use crate::error::Result;
use crate::recurrent::{MambaSpec, RecurrentSpec};
use crate::spec::{
    Activation, AttentionSpec, BlockSpec, ChannelSpec, ExpertsSpec, MixerSpec, MlpSpec, ModelSpec,
    NormSpec, RouterSpec,
};
use serde_json::{Map, Value, json};

/// The registration of Jamba.
pub const FAMILY: Family = Family {
    model_type: "jamba",
    architecture: "JambaForCausalLM",
    read,
    write,
    tensors,
    modules: ModuleNames::without(&[STEPS_LEFT_OUT]),
    prefix: "model.",
    ignored: &[],
};

/// Most experts of a layer.
const EXPERT_LIMIT: usize = 1 << 16;
/// The key of the balance loss's weight.
const BALANCE: &str = "router_aux_loss_coef";

fn read(config: &Config) -> Result<ModelSpec> {
    config.ignore(&["use_mamba_kernels", "use_mambapy", "use_associative_scan"]);
    // The class has norms inside Mamba's layers in any case, and asks generation how many logits it wants.
    config.ignore(&["mamba_inner_layernorms", "num_logits_to_keep"]);
    require_silu(config)?;
    let width = config.size("hidden_size", WIDTH_LIMIT)?;
    let context = config
        .optional_size("max_position_embeddings", CONTEXT_LIMIT)?
        .unwrap_or(262_144);
    let norm = NormSpec::rms(config.positive_or("rms_norm_eps", 1e-6)?);
    let mamba = MixerSpec::Recurrent(RecurrentSpec::Mamba(read_mamba(config, width, norm)?));
    let attention = MixerSpec::Attention(read_attention(config, width)?);
    let inner = config.size("intermediate_size", INNER_LIMIT)?;
    let mlp = MlpSpec {
        inner,
        activation: Activation::Silu,
        bias: false,
        sub_norm: None,
    };
    let experts = read_router(config)?.map(|router| {
        ChannelSpec::SparseExperts(ExpertsSpec {
            router,
            expert: mlp.clone(),
            gated: true,
            clamped: None,
            output_bias: false,
            shared: None,
        })
    });
    let is_attention = read_period(config, ["attn_layer_period", "attn_layer_offset"], [8, 4])?;
    let has_experts = read_period(
        config,
        ["expert_layer_period", "expert_layer_offset"],
        [2, 1],
    )?;
    let block = |i: usize| {
        let mixer = if is_attention(i) { &attention } else { &mamba };
        let channel = experts
            .clone()
            .filter(|_| has_experts(i))
            .unwrap_or(ChannelSpec::GatedMlp(mlp.clone()));
        BlockSpec::sequential(mixer.clone(), channel, norm)
    };
    let blocks = (0..config.size("num_hidden_layers", LAYER_LIMIT)?)
        .map(block)
        .collect();
    let spec = Frame {
        width,
        context,
        blocks,
        final_norm: Some(norm),
        tied_by_default: false,
    }
    .read(config, &FAMILY)?;
    let losses = routers::read_losses(config, BALANCE, 0.001)?;
    let is_sparse = |block: &BlockSpec| matches!(block.channel, ChannelSpec::SparseExperts(_));
    Ok(ModelSpec {
        router_losses: spec.blocks.iter().any(is_sparse).then_some(losses),
        ..spec
    })
}

fn read_mamba(config: &Config, width: usize, norm: NormSpec) -> Result<MambaSpec> {
    let expand = config
        .optional_size("mamba_expand", INNER_LIMIT)?
        .unwrap_or(2);
    let inner = width.saturating_mul(expand);
    if inner > INNER_LIMIT {
        return Err(config.error(
            "mamba_expand",
            format!("{expand} times the width is more than {INNER_LIMIT}"),
        ));
    }
    Ok(MambaSpec {
        inner,
        states: config
            .optional_size("mamba_d_state", STATE_LIMIT)?
            .unwrap_or(16),
        rank: read_rank(config, "mamba_dt_rank", width)?,
        taps: read_taps(config, "mamba_d_conv")?,
        convolution_bias: config.flag_or("mamba_conv_bias", true)?,
        bias: config.flag_or("mamba_proj_bias", false)?,
        norm: Some(norm),
    })
}

/// Attention without positions: the recurrent blocks before it know them.
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
    Ok(AttentionSpec::plain(
        heads,
        kv_heads,
        even_head_dim(config, "num_attention_heads", width, heads)?,
    ))
}

fn read_router(config: &Config) -> Result<Option<RouterSpec>> {
    let experts = config
        .optional_size("num_experts", EXPERT_LIMIT)?
        .unwrap_or(16);
    let active = config
        .optional_size("num_experts_per_tok", EXPERT_LIMIT)?
        .unwrap_or(2);
    if experts > 1 && active > experts {
        let reason =
            format!("{active} of {experts} experts cannot be active; choose at most {experts}");
        return Err(config.error("num_experts_per_tok", reason));
    }
    Ok((experts > 1).then_some(RouterSpec::softmax(experts, active, false)))
}

/// Which layers are special: one in `period`, from `offset` on.
fn read_period(
    config: &Config,
    keys: [&str; 2],
    defaults: [usize; 2],
) -> Result<impl Fn(usize) -> bool> {
    let period = config
        .optional_size(keys[0], CONTEXT_LIMIT)?
        .unwrap_or(defaults[0]);
    let offset = config.count_or(keys[1], defaults[1], CONTEXT_LIMIT)?;
    if offset >= period {
        let reason = format!("{offset} is not below the period {period}; choose a smaller one");
        return Err(config.error(keys[1], reason));
    }
    Ok(move |layer: usize| layer % period == offset)
}

/// Writes what [`read_period`] reads.
fn write_period(map: &mut Map<String, Value>, keys: [&str; 2], special: Vec<bool>) {
    let mut places = (0..special.len()).filter(|i| special[*i]);
    let (offset, period) = match (places.next(), places.next()) {
        (None, _) => (special.len(), special.len() + 1),
        (Some(first), None) => (first, special.len()),
        (Some(first), Some(second)) => (first, second - first),
    };
    map.insert(keys[0].into(), json!(period));
    map.insert(keys[1].into(), json!(offset));
}

fn write(spec: &ModelSpec) -> Map<String, Value> {
    let mut map = write_frame(spec, &FAMILY);
    let is =
        |chosen: &dyn Fn(&BlockSpec) -> bool| spec.blocks.iter().map(chosen).collect::<Vec<bool>>();
    write_period(
        &mut map,
        ["attn_layer_period", "attn_layer_offset"],
        is(&|block| matches!(block.mixer, MixerSpec::Attention(_))),
    );
    write_period(
        &mut map,
        ["expert_layer_period", "expert_layer_offset"],
        is(&|block| matches!(block.channel, ChannelSpec::SparseExperts(_))),
    );
    let mut set = |key: &str, value: Value| map.insert(key.to_owned(), value);
    set("hidden_size", json!(spec.width));
    set("num_hidden_layers", json!(spec.blocks.len()));
    set("max_position_embeddings", json!(spec.context));
    set("rms_norm_eps", json!(spec.norm_epsilon()));
    set("hidden_act", json!("silu"));
    set(
        "intermediate_size",
        json!(spec.blocks.iter().find_map(mlp).map(|mlp| mlp.inner)),
    );
    // Readers ask for heads even where no layer has any.
    let heads = spec.blocks.iter().find_map(attention);
    let [heads, kv_heads] = heads.map_or([1, 1], |a| [a.heads, a.kv_heads]);
    set("num_attention_heads", json!(heads));
    set("num_key_value_heads", json!(kv_heads));
    let mamba = spec.blocks.iter().find_map(|block| match &block.mixer {
        MixerSpec::Recurrent(RecurrentSpec::Mamba(layer)) => Some(layer),
        _ => None,
    });
    if let Some(layer) = mamba {
        set("mamba_expand", json!(layer.inner / spec.width.max(1)));
        set("mamba_d_state", json!(layer.states));
        set("mamba_dt_rank", json!(layer.rank));
        set("mamba_d_conv", json!(layer.taps));
        set("mamba_conv_bias", json!(layer.convolution_bias));
        set("mamba_proj_bias", json!(layer.bias));
    }
    let router = spec.blocks.iter().find_map(|block| match &block.channel {
        ChannelSpec::SparseExperts(experts) => Some(&experts.router),
        _ => None,
    });
    set(
        "num_experts",
        json!(router.map_or(1, |router| router.experts)),
    );
    set(
        "num_experts_per_tok",
        json!(router.map_or(1, |router| router.active)),
    );
    if let Some(losses) = &spec.router_losses {
        routers::write_losses(losses, BALANCE, &mut map);
    }
    map
}

/// Names around the layers.
const NAMES: &[(&str, &str)] = &[
    ("embedding.", "model.embed_tokens."),
    ("final_norm.", "model.final_layernorm."),
    ("head.", "lm_head."),
    ("blocks.", "model.layers."),
    (".mixer_norm.", ".input_layernorm."),
    (".channel_norm.", ".pre_ff_layernorm."),
    (".channel.gate.", ".feed_forward.gate_proj."),
    (".channel.up.", ".feed_forward.up_proj."),
    (".channel.down.", ".feed_forward.down_proj."),
    (".channel.", ".feed_forward."),
    (".mixer.query.", ".self_attn.q_proj."),
    (".mixer.key.", ".self_attn.k_proj."),
    (".mixer.value.", ".self_attn.v_proj."),
    (".step_norm.", ".dt_layernorm."),
    (".b_norm.", ".b_layernorm."),
    (".c_norm.", ".c_layernorm."),
];

fn tensors(spec: &ModelSpec) -> Vec<TensorEntry> {
    let mut entries = Vec::new();
    for mut entry in table(spec, &[NAMES, LAYER_NAMES].concat(), &[INPUT_GATE]) {
        let Some(block) = block_of(spec, &entry.parts[0]) else {
            entries.push(entry);
            continue;
        };
        entry.name = match block.mixer {
            MixerSpec::Attention(_) => entry.name.replace(".mixer.out_proj.", ".self_attn.o_proj."),
            _ => entry.name.replace(".mixer.", ".mamba."),
        };
        match entry.parts[0].contains(".channel.experts.") {
            true => mixtral::split(
                entry,
                &block.channel,
                spec.width,
                ["gate_proj", "up_proj", "down_proj"],
                &mut entries,
            ),
            false => entries.push(entry),
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::super::tests::{changed, fixture};
    use super::super::write_config;
    use super::*;

    fn kinds(spec: &ModelSpec) -> String {
        let kind = |block: &BlockSpec| {
            if matches!(block.mixer, MixerSpec::Attention(_)) {
                'A'
            } else {
                'm'
            }
        };
        spec.blocks.iter().map(kind).collect()
    }

    #[test]
    fn attention_stands_where_the_period_says() {
        assert_eq!(kinds(&fixture("jamba")), "mmmmAmmm");
        let often = changed(
            "jamba",
            json!({ "attn_layer_period": 3, "attn_layer_offset": 1 }),
        )
        .unwrap();
        assert_eq!(kinds(&often), "mAmmAmmA");
        assert_eq!(write_config(&often).unwrap()["attn_layer_period"], 3);
        let never = changed(
            "jamba",
            json!({ "attn_layer_period": 30, "attn_layer_offset": 29 }),
        )
        .unwrap();
        assert_eq!(kinds(&never), "mmmmmmmm");
        assert!(changed("jamba", json!({ "attn_layer_offset": 8 })).is_err());
    }

    #[test]
    fn one_expert_is_none() {
        let spec = changed("jamba", json!({ "num_experts": 1 })).unwrap();
        assert!(
            spec.blocks
                .iter()
                .all(|block| matches!(block.channel, ChannelSpec::GatedMlp(_)))
        );
        assert!(spec.router_losses.is_none());
        let error = changed("jamba", json!({ "num_experts_per_tok": 5 }))
            .unwrap_err()
            .to_string();
        assert!(error.contains("at most 4"), "{error}");
    }
}
