//! Nemotron-4 and Minitron (arXiv 2402.16819, 2407.14679): squared ReLU without a gate, LayerNorm whose weight is stored as its
//! distance from one, and rotary positions on half of each head.

use super::llama_layout::{self, IGNORED, PREFIX, Switches, rename_key, tensors};
use super::{Config, Family, ModuleNames};
use crate::error::Result;
use crate::spec::{ModelSpec, NormSpec};
use serde_json::{Map, Value, json};

/// The registration of Nemotron.
pub const FAMILY: Family = Family {
    model_type: "nemotron",
    architecture: "NemotronForCausalLM",
    read,
    write,
    tensors,
    modules: ModuleNames::OF_FILES,
    prefix: PREFIX,
    ignored: IGNORED,
};

fn read(config: &Config) -> Result<ModelSpec> {
    let bias = config.flag_or("attention_bias", false)?;
    let norm = NormSpec::LayerNorm {
        epsilon: config.positive_or("norm_eps", 1e-5)?,
        bias: true,
        from_one: true,
    };
    let switches = Switches {
        qkv_bias: bias,
        output_bias: bias,
        mlp_bias: config.flag_or("mlp_bias", false)?,
        partial: true,
        gated: false,
        norm: Some(norm),
        ..Switches::plain(config, 4096)?
    };
    let defaults = [
        ("hidden_act", json!("relu2")),
        ("partial_rotary_factor", json!(0.5)),
    ];
    llama_layout::read(&config.with_defaults(&defaults), &FAMILY, &switches)
}

fn write(spec: &ModelSpec) -> Map<String, Value> {
    let mut map = llama_layout::write_partial(spec, &FAMILY);
    rename_key(&mut map, "rms_norm_eps", "norm_eps");
    map.insert(
        "attention_bias".into(),
        json!(llama_layout::output_bias(spec)),
    );
    map.insert("mlp_bias".into(), json!(llama_layout::mlp_bias(spec)));
    map
}

#[cfg(test)]
mod tests {
    use super::super::tests::{changed, fixture};
    use super::*;

    use crate::spec::{Activation, ChannelSpec};

    #[test]
    fn reads_the_fixture() {
        let spec = fixture("nemotron");
        let ChannelSpec::Mlp(mlp) = &spec.blocks[0].channel else {
            panic!()
        };
        assert_eq!(mlp.activation, Activation::Relu2);
        assert!(matches!(
            spec.final_norm,
            Some(NormSpec::LayerNorm {
                from_one: true,
                bias: true,
                ..
            })
        ));
        let biased = changed("nemotron", json!({ "mlp_bias": true })).unwrap();
        assert!(llama_layout::mlp_bias(&biased) && !llama_layout::qkv_bias(&biased));
    }
}
