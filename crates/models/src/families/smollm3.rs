//! SmolLM3 (Hugging Face, 2025): LLaMA with no positions at all on every fourth layer (NoPE, arXiv 2501.18795), and perhaps
//! windows on those layers.

use super::llama_layout::{self, IGNORED, PREFIX, Switches, layers, tensors};
use super::{Config, Family, ModuleNames, attention, config::CONTEXT_LIMIT, mlp, rope};
use crate::error::Result;
use crate::spec::{MixerSpec, ModelSpec};
use serde_json::{Map, Value, json};

/// The registration of SmolLM3.
pub const FAMILY: Family = Family {
    model_type: "smollm3",
    architecture: "SmolLM3ForCausalLM",
    read,
    write,
    tensors,
    modules: ModuleNames::OF_FILES,
    prefix: PREFIX,
    ignored: IGNORED,
};

const DEFAULT_THETA: f64 = 2_000_000.0;

fn read(config: &Config) -> Result<ModelSpec> {
    // Read where they decide, and saying nothing where they do not.
    config.ignore(&[
        "sliding_window",
        "no_rope_layer_interval",
        "max_window_layers",
    ]);
    if config
        .optional_texts("layer_types")?
        .is_some_and(|types| types.iter().any(|kind| *kind != "full_attention"))
    {
        config
            .flag_or("use_sliding_window", false)?
            .then_some(())
            .ok_or_else(|| {
                config.error(
                    "layer_types",
                    "windows need use_sliding_window and sliding_window to be set",
                )
            })?;
    }
    let bias = config.flag_or("attention_bias", false)?;
    let (rotating, mlp_bias) = (rotating(config)?, config.flag_or("mlp_bias", false)?);
    let window = match config.flag_or("use_sliding_window", false)? {
        true => config.optional_size("sliding_window", CONTEXT_LIMIT)?,
        false => None,
    };
    // Where the file does not list the layers, those without positions have the window.
    let types = config.optional_texts("layer_types")?;
    let has_window = |layer: usize, rotates: bool| match &types {
        Some(types) => types.get(layer) == Some(&"sliding_attention"),
        None => !rotates,
    };
    let windows = rotating
        .iter()
        .enumerate()
        .map(|(layer, rotates)| window.filter(|_| has_window(layer, *rotates)))
        .collect();
    let switches = Switches {
        qkv_bias: bias,
        output_bias: bias,
        mlp_bias,
        windows,
        ..Switches::plain(config, 32_768)?
    };
    let mut spec = llama_layout::read(config, &FAMILY, &switches)?;
    let no_theta = ["rope_parameters", "rope_scaling", "rope_theta"]
        .iter()
        .all(|key| config.get(key).is_none());
    for (block, rotates) in spec.blocks.iter_mut().zip(rotating) {
        let MixerSpec::Attention(attention) = &mut block.mixer else {
            continue;
        };
        attention.rotary = attention.rotary.take().filter(|_| rotates);
        if let Some(rotary) = attention.rotary.as_mut().filter(|_| no_theta) {
            rotary.theta = DEFAULT_THETA;
        }
    }
    Ok(ModelSpec {
        tied_head: config.flag_or("tie_word_embeddings", true)?,
        ..spec
    })
}

/// Which layers have rotary positions: as `no_rope_layers` says (1 means that the layer has them), else all but every fourth.
fn rotating(config: &Config) -> Result<Vec<bool>> {
    let count = layers(config)?;
    if let Some(list) = config.optional_counts("no_rope_layers", 1)? {
        return match list.len() >= count {
            true => Ok(list.into_iter().take(count).map(|flag| flag == 1).collect()),
            false => Err(config.error(
                "no_rope_layers",
                format!("expected {count} numbers, found {}", list.len()),
            )),
        };
    }
    let interval = config
        .optional_size("no_rope_layer_interval", count.max(4))?
        .unwrap_or(4);
    Ok((1..=count).map(|layer| layer % interval != 0).collect())
}

fn write(spec: &ModelSpec) -> Map<String, Value> {
    let mut map = llama_layout::write(spec, &FAMILY);
    let mut set = |key: &str, value: Value| map.insert(key.to_owned(), value);
    let all: Vec<_> = spec.blocks.iter().filter_map(attention).collect();
    let window = all.iter().find_map(|attention| attention.window);
    let rotary = all
        .iter()
        .find_map(|attention| Some((attention.rotary.as_ref()?, attention.head_dim)));
    set(
        "rope_parameters",
        rotary.map_or(Value::Null, |(rotary, head_dim)| {
            rope::write(rotary, head_dim)
        }),
    );
    set(
        "no_rope_layers",
        all.iter()
            .map(|attention| u8::from(attention.rotary.is_some()))
            .collect(),
    );
    set("use_sliding_window", json!(window.is_some()));
    set("sliding_window", json!(window));
    let kind = |window: Option<usize>| {
        if window.is_some() {
            "sliding_attention"
        } else {
            "full_attention"
        }
    };
    set(
        "layer_types",
        all.iter().map(|attention| kind(attention.window)).collect(),
    );
    set("attention_bias", json!(llama_layout::output_bias(spec)));
    set(
        "mlp_bias",
        json!(
            spec.blocks
                .first()
                .and_then(mlp)
                .is_some_and(|mlp| mlp.bias)
        ),
    );
    map
}

#[cfg(test)]
mod tests {
    use super::super::tests::{changed, fixture};
    use super::*;

    #[test]
    fn every_fourth_layer_has_no_positions() {
        let rotating = |spec: &ModelSpec| -> Vec<bool> {
            spec.blocks
                .iter()
                .map(|block| attention(block).unwrap().rotary.is_some())
                .collect()
        };
        assert_eq!(rotating(&fixture("smollm3")), [true, true, true, false]);
        let by_list = changed("smollm3", json!({ "no_rope_layers": [0, 1, 0, 1] })).unwrap();
        assert_eq!(rotating(&by_list), [false, true, false, true]);
        assert!(changed("smollm3", json!({ "no_rope_layers": [0] })).is_err());
    }
}
