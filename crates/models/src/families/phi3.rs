//! Phi-3 (arXiv 2404.14219): LLaMA with queries, keys and values in one tensor, gates and inputs of the feed-forward layer in
//! another, and LongRoPE.

use super::llama_layout::{self, IGNORED, NAMES, PREFIX, Switches, layers};
use super::{
    Config, Family, Fused, GATE_UP, ModuleNames, QUERY_KEY_VALUE, TensorEntry, attention,
    config::CONTEXT_LIMIT, layer_types, table,
};
use crate::error::Result;
use crate::spec::{ModelSpec, RotaryScaling};
use serde_json::{Map, Value, json};

/// The registration of Phi-3.
pub const FAMILY: Family = Family {
    model_type: "phi3",
    architecture: "Phi3ForCausalLM",
    read,
    write,
    tensors,
    modules: ModuleNames::OF_FILES,
    prefix: PREFIX,
    ignored: IGNORED,
};

fn read(config: &Config) -> Result<ModelSpec> {
    // Read with LongRoPE alone.
    config.ignore(&["original_max_position_embeddings"]);
    // Of the code that the first files came with; the class has neither.
    config.ignore(&["full_attn_mod", "interpolate_factor"]);
    let window = config.optional_size("sliding_window", CONTEXT_LIMIT)?;
    layer_types::check_uniform(config, layers(config)?, window)?;
    let switches = Switches {
        partial: true,
        windows: vec![window; layers(config)?],
        ..Switches::plain(config, 4096)?
    };
    llama_layout::read(config, &FAMILY, &switches)
}

fn write(spec: &ModelSpec) -> Map<String, Value> {
    let mut map = llama_layout::write_partial(spec, &FAMILY);
    let first = spec.blocks.first().and_then(attention);
    // The class computes the width of a head where nothing is said.
    if first.is_some_and(|attention| attention.heads * attention.head_dim == spec.width) {
        map.remove("head_dim");
    }
    map.insert(
        "sliding_window".into(),
        json!(first.and_then(|attention| attention.window)),
    );
    let rotary = first.and_then(|attention| attention.rotary.as_ref());
    if let Some(RotaryScaling::LongRope {
        original_context, ..
    }) = rotary.map(|rotary| &rotary.scaling)
    {
        map.insert(
            "original_max_position_embeddings".into(),
            json!(original_context),
        );
    }
    map
}

/// One tensor for each parameter, but for the two that hold several.
fn tensors(spec: &ModelSpec) -> Vec<TensorEntry> {
    const FUSED: &[(&str, &str)] = &[
        (".mixer.query.", ".mixer.qkv_proj."),
        (".gate.", ".gate_up_proj."),
    ];
    let fused = [
        Fused {
            parts: QUERY_KEY_VALUE,
            groups: 1,
        },
        Fused {
            parts: GATE_UP,
            groups: 1,
        },
    ];
    table(spec, &[FUSED, NAMES].concat(), &fused)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{changed, fixture};
    use super::*;

    #[test]
    fn reads_the_fixtures() {
        assert_eq!(tensors(&fixture("phi3")).len(), 3 * 6 + 3);
        let spec = fixture("phi3-longrope");
        let rotary = attention(&spec.blocks[0]).unwrap().rotary.clone().unwrap();
        let RotaryScaling::LongRope {
            short,
            long,
            original_context,
            attention_factor,
        } = rotary.scaling
        else {
            panic!()
        };
        assert_eq!(
            (short, long, original_context),
            (vec![1.0, 1.05, 1.1], vec![1.5, 2.0, 2.5], 16)
        );
        assert!((attention_factor - 1.5f64.sqrt()).abs() < 1e-12);
    }

    #[test]
    fn scores_grow_with_the_context() {
        for (context, original, expected) in
            [(16384, 4096, 1.080_123_4), (131_072, 4096, 1.190_238_1)]
        {
            let changes = json!({ "max_position_embeddings": context, "original_max_position_embeddings": original });
            let spec = changed("phi3-longrope", changes).unwrap();
            let rotary = attention(&spec.blocks[0]).unwrap().rotary.clone().unwrap();
            let found = f64::from(rotary.attention_factor());
            assert!((found - expected).abs() < 1e-6, "{context}: {found}");
        }
    }

    #[test]
    fn lists_need_a_number_for_every_pair() {
        let rope = json!({ "rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0, 1.0, 1.0] });
        let error = changed("phi3", json!({ "rope_parameters": rope }))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("rope_parameters.short_factor`: expected 3 numbers"),
            "{error}"
        );
    }
}
