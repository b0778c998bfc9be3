//! Qwen3 (arXiv 2505.09388): LLaMA with a norm on each head of queries and keys, and heads of 128 channels.

use super::llama_layout::{self, IGNORED, PREFIX, Switches, tensors};
use super::{Config, Family, ModuleNames, qwen_windows};
use crate::error::Result;
use crate::spec::{ModelSpec, NormExtent};
use serde_json::{Map, Value, json};

/// The registration of Qwen3.
pub const FAMILY: Family = Family {
    model_type: "qwen3",
    architecture: "Qwen3ForCausalLM",
    read,
    write,
    tensors,
    modules: ModuleNames::OF_FILES,
    prefix: PREFIX,
    ignored: IGNORED,
};

fn read(config: &Config) -> Result<ModelSpec> {
    let bias = config.flag_or("attention_bias", false)?;
    let switches = Switches {
        head_dim: Some(128),
        qkv_bias: bias,
        output_bias: bias,
        qk_norm: Some(NormExtent::Head),
        windows: qwen_windows::read(config)?,
        ..Switches::plain(config, 32_768)?
    };
    llama_layout::read(config, &FAMILY, &switches)
}

fn write(spec: &ModelSpec) -> Map<String, Value> {
    let mut map = llama_layout::write(spec, &FAMILY);
    map.insert(
        "attention_bias".into(),
        json!(llama_layout::output_bias(spec)),
    );
    qwen_windows::write(spec, &mut map);
    map
}

#[cfg(test)]
mod tests {
    use super::super::tests::{changed, fixture};
    use super::super::{attention, write_config};
    use super::*;
    use crate::spec::NormSpec;

    #[test]
    fn heads_are_normed_and_wider_than_their_share() {
        let spec = fixture("qwen3");
        let attention = attention(&spec.blocks[0]).unwrap();
        assert_eq!((attention.head_dim, attention.scale), (16, 0.25));
        assert_eq!(attention.qk_norm, Some(NormSpec::rms(1e-6)));
        assert!(!attention.qkv_bias && !attention.output_bias);
    }

    #[test]
    fn absent_keys_have_the_class_defaults() {
        let spec = changed("qwen3", json!({ "head_dim": null, "attention_bias": true })).unwrap();
        let attention = attention(&spec.blocks[0]).unwrap();
        assert_eq!(attention.head_dim, 128);
        assert!(attention.qkv_bias && attention.output_bias);
        assert_eq!(write_config(&spec).unwrap()["attention_bias"], true);
    }
}
