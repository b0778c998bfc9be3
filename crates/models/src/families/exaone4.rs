//! EXAONE 4 (arXiv 2507.11407): norms over what attention and feed-forward add, norms on each head of queries and keys, and, where
//! some layers have a window, no positions on the others.

use super::cohere2::without_positions;
use super::config::CONTEXT_LIMIT;
use super::llama_layout::{self, IGNORED, PREFIX, Switches, layers};
use super::olmo2::tensors;
use super::{Config, Family, ModuleNames, attention, layer_types};
use crate::error::Result;
use crate::spec::{BlockSpec, ModelSpec, NormExtent};
use serde_json::{Map, Value, json};

/// The registration of EXAONE 4.
pub const FAMILY: Family = Family {
    model_type: "exaone4",
    architecture: "Exaone4ForCausalLM",
    read,
    write,
    tensors,
    modules: ModuleNames::OF_FILES,
    prefix: PREFIX,
    ignored: IGNORED,
};

/// The key of the number of layers of which the last sees everything.
const PATTERN: &str = "sliding_window_pattern";

/// `sliding_window` where the file has none.
const WINDOW: usize = 4096;

fn read(config: &Config) -> Result<ModelSpec> {
    let config = &config.with_defaults(&[("rms_norm_eps", json!(1e-5))]);
    let window = match config.contains("sliding_window") {
        true => config.optional_size("sliding_window", CONTEXT_LIMIT)?,
        false => Some(WINDOW),
    };
    let switches = Switches {
        qk_norm: Some(NormExtent::Head),
        block: BlockSpec::output_norm,
        windows: windows(config, window)?,
        ..Switches::plain(config, 2048)?
    };
    let mut spec = llama_layout::read(config, &FAMILY, &switches)?;
    if window.is_some() {
        without_positions(&mut spec);
    }
    Ok(spec)
}

/// The window of each layer. Without one nobody asks for the pattern, which some files give as letters.
fn windows(config: &Config, window: Option<usize>) -> Result<Vec<Option<usize>>> {
    config.ignore(&[PATTERN]);
    let layers = layers(config)?;
    let Some(window) = window else {
        let sliding = layer_types::read(config, layers, |_| false)?;
        return match sliding.contains(&true) {
            true => Err(config.error("layer_types", "windows need sliding_window to be set")),
            false => Ok(vec![None; layers]),
        };
    };
    let sliding = match config.optional_texts("layer_types")? {
        Some(_) => layer_types::read(config, layers, |_| false)?,
        None => (0..layers)
            .map(layer_types::every(config, PATTERN, 4)?)
            .collect(),
    };
    Ok(sliding
        .into_iter()
        .map(|sliding| sliding.then_some(window))
        .collect())
}

fn write(spec: &ModelSpec) -> Map<String, Value> {
    let mut map = llama_layout::write(spec, &FAMILY);
    let has_positions = |block: &BlockSpec| attention(block).is_some_and(|a| a.rotary.is_some());
    // A window takes their positions from the layers that do not have it, even where that is all of them.
    let window = match spec.blocks.iter().any(has_positions) {
        true => Value::Null,
        false => json!(WINDOW),
    };
    map.insert("sliding_window".into(), window);
    layer_types::write(spec, &mut map);
    map
}

#[cfg(test)]
mod tests {
    use super::super::tests::{changed, fixture};
    use super::super::write_config;
    use super::*;

    #[test]
    fn layers_without_a_window_have_no_positions_where_others_have_one() {
        let spec = fixture("exaone4");
        let of = |spec: &ModelSpec, block: usize| {
            let attention = attention(&spec.blocks[block]).unwrap();
            (attention.window, attention.rotary.is_some())
        };
        assert_eq!(
            (of(&spec, 0), of(&spec, 1)),
            ((Some(6), true), (None, false))
        );
        let full = json!({ "layer_types": ["full_attention", "full_attention"] });
        let full = changed("exaone4", full).unwrap();
        assert_eq!((of(&full, 0), of(&full, 1)), ((None, false), (None, false)));
        write_config(&full).unwrap();
        let none = json!({ "sliding_window": null, "layer_types": null, "sliding_window_pattern": "LLLG" });
        assert_eq!(of(&changed("exaone4", none).unwrap(), 1), (None, true));
    }
}
