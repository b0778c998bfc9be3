//! Command R (Cohere, 2024): attention and feed-forward side by side behind one LayerNorm without bias, neighbouring channels that
//! rotate together, a factor on the logits, and perhaps norms on queries and keys with weights for each head.

use super::llama_layout::{self, IGNORED, PREFIX, Switches, rename_key, tensors};
use super::{Config, Family, ModuleNames, attention};
use crate::error::Result;
use crate::spec::{BlockSpec, ModelSpec, NormExtent, NormSpec};
use serde_json::{Map, Value, json};

/// The registration of Cohere.
pub const FAMILY: Family = Family {
    model_type: "cohere",
    architecture: "CohereForCausalLM",
    read,
    write,
    tensors,
    modules: ModuleNames::OF_FILES,
    prefix: PREFIX,
    ignored: IGNORED,
};

fn read(config: &Config) -> Result<ModelSpec> {
    let normed = config.flag_or("use_qk_norm", false)?;
    let switches = Switches {
        qk_norm: normed.then_some(NormExtent::OwnHead),
        ..switches(config)?
    };
    let theta = config.with_defaults(&[("rope_theta", json!(500_000.0))]);
    scaled(config, llama_layout::read(&theta, &FAMILY, &switches)?)
}

/// What both generations share.
pub(super) fn switches(config: &Config) -> Result<Switches> {
    let bias = config.flag_or("attention_bias", false)?;
    let epsilon = config.positive_or("layer_norm_eps", 1e-5)?;
    Ok(Switches {
        qkv_bias: bias,
        output_bias: bias,
        norm: Some(NormSpec::layer_without_bias(epsilon)),
        interleaved: true,
        block: BlockSpec::parallel,
        tied: true,
        ..Switches::plain(config, 8192)?
    })
}

/// The model with its factor on the logits.
pub(super) fn scaled(config: &Config, spec: ModelSpec) -> Result<ModelSpec> {
    Ok(ModelSpec {
        logit_scale: config.positive_or("logit_scale", 0.0625)?,
        ..spec
    })
}

/// Writes what both generations share.
pub(super) fn write_shared(spec: &ModelSpec, family: &Family) -> Map<String, Value> {
    let mut map = llama_layout::write(spec, family);
    rename_key(&mut map, "rms_norm_eps", "layer_norm_eps");
    map.insert("logit_scale".into(), json!(spec.logit_scale));
    map.insert(
        "attention_bias".into(),
        json!(llama_layout::output_bias(spec)),
    );
    map
}

fn write(spec: &ModelSpec) -> Map<String, Value> {
    let mut map = write_shared(spec, &FAMILY);
    let first = spec.blocks.first().and_then(attention);
    let normed = first.is_some_and(|attention| attention.qk_norm.is_some());
    map.insert("use_qk_norm".into(), json!(normed));
    map
}

#[cfg(test)]
mod tests {
    use super::super::tests::{changed, fixture};
    use super::*;

    #[test]
    fn reads_the_fixture() {
        let spec = fixture("cohere");
        let attention = attention(&spec.blocks[0]).unwrap();
        assert_eq!(
            (spec.logit_scale, attention.qk_norm_extent),
            (0.5, NormExtent::OwnHead)
        );
        assert!(spec.tied_head && attention.rotary.as_ref().unwrap().interleaved);
        let plain = changed(
            "cohere",
            json!({ "use_qk_norm": false, "logit_scale": null }),
        )
        .unwrap();
        assert!(
            super::attention(&plain.blocks[0])
                .unwrap()
                .qk_norm
                .is_none()
        );
        assert_eq!(plain.logit_scale, 0.0625);
    }
}
