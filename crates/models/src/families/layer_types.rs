//! `layer_types`: which layers see a sliding window, and which the whole text.

use super::{Config, attention, config_keys};
use crate::{error::Result, spec::ModelSpec};
use serde_json::{Map, Value, json};

/// The name of layers that see everything before them.
pub(super) const FULL: &str = "full_attention";
/// The name of layers with a window.
pub(super) const SLIDING: &str = "sliding_attention";

/// The list of the layers' kinds.
const KEY: &str = "layer_types";

/// Keys that speak of windows alone.
pub(super) const OF_WINDOWS: [&str; 3] = [KEY, "sliding_window", "max_window_layers"];

/// Whether a configuration says that no layer has a window, so that [`OF_WINDOWS`] say nothing to a family that knows none.
pub(super) fn says_no_windows(map: &Map<String, Value>) -> bool {
    let is_full = |kind: &Value| kind == FULL;
    match map.get(KEY).and_then(Value::as_array) {
        Some(kinds) => kinds.iter().all(is_full),
        None => map.get("use_sliding_window") == Some(&Value::Bool(false)),
    }
}

/// Checks the list of a family whose layers all have this `window`, or none: transformers has no other layers in it, and looks at
/// the key of the window alone. Where the list asks for less than that, the two are told apart.
///
/// # Errors
/// When the list asks for a window on some of the layers, or for one where there is none.
pub(super) fn check_uniform(config: &Config, layers: usize, window: Option<usize>) -> Result<()> {
    if config.optional_texts(KEY)?.is_none() {
        return Ok(());
    }
    let sliding = read(config, layers, |_| false)?;
    let (some, all) = (sliding.contains(&true), !sliding.contains(&false));
    match window {
        None if some => Err(config.error(KEY, "windows need sliding_window to be set")),
        Some(_) if some && !all => {
            let reason = "in this family all layers have the window of sliding_window or none has; this may be another model";
            Err(config.error(KEY, reason))
        }
        Some(_) if !some => {
            config_keys::tell_ignored(config.path(), &[KEY]);
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Whether each of `layers` has a window: by `layer_types`, and where the file has none as `default` says of a layer's number.
pub(super) fn read(
    config: &Config,
    layers: usize,
    default: impl Fn(usize) -> bool,
) -> Result<Vec<bool>> {
    let Some(types) = config.optional_texts(KEY)? else {
        return Ok((0..layers).map(default).collect());
    };
    if types.len() != layers {
        let reason = format!(
            "expected one for each of the {layers} layers, found {}",
            types.len()
        );
        return Err(config.error(KEY, reason));
    }
    let is_sliding = |kind: &str| match kind {
        SLIDING => Ok(true),
        FULL => Ok(false),
        _ => Err(config.error(
            KEY,
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
    map.insert(KEY.into(), windows.iter().map(kind).collect());
    if let Some(window) = windows.iter().flatten().next() {
        map.insert("sliding_window".into(), json!(window));
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{changed, fixture};
    use super::super::write_config;
    use super::*;

    /// Whether the fixture is read with these changes, and has nothing that may be another model.
    fn is_read(model: &str, changes: Value) -> bool {
        changed(model, changes).is_ok()
    }

    /// The keys with the switch of the families that have one.
    fn with_switch(model: &str, mut keys: Value) -> Value {
        if model.starts_with("qwen") {
            keys["use_sliding_window"] = true.into();
        }
        keys
    }

    fn of(kind: &str, model: &str) -> Value {
        vec![kind; fixture(model).blocks.len()].into()
    }

    #[test]
    fn a_list_of_full_layers_says_nothing_where_there_are_no_windows() {
        for model in ["llama", "granite", "stablelm", "olmoe"] {
            let full = of(FULL, model);
            for window in [json!(null), json!(4096)] {
                let keys = json!({ "layer_types": full, "sliding_window": window, "use_sliding_window": false, "max_window_layers": 28 });
                assert!(is_read(model, keys), "{model}");
            }
            assert!(is_read(model, json!({ "layer_types": full })), "{model}");
            let off = json!({ "use_sliding_window": false, "sliding_window": 8, "max_window_layers": 28 });
            assert!(is_read(model, off), "{model}");
            // What may be another model stays an error.
            assert!(!is_read(
                model,
                json!({ "layer_types": of(SLIDING, model) })
            ));
            assert!(!is_read(model, json!({ "sliding_window": 8 })));
        }
    }

    #[test]
    fn families_with_one_kind_of_layers_have_the_window_of_its_key() {
        let windows = |spec: &ModelSpec| -> Vec<Option<usize>> {
            let all = spec.blocks.iter().filter_map(attention);
            all.map(|attention| attention.window).collect()
        };
        for model in ["mistral", "mixtral", "starcoder2", "qwen3-moe"] {
            let (full, sliding) = (of(FULL, model), of(SLIDING, model));
            let count = fixture(model).blocks.len();
            for (kinds, window, expected) in [
                (&full, json!(null), None),
                // As transformers has it, whatever the list says.
                (&full, json!(8), Some(8)),
                (&sliding, json!(8), Some(8)),
            ] {
                let keys = with_switch(
                    model,
                    json!({ "layer_types": kinds, "sliding_window": window }),
                );
                let spec = changed(model, keys.clone()).unwrap();
                assert_eq!(windows(&spec), vec![expected; count], "{model} {keys}");
                write_config(&spec).unwrap();
            }
            let none = json!({ "layer_types": sliding, "sliding_window": null });
            assert!(changed(model, none).is_err(), "{model}");
            let short = json!({ "layer_types": [FULL], "sliding_window": null });
            assert!(changed(model, short).is_err(), "{model}");
            if count > 1 {
                let mut mixed = full.clone();
                mixed[0] = SLIDING.into();
                let mixed = json!({ "layer_types": mixed, "sliding_window": 8 });
                assert!(
                    changed(model, with_switch(model, mixed)).is_err(),
                    "{model}"
                );
            }
        }
    }
}
