//! Command R7B (Cohere, 2024): Command R with a window on three of four layers; the others have no positions at all.

use super::cohere::{scaled, switches, write_shared};
use super::llama_layout::{self, IGNORED, PREFIX, Switches, layers, tensors};
use super::{Config, Family, ModuleNames, config::CONTEXT_LIMIT, layer_types};
use crate::error::Result;
use crate::spec::{MixerSpec, ModelSpec};
use serde_json::{Map, Value};

/// The registration of Cohere 2.
pub const FAMILY: Family = Family {
    model_type: "cohere2",
    architecture: "Cohere2ForCausalLM",
    read,
    write,
    tensors,
    modules: ModuleNames::OF_FILES,
    prefix: PREFIX,
    ignored: IGNORED,
};

/// What the published files say besides, and what is the only choice.
const QUIET: &[&str] = &[
    "_sliding_window_pattern",
    "layer_switch",
    "order_of_interleaved_layers",
    "position_embedding_type",
    "rotary_pct",
    "use_embedding_sharing",
    "use_gated_activation",
    "use_parallel_block",
    "use_parallel_embedding",
];

fn read(config: &Config) -> Result<ModelSpec> {
    config.ignore(QUIET);
    let window = config.optional_size("sliding_window", CONTEXT_LIMIT)?;
    let by_pattern = layer_types::every(config, "sliding_window_pattern", 4)?;
    let sliding = layer_types::read(config, layers(config)?, by_pattern)?;
    let window = |sliding: &bool| sliding.then_some(window.unwrap_or(4096));
    let switches = Switches {
        windows: sliding.iter().map(window).collect(),
        ..switches(config)?
    };
    let mut spec = scaled(config, llama_layout::read(config, &FAMILY, &switches)?)?;
    without_positions(&mut spec);
    Ok(spec)
}

/// Takes the rotary positions off the layers without a window.
pub(super) fn without_positions(spec: &mut ModelSpec) {
    for block in &mut spec.blocks {
        if let MixerSpec::Attention(attention) = &mut block.mixer
            && attention.window.is_none()
        {
            attention.rotary = None;
        }
    }
}

fn write(spec: &ModelSpec) -> Map<String, Value> {
    let mut map = write_shared(spec, &FAMILY);
    layer_types::write(spec, &mut map);
    map
}

#[cfg(test)]
mod tests {
    use super::super::tests::{changed, fixture};

    use super::super::attention;
    use serde_json::json;

    #[test]
    fn only_layers_with_a_window_have_positions() {
        let spec = fixture("cohere2");
        let of = |block: usize| attention(&spec.blocks[block]).unwrap();
        assert!(of(0).rotary.is_some() && of(0).window == Some(6));
        assert!(of(1).rotary.is_none() && of(1).window.is_none());
        let keys = json!({ "layer_types": null, "sliding_window_pattern": 2 });
        assert_eq!(changed("cohere2", keys).unwrap(), spec);
    }
}
