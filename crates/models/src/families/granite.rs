//! Granite 3 (IBM, 2024): LLaMA with factors on the embedding, on what each part adds, on the scores and on the logits.

use super::gemma2::rounded;
use super::llama_layout::{self, IGNORED, PREFIX, Switches, tensors};
use super::{Config, Family, ModuleNames, attention};
use crate::error::Result;
use crate::spec::{MixerSpec, ModelSpec};
use serde_json::{Map, Value, json};

/// The registration of Granite.
pub const FAMILY: Family = Family {
    model_type: "granite",
    architecture: "GraniteForCausalLM",
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
        mlp_bias: config.flag_or("mlp_bias", false)?,
        ..Switches::plain(config, 2048)?
    };
    multiplied(config, llama_layout::read(config, &FAMILY, &switches)?)
}

/// The model with the configuration's factors.
pub(super) fn multiplied(config: &Config, mut spec: ModelSpec) -> Result<ModelSpec> {
    let scale = config.positive_or("attention_multiplier", 1.0)?;
    let residual_scale = config.positive_or("residual_multiplier", 1.0)?;
    for block in &mut spec.blocks {
        block.residual_scale = residual_scale;
        if let MixerSpec::Attention(attention) = &mut block.mixer {
            attention.scale = scale;
        }
    }
    Ok(ModelSpec {
        embedding_scale: config.positive_or("embedding_multiplier", 1.0)?,
        logit_scale: config.positive_or("logits_scaling", 1.0)?.recip(),
        ..spec
    })
}

/// Writes what [`multiplied`] reads.
pub(super) fn write_multipliers(spec: &ModelSpec, map: &mut Map<String, Value>) {
    let first = spec.blocks.first();
    let scale = first.and_then(attention).map(|attention| attention.scale);
    map.insert("attention_multiplier".into(), json!(scale));
    let residual = first.map(|block| block.residual_scale);
    map.insert("residual_multiplier".into(), json!(residual));
    map.insert("embedding_multiplier".into(), json!(spec.embedding_scale));
    map.insert(
        "logits_scaling".into(),
        json!(rounded(spec.logit_scale.recip())),
    );
}

fn write(spec: &ModelSpec) -> Map<String, Value> {
    let mut map = llama_layout::write(spec, &FAMILY);
    map.insert(
        "attention_bias".into(),
        json!(llama_layout::output_bias(spec)),
    );
    map.insert("mlp_bias".into(), json!(llama_layout::mlp_bias(spec)));
    write_multipliers(spec, &mut map);
    map
}

#[cfg(test)]
mod tests {
    use super::super::tests::{changed, fixture};
    use super::*;

    #[test]
    fn factors_are_read() {
        let spec = fixture("granite");
        assert_eq!((spec.embedding_scale, spec.logit_scale), (3.0, 0.5));
        assert_eq!(spec.blocks[1].residual_scale, 0.5);
        assert_eq!(attention(&spec.blocks[1]).unwrap().scale, 0.2);
        let spec = changed(
            "granite",
            json!({ "attention_multiplier": null, "logits_scaling": null }),
        )
        .unwrap();
        assert_eq!(
            (attention(&spec.blocks[1]).unwrap().scale, spec.logit_scale),
            (1.0, 1.0)
        );
    }
}
