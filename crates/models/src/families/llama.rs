//! LLaMA 1, 2 and 3 (arXiv 2302.13971, 2307.09288, 2407.21783): RMSNorm, rotary positions, grouped queries and SwiGLU.

use super::llama_layout::{self, IGNORED, PREFIX, Switches, tensors};
use super::{Config, Family, ModuleNames};
use crate::error::Result;
use crate::spec::ModelSpec;
use serde_json::{Map, Value, json};

/// The registration of LLaMA.
pub const FAMILY: Family = Family {
    model_type: "llama",
    architecture: "LlamaForCausalLM",
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
    llama_layout::read(config, &FAMILY, &switches)
}

fn write(spec: &ModelSpec) -> Map<String, Value> {
    let mut map = llama_layout::write(spec, &FAMILY);
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
    use super::super::{attention, mlp, write_config};
    use super::*;
    use crate::spec::{NormSpec, RotaryScaling};

    #[test]
    fn reads_the_sizes_of_the_fixture() {
        let spec = fixture("llama");
        let attention = attention(&spec.blocks[0]).unwrap();
        assert_eq!(
            (spec.vocabulary, spec.width, spec.context, spec.blocks.len()),
            (61, 24, 64, 3)
        );
        assert_eq!(
            (
                attention.heads,
                attention.kv_heads,
                attention.head_dim,
                attention.window
            ),
            (4, 2, 6, None)
        );
        assert_eq!(
            (attention.scale, attention.rotary.as_ref().unwrap().dim),
            (6f64.powf(-0.5), 6)
        );
        assert_eq!(
            (spec.bos, &spec.eos[..], spec.pad, spec.tied_head),
            (Some(1), &[2][..], Some(0), false)
        );
        assert!(fixture("llama3-rope").tied_head);
        assert_eq!(mlp(&spec.blocks[2]).unwrap().inner, 40);
    }

    #[test]
    fn absent_keys_have_the_class_defaults() {
        let absent = json!({ "num_key_value_heads": null, "head_dim": null, "rope_parameters": null, "rms_norm_eps": null,
            "tie_word_embeddings": null, "max_position_embeddings": null, "eos_token_id": [2, 7] });
        let spec = changed("llama", absent).unwrap();
        let attention = attention(&spec.blocks[0]).unwrap();
        assert_eq!(
            (attention.kv_heads, attention.head_dim, spec.context),
            (4, 6, 2048)
        );
        assert_eq!(spec.final_norm, Some(NormSpec::rms(1e-6)));
        let rotary = attention.rotary.as_ref().unwrap();
        assert_eq!((rotary.theta, &rotary.scaling), (1e4, &RotaryScaling::None));
        assert_eq!((spec.tied_head, &spec.eos[..]), (false, &[2, 7][..]));
        assert_eq!(write_config(&spec).unwrap()["eos_token_id"], json!([2, 7]));
    }

    #[test]
    fn biases_are_read_and_written() {
        let spec = changed("llama", json!({ "attention_bias": true, "mlp_bias": true })).unwrap();
        let attention = attention(&spec.blocks[1]).unwrap();
        assert!(attention.qkv_bias && attention.output_bias && mlp(&spec.blocks[1]).unwrap().bias);
        assert_eq!(write_config(&spec).unwrap()["mlp_bias"], true);
    }

    #[test]
    fn heads_must_fit() {
        let error = |changes| changed("llama", changes).unwrap_err().to_string();
        assert!(
            error(json!({ "num_key_value_heads": 3 }))
                .contains("3 key heads do not divide the 4 query heads")
        );
        assert!(error(json!({ "num_key_value_heads": 0 })).contains("key `num_key_value_heads`"));
        assert!(
            error(
                json!({ "head_dim": null, "num_attention_heads": 5, "num_key_value_heads": null })
            )
            .contains("do not divide the width 24")
        );
        assert!(error(json!({ "head_dim": 5 })).contains("even number of channels"));
        assert!(
            error(json!({ "head_dim": 65536, "num_attention_heads": 65536 }))
                .contains("together wider")
        );
    }

    #[test]
    fn the_preset_is_a_llama() {
        let spec = ModelSpec::llama(512, 64, 2, 4, 2, 160, 128);
        let map = write_config(&spec).unwrap();
        assert_eq!(
            (&map["architectures"], &map["tie_word_embeddings"]),
            (&json!(["LlamaForCausalLM"]), &json!(true))
        );
    }
}
