//! BitNet b1.58 2B4T (arXiv 2504.12285): LLaMA with squared ReLU in its gate, and norms before the last map of attention and
//! feed-forward layer, so that what is rounded to eight bits is of one size. Whether weights are rounded at all, `quantization_config`
//! says, see `one_bit.rs`.

use super::llama_layout::{self, IGNORED, NAMES, PREFIX, Switches};
use super::{Config, Family, ModuleNames, TensorEntry, table};
use crate::error::Result;
use crate::spec::{ChannelSpec, MixerSpec, ModelSpec};
use serde_json::{Map, Value, json};

/// The registration of BitNet.
pub const FAMILY: Family = Family {
    model_type: "bitnet",
    architecture: "BitNetForCausalLM",
    read,
    write,
    tensors,
    modules: ModuleNames::OF_FILES,
    prefix: PREFIX,
    ignored: IGNORED,
};

const DEFAULT_THETA: f64 = 500_000.0;

fn read(config: &Config) -> Result<ModelSpec> {
    let defaults = [
        ("rms_norm_eps", json!(1e-5)),
        ("hidden_act", json!("relu2")),
    ];
    let config = &config.with_defaults(&defaults);
    let bias = config.flag_or("attention_bias", false)?;
    let switches = Switches {
        qkv_bias: bias,
        output_bias: bias,
        ..Switches::plain(config, 2048)?
    };
    let mut spec = llama_layout::read(config, &FAMILY, &switches)?;
    let no_theta = ["rope_parameters", "rope_scaling", "rope_theta"]
        .iter()
        .all(|key| config.get(key).is_none());
    let norm = spec.final_norm;
    for block in &mut spec.blocks {
        if let MixerSpec::Attention(attention) = &mut block.mixer {
            attention.sub_norm = norm;
            if let Some(rotary) = attention.rotary.as_mut().filter(|_| no_theta) {
                rotary.theta = DEFAULT_THETA;
            }
        }
        if let ChannelSpec::GatedMlp(mlp) = &mut block.channel {
            mlp.sub_norm = norm;
        }
    }
    Ok(spec)
}

fn write(spec: &ModelSpec) -> Map<String, Value> {
    let mut map = llama_layout::write(spec, &FAMILY);
    map.insert(
        "attention_bias".into(),
        json!(llama_layout::output_bias(spec)),
    );
    map
}

/// LLaMA's table with the further norms.
fn tensors(spec: &ModelSpec) -> Vec<TensorEntry> {
    const NORMS: &[(&str, &str)] = &[
        (".mixer.sub_norm.", ".self_attn.attn_sub_norm."),
        (".channel.sub_norm.", ".mlp.ffn_sub_norm."),
    ];
    table(spec, &[NORMS, NAMES].concat(), &[])
}

#[cfg(test)]
mod tests {
    use super::super::tests::{changed, fixture};
    use super::super::{attention, mlp};
    use super::*;
    use crate::spec::Activation;

    #[test]
    fn norms_stand_before_the_last_maps() {
        let spec = fixture("bitnet");
        assert_eq!(mlp(&spec.blocks[1]).unwrap().activation, Activation::Relu2);
        let names: std::collections::BTreeMap<_, _> = spec.parameters().into_iter().collect();
        assert_eq!(names["blocks.0.mixer.sub_norm.weight"], [24]);
        assert_eq!(names["blocks.0.channel.sub_norm.weight"], [40]);
    }

    #[test]
    fn absent_keys_have_the_class_defaults() {
        let absent = json!({ "rope_parameters": null, "hidden_act": null, "rms_norm_eps": null });
        let spec = changed("bitnet", absent).unwrap();
        let rotary = attention(&spec.blocks[0]).unwrap().rotary.as_ref();
        assert_eq!(rotary.unwrap().theta, 5e5);
        assert_eq!(spec.norm_epsilon(), Some(1e-5));
    }
}
