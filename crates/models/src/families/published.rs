//! Configurations as they were published, with all the keys that say nothing, and how many parameters their models have, counted by
//! transformers. `source` says in which public repository a copy was found, or what has made it; what begins with `from memory` was
//! found nowhere whole, and the rest of the line says which parts were.

use super::{Config, family};
use crate::saved_configuration::check_savable;
use serde_json::{Map, Value};

const FILE: &str = include_str!("../../../../tests/fixtures/published-configs.json");

#[test]
fn published_configurations_load_have_their_counts_and_can_be_saved() {
    let all: Map<String, Value> = serde_json::from_str(FILE).unwrap();
    let found = all
        .values()
        .filter_map(|entry| entry["source"].as_str())
        .filter(|source| !source.starts_with("from memory"));
    assert!(found.count() > 75);
    let mut wrong = Vec::new();
    for (name, entry) in &all {
        let map = entry["config"].as_object().unwrap().clone();
        let config = Config::from_map(name.as_ref(), map.clone());
        let read = family(&config).and_then(|family| {
            let spec = (family.read)(&config)?;
            config.refuse_unread()?;
            check_savable(&spec, Some(&map))?;
            Ok(spec.parameter_count())
        });
        let count = entry["parameters"].as_u64().unwrap();
        match read {
            Err(error) => wrong.push(format!("{name}: {error}")),
            Ok(found) if found != count => {
                wrong.push(format!("{name}: {found} parameters instead of {count}"));
            }
            Ok(_) => {}
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
