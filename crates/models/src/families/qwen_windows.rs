//! Which layers of a Qwen2 or Qwen3 model see a sliding window.
//!
//! `layer_types` decides where it is present; else, if `use_sliding_window`, the layers from `max_window_layers` on.

use super::config::{CONTEXT_LIMIT, Config, LAYER_LIMIT};
use super::{attention, llama_layout::layers};
use crate::error::Result;
use crate::spec::ModelSpec;
use serde_json::{Map, Value, json};

const FULL: &str = "full_attention";
const SLIDING: &str = "sliding_attention";

/// The window of each layer.
pub(super) fn read(config: &Config) -> Result<Vec<Option<usize>>> {
    let layers = layers(config)?;
    // Read where they decide, and saying nothing where they do not.
    config.ignore(&["max_window_layers", "sliding_window"]);
    let window = window(config)?;
    if let Some(types) = config.optional_texts("layer_types")? {
        if types.len() != layers {
            let reason = format!(
                "expected one for each of the {layers} layers, found {}",
                types.len()
            );
            return Err(config.error("layer_types", reason));
        }
        return types
            .into_iter()
            .map(|kind| window_of_type(config, kind, window))
            .collect();
    }
    let first = config.count_or("max_window_layers", 28, LAYER_LIMIT)?;
    Ok((0..layers)
        .map(|layer| window.filter(|_| layer >= first))
        .collect())
}

fn window(config: &Config) -> Result<Option<usize>> {
    if !config.flag_or("use_sliding_window", false)? {
        return Ok(None);
    }
    let absent = !config.contains("sliding_window");
    Ok(config
        .optional_size("sliding_window", CONTEXT_LIMIT)?
        .or(absent.then_some(4096)))
}

fn window_of_type(config: &Config, kind: &str, window: Option<usize>) -> Result<Option<usize>> {
    match (kind, window) {
        (FULL, _) => Ok(None),
        (SLIDING, Some(window)) => Ok(Some(window)),
        (SLIDING, None) => Err(config.error(
            "layer_types",
            format!("`{SLIDING}` needs use_sliding_window and sliding_window to be set"),
        )),
        _ => Err(config.error(
            "layer_types",
            format!("unknown type `{kind}`; known are {FULL} and {SLIDING}"),
        )),
    }
}

/// Writes the windows of `spec` into `map`.
pub(super) fn write(spec: &ModelSpec, map: &mut Map<String, Value>) {
    let windows: Vec<Option<usize>> = spec
        .blocks
        .iter()
        .map(|block| attention(block).and_then(|attention| attention.window))
        .collect();
    let window = windows.iter().flatten().next();
    let kinds: Vec<&str> = windows
        .iter()
        .map(|window| if window.is_some() { SLIDING } else { FULL })
        .collect();
    let first = windows
        .iter()
        .position(Option::is_some)
        .unwrap_or(windows.len());
    map.insert("use_sliding_window".into(), json!(window.is_some()));
    map.insert("sliding_window".into(), json!(window));
    map.insert("max_window_layers".into(), json!(first));
    map.insert("layer_types".into(), json!(kinds));
}

#[cfg(test)]
mod tests {
    use super::super::tests::changed;
    use super::super::write_config;
    use super::*;

    fn windows(changes: Value) -> Result<Vec<Option<usize>>> {
        let spec = changed("qwen2", changes)?;
        write_config(&spec)?;
        Ok(spec
            .blocks
            .iter()
            .map(|block| attention(block).unwrap().window)
            .collect())
    }

    #[test]
    fn the_switch_and_the_first_layer_decide() {
        let keys = |on: bool, first: usize| json!({ "layer_types": null, "use_sliding_window": on, "sliding_window": 16, "max_window_layers": first });
        assert_eq!(windows(keys(false, 0)).unwrap(), [None; 3]);
        assert_eq!(windows(keys(true, 1)).unwrap(), [None, Some(16), Some(16)]);
        assert_eq!(windows(keys(true, 28)).unwrap(), [None; 3]);
    }

    #[test]
    fn layer_types_win() {
        let types = json!([SLIDING, FULL, SLIDING]);
        let keys =
            json!({ "layer_types": types, "use_sliding_window": true, "sliding_window": 16 });
        assert_eq!(windows(keys).unwrap(), [Some(16), None, Some(16)]);
        let error = |changes| windows(changes).unwrap_err().to_string();
        assert!(error(json!({ "layer_types": types })).contains("needs use_sliding_window"));
        assert!(
            error(json!({ "layer_types": [FULL] }))
                .contains("expected one for each of the 3 layers")
        );
        assert!(
            error(json!({ "layer_types": [FULL, FULL, "mamba"] })).contains("unknown type `mamba`")
        );
    }
}
