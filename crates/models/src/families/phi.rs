//! Phi-1, 1.5 and 2 (arXiv 2306.11644, 2309.05463): attention and feed-forward side by side behind one norm, biases everywhere, the
//! head included, and rotary positions on a part of each head.

use super::llama_layout::{self, IGNORED, NAMES, PREFIX, Switches, rename_key};
use super::{Config, Family, ModuleNames, TensorEntry, attention, table};
use crate::error::Result;
use crate::spec::{BlockSpec, ModelSpec, NormExtent, NormSpec};
use serde_json::{Map, Value, json};

/// The registration of Phi.
pub const FAMILY: Family = Family {
    model_type: "phi",
    architecture: "PhiForCausalLM",
    read,
    write,
    tensors,
    modules: ModuleNames::OF_FILES,
    prefix: PREFIX,
    ignored: IGNORED,
};

fn read(config: &Config) -> Result<ModelSpec> {
    // Of the code that the first files came with; the share of a head says it today.
    config.ignore(&["rotary_dim"]);
    let norm = NormSpec::layer(config.positive_or("layer_norm_eps", 1e-5)?);
    let normed = config.flag_or("qk_layernorm", false)?;
    let switches = Switches {
        qkv_bias: true,
        output_bias: true,
        mlp_bias: true,
        partial: true,
        gated: false,
        norm: Some(norm),
        qk_norm: normed.then_some(NormExtent::Head),
        block: BlockSpec::parallel,
        ..Switches::plain(config, 2048)?
    };
    let defaults = [
        ("hidden_act", json!("gelu_new")),
        ("partial_rotary_factor", json!(0.5)),
    ];
    let spec = llama_layout::read(&config.with_defaults(&defaults), &FAMILY, &switches)?;
    Ok(ModelSpec {
        head_bias: true,
        ..spec
    })
}

fn write(spec: &ModelSpec) -> Map<String, Value> {
    let mut map = llama_layout::write_partial(spec, &FAMILY);
    rename_key(&mut map, "rms_norm_eps", "layer_norm_eps");
    let first = spec.blocks.first().and_then(attention);
    let normed = first.is_some_and(|attention| attention.qk_norm.is_some());
    map.insert("qk_layernorm".into(), json!(normed));
    map
}

fn tensors(spec: &ModelSpec) -> Vec<TensorEntry> {
    const OWN: &[(&str, &str)] = &[
        ("final_norm.", "model.final_layernorm."),
        (".mixer.query_norm.", ".self_attn.q_layernorm."),
        (".mixer.key_norm.", ".self_attn.k_layernorm."),
        (".mixer.output.", ".self_attn.dense."),
        (".channel.up.", ".mlp.fc1."),
        (".channel.down.", ".mlp.fc2."),
    ];
    table(spec, &[OWN, NAMES].concat(), &[])
}

#[cfg(test)]
mod tests {
    use super::super::tests::{changed, fixture};
    use super::*;

    #[test]
    fn reads_the_fixture() {
        let spec = fixture("phi");
        let attention = attention(&spec.blocks[0]).unwrap();
        assert!(spec.head_bias && attention.qk_norm.is_some());
        assert_eq!(
            attention.rotary.as_ref().unwrap().dim,
            attention.head_dim / 2
        );
        let plain = changed(
            "phi",
            json!({ "qk_layernorm": false, "rope_parameters": null }),
        )
        .unwrap();
        let plain = super::attention(&plain.blocks[0]).unwrap();
        assert!(
            plain.qk_norm.is_none() && plain.rotary.as_ref().unwrap().dim == plain.head_dim / 2
        );
    }
}
