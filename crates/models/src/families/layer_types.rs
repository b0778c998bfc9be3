//! `layer_types`: which layers see a sliding window, and which the whole text.

use super::{Config, attention};
use crate::{error::Result, spec::ModelSpec};
use serde_json::{Map, Value, json};

/// The name of layers that see everything before them.
pub(super) const FULL: &str = "full_attention";
/// The name of layers with a window.
pub(super) const SLIDING: &str = "sliding_attention";

/// Whether each of `layers` has a window: by `layer_types`, and where the file has none as `default` says of a layer's number.
pub(super) fn read(
    config: &Config,
    layers: usize,
    default: impl Fn(usize) -> bool,
) -> Result<Vec<bool>> {
    let Some(types) = config.optional_texts("layer_types")? else {
        return Ok((0..layers).map(default).collect());
    };
    if types.len() != layers {
        let reason = format!(
            "expected one for each of the {layers} layers, found {}",
            types.len()
        );
        return Err(config.error("layer_types", reason));
    }
    let is_sliding = |kind: &str| match kind {
        SLIDING => Ok(true),
        FULL => Ok(false),
        _ => Err(config.error(
            "layer_types",
            format!("unknown type `{kind}`; known are {FULL} and {SLIDING}"),
        )),
    };
    types.into_iter().map(is_sliding).collect()
}

/// The default of families in which every so many layers see the whole text: `pattern`, or what `key` says of it.
pub(super) fn every(
    config: &Config,
    key: &str,
    pattern: usize,
) -> Result<impl Fn(usize) -> bool + use<>> {
    let pattern = config.optional_size(key, 4096)?.unwrap_or(pattern);
    Ok(move |layer: usize| !(layer + 1).is_multiple_of(pattern))
}

/// Writes the windows of `spec`.
pub(super) fn write(spec: &ModelSpec, map: &mut Map<String, Value>) {
    let windows: Vec<Option<usize>> = spec
        .blocks
        .iter()
        .map(|block| attention(block).and_then(|attention| attention.window))
        .collect();
    let kind = |window: &Option<usize>| if window.is_some() { SLIDING } else { FULL };
    map.insert("layer_types".into(), windows.iter().map(kind).collect());
    if let Some(window) = windows.iter().flatten().next() {
        map.insert("sliding_window".into(), json!(window));
    }
}
