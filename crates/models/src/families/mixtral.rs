//! Mixtral (arXiv 2401.04088): Mistral whose feed-forward layers are experts. With a key of our own, multi-head experts (arXiv
//! 2404.15045).

use super::llama_layout::{self, IGNORED, NAMES, PREFIX, Switches, layers};
use super::module_names::renamed;
use super::{
    Config, Family, ModuleNames, TensorEntry, attention, block_of, config::CONTEXT_LIMIT,
    layer_types, routers, table,
};
use crate::error::Result;
use crate::spec::{ChannelSpec, ExpertsSpec, ModelSpec, MultiHeadExpertsSpec};
use serde_json::{Map, Value, json};

/// The registration of Mixtral.
pub const FAMILY: Family = Family {
    model_type: "mixtral",
    architecture: "MixtralForCausalLM",
    read,
    write,
    tensors,
    modules: ModuleNames::of(in_memory),
    prefix: PREFIX,
    ignored: IGNORED,
};

/// The key of the balance loss's weight.
const BALANCE: &str = "router_aux_loss_coef";
/// Our own key for multi-head experts, named as in the paper's code.
const HEADS: &str = "mhmoe_heads_number";

fn read(config: &Config) -> Result<ModelSpec> {
    if config
        .optional_number("router_jitter_noise")?
        .is_some_and(|noise| noise != 0.0)
    {
        return Err(config.error(
            "router_jitter_noise",
            "noise on the router's input is not supported; set it to 0",
        ));
    }
    let config = &with_defaults(config);
    let window = config.optional_size("sliding_window", CONTEXT_LIMIT)?;
    layer_types::check_uniform(config, layers(config)?, window)?;
    let switches = Switches {
        windows: vec![window; layers(config)?],
        ..Switches::plain(config, 131_072)?
    };
    let mut spec = llama_layout::read(config, &FAMILY, &switches)?;
    let router = routers::read(config)?;
    let heads = config.optional_size(HEADS, spec.width)?;
    if let Some(heads) = heads.filter(|heads| !spec.width.is_multiple_of(*heads)) {
        return Err(config.error(
            HEADS,
            format!(
                "{heads} does not divide the width {}; choose a divisor",
                spec.width
            ),
        ));
    }
    for block in &mut spec.blocks {
        let Some(expert) = super::mlp(block).cloned() else {
            continue;
        };
        let experts = ExpertsSpec {
            router: router.clone(),
            expert,
            gated: true,
            clamped: None,
            output_bias: false,
            shared: None,
        };
        block.channel = match heads {
            Some(heads) => ChannelSpec::MultiHeadExperts(MultiHeadExpertsSpec { heads, experts }),
            None => ChannelSpec::SparseExperts(experts),
        };
    }
    spec.router_losses = Some(routers::read_losses(config, BALANCE, 0.001)?);
    Ok(spec)
}

/// Where this family's defaults are not LLaMA's.
fn with_defaults(config: &Config) -> Config {
    let mut config = config.clone();
    if config.get("rms_norm_eps").is_none() {
        config = config.with("rms_norm_eps", json!(1e-5));
    }
    if ["rope_theta", "rope_parameters"]
        .iter()
        .all(|key| config.get(key).is_none())
    {
        config = config.with("rope_theta", json!(1e6));
    }
    config
}

fn write(spec: &ModelSpec) -> Map<String, Value> {
    let mut map = llama_layout::write(spec, &FAMILY);
    let first = spec.blocks.first();
    map.insert(
        "sliding_window".into(),
        json!(
            first
                .and_then(attention)
                .and_then(|attention| attention.window)
        ),
    );
    map.insert("router_jitter_noise".into(), json!(0.0));
    match first.map(|block| &block.channel) {
        Some(ChannelSpec::SparseExperts(experts)) => routers::write(&experts.router, &mut map),
        Some(ChannelSpec::MultiHeadExperts(spec)) => {
            routers::write(&spec.experts.router, &mut map);
            map.insert(HEADS.into(), json!(spec.heads));
        }
        _ => {}
    }
    if let Some(losses) = &spec.router_losses {
        routers::write_losses(losses, BALANCE, &mut map);
    }
    map
}

/// LLaMA's table but for the experts, whose stacked weights lie in tensors of their own: `w1` has the gates, `w3` the inputs,
/// `w2` the outputs.
fn tensors(spec: &ModelSpec) -> Vec<TensorEntry> {
    let first = spec.blocks.first().map(|block| &block.channel);
    let module = match matches!(first, Some(ChannelSpec::MultiHeadExperts(_))) {
        true => ".moe.",
        false => ".block_sparse_moe.",
    };
    let names: Vec<(&str, &str)> = NAMES
        .iter()
        .copied()
        .filter(|(ours, _)| ![".gate.", ".up.", ".down.", ".channel."].contains(ours))
        .collect();
    // The name of the model's head is part of another one.
    let own = [
        (".multi_lm_head.", ".multi_head."),
        (".channel.router.", ".channel.gate."),
        (".channel.", module),
    ];
    let names = [&names[..], &own].concat();
    let mut entries = Vec::new();
    for entry in table(spec, &names, &[]) {
        match block_of(spec, &entry.parts[0]) {
            Some(block) if entry.parts[0].contains(".channel.experts.") => {
                split(
                    entry,
                    &block.channel,
                    spec.width,
                    ["w1", "w3", "w2"],
                    &mut entries,
                );
            }
            _ => entries.push(entry),
        }
    }
    entries
}

/// The files have the names of the authors' code.
fn in_memory(spec: &ModelSpec) -> Vec<TensorEntry> {
    renamed(tensors(spec), &[(".block_sparse_moe.", ".mlp.")])
}

/// The tensors of all experts that one stacked parameter holds; `names` are those of a gate, an input and an output.
pub(super) fn split(
    entry: TensorEntry,
    channel: &ChannelSpec,
    width: usize,
    names: [&str; 3],
    entries: &mut Vec<TensorEntry>,
) {
    let (experts, width) = match channel {
        ChannelSpec::SparseExperts(experts) => (experts, width),
        ChannelSpec::MultiHeadExperts(spec) => (&spec.experts, width / spec.heads),
        _ => return entries.push(entry),
    };
    let (Some(module), inner) = (entry.name.split(".experts.").next(), experts.expert.inner) else {
        return;
    };
    let is_up = entry.parts[0].contains(".experts.up.");
    let [gate, up, down] = names;
    let matrices = if is_up {
        &[(gate, inner), (up, inner)][..]
    } else {
        &[(down, width)]
    };
    let mut start = 0;
    for expert in 0..experts.router.experts {
        for (name, rows) in matrices {
            let name = format!("{module}.experts.{expert}.{name}.weight");
            entries.push(TensorEntry {
                name,
                rows: Some(start..start + rows),
                ..entry.clone()
            });
            start += rows;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{changed, fixture};
    use super::super::write_config;
    use super::*;

    fn experts(spec: &ModelSpec) -> &ExpertsSpec {
        let ChannelSpec::SparseExperts(experts) = &spec.blocks[0].channel else {
            panic!()
        };
        experts
    }

    #[test]
    fn reads_the_fixture() {
        let spec = fixture("mixtral");
        assert_eq!(
            (experts(&spec).router.experts, experts(&spec).router.active),
            (4, 2)
        );
        assert!(experts(&spec).router.normalised && experts(&spec).router.capacity.is_none());
        let losses = spec.router_losses.unwrap();
        assert!(losses.added && losses.balance == 0.001 && losses.z == 0.0);
        // Per block: four of attention, the router, two norms, three matrices for each of four experts.
        assert_eq!(tensors(&spec).len(), 3 * (4 + 1 + 2 + 12) + 3);
    }

    #[test]
    fn keys_of_our_own_survive() {
        let own = json!({ "norm_topk_prob": false, "num_experts_per_tok": 1, "expert_capacity_factor": 1.25,
            "expert_eval_capacity_factor": 2.0, "router_z_loss_coef": 0.001, "router_aux_loss_per_layer": true,
            "mod_capacity": 0.25, "mod_gate": "sigmoid" });
        let spec = changed("mixtral", own.clone()).unwrap();
        let map = write_config(&spec).unwrap();
        own.as_object()
            .unwrap()
            .iter()
            .for_each(|(key, value)| assert_eq!(map.get(key), Some(value), "{key}"));
        assert!(
            !write_config(&fixture("mixtral"))
                .unwrap()
                .contains_key("norm_topk_prob")
        );
        let heads = changed("mixtral", json!({ "mhmoe_heads_number": 4 })).unwrap();
        assert_eq!(write_config(&heads).unwrap()["mhmoe_heads_number"], 4);
        assert!(
            tensors(&heads)
                .iter()
                .any(|entry| entry.name == "model.layers.0.moe.multi_head.bias")
        );
        assert!(changed("mixtral", json!({ "mhmoe_heads_number": 5 })).is_err());
    }

    #[test]
    fn senseless_routers_are_refused() {
        for (key, value) in [
            ("num_experts_per_tok", json!(5)),
            ("num_local_experts", json!(0)),
            ("router_jitter_noise", json!(0.1)),
            ("router_aux_loss_coef", json!(-1)),
            ("expert_capacity_factor", json!(0)),
            ("mod_capacity", json!(1.5)),
        ] {
            let error = changed("mixtral", json!({ key: value }))
                .unwrap_err()
                .to_string();
            assert!(error.contains(&format!("key `{key}`")), "{error}");
        }
    }
}
