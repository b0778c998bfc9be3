//! Granite 3 MoE (IBM, 2024): Granite whose feed-forward layers are experts, and perhaps one that all tokens pass through besides.

use super::granite::{multiplied, write_multipliers};
use super::llama_layout::{self, IGNORED, NAMES, PREFIX, Switches};
use super::module_names::renamed;
use super::{
    Config, Family, Fused, ModuleNames, TensorEntry, config::INNER_LIMIT, mlp, routers, table,
};
use crate::error::Result;
use crate::spec::{ChannelSpec, ExpertsSpec, MlpSpec, ModelSpec, SharedExpertSpec};
use serde_json::{Map, Value, json};

/// The registration of Granite MoE.
pub const FAMILY: Family = Family {
    model_type: "granitemoe",
    architecture: "GraniteMoeForCausalLM",
    read,
    write: write_plain,
    tensors,
    modules: ModuleNames::of(in_memory),
    prefix: PREFIX,
    ignored: IGNORED,
};

/// The registration of Granite MoE with a shared expert.
pub const SHARED: Family = Family {
    model_type: "granitemoeshared",
    architecture: "GraniteMoeSharedForCausalLM",
    read: read_shared,
    write: write_shared,
    tensors,
    modules: ModuleNames::of(in_memory),
    prefix: PREFIX,
    ignored: IGNORED,
};

/// The key of the balance loss's weight.
const BALANCE: &str = "router_aux_loss_coef";
/// The key of the shared expert's width; zero stands for none.
const SHARED_WIDTH: &str = "shared_intermediate_size";

fn read(config: &Config) -> Result<ModelSpec> {
    read_with(config, &FAMILY, 0)
}

fn read_shared(config: &Config) -> Result<ModelSpec> {
    read_with(
        config,
        &SHARED,
        config.count_or(SHARED_WIDTH, 0, INNER_LIMIT)?,
    )
}

fn read_with(config: &Config, family: &Family, shared: usize) -> Result<ModelSpec> {
    let bias = config.flag_or("attention_bias", false)?;
    let switches = Switches {
        qkv_bias: bias,
        output_bias: bias,
        ..Switches::plain(config, 2048)?
    };
    let mut spec = multiplied(config, llama_layout::read(config, family, &switches)?)?;
    let router = routers::read(config)?;
    for block in &mut spec.blocks {
        let Some(expert) = mlp(block).cloned() else {
            continue;
        };
        let shared = (shared > 0).then(|| SharedExpertSpec {
            expert: MlpSpec {
                inner: shared,
                ..expert.clone()
            },
            weighed: false,
        });
        block.channel = ChannelSpec::SparseExperts(ExpertsSpec {
            router: router.clone(),
            expert,
            gated: true,
            clamped: None,
            output_bias: false,
            shared,
        });
    }
    spec.router_losses = Some(routers::read_losses(config, BALANCE, 0.001)?);
    Ok(spec)
}

fn write_plain(spec: &ModelSpec) -> Map<String, Value> {
    write(spec, &FAMILY)
}

fn write_shared(spec: &ModelSpec) -> Map<String, Value> {
    let mut map = write(spec, &SHARED);
    let shared = match spec.blocks.first().map(|block| &block.channel) {
        Some(ChannelSpec::SparseExperts(experts)) => experts.shared.as_ref(),
        _ => None,
    };
    map.insert(
        SHARED_WIDTH.into(),
        json!(shared.map_or(0, |shared| shared.expert.inner)),
    );
    map
}

fn write(spec: &ModelSpec, family: &Family) -> Map<String, Value> {
    let mut map = llama_layout::write(spec, family);
    map.insert(
        "attention_bias".into(),
        json!(llama_layout::output_bias(spec)),
    );
    write_multipliers(spec, &mut map);
    if let Some(ChannelSpec::SparseExperts(experts)) =
        spec.blocks.first().map(|block| &block.channel)
    {
        routers::write(&experts.router, &mut map);
    }
    if let Some(losses) = &spec.router_losses {
        routers::write_losses(losses, BALANCE, &mut map);
    }
    map
}

fn tensors(spec: &ModelSpec) -> Vec<TensorEntry> {
    const OWN: &[(&str, &str)] = &[
        (".channel.router.", ".block_sparse_moe.router.layer."),
        (".channel.experts.up.", ".block_sparse_moe.input_linear."),
        (".channel.experts.down.", ".block_sparse_moe.output_linear."),
        (".channel.shared.gate.", ".shared_mlp.input_linear."),
        (".channel.shared.down.", ".shared_mlp.output_linear."),
    ];
    let fused = Fused {
        parts: &[".channel.shared.gate.", ".channel.shared.up."],
        groups: 1,
    };
    table(spec, &[OWN, NAMES].concat(), &[fused])
}

/// The files have the names of the authors' code.
fn in_memory(spec: &ModelSpec) -> Vec<TensorEntry> {
    const NAMES: &[(&str, &str)] = &[
        (
            ".block_sparse_moe.input_linear.weight",
            ".block_sparse_moe.experts.gate_up_proj",
        ),
        (
            ".block_sparse_moe.output_linear.weight",
            ".block_sparse_moe.experts.down_proj",
        ),
        (".router.layer.", ".router."),
    ];
    renamed(tensors(spec), NAMES)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{changed, fixture};
    use super::*;

    fn shared(spec: &ModelSpec) -> Option<usize> {
        match &spec.blocks[1].channel {
            ChannelSpec::SparseExperts(experts) => {
                experts.shared.as_ref().map(|shared| shared.expert.inner)
            }
            _ => panic!(),
        }
    }

    #[test]
    fn experts_are_shared_or_not() {
        assert_eq!(shared(&fixture("granitemoe")), None);
        assert_eq!(shared(&fixture("granitemoeshared")), Some(12));
        let none = changed("granitemoeshared", json!({ "shared_intermediate_size": 0 })).unwrap();
        assert_eq!(shared(&none), None);
    }
}
