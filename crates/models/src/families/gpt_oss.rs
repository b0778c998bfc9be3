//! gpt-oss (OpenAI, 2025): attention with sinks, in every other layer with a window, and experts with biases whose gates are cut off.
//!
//! The published files hold the experts in four bits; what is saved holds them as transformers does once they are expanded.

use super::config::CONTEXT_LIMIT;
use super::llama_layout::{self, IGNORED, NAMES, PREFIX, Switches, layers};
use super::routers::{self, EXPERT_LIMIT};
use super::{Config, Family, ModuleNames, TensorEntry, layer_types, table};
use crate::error::Result;
use crate::spec::{
    Activation, ChannelSpec, ClampedGate, ExpertsSpec, MixerSpec, MlpSpec, ModelSpec, NormSpec,
    RouterSpec,
};
use serde_json::{Map, Value, json};

/// The registration.
pub const FAMILY: Family = Family {
    model_type: "gpt_oss",
    architecture: "GptOssForCausalLM",
    read,
    write,
    tensors,
    modules: ModuleNames::OF_FILES,
    prefix: PREFIX,
    ignored: IGNORED,
};

/// The key of the balance loss's weight.
const BALANCE: &str = "router_aux_loss_coef";
/// How the published experts are packed.
const PACKED: &str = "mxfp4";

fn read(config: &Config) -> Result<ModelSpec> {
    config.ignore(&["experts_per_token", "initial_context_length"]);
    let config = &unpacked(config)?;
    let config = &with_defaults(config);
    let bias = config.flag_or("attention_bias", true)?;
    let sliding = layer_types::read(config, layers(config)?, |layer| layer.is_multiple_of(2))?;
    let window = config.optional_size("sliding_window", CONTEXT_LIMIT)?;
    let windows = sliding.iter().map(|sliding| window.filter(|_| *sliding));
    let switches = Switches {
        head_dim: Some(64),
        qkv_bias: bias,
        output_bias: bias,
        norm: Some(NormSpec::rms(config.positive_or("rms_norm_eps", 1e-5)?)),
        windows: windows.collect(),
        ..Switches::plain(config, 131_072)?
    };
    let mut spec = llama_layout::read(config, &FAMILY, &switches)?;
    let (router, clamped) = (read_router(config)?, read_gate(config)?);
    for block in &mut spec.blocks {
        if let MixerSpec::Attention(attention) = &mut block.mixer {
            attention.sinks = true;
        }
        let Some(dense) = super::mlp(block).cloned() else {
            continue;
        };
        block.channel = ChannelSpec::SparseExperts(ExpertsSpec {
            router: router.clone(),
            expert: MlpSpec {
                activation: Activation::Silu,
                bias: true,
                ..dense
            },
            gated: true,
            clamped: Some(clamped),
            output_bias: false,
            shared: None,
        });
    }
    spec.router_losses = Some(routers::read_losses(config, BALANCE, 0.001)?);
    Ok(spec)
}

/// Without what the file says of the packing of its experts, where it is the one that is read.
fn unpacked(config: &Config) -> Result<Config> {
    const KEY: &str = "quantization_config";
    let packing = config.optional_object(KEY)?;
    let method = match &packing {
        Some(packing) => packing.optional_text("quant_method")?,
        None => Some(PACKED),
    };
    match method {
        Some(PACKED) => Ok(config.clone().with(KEY, Value::Null)),
        _ => Err(config.error(
            KEY,
            format!("experts in {PACKED} alone are read; expand the weights to bf16 first"),
        )),
    }
}

/// Where this family's defaults are not LLaMA's.
fn with_defaults(config: &Config) -> Config {
    let rope = ["rope_parameters", "rope_scaling"];
    if rope.iter().any(|key| config.get(key).is_some()) {
        return config.with_defaults(&[("rope_theta", json!(150_000.0))]);
    }
    let theta = config.get("rope_theta").cloned();
    let stretched = json!({
        "rope_theta": theta.unwrap_or(json!(150_000.0)),
        "rope_type": "yarn",
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": false,
        "original_max_position_embeddings": 4096,
    });
    config.clone().with(rope[0], stretched)
}

fn read_router(config: &Config) -> Result<RouterSpec> {
    let size = |key: &str, default: usize| -> Result<usize> {
        Ok(config.optional_size(key, EXPERT_LIMIT)?.unwrap_or(default))
    };
    let (experts, active) = (
        size("num_local_experts", 128)?,
        size("num_experts_per_tok", 4)?,
    );
    if active > experts {
        let reason =
            format!("{active} of {experts} experts cannot be active; choose at most {experts}");
        return Err(config.error("num_experts_per_tok", reason));
    }
    Ok(RouterSpec {
        bias: true,
        ..RouterSpec::softmax(experts, active, true)
    })
}

fn read_gate(config: &Config) -> Result<ClampedGate> {
    Ok(ClampedGate {
        alpha: config.positive_or("swiglu_alpha", 1.702)?,
        limit: config.positive_or("swiglu_limit", 7.0)?,
    })
}

fn write(spec: &ModelSpec) -> Map<String, Value> {
    let mut map = llama_layout::write(spec, &FAMILY);
    layer_types::write(spec, &mut map);
    map.insert(
        "attention_bias".into(),
        json!(llama_layout::output_bias(spec)),
    );
    let first = spec.blocks.first().map(|block| &block.channel);
    if let Some(ChannelSpec::SparseExperts(experts)) = first {
        routers::write(&experts.router, &mut map);
        if let Some(gate) = experts.clamped {
            map.insert("swiglu_alpha".into(), json!(gate.alpha));
            map.insert("swiglu_limit".into(), json!(gate.limit));
        }
    }
    if let Some(losses) = &spec.router_losses {
        routers::write_losses(losses, BALANCE, &mut map);
    }
    map
}

/// LLaMA's table, but for the experts, whose stacks are parameters without a module of their own, stored `[experts, in, out]`.
fn tensors(spec: &ModelSpec) -> Vec<TensorEntry> {
    const OWN: &[(&str, &str)] = &[
        (".channel.router.", ".mlp.router."),
        (".channel.experts.up.weight", ".mlp.experts.gate_up_proj"),
        (".channel.experts.up.bias", ".mlp.experts.gate_up_proj_bias"),
        (".channel.experts.down.weight", ".mlp.experts.down_proj"),
        (".channel.experts.down.bias", ".mlp.experts.down_proj_bias"),
    ];
    let mut entries = table(spec, &[OWN, NAMES].concat(), &[]);
    for entry in &mut entries {
        let ours = &entry.parts[0];
        entry.transposed = ours.contains(".channel.experts.") && ours.ends_with(".weight");
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::super::tests::{changed, fixture};
    use super::super::{attention, write_config};
    use super::*;

    #[test]
    fn reads_the_fixture() {
        let spec = fixture("gpt-oss");
        let windows = spec.blocks.iter().map(|block| {
            let attention = attention(block).unwrap();
            assert!(attention.sinks && attention.output_bias);
            attention.window
        });
        assert!(windows.eq([Some(6), None]));
        let ChannelSpec::SparseExperts(experts) = &spec.blocks[0].channel else {
            panic!()
        };
        assert!(experts.expert.bias && experts.router.bias && experts.router.normalised);
        assert_eq!(experts.clamped.unwrap().alpha, 1.702);
    }

    #[test]
    fn experts_may_be_packed_in_one_way() {
        let packed = |method: &str| {
            let packing = json!({ "quant_method": method, "modules_to_not_convert": ["lm_head"] });
            changed("gpt-oss", json!({ "quantization_config": packing }))
        };
        let spec = packed("mxfp4").unwrap();
        assert!(spec == fixture("gpt-oss"));
        assert!(
            !write_config(&spec)
                .unwrap()
                .contains_key("quantization_config")
        );
        let error = packed("fp8").unwrap_err().to_string();
        assert!(error.contains("key `quantization_config`"), "{error}");
    }

    #[test]
    fn positions_are_stretched_where_the_file_is_silent() {
        let silent = json!({ "rope_parameters": null });
        let spec = changed("gpt-oss", silent).unwrap();
        let rotary = attention(&spec.blocks[0]).unwrap().rotary.clone().unwrap();
        assert_eq!(rotary.theta, 150_000.0);
        assert!(matches!(
            rotary.scaling,
            crate::spec::RotaryScaling::Yarn {
                factor: 32.0,
                truncate: false,
                ..
            }
        ));
    }
}
