//! StableLM 2 (arXiv 2402.17834): LLaMA with LayerNorm, rotary positions on a part of each head, and, in some sizes, biases on
//! queries, keys and values, or attention and feed-forward side by side.

use super::llama_layout::{self, IGNORED, PREFIX, Switches, rename_key, tensors};
use super::{Config, Family, ModuleNames};
use crate::error::Result;
use crate::spec::{BlockSpec, ModelSpec, NormSpec, Residual};
use serde_json::{Map, Value, json};

/// The registration of StableLM.
pub const FAMILY: Family = Family {
    model_type: "stablelm",
    architecture: "StableLmForCausalLM",
    read,
    write,
    tensors,
    modules: ModuleNames::OF_FILES,
    prefix: PREFIX,
    ignored: IGNORED,
};

fn read(config: &Config) -> Result<ModelSpec> {
    config.refuse("qk_layernorm")?;
    let parallel = config.flag_or("use_parallel_residual", false)?;
    let switches = Switches {
        partial: true,
        qkv_bias: config.flag_or("use_qkv_bias", false)?,
        norm: Some(NormSpec::layer(config.positive_or("layer_norm_eps", 1e-5)?)),
        block: if parallel {
            BlockSpec::parallel
        } else {
            BlockSpec::sequential
        },
        ..Switches::plain(config, 4096)?
    };
    let config = config.with_defaults(&[("partial_rotary_factor", json!(0.25))]);
    llama_layout::read(&config, &FAMILY, &switches)
}

fn write(spec: &ModelSpec) -> Map<String, Value> {
    let mut map = llama_layout::write(spec, &FAMILY);
    rename_key(&mut map, "rms_norm_eps", "layer_norm_eps");
    // The class computes the width of a head.
    map.remove("head_dim");
    let first = spec.blocks.first().map(|block| block.residual);
    map.insert(
        "use_parallel_residual".into(),
        json!(first == Some(Residual::Parallel)),
    );
    map.insert("use_qkv_bias".into(), json!(llama_layout::qkv_bias(spec)));
    map
}

#[cfg(test)]
mod tests {
    use super::super::tests::{changed, fixture};
    use super::*;

    #[test]
    fn reads_the_fixtures() {
        let spec = fixture("stablelm");
        assert!(llama_layout::qkv_bias(&spec) && spec.blocks[0].channel_norm.is_some());
        let spec = fixture("stablelm-parallel");
        assert!(
            spec.blocks[0].residual == Residual::Parallel && spec.blocks[0].channel_norm.is_none()
        );
        assert!(changed("stablelm", json!({ "qk_layernorm": true })).is_err());
    }
}
