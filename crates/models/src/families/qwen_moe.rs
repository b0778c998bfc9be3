//! Qwen's mixtures: Qwen1.5-MoE and Qwen2-MoE (arXiv 2407.10671), with a shared expert that is weighed by each token, Qwen3-MoE (arXiv
//! 2505.09388), with norms on queries and keys, and OLMoE (arXiv 2409.02060), whose norms there run over all heads.

use super::config::{CONTEXT_LIMIT, INNER_LIMIT, LAYER_LIMIT};
use super::llama_layout::{self, IGNORED, NAMES, PREFIX, Switches, layers};
use super::{
    Config, Family, ModuleNames, TensorEntry, attention, block_of, layer_types, mixtral, mlp, olmo,
    qwen_windows, routers, table,
};
use crate::error::Result;
use crate::spec::{
    ChannelSpec, ExpertsSpec, MlpSpec, ModelSpec, NormExtent, RouterSpec, SharedExpertSpec,
};
use serde_json::{Map, Value, json};

/// The registration of Qwen2-MoE.
pub const QWEN2: Family = Family {
    model_type: "qwen2_moe",
    architecture: "Qwen2MoeForCausalLM",
    read: read_qwen2,
    write: write_qwen2,
    tensors,
    modules: ModuleNames::OF_FILES,
    prefix: PREFIX,
    ignored: IGNORED,
};

/// The registration of Qwen3-MoE.
pub const QWEN3: Family = Family {
    model_type: "qwen3_moe",
    architecture: "Qwen3MoeForCausalLM",
    read: read_qwen3,
    write: write_qwen3,
    tensors,
    modules: ModuleNames::BESIDE_EXPERTS,
    prefix: PREFIX,
    ignored: IGNORED,
};

/// The registration of OLMoE.
pub const OLMOE: Family = Family {
    model_type: "olmoe",
    architecture: "OlmoeForCausalLM",
    read: read_olmoe,
    write: write_olmoe,
    tensors,
    modules: ModuleNames::OF_FILES,
    prefix: PREFIX,
    ignored: IGNORED,
};

/// The key of the balance loss's weight.
const BALANCE: &str = "router_aux_loss_coef";

fn read_qwen2(config: &Config) -> Result<ModelSpec> {
    let switches = Switches {
        qkv_bias: config.flag_or("qkv_bias", true)?,
        windows: qwen_windows::read(config)?,
        ..Switches::plain(config, 32_768)?
    };
    let spec = llama_layout::read(config, &QWEN2, &switches)?;
    let expert = expert(config, "moe_intermediate_size", 1408, &spec)?;
    let shared = SharedExpertSpec {
        expert: self::expert(config, "shared_expert_intermediate_size", 5632, &spec)?,
        weighed: true,
    };
    let router = routers::read_with(config, [60, 4], false)?;
    with_some_experts(config, spec, &experts(router, expert, Some(shared)), 0.001)
}

fn read_qwen3(config: &Config) -> Result<ModelSpec> {
    // The class has no first layer with a window.
    config.ignore(&["sliding_window", "max_window_layers"]);
    let bias = config.flag_or("attention_bias", false)?;
    let window = match config.flag_or("use_sliding_window", false)? {
        true => config.optional_size("sliding_window", CONTEXT_LIMIT)?,
        false => None,
    };
    layer_types::check_uniform(config, layers(config)?, window)?;
    let switches = Switches {
        qkv_bias: bias,
        output_bias: bias,
        qk_norm: Some(NormExtent::Head),
        windows: vec![window; layers(config)?],
        ..Switches::plain(config, 32_768)?
    };
    let spec = llama_layout::read(config, &QWEN3, &switches)?;
    let expert = expert(config, "moe_intermediate_size", 768, &spec)?;
    let router = routers::read_with(config, [128, 8], false)?;
    with_some_experts(config, spec, &experts(router, expert, None), 0.001)
}

fn read_olmoe(config: &Config) -> Result<ModelSpec> {
    let config = &config.with_defaults(&[("rms_norm_eps", json!(1e-5))]);
    let bias = config.flag_or("attention_bias", false)?;
    let switches = Switches {
        qkv_bias: bias,
        output_bias: bias,
        qk_norm: Some(NormExtent::AllHeads),
        ..Switches::plain(config, 4096)?
    };
    let mut spec = llama_layout::read(config, &OLMOE, &switches)?;
    olmo::read_clip(config, &mut spec)?;
    let expert = expert(config, "intermediate_size", 2048, &spec)?;
    let router = routers::read_with(config, [64, 8], false)?;
    with_experts(config, spec, &experts(router, expert, None), 0.01, |_| true)
}

/// An expert of the width that `key` has, and otherwise like the dense layers of `spec`.
fn expert(config: &Config, key: &str, default: usize, spec: &ModelSpec) -> Result<MlpSpec> {
    let inner = config.optional_size(key, INNER_LIMIT)?.unwrap_or(default);
    let dense = spec.blocks.first().and_then(mlp).cloned();
    dense
        .map(|dense| MlpSpec { inner, ..dense })
        .ok_or_else(|| config.error("num_hidden_layers", "a mixture needs at least one layer"))
}

fn experts(router: RouterSpec, expert: MlpSpec, shared: Option<SharedExpertSpec>) -> ExpertsSpec {
    ExpertsSpec {
        router,
        expert,
        gated: true,
        clamped: None,
        output_bias: false,
        shared,
    }
}

/// Puts experts into every `decoder_sparse_step`th block, but for those of `mlp_only_layers`.
fn with_some_experts(
    config: &Config,
    spec: ModelSpec,
    experts: &ExpertsSpec,
    balance: f64,
) -> Result<ModelSpec> {
    let step = config
        .optional_size("decoder_sparse_step", LAYER_LIMIT)?
        .unwrap_or(1);
    let dense = config
        .optional_counts("mlp_only_layers", LAYER_LIMIT)?
        .unwrap_or_default();
    let has_experts = |number: usize| (number + 1).is_multiple_of(step) && !dense.contains(&number);
    with_experts(config, spec, experts, balance, has_experts)
}

/// Puts experts into the blocks whose numbers `has_experts` accepts.
fn with_experts(
    config: &Config,
    mut spec: ModelSpec,
    experts: &ExpertsSpec,
    balance: f64,
    has_experts: impl Fn(usize) -> bool,
) -> Result<ModelSpec> {
    for (number, block) in spec.blocks.iter_mut().enumerate() {
        if has_experts(number) {
            block.channel = ChannelSpec::SparseExperts(experts.clone());
        }
    }
    spec.router_losses = Some(routers::read_losses(config, BALANCE, balance)?);
    Ok(spec)
}

fn write_qwen2(spec: &ModelSpec) -> Map<String, Value> {
    let mut map = write(spec, &QWEN2);
    qwen_windows::write(spec, &mut map);
    map.insert("qkv_bias".into(), json!(llama_layout::qkv_bias(spec)));
    if let Some(shared) = sparse(spec).and_then(|experts| experts.shared.as_ref()) {
        map.insert(
            "shared_expert_intermediate_size".into(),
            json!(shared.expert.inner),
        );
    }
    map
}

fn write_qwen3(spec: &ModelSpec) -> Map<String, Value> {
    let mut map = write(spec, &QWEN3);
    llama_layout::rename_key(&mut map, "num_experts", "num_local_experts");
    let window = spec
        .blocks
        .first()
        .and_then(attention)
        .and_then(|attention| attention.window);
    map.insert("use_sliding_window".into(), json!(window.is_some()));
    map.insert("sliding_window".into(), json!(window));
    map.insert(
        "attention_bias".into(),
        json!(llama_layout::output_bias(spec)),
    );
    map
}

fn write_olmoe(spec: &ModelSpec) -> Map<String, Value> {
    let mut map = write(spec, &OLMOE);
    for key in [
        "moe_intermediate_size",
        "mlp_only_layers",
        "decoder_sparse_step",
    ] {
        map.remove(key);
    }
    map.insert(
        "attention_bias".into(),
        json!(llama_layout::output_bias(spec)),
    );
    olmo::write_clip(spec, &mut map);
    map
}

fn write(spec: &ModelSpec, family: &Family) -> Map<String, Value> {
    let mut map = llama_layout::write(spec, family);
    let is_dense =
        |block: &crate::spec::BlockSpec| matches!(block.channel, ChannelSpec::GatedMlp(_));
    let mut set = |key: &str, value: Value| map.insert(key.to_owned(), value);
    let dense: Vec<usize> = (0..spec.blocks.len())
        .filter(|number| is_dense(&spec.blocks[*number]))
        .collect();
    if let Some(mlp) = dense.first().and_then(|number| mlp(&spec.blocks[*number])) {
        set("intermediate_size", json!(mlp.inner));
    }
    set("mlp_only_layers", json!(dense));
    set("decoder_sparse_step", json!(1));
    if let Some(experts) = sparse(spec) {
        set("moe_intermediate_size", json!(experts.expert.inner));
        routers::write(&experts.router, &mut map);
        llama_layout::rename_key(&mut map, "num_local_experts", "num_experts");
        map.insert("norm_topk_prob".into(), json!(experts.router.normalised));
    }
    if let Some(losses) = &spec.router_losses {
        routers::write_losses(losses, BALANCE, &mut map);
    }
    map
}

/// The first block's experts that there are.
fn sparse(spec: &ModelSpec) -> Option<&ExpertsSpec> {
    spec.blocks.iter().find_map(|block| match &block.channel {
        ChannelSpec::SparseExperts(experts) => Some(experts),
        _ => None,
    })
}

/// LLaMA's table, but each expert's matrices are tensors of their own.
fn tensors(spec: &ModelSpec) -> Vec<TensorEntry> {
    const SHARED: &[(&str, &str)] = &[
        (".channel.shared.weigher.", ".mlp.shared_expert_gate."),
        (".channel.shared.", ".mlp.shared_expert."),
    ];
    const ROUTER: &[(&str, &str)] = &[(".mlp.router.", ".mlp.gate.")];
    let mut entries = Vec::new();
    for entry in table(spec, &[SHARED, NAMES, ROUTER].concat(), &[]) {
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

#[cfg(test)]
mod tests {
    use super::super::tests::{changed, fixture};
    use super::*;

    use super::super::write_config;

    #[test]
    fn reads_the_fixtures() {
        let spec = fixture("qwen2-moe");
        assert!(matches!(spec.blocks[0].channel, ChannelSpec::GatedMlp(_)));
        let experts = sparse(&spec).unwrap();
        assert!(experts.shared.as_ref().unwrap().weighed && !experts.router.normalised);
        assert!(sparse(&fixture("qwen3-moe")).unwrap().router.normalised);
        let spec = fixture("olmoe");
        assert_eq!(
            attention(&spec.blocks[0]).unwrap().qk_norm_extent,
            NormExtent::AllHeads
        );
    }

    #[test]
    fn every_other_layer_is_dense_where_the_file_says_so() {
        let keys = json!({ "decoder_sparse_step": 2, "mlp_only_layers": null });
        let spec = changed("qwen3-moe", keys).unwrap();
        let dense = |block: usize| matches!(spec.blocks[block].channel, ChannelSpec::GatedMlp(_));
        assert!(dense(0) && !dense(1));
        assert_eq!(write_config(&spec).unwrap()["mlp_only_layers"], json!([0]));
    }
}
