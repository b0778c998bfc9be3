//! OLMo 2 (arXiv 2501.00656): LLaMA with norms over what attention and feed-forward add instead of before them, and norms over all
//! heads of queries, and of keys, together.

use super::llama_layout::{self, IGNORED, NAMES, PREFIX, Switches};
use super::{Config, Family, ModuleNames, TensorEntry, table};
use crate::error::Result;
use crate::spec::{BlockSpec, ModelSpec, NormExtent};
use serde_json::{Map, Value, json};

/// The registration of OLMo 2.
pub const FAMILY: Family = Family {
    model_type: "olmo2",
    architecture: "Olmo2ForCausalLM",
    read,
    write,
    tensors,
    modules: ModuleNames::OF_FILES,
    prefix: PREFIX,
    ignored: IGNORED,
};

fn read(config: &Config) -> Result<ModelSpec> {
    let config = &config.with_defaults(&[("rms_norm_eps", json!(1e-5))]);
    llama_layout::read(config, &FAMILY, &switches(config)?)
}

/// What OLMo 2 and 3 share.
pub(super) fn switches(config: &Config) -> Result<Switches> {
    let bias = config.flag_or("attention_bias", false)?;
    Ok(Switches {
        qkv_bias: bias,
        output_bias: bias,
        qk_norm: Some(NormExtent::AllHeads),
        block: BlockSpec::output_norm,
        ..Switches::plain(config, 2048)?
    })
}

fn write(spec: &ModelSpec) -> Map<String, Value> {
    let mut map = llama_layout::write(spec, &FAMILY);
    map.insert(
        "attention_bias".into(),
        json!(llama_layout::output_bias(spec)),
    );
    map
}

/// LLaMA's table with norms after the parts.
pub(super) fn tensors(spec: &ModelSpec) -> Vec<TensorEntry> {
    const NORMS: &[(&str, &str)] = &[
        (".mixer_norm.", ".post_attention_layernorm."),
        (".channel_norm.", ".post_feedforward_layernorm."),
    ];
    table(spec, &[NORMS, NAMES].concat(), &[])
}

#[cfg(test)]
mod tests {
    use super::super::tests::fixture;

    #[test]
    fn norms_run_over_outputs_and_over_all_heads() {
        let spec = fixture("olmo2");
        assert_eq!(spec.blocks[0].residual, crate::spec::Residual::OutputNorm);
        let names: std::collections::BTreeMap<_, _> = spec.parameters().into_iter().collect();
        assert_eq!(names["blocks.0.mixer.query_norm.weight"], [16]);
        assert_eq!(names["blocks.0.mixer.key_norm.weight"], [8]);
    }
}
