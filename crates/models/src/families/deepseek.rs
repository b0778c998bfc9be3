//! DeepSeek-V2 (arXiv 2405.04434) and DeepSeek-V3 (2412.19437; Moonlight is one too): latent attention, and experts of which a
//! token finds some in a few groups and some always.
//!
//! V2 weighs experts by the softmax over all of them; V3 by the logistic function of each, and chooses them by that and a bias
//! that pretraining kept for balance, which stays as it is here. What V3 keeps to predict further tokens is left out.

use super::config::{
    CONTEXT_LIMIT, HEAD_LIMIT, INNER_LIMIT, LAYER_LIMIT, WIDTH_LIMIT, activation_name,
};
use super::llama_layout::{self, IGNORED, NAMES, PREFIX};
use super::routers::EXPERT_LIMIT;
use super::{Config, Family, Frame, ModuleNames, TensorEntry, block_of, mixtral, mlp, rope, table};
use crate::error::Result;
use crate::spec::{
    Activation, BlockSpec, ChannelSpec, ExpertGroups, ExpertsSpec, LatentAttentionSpec, MixerSpec,
    MlpSpec, ModelSpec, NormSpec, RotaryScaling, RotarySpec, RouterScores, RouterSpec,
    SharedExpertSpec,
};
use serde_json::{Map, Value, json};

/// The registration of DeepSeek-V2.
pub const SECOND: Family = Family {
    model_type: "deepseek_v2",
    architecture: "DeepseekV2ForCausalLM",
    read: read_second,
    write: write_second,
    tensors,
    modules: ModuleNames::BESIDE_EXPERTS,
    prefix: PREFIX,
    ignored: IGNORED,
};

/// The registration of DeepSeek-V3.
pub const THIRD: Family = Family {
    model_type: "deepseek_v3",
    architecture: "DeepseekV3ForCausalLM",
    read: read_third,
    write: write_third,
    tensors,
    modules: ModuleNames::BESIDE_EXPERTS,
    prefix: PREFIX,
    ignored: IGNORED,
};

/// What follows from other keys, is of pretraining alone, or of layers that are left out.
const SAYS_NOTHING: &[&str] = &[
    "head_dim",
    "qk_head_dim",
    "aux_loss_alpha",
    "seq_aux",
    "ep_size",
    "num_nextn_predict_layers",
    "num_mtp_layers",
    "output_router_logits",
];
/// Latents have this norm whatever `rms_norm_eps` says.
const LATENT_NORM: f64 = 1e-6;

/// What counts where the file is silent.
struct Defaults {
    context: usize,
    first_dense: usize,
    experts: usize,
    shared: usize,
    expert_width: usize,
    scale: f64,
}

fn read_second(config: &Config) -> Result<ModelSpec> {
    let defaults = Defaults {
        context: 2048,
        first_dense: 0,
        experts: 64,
        shared: 2,
        expert_width: 1407,
        scale: 1.0,
    };
    only(config, "scoring_func", "softmax")?;
    if config.flag_or("norm_topk_prob", false)? {
        let reason = "transformers does not divide the weights of experts by their sum, the authors' code does; set it to false";
        return Err(config.error("norm_topk_prob", reason));
    }
    let experts = expert_counts(config, &defaults, None)?;
    let method = config.optional_text("topk_method")?.unwrap_or("greedy");
    let groups = match method {
        "greedy" => {
            config.ignore(&["n_group", "topk_group"]);
            None
        }
        "group_limited_greedy" => read_groups(config, experts, [None, None], 1)?,
        _ => {
            let known = "greedy and group_limited_greedy";
            let reason = format!("unknown `{method}`; known are {known}");
            return Err(config.error("topk_method", reason));
        }
    };
    let router = RouterSpec {
        groups,
        ..RouterSpec::softmax(experts[0], experts[1], false)
    };
    let bias = config.flag_or("mlp_bias", false)?;
    read(config, &SECOND, &defaults, router, true, bias)
}

fn read_third(config: &Config) -> Result<ModelSpec> {
    let defaults = Defaults {
        context: 4096,
        first_dense: 3,
        experts: 256,
        shared: 1,
        expert_width: 2048,
        scale: 2.5,
    };
    only(config, "scoring_func", "sigmoid")?;
    only(config, "topk_method", "noaux_tc")?;
    let experts = expert_counts(config, &defaults, Some(8))?;
    let normalised = config.flag_or("norm_topk_prob", true)?;
    let router = RouterSpec {
        scores: RouterScores::Sigmoid,
        choice_bias: true,
        groups: read_groups(config, experts, [Some(8), Some(4)], 2)?,
        ..RouterSpec::softmax(experts[0], experts[1], normalised)
    };
    let interleaved = config.flag_or("rope_interleave", true)?;
    read(config, &THIRD, &defaults, router, interleaved, false)
}

/// Refuses another value of `key` than the only one that the family computes.
fn only(config: &Config, key: &str, value: &str) -> Result<()> {
    match config.optional_text(key)? {
        Some(found) if found != value => {
            let reason = format!("`{found}` is not what this family computes, which is `{value}`");
            Err(config.error(key, reason))
        }
        _ => Ok(()),
    }
}

/// How many experts there are, and how many a token passes through.
fn expert_counts(
    config: &Config,
    defaults: &Defaults,
    active: Option<usize>,
) -> Result<[usize; 2]> {
    let experts = config.optional_size("n_routed_experts", EXPERT_LIMIT)?;
    let experts = experts.unwrap_or(defaults.experts);
    const ACTIVE: &str = "num_experts_per_tok";
    let active = match (config.optional_size(ACTIVE, EXPERT_LIMIT)?, active) {
        (Some(found), _) | (None, Some(found)) => found,
        (None, None) => config.size(ACTIVE, EXPERT_LIMIT)?,
    };
    if active > experts {
        let reason =
            format!("{active} of {experts} experts cannot be active; choose at most {experts}");
        return Err(config.error(ACTIVE, reason));
    }
    Ok([experts, active])
}

/// The groups of experts, judged by so many of their best; none where there is one.
fn read_groups(
    config: &Config,
    [experts, active_experts]: [usize; 2],
    defaults: [Option<usize>; 2],
    judged_by: usize,
) -> Result<Option<ExpertGroups>> {
    let size = |key: &str, default: Option<usize>| match (config.get(key), default) {
        (None, Some(default)) => Ok(default),
        _ => config.size(key, EXPERT_LIMIT),
    };
    let (count, active) = (
        size("n_group", defaults[0])?,
        size("topk_group", defaults[1])?,
    );
    let of_group = experts / count;
    if !experts.is_multiple_of(count) || of_group < judged_by {
        let reason = format!(
            "{experts} experts do not fall into {count} groups of equally many, {judged_by} or more"
        );
        return Err(config.error("n_group", reason));
    }
    if active > count || active * of_group < active_experts {
        let reason = format!(
            "{active_experts} experts cannot come from {active} of {count} groups of {of_group}"
        );
        return Err(config.error("topk_group", reason));
    }
    Ok((count > 1).then_some(ExpertGroups {
        count,
        active,
        judged_by,
    }))
}

fn read(
    config: &Config,
    family: &Family,
    defaults: &Defaults,
    router: RouterSpec,
    interleaved: bool,
    mlp_bias: bool,
) -> Result<ModelSpec> {
    config.ignore(SAYS_NOTHING);
    if config
        .optional_number("moe_layer_freq")?
        .is_some_and(|step| step != 1.0)
    {
        let reason = "every layer after the first dense ones has experts here; set it to 1";
        return Err(config.error("moe_layer_freq", reason));
    }
    let width = config.size("hidden_size", WIDTH_LIMIT)?;
    let context = config
        .optional_size("max_position_embeddings", CONTEXT_LIMIT)?
        .unwrap_or(defaults.context);
    let norm = NormSpec::rms(config.positive_or("rms_norm_eps", 1e-6)?);
    let attention = read_attention(config, context, interleaved)?;
    let dense = MlpSpec {
        inner: config.size("intermediate_size", INNER_LIMIT)?,
        activation: config.activation_or("hidden_act", Activation::Silu)?,
        bias: mlp_bias,
        sub_norm: None,
    };
    let experts = read_experts(config, defaults, router, &dense)?;
    let first_dense =
        config.count_or("first_k_dense_replace", defaults.first_dense, LAYER_LIMIT)?;
    let block = |number: usize| {
        let channel = match number < first_dense {
            true => ChannelSpec::GatedMlp(dense.clone()),
            false => ChannelSpec::SparseExperts(experts.clone()),
        };
        BlockSpec::sequential(MixerSpec::LatentAttention(attention.clone()), channel, norm)
    };
    Frame {
        width,
        context,
        blocks: (0..llama_layout::layers(config)?).map(block).collect(),
        final_norm: Some(norm),
        tied_by_default: false,
    }
    .read(config, family)
}

fn read_experts(
    config: &Config,
    defaults: &Defaults,
    router: RouterSpec,
    dense: &MlpSpec,
) -> Result<ExpertsSpec> {
    let inner = config
        .optional_size("moe_intermediate_size", INNER_LIMIT)?
        .unwrap_or(defaults.expert_width);
    let shared = config.count_or("n_shared_experts", defaults.shared, EXPERT_LIMIT)?;
    if inner.saturating_mul(shared) > INNER_LIMIT {
        let reason = format!("{shared} of width {inner} are together wider than {INNER_LIMIT}");
        return Err(config.error("n_shared_experts", reason));
    }
    let shared = (shared > 0).then(|| SharedExpertSpec {
        expert: MlpSpec {
            inner: inner * shared,
            ..dense.clone()
        },
        weighed: false,
    });
    Ok(ExpertsSpec {
        router: RouterSpec {
            scale: config.positive_or("routed_scaling_factor", defaults.scale)?,
            ..router
        },
        expert: MlpSpec {
            inner,
            bias: false,
            ..dense.clone()
        },
        gated: true,
        clamped: None,
        output_bias: false,
        shared,
    })
}

fn read_attention(
    config: &Config,
    context: usize,
    interleaved: bool,
) -> Result<LatentAttentionSpec> {
    let heads = config.size("num_attention_heads", HEAD_LIMIT)?;
    let kv_heads = config.optional_size("num_key_value_heads", HEAD_LIMIT)?;
    if kv_heads.is_some_and(|kv_heads| kv_heads != heads) {
        let reason = format!("every one of the {heads} heads has its own keys; set it to {heads}");
        return Err(config.error("num_key_value_heads", reason));
    }
    let size = |key: &str, default: usize| -> Result<usize> {
        Ok(config.optional_size(key, WIDTH_LIMIT)?.unwrap_or(default))
    };
    let query_latent = match config.contains("q_lora_rank") {
        true => config.optional_size("q_lora_rank", WIDTH_LIMIT)?,
        false => Some(1536),
    };
    let turning = size("qk_rope_head_dim", 64)?;
    let rotary = rope::read_whole(config, turning, context)?;
    let attention = LatentAttentionSpec {
        heads,
        query_latent,
        latent: size("kv_lora_rank", 512)?,
        plain_dim: size("qk_nope_head_dim", 128)?,
        value_dim: size("v_head_dim", 128)?,
        stretch: match rotary.scaling {
            RotaryScaling::None => None,
            _ => rope::score_stretch(config)?,
        },
        rotary: RotarySpec {
            interleaved,
            ..rotary
        },
        norm: NormSpec::rms(LATENT_NORM),
        bias: config.flag_or("attention_bias", false)?,
    };
    if attention.expanded() > INNER_LIMIT {
        let reason = format!("all heads together are wider than {INNER_LIMIT}");
        return Err(config.error("num_attention_heads", reason));
    }
    Ok(attention)
}

fn write_second(spec: &ModelSpec) -> Map<String, Value> {
    let mut map = write(spec, &SECOND);
    let router = experts(spec).map(|experts| &experts.router);
    let method = match router.and_then(|router| router.groups) {
        Some(_) => "group_limited_greedy",
        None => "greedy",
    };
    map.insert("topk_method".into(), json!(method));
    map.insert("norm_topk_prob".into(), json!(false));
    map.insert("mlp_bias".into(), json!(mlp_bias(spec)));
    map
}

fn write_third(spec: &ModelSpec) -> Map<String, Value> {
    let mut map = write(spec, &THIRD);
    if let Some(experts) = experts(spec) {
        map.insert("norm_topk_prob".into(), json!(experts.router.normalised));
    }
    if let Some(attention) = attention(spec) {
        let interleaved = attention.rotary.interleaved;
        map.insert("rope_interleave".into(), json!(interleaved));
    }
    // The layers of further tokens are not saved.
    map.insert("num_nextn_predict_layers".into(), json!(0));
    map
}

fn write(spec: &ModelSpec, family: &Family) -> Map<String, Value> {
    let mut map = llama_layout::write(spec, family);
    let mut set = |key: &str, value: Value| map.insert(key.to_owned(), value);
    let is_dense = |block: &&BlockSpec| matches!(block.channel, ChannelSpec::GatedMlp(_));
    set(
        "first_k_dense_replace",
        json!(spec.blocks.iter().take_while(is_dense).count()),
    );
    if let Some(mlp) = spec.blocks.first().and_then(mlp) {
        set("hidden_act", json!(activation_name(mlp.activation)));
    }
    if let Some(attention) = attention(spec) {
        let turning = attention.rotary.dim;
        let mut rope = rope::write(&attention.rotary, turning);
        if let (Some(stretch), Value::Object(rope)) = (attention.stretch, &mut rope) {
            rope.insert("mscale_all_dim".into(), json!(stretch));
        }
        set("rope_parameters", rope);
        set("num_attention_heads", json!(attention.heads));
        set("num_key_value_heads", json!(attention.heads));
        set("q_lora_rank", json!(attention.query_latent));
        set("kv_lora_rank", json!(attention.latent));
        set("qk_nope_head_dim", json!(attention.plain_dim));
        set("qk_rope_head_dim", json!(turning));
        set("v_head_dim", json!(attention.value_dim));
        set("attention_bias", json!(attention.bias));
    }
    // A key that has to be there, also where all layers are dense.
    set("num_experts_per_tok", json!(1));
    if let Some(experts) = experts(spec) {
        let router = &experts.router;
        let inner = experts.expert.inner;
        let shared = experts.shared.as_ref().map(|shared| shared.expert.inner);
        let groups = router.groups.map(|groups| [groups.count, groups.active]);
        set("n_routed_experts", json!(router.experts));
        set("num_experts_per_tok", json!(router.active));
        set(
            "n_shared_experts",
            json!(shared.unwrap_or(0) / inner.max(1)),
        );
        set("moe_intermediate_size", json!(inner));
        set("routed_scaling_factor", json!(router.scale));
        set("n_group", json!(groups.map_or(1, |groups| groups[0])));
        set("topk_group", json!(groups.map_or(1, |groups| groups[1])));
    }
    map
}

/// The first block's experts that there are.
fn experts(spec: &ModelSpec) -> Option<&ExpertsSpec> {
    spec.blocks.iter().find_map(|block| match &block.channel {
        ChannelSpec::SparseExperts(experts) => Some(experts),
        _ => None,
    })
}

fn attention(spec: &ModelSpec) -> Option<&LatentAttentionSpec> {
    match &spec.blocks.first()?.mixer {
        MixerSpec::LatentAttention(attention) => Some(attention),
        _ => None,
    }
}

/// Whether the layers that all tokens pass through have biases.
fn mlp_bias(spec: &ModelSpec) -> bool {
    let of_block = |block: &BlockSpec| match &block.channel {
        ChannelSpec::SparseExperts(experts) => {
            experts.shared.as_ref().map(|shared| shared.expert.bias)
        }
        _ => mlp(block).map(|mlp| mlp.bias),
    };
    spec.blocks.iter().find_map(of_block).unwrap_or(false)
}

/// LLaMA's table, but for the attention and each expert's matrices, which are tensors of their own.
fn tensors(spec: &ModelSpec) -> Vec<TensorEntry> {
    const OWN: &[(&str, &str)] = &[
        (".mixer.query_latent.", ".self_attn.q_a_proj."),
        (".mixer.query_norm.", ".self_attn.q_a_layernorm."),
        (".mixer.latent.", ".self_attn.kv_a_proj_with_mqa."),
        (".mixer.latent_norm.", ".self_attn.kv_a_layernorm."),
        (".mixer.key_value.", ".self_attn.kv_b_proj."),
        (".channel.shared.", ".mlp.shared_experts."),
    ];
    const ROUTER: &[(&str, &str)] = &[
        (
            ".mlp.router.choice_bias",
            ".mlp.gate.e_score_correction_bias",
        ),
        (".mlp.router.", ".mlp.gate."),
    ];
    let latent = attention(spec).is_some_and(|attention| attention.query_latent.is_some());
    let query = [(
        ".mixer.query.",
        if latent {
            ".self_attn.q_b_proj."
        } else {
            ".self_attn.q_proj."
        },
    )];
    let mut entries = Vec::new();
    for entry in table(spec, &[OWN, &query, NAMES, ROUTER].concat(), &[]) {
        match block_of(spec, &entry.parts[0]) {
            Some(block) if entry.parts[0].contains(".channel.experts.") => mixtral::split(
                entry,
                &block.channel,
                spec.width,
                ["gate_proj", "up_proj", "down_proj"],
                &mut entries,
            ),
            _ => entries.push(entry),
        }
    }
    entries
}

/// Whether a tensor is of the layers behind the model's last one, with which DeepSeek-V3 predicts further tokens: nothing of what the
/// model itself computes, and left out as transformers leaves it out.
pub(crate) fn is_of_further_tokens(spec: &ModelSpec, name: &str) -> bool {
    let layer = || -> Option<usize> {
        let rest = name.strip_prefix(PREFIX).unwrap_or(name);
        rest.strip_prefix("layers.")?
            .split('.')
            .next()?
            .parse()
            .ok()
    };
    spec.family == THIRD.model_type && layer().is_some_and(|layer| layer >= spec.blocks.len())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{changed, fixture};
    use super::*;

    #[test]
    fn reads_the_fixtures() {
        let second = fixture("deepseek-v2");
        assert!(matches!(second.blocks[0].channel, ChannelSpec::GatedMlp(_)));
        let router = &experts(&second).unwrap().router;
        assert_eq!(router.groups.unwrap().judged_by, 1);
        let third = fixture("deepseek-v3");
        let router = &experts(&third).unwrap().router;
        assert!(router.choice_bias && router.groups.unwrap().judged_by == 2);
        assert!(attention(&third).unwrap().stretch.is_some());
    }

    #[test]
    fn layers_of_further_tokens_are_told_by_their_numbers() {
        let third = fixture("deepseek-v3");
        let beyond = format!("model.layers.{}.eh_proj.weight", third.blocks.len());
        assert!(is_of_further_tokens(&third, &beyond));
        assert!(!is_of_further_tokens(
            &third,
            "model.layers.0.eh_proj.weight"
        ));
        assert!(!is_of_further_tokens(&fixture("deepseek-v2"), &beyond));
    }

    #[test]
    fn what_is_not_computed_is_refused() {
        for (model, key, value) in [
            ("deepseek-v2", "norm_topk_prob", json!(true)),
            ("deepseek-v2", "scoring_func", json!("sigmoid")),
            ("deepseek-v2", "topk_method", json!("noaux_tc")),
            ("deepseek-v2", "num_key_value_heads", json!(1)),
            ("deepseek-v2", "n_group", json!(3)),
            ("deepseek-v2", "topk_group", json!(5)),
            ("deepseek-v2", "moe_layer_freq", json!(2)),
            ("deepseek-v3", "scoring_func", json!("softmax")),
            ("deepseek-v3", "n_group", json!(8)),
            ("deepseek-v3", "num_experts_per_tok", json!(9)),
        ] {
            let error = changed(model, json!({ key: value }))
                .unwrap_err()
                .to_string();
            assert!(error.contains(&format!("key `{key}`")), "{error}");
        }
    }
}
