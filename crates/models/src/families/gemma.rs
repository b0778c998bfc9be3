//! Gemma (arXiv 2403.08295): LLaMA with wide heads, GELU gates, norms stored as their distance from one, and embeddings
//! scaled by the root of the width; tied.

use super::llama_layout::{self, IGNORED, PREFIX, Switches, tensors};
use super::{Config, Family, ModuleNames};
use crate::error::Result;
use crate::spec::{Activation, BlockSpec, ChannelSpec, ModelSpec, NormSpec};
use serde_json::{Map, Value, json};

/// The registration of Gemma.
pub const FAMILY: Family = Family {
    model_type: "gemma",
    architecture: "GemmaForCausalLM",
    read,
    write,
    tensors,
    modules: ModuleNames::OF_FILES,
    prefix: PREFIX,
    ignored: IGNORED,
};

fn read(config: &Config) -> Result<ModelSpec> {
    config.refuse("use_bidirectional_attention")?;
    let bias = config.flag_or("attention_bias", false)?;
    let switches = Switches {
        head_dim: Some(256),
        qkv_bias: bias,
        output_bias: bias,
        ..Switches::plain(config, 8192)?
    };
    // The first files say `gelu` and mean its tanh form, as `hidden_activation` beside it made plain later; nobody reads that.
    config.ignore(&["hidden_activation"]);
    let named = match config.activation_or("hidden_act", Activation::GeluTanh)? {
        Activation::Gelu => Activation::GeluTanh,
        other => other,
    };
    let spec = llama_layout::read(config, &FAMILY, &switches)?;
    Ok(as_gemma(
        spec,
        config.flag_or("tie_word_embeddings", true)?,
        named,
    ))
}

/// What all Gemmas change of a LLaMA.
pub(super) fn as_gemma(mut spec: ModelSpec, tied_head: bool, activation: Activation) -> ModelSpec {
    let from_one = |norm: NormSpec| NormSpec::RmsNorm {
        epsilon: norm.epsilon(),
        from_one: true,
    };
    for block in &mut spec.blocks {
        let BlockSpec {
            mixer_norm,
            channel_norm,
            ..
        } = block;
        (*mixer_norm, *channel_norm) = (mixer_norm.map(from_one), channel_norm.map(from_one));
        if let ChannelSpec::GatedMlp(mlp) = &mut block.channel {
            mlp.activation = activation;
        }
    }
    let embedding_scale = (spec.width as f64).sqrt();
    ModelSpec {
        final_norm: spec.final_norm.map(from_one),
        embedding_scale,
        tied_head,
        ..spec
    }
}

fn write(spec: &ModelSpec) -> Map<String, Value> {
    let mut map = llama_layout::write(spec, &FAMILY);
    let activation = map.get("hidden_act").cloned().unwrap_or_default();
    map.insert("hidden_activation".into(), activation);
    map.insert(
        "attention_bias".into(),
        json!(llama_layout::output_bias(spec)),
    );
    map
}

#[cfg(test)]
mod tests {
    use super::super::tests::{changed, fixture};
    use super::*;

    #[test]
    fn reads_the_fixture() {
        let spec = fixture("gemma");
        assert!(spec.tied_head && spec.embedding_scale == 24f64.sqrt());
        assert_eq!(
            spec.final_norm,
            Some(NormSpec::RmsNorm {
                epsilon: 1e-6,
                from_one: true
            })
        );
    }

    #[test]
    fn plain_gelu_means_its_tanh_form() {
        let spec = changed("gemma", json!({ "hidden_act": "gelu" })).unwrap();
        let activation = |spec: &ModelSpec| super::super::mlp(&spec.blocks[0]).unwrap().activation;
        assert_eq!(activation(&spec), Activation::GeluTanh);
        let keys = json!({ "hidden_act": "silu", "hidden_activation": "gelu" });
        let spec = changed("gemma", keys).unwrap();
        assert_eq!(activation(&spec), Activation::Silu);
    }
}
