//! The names of all modules are those that transformers gives them, in every family.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may fail loudly"
)]

mod fixture_lists;

use std::collections::{BTreeMap, BTreeSet};

use burn::tensor::Device;
use espalier_models::{
    adapter::expert_parameters::ExpertParameter,
    folder,
    layout::{self, Module},
};
use fixture_lists::fixture;
use serde::Deserialize;

/// What transformers has in memory of a fixture, numbers as stars.
#[derive(Deserialize)]
struct Names {
    linear: BTreeSet<String>,
    parameters: BTreeSet<String>,
    weights: BTreeSet<String>,
    head: Option<String>,
}

fn starred(name: &str) -> String {
    let last = name.matches('.').count();
    let parts = name.split('.').enumerate();
    let star = |(place, part): (usize, &str)| match part.parse::<usize>() {
        Ok(_) if place > 0 && place < last => "*".to_owned(),
        _ => part.to_owned(),
    };
    parts.map(star).collect::<Vec<_>>().join(".")
}

#[test]
fn modules_are_called_as_transformers_calls_them() {
    let text = std::fs::read_to_string(fixture("modules.json")).unwrap();
    let all: BTreeMap<String, Names> = serde_json::from_str(&text).unwrap();
    assert!(all.len() > 70);
    let mut wrong = Vec::new();
    for (fixture_name, mut expected) in all {
        let loaded = folder::load(&fixture(&fixture_name), &Device::flex()).unwrap();
        let (model, family) = (&loaded.model, loaded.family().unwrap());
        let modules = layout::modules(model, family);
        // What PEFT has to know by its parameter is a linear layer of transformers all the same.
        let is_layer = |module: &Module| module.by_parameter || module.parameter().is_none();
        let own = |module: &&Module| module.expert.is_none() && is_layer(module);
        let linear: BTreeSet<String> = modules
            .iter()
            .filter(own)
            .map(|m| starred(&m.name))
            .collect();
        if let Some(head) = &expected.head {
            let untied = modules.iter().any(Module::is_head);
            assert!(untied || expected.linear.remove(head), "{fixture_name}");
        }
        let mut compare = |what: &str, ours: BTreeSet<String>, theirs: &BTreeSet<String>| {
            let (more, fewer): (Vec<_>, Vec<_>) = (
                ours.difference(theirs).collect(),
                theirs.difference(&ours).collect(),
            );
            if !more.is_empty() || !fewer.is_empty() {
                wrong.push(format!(
                    "{fixture_name}, {what}: here {more:?}, there {fewer:?}"
                ));
            }
        };
        compare("linear layers", linear, &expected.linear);
        let stacks = ExpertParameter::all(&modules)
            .into_iter()
            .map(|stack| stack.name);
        let bare = modules.iter().filter(|module| !is_layer(module));
        let parameters = stacks.chain(bare.filter_map(Module::parameter));
        compare(
            "parameters",
            parameters.map(|name| starred(&name)).collect(),
            &expected.parameters,
        );
        // Experts that a file holds one by one are one weight there.
        let entries = family.in_memory(model.spec()).into_iter();
        let weights = entries.filter(|entry| entry.rows.is_none());
        let mut weights = weights.map(|entry| starred(&entry.name));
        let strange = weights.find(|name| !expected.weights.contains(name));
        wrong.extend(strange.map(|name| format!("{fixture_name}: no weight is called {name}")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
