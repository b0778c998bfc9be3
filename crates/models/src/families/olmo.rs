//! OLMo (arXiv 2402.00838): LLaMA with LayerNorm that has no parameters, and perhaps a bound on queries, keys and values.

use super::llama_layout::{self, IGNORED, PREFIX, Switches, tensors};
use super::{Config, Family, ModuleNames, attention};
use crate::error::Result;
use crate::spec::{MixerSpec, ModelSpec, NormSpec};
use serde_json::{Map, Value, json};

/// The registration of OLMo.
pub const FAMILY: Family = Family {
    model_type: "olmo",
    architecture: "OlmoForCausalLM",
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
        qkv_bias: bias,
        output_bias: bias,
        norm: Some(NormSpec::Standardised { epsilon: 1e-5 }),
        ..Switches::plain(config, 2048)?
    };
    let mut spec = llama_layout::read(config, &FAMILY, &switches)?;
    read_clip(config, &mut spec)?;
    Ok(spec)
}

/// Reads `clip_qkv`, the bound on queries, keys and values.
pub(super) fn read_clip(config: &Config, spec: &mut ModelSpec) -> Result<()> {
    let clip = config.optional_positive("clip_qkv")?;
    for block in &mut spec.blocks {
        if let MixerSpec::Attention(attention) = &mut block.mixer {
            attention.clip = clip;
        }
    }
    Ok(())
}

/// Writes what [`read_clip`] reads.
pub(super) fn write_clip(spec: &ModelSpec, map: &mut Map<String, Value>) {
    let first = spec.blocks.first().and_then(attention);
    map.insert(
        "clip_qkv".into(),
        json!(first.and_then(|attention| attention.clip)),
    );
}

fn write(spec: &ModelSpec) -> Map<String, Value> {
    let mut map = llama_layout::write(spec, &FAMILY);
    map.remove("rms_norm_eps");
    map.insert(
        "attention_bias".into(),
        json!(llama_layout::output_bias(spec)),
    );
    write_clip(spec, &mut map);
    map
}

#[cfg(test)]
mod tests {
    use super::super::tests::{changed, fixture};
    use super::*;

    #[test]
    fn norms_have_no_parameters() {
        let spec = fixture("olmo");
        assert!(
            spec.parameters()
                .iter()
                .all(|(name, _)| !name.contains("norm"))
        );
        assert_eq!(attention(&spec.blocks[0]).unwrap().clip, Some(0.5));
        assert!(changed("olmo", json!({ "clip_qkv": -1 })).is_err());
    }
}
