//! StarCoder 2 (arXiv 2402.19173): grouped queries and rotary positions with LayerNorm, biases, and a feed-forward layer without a
//! gate.

use super::llama_layout::{self, IGNORED, NAMES, PREFIX, Switches, layers, rename_key};
use super::{
    Config, Family, ModuleNames, TensorEntry, attention, config::CONTEXT_LIMIT, layer_types, table,
};
use crate::error::Result;
use crate::spec::{ModelSpec, NormSpec};
use serde_json::{Map, Value, json};

/// The registration of StarCoder 2.
pub const FAMILY: Family = Family {
    model_type: "starcoder2",
    architecture: "Starcoder2ForCausalLM",
    read,
    write,
    tensors,
    modules: ModuleNames::OF_FILES,
    prefix: PREFIX,
    ignored: IGNORED,
};

fn read(config: &Config) -> Result<ModelSpec> {
    // What the published files say besides, and what is the only choice.
    config.ignore(&["norm_type", "mlp_type"]);
    // Of GPT-BigCode, which the class does not know.
    config.ignore(&[
        "activation_function",
        "attention_softmax_in_fp32",
        "layer_norm_epsilon",
        "scale_attention_softmax_in_fp32",
        "scale_attn_weights",
    ]);
    let bias = config.flag_or("use_bias", true)?;
    let window = config.optional_size("sliding_window", CONTEXT_LIMIT)?;
    layer_types::check_uniform(config, layers(config)?, window)?;
    let switches = Switches {
        qkv_bias: bias,
        output_bias: bias,
        mlp_bias: bias,
        gated: false,
        norm: Some(NormSpec::layer(config.positive_or("norm_epsilon", 1e-5)?)),
        tied: true,
        windows: vec![window; layers(config)?],
        ..Switches::plain(config, 4096)?
    };
    let config = config.with_defaults(&[("hidden_act", json!("gelu_pytorch_tanh"))]);
    llama_layout::read(&config, &FAMILY, &switches)
}

fn write(spec: &ModelSpec) -> Map<String, Value> {
    let mut map = llama_layout::write(spec, &FAMILY);
    rename_key(&mut map, "rms_norm_eps", "norm_epsilon");
    let first = spec.blocks.first().and_then(attention);
    map.insert(
        "sliding_window".into(),
        json!(first.and_then(|attention| attention.window)),
    );
    map.insert("use_bias".into(), json!(llama_layout::output_bias(spec)));
    map
}

fn tensors(spec: &ModelSpec) -> Vec<TensorEntry> {
    const OWN: &[(&str, &str)] = &[
        (".channel.up.", ".mlp.c_fc."),
        (".channel.down.", ".mlp.c_proj."),
    ];
    table(spec, &[OWN, NAMES].concat(), &[])
}

#[cfg(test)]
mod tests {
    use super::super::tests::{changed, fixture};
    use super::*;

    #[test]
    fn reads_the_fixture() {
        let spec = fixture("starcoder2");
        assert!(spec.tied_head && llama_layout::mlp_bias(&spec));
        assert_eq!(attention(&spec.blocks[1]).unwrap().window, Some(6));
        let spec = changed(
            "starcoder2",
            json!({ "use_bias": false, "sliding_window": null }),
        )
        .unwrap();
        assert!(
            !llama_layout::qkv_bias(&spec) && attention(&spec.blocks[1]).unwrap().window.is_none()
        );
    }
}
