//! GLM-4 (arXiv 2406.12793) and GLM-4-0414: LLaMA with biases on queries, keys and values, neighbouring channels of half of each head
//! that rotate together, and gates and inputs in one tensor; the later one has norms after the parts too.

use super::llama_layout::{self, IGNORED, NAMES, PREFIX, Switches};
use super::{Config, Family, Fused, GATE_UP, ModuleNames, TensorEntry, table};
use crate::error::Result;
use crate::spec::ModelSpec;
use serde_json::{Map, Value, json};

/// The registration of GLM-4.
pub const FAMILY: Family = Family {
    model_type: "glm",
    architecture: "GlmForCausalLM",
    read,
    write: write_first,
    tensors,
    modules: ModuleNames::OF_FILES,
    prefix: PREFIX,
    ignored: IGNORED,
};

/// The registration of GLM-4-0414.
pub const SECOND: Family = Family {
    model_type: "glm4",
    architecture: "Glm4ForCausalLM",
    read: read_second,
    write: write_second,
    tensors,
    modules: ModuleNames::OF_FILES,
    prefix: PREFIX,
    ignored: IGNORED,
};

fn read(config: &Config) -> Result<ModelSpec> {
    read_as(config, &FAMILY)
}

fn read_second(config: &Config) -> Result<ModelSpec> {
    let mut spec = read_as(config, &SECOND)?;
    for block in &mut spec.blocks {
        (block.mixer_output_norm, block.channel_output_norm) =
            (block.channel_norm, block.channel_norm);
    }
    Ok(spec)
}

fn read_as(config: &Config, family: &Family) -> Result<ModelSpec> {
    let config = &config.with_defaults(&[
        ("rms_norm_eps", json!(1.5625e-7)),
        ("partial_rotary_factor", json!(0.5)),
    ]);
    let switches = Switches {
        head_dim: Some(128),
        qkv_bias: config.flag_or("attention_bias", true)?,
        partial: true,
        interleaved: true,
        ..Switches::plain(config, 131_072)?
    };
    llama_layout::read(config, family, &switches)
}

fn write_first(spec: &ModelSpec) -> Map<String, Value> {
    write(spec, &FAMILY)
}

fn write_second(spec: &ModelSpec) -> Map<String, Value> {
    write(spec, &SECOND)
}

fn write(spec: &ModelSpec, family: &Family) -> Map<String, Value> {
    let mut map = llama_layout::write_partial(spec, family);
    map.insert("attention_bias".into(), json!(llama_layout::qkv_bias(spec)));
    map
}

fn tensors(spec: &ModelSpec) -> Vec<TensorEntry> {
    const OWN: &[(&str, &str)] = &[
        (".mixer_output_norm.", ".post_self_attn_layernorm."),
        (".channel_output_norm.", ".post_mlp_layernorm."),
        (".gate.", ".gate_up_proj."),
    ];
    let fused = Fused {
        parts: GATE_UP,
        groups: 1,
    };
    table(spec, &[OWN, NAMES].concat(), &[fused])
}

#[cfg(test)]
mod tests {
    use super::super::tests::fixture;

    use super::super::attention;

    #[test]
    fn reads_the_fixtures() {
        for (name, norms) in [("glm", false), ("glm4", true)] {
            let spec = fixture(name);
            let attention = attention(&spec.blocks[0]).unwrap();
            let rotary = attention.rotary.as_ref().unwrap();
            assert!(attention.qkv_bias && !attention.output_bias && rotary.interleaved);
            assert_eq!(
                (rotary.dim, spec.blocks[0].mixer_output_norm.is_some()),
                (4, norms)
            );
        }
    }
}
