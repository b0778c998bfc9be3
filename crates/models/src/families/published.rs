//! Configurations as they were published, with all the keys that say nothing, and how many parameters their models have.

use super::{Config, family};
use serde_json::{Map, Value};

const FILE: &str = include_str!("../../../../tests/fixtures/published-configs.json");

#[test]
fn published_configurations_load_and_have_their_counts() {
    let all: Map<String, Value> = serde_json::from_str(FILE).unwrap();
    assert!(all.len() > 25);
    let mut wrong = Vec::new();
    for (name, entry) in &all {
        let map = entry["config"].as_object().unwrap().clone();
        let config = Config::from_map(name.as_ref(), map);
        let read = family(&config).and_then(|family| {
            let spec = (family.read)(&config)?;
            config.refuse_unread()?;
            Ok(spec.parameter_count())
        });
        match (read, entry["parameters"].as_u64()) {
            (Err(error), _) => wrong.push(error.to_string()),
            (Ok(found), Some(count)) if found != count => {
                wrong.push(format!("{name}: {found} parameters instead of {count}"));
            }
            _ => {}
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
