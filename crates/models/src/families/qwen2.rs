//! Qwen2 (arXiv 2407.10671): LLaMA with biases on queries, keys and values, and sliding windows on some layers.

use super::llama_layout::{self, IGNORED, PREFIX, Switches, tensors};
use super::{Config, Family, ModuleNames, qwen_windows};
use crate::error::Result;
use crate::spec::ModelSpec;
use serde_json::{Map, Value};

/// The registration of Qwen2.
pub const FAMILY: Family = Family {
    model_type: "qwen2",
    architecture: "Qwen2ForCausalLM",
    read,
    write,
    tensors,
    modules: ModuleNames::OF_FILES,
    prefix: PREFIX,
    ignored: IGNORED,
};

fn read(config: &Config) -> Result<ModelSpec> {
    let switches = Switches {
        qkv_bias: true,
        windows: qwen_windows::read(config)?,
        ..Switches::plain(config, 32_768)?
    };
    llama_layout::read(config, &FAMILY, &switches)
}

fn write(spec: &ModelSpec) -> Map<String, Value> {
    let mut map = llama_layout::write(spec, &FAMILY);
    qwen_windows::write(spec, &mut map);
    map
}

#[cfg(test)]
mod tests {
    use super::super::attention;
    use super::super::tests::fixture;

    #[test]
    fn biases_are_always_on_queries_keys_and_values() {
        let spec = fixture("qwen2");
        let attention = attention(&spec.blocks[0]).unwrap();
        assert!(attention.qkv_bias && !attention.output_bias && attention.qk_norm.is_none());
        assert_eq!(attention.head_dim, 6);
    }
}
