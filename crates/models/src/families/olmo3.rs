//! OLMo 3 (2025): OLMo 2 with a window on three of four layers, whose rotary positions are not extended.

use super::llama_layout::{self, IGNORED, PREFIX, Switches, layers};
use super::olmo2::{self, tensors};
use super::{Config, Family, ModuleNames, config::CONTEXT_LIMIT, layer_types, rope};
use crate::error::Result;
use crate::spec::{MixerSpec, ModelSpec};
use serde_json::{Map, Value, json};

/// The registration of OLMo 3.
pub const FAMILY: Family = Family {
    model_type: "olmo3",
    architecture: "Olmo3ForCausalLM",
    read,
    write,
    tensors,
    modules: ModuleNames::OF_FILES,
    prefix: PREFIX,
    ignored: IGNORED,
};

fn read(config: &Config) -> Result<ModelSpec> {
    let config = &config.with_defaults(&[
        ("rms_norm_eps", json!(1e-5)),
        ("rope_theta", json!(500_000.0)),
        ("sliding_window", json!(4096)),
    ]);
    let window = config.size("sliding_window", CONTEXT_LIMIT)?;
    let sliding = layer_types::read(config, layers(config)?, |layer| (layer + 1) % 4 != 0)?;
    let switches = Switches {
        windows: sliding
            .iter()
            .map(|sliding| sliding.then_some(window))
            .collect(),
        ..olmo2::switches(config)?
    };
    read_by_type(config, &FAMILY, &switches, None)
}

/// Reads a decoder whose layers with a window have rotary positions of their own; see [`rope::of_layer_type`].
pub(super) fn read_by_type(
    config: &Config,
    family: &Family,
    switches: &Switches,
    local_theta: Option<&str>,
) -> Result<ModelSpec> {
    let full = rope::of_layer_type(config, layer_types::FULL, local_theta)?;
    let mut spec = llama_layout::read(&full, family, switches)?;
    let local = rope::of_layer_type(config, layer_types::SLIDING, local_theta)?;
    for block in &mut spec.blocks {
        if let MixerSpec::Attention(attention) = &mut block.mixer
            && attention.window.is_some()
        {
            attention.rotary = Some(rope::read_whole(&local, attention.head_dim, spec.context)?);
        }
    }
    Ok(spec)
}

/// Writes windows and the rotary positions of both kinds of layers.
pub(super) fn write_by_type(spec: &ModelSpec, map: &mut Map<String, Value>) {
    layer_types::write(spec, map);
    let all = || spec.blocks.iter().filter_map(super::attention);
    let of = |sliding: bool| {
        let kind = all().find(|attention| attention.window.is_some() == sliding);
        let attention = kind.or_else(|| all().next())?;
        Some(rope::write(attention.rotary.as_ref()?, attention.head_dim))
    };
    let parameters = json!({ layer_types::FULL: of(false), layer_types::SLIDING: of(true) });
    map.insert("rope_parameters".into(), parameters);
}

fn write(spec: &ModelSpec) -> Map<String, Value> {
    let mut map = llama_layout::write(spec, &FAMILY);
    map.insert(
        "attention_bias".into(),
        json!(llama_layout::output_bias(spec)),
    );
    write_by_type(spec, &mut map);
    map
}

#[cfg(test)]
mod tests {
    use super::super::tests::{changed, fixture};
    use super::*;

    use super::super::attention;
    use crate::spec::RotaryScaling;

    #[test]
    fn layers_with_a_window_are_not_extended() {
        let older = json!({ "rope_parameters": null, "rope_theta": 5e5,
            "rope_scaling": { "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16 } });
        for spec in [fixture("olmo3"), changed("olmo3", older).unwrap()] {
            let scaling = |block: usize| {
                let attention = attention(&spec.blocks[block]).unwrap();
                (
                    attention.window,
                    attention.rotary.as_ref().unwrap().scaling.clone(),
                )
            };
            assert_eq!(scaling(0), (Some(6), RotaryScaling::None));
            assert!(matches!(scaling(1), (None, RotaryScaling::Yarn { .. })));
        }
    }
}
