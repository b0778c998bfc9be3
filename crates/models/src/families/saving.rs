//! Whatever a family reads it writes: every fixture with every key that its family asks for set to every value that might fit.

use super::tests::{config, models};
use super::{Config, family};
use crate::saved_configuration::check_savable;
use espalier_data::random::Random;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// Parts of the names of keys that may mean something else with other windows and rotary positions.
const DEPENDENT: [&str; 6] = ["rope", "rotary", "theta", "layer", "window", "head_dim"];

/// Values of keys, whatever they mean; most fit few of them.
fn values(old: &Value) -> Vec<Value> {
    let mut values = vec![
        json!(null),
        json!(true),
        json!(false),
        json!([0]),
        json!([1, 2]),
        json!("gelu"),
        json!("relu"),
        json!("silu"),
        json!("gelu_pytorch_tanh"),
        json!("auto"),
    ];
    let numbers = [
        0.0, 1.0, 2.0, 3.0, 4.0, 8.0, 12.0, 64.0, 0.25, 0.5, 1.5, 1e-3, 1e5,
    ];
    let old = old.as_f64();
    let near = old
        .into_iter()
        .flat_map(|old| [old / 2.0, old * 2.0, old + 1.0]);
    for number in numbers.into_iter().chain(near) {
        values.push(json!(number));
        if number.fract() == 0.0 {
            values.push(json!(number as i64));
        }
    }
    values
}

/// `map` with the value of the key of this full name, such as `rope_parameters.factor`.
fn with(map: &Map<String, Value>, key: &str, value: Value) -> Map<String, Value> {
    let mut map = map.clone();
    match key.split_once('.') {
        None => {
            map.insert(key.into(), value);
        }
        Some((outer, rest)) => {
            let inner = map.get(outer).and_then(Value::as_object).cloned();
            let inner = with(&inner.unwrap_or_default(), rest, value);
            map.insert(outer.into(), Value::Object(inner));
        }
    }
    map
}

/// The value of the key of this full name.
fn value<'a>(map: &'a Map<String, Value>, key: &str) -> &'a Value {
    match key.split_once('.') {
        None => map.get(key).unwrap_or(&Value::Null),
        Some((outer, rest)) => map
            .get(outer)
            .and_then(Value::as_object)
            .map_or(&Value::Null, |inner| value(inner, rest)),
    }
}

/// Configurations to start from: the fixture's own, and with windows everywhere or nowhere, and other rotary positions.
fn starts(map: &Map<String, Value>) -> Vec<Map<String, Value>> {
    let mut starts = vec![map.clone()];
    if let Some(types) = map.get("layer_types").and_then(Value::as_array) {
        for kind in ["full_attention", "sliding_attention"] {
            let all = vec![json!(kind); types.len()];
            starts.push(with(map, "layer_types", json!(all)));
        }
    }
    if map.contains_key("rope_parameters") {
        let scalings = [
            json!(null),
            json!({ "rope_type": "linear", "factor": 2.0, "rope_theta": 5e4 }),
            json!({ "rope_type": "dynamic", "factor": 2.0, "partial_rotary_factor": 1.0 }),
            json!({ "rope_type": "yarn", "factor": 4.0, "partial_rotary_factor": 0.5 }),
            json!({ "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32 }),
        ];
        starts.extend(scalings.map(|scaling| with(map, "rope_parameters", scaling)));
    }
    starts
}

/// Whether the configuration is one of a model.
fn is_read(map: &Map<String, Value>) -> bool {
    let config = Config::from_map("config.json".as_ref(), map.clone());
    family(&config).is_ok_and(|family| (family.read)(&config).is_ok())
}

/// What is wrong with the configuration: it is read, and could not be saved.
fn fault(map: &Map<String, Value>) -> Option<String> {
    let config = Config::from_map("config.json".as_ref(), map.clone());
    let spec = (family(&config).ok()?.read)(&config).ok()?;
    let savable = check_savable(&spec, Some(map));
    savable.err().map(|error| error.to_string())
}

#[test]
fn whatever_is_read_is_written() {
    let (mut faults, mut tried) = (BTreeSet::new(), 0);
    for model in models() {
        // Another seed's sizes add nothing here.
        if model.ends_with("-seed1") {
            continue;
        }
        for start in starts(config(&model).map()) {
            let config = Config::from_map("config.json".as_ref(), start.clone());
            let Ok(family) = family(&config) else {
                continue;
            };
            if (family.read)(&config).is_err() {
                continue;
            }
            let is_first = start == *self::config(&model).map();
            for key in config.asked() {
                if !(is_first || DEPENDENT.iter().any(|part| key.contains(part))) {
                    continue;
                }
                for value in values(self::value(&start, &key)) {
                    tried += 1;
                    let changed = with(&start, &key, value.clone());
                    if let Some(fault) = fault(&changed) {
                        faults.insert(format!("{}: `{key}`: {value}: {fault}", family.model_type));
                    }
                }
            }
        }
    }
    assert!(tried > 50_000, "{tried}");
    assert!(
        faults.is_empty(),
        "{} of {tried}:\n{}",
        faults.len(),
        faults.into_iter().collect::<Vec<_>>().join("\n")
    );
}

/// Several keys at once: some values mean something only beside others.
#[test]
fn whatever_is_read_of_several_changes_is_written() {
    const ROUNDS: usize = 60;
    const CHANGES: usize = 12;
    let (mut faults, mut kept) = (BTreeSet::new(), 0);
    let mut random = Random::new(11);
    let mut below = |count: usize| (random.f() * count as f64) as usize;
    for model in models() {
        let config = config(&model);
        assert!(is_read(config.map()));
        (family(&config).unwrap().read)(&config).unwrap();
        let keys: Vec<String> = config.asked().into_iter().collect();
        for _ in 0..ROUNDS {
            let (mut map, mut changes) = (config.map().clone(), Vec::new());
            for _ in 0..CHANGES {
                let key = &keys[below(keys.len())];
                let mut values = values(value(&map, key));
                let value = values.swap_remove(below(values.len()));
                let change = format!("`{key}`: {value}");
                let changed = with(&map, key, value);
                if is_read(&changed) {
                    map = changed;
                    changes.push(change);
                }
            }
            kept += changes.len();
            if let Some(fault) = fault(&map) {
                faults.insert(format!("{model}: {}: {fault}", changes.join(", ")));
            }
        }
    }
    assert!(kept > 20_000, "{kept}");
    assert!(
        faults.is_empty(),
        "{}:\n{}",
        faults.len(),
        faults.into_iter().collect::<Vec<_>>().join("\n")
    );
}
