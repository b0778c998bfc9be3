//! Adapters of the routers of experts: their gradients follow from those of the router's own weight, whatever else reads its input.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may fail loudly"
)]

mod fixture_lists;

use std::collections::HashMap;

use burn::tensor::Device;
use espalier_kernels::readback::ReadFloats;
use espalier_models::{
    adapter::{Adapter, linear_parts},
    checkpoint::{PeftConfig, peft_config::Targets},
    folder,
    model::{Input, LanguageModel},
    parameter::{Parameter, Parameters},
};
use fixture_lists::{fixture, outputs::gap};

/// The gradients of what is trained, by name.
fn gradients(model: &LanguageModel) -> HashMap<String, Vec<f32>> {
    let input = Input::rows(&[vec![5, 9, 2, 7, 1, 30], vec![3, 3, 8, 4, 6, 11]]).unwrap();
    let hidden = model.hidden(&input, None).unwrap();
    let gradients = hidden.powf_scalar(4.0).sum().backward();
    let mut found = HashMap::new();
    model.visit(&mut |parameter: &Parameter| {
        let leaf = parameter.leaf().filter(|_| parameter.is_trainable());
        if let Some(gradient) = leaf.and_then(|leaf| leaf.grad(&gradients)) {
            found.insert(parameter.name().to_owned(), gradient.floats());
        }
    });
    found
}

/// `a` `[rows, inner]` times `b` `[inner, columns]`, times a scale.
fn product(a: &[f32], b: &[f32], inner: usize, scale: f64) -> Vec<f32> {
    let columns = b.len() / inner;
    let of_row = |row: &[f32]| {
        let sum = |column: usize| {
            (0..inner)
                .map(|i| f64::from(row[i]) * f64::from(b[i * columns + column]))
                .sum::<f64>()
        };
        (0..columns)
            .map(|column| (scale * sum(column)) as f32)
            .collect::<Vec<f32>>()
    };
    a.chunks(inner).flat_map(of_row).collect()
}

fn transposed(a: &[f32], columns: usize) -> Vec<f32> {
    (0..columns)
        .flat_map(|column| a.iter().skip(column).step_by(columns).copied())
        .collect()
}

/// The largest difference of the gradients of routers' factors from what the gradients of the routers say, in parts of the largest.
fn misfit(model: &LanguageModel, adapter: &str) -> f32 {
    let found = gradients(model);
    let mut merged = model.clone();
    merged.merge_adapters().unwrap();
    merged.set_trainable(|parameter| parameter.name().ends_with(".router.weight"));
    let of_routers = gradients(&merged);
    let mut largest = 0f32;
    let mut routers = 0;
    for (map, part) in linear_parts(model, adapter) {
        if !map.ends_with(".router") {
            continue;
        }
        routers += 1;
        let factors = part.low_rank().unwrap();
        let whole = &of_routers[&format!("{map}.weight")];
        let (rank, width) = (factors.rank(), factors.down.shape()[1]);
        let [down, up] = [&factors.down, &factors.up].map(Parameter::to_vec);
        let scale = factors.scale;
        let expected = [
            (
                factors.down.name(),
                product(&transposed(&up, rank), whole, up.len() / rank, scale),
            ),
            (
                factors.up.name(),
                product(whole, &transposed(&down, width), width, scale),
            ),
        ];
        for (name, expected) in expected {
            let size = expected.iter().fold(0f32, |size, x| size.max(x.abs()));
            assert!(size > 1e-3, "{name}");
            largest = largest.max(gap(&found[name], &expected) / size);
        }
    }
    assert!(routers > 0);
    largest
}

#[test]
fn their_gradients_are_the_routers_through_the_factors() {
    for case in [
        "odd-adapters/all-linear-mixtral",
        "odd-adapters/all-linear-qwen3",
        "odd-adapters/all-linear-jetmoe",
        "adapters/granitemoe",
        "adapters/jamba",
    ] {
        let mut loaded = folder::load(&fixture(case), &Device::flex()).unwrap();
        let family = loaded.family().unwrap();
        let adapter = loaded.adapter.clone().unwrap();
        adapter.mark_trainable(&mut loaded.model);
        let alone = misfit(&loaded.model, "default");
        assert!(alone < 1e-4, "{case}: {alone}");
        // A second one beside it, which adds nothing yet: the two are apart from the product of the weight.
        let routers: Vec<String> = ["gate", "layer", "router"].map(str::to_owned).to_vec();
        let has = |name: &&String| {
            let modules = espalier_models::layout::modules(&loaded.model, family);
            modules
                .iter()
                .any(|module| module.is_router() && module.name.ends_with(&format!(".{name}")))
        };
        let routers: Vec<String> = routers.iter().filter(has).cloned().collect();
        let second = Adapter::new(PeftConfig::new(2, 4.0, Targets::List(routers)));
        let second = second.named("second").unwrap();
        second.attach(&mut loaded.model, family, 5).unwrap();
        loaded
            .model
            .set_trainable(|parameter| parameter.adapter().is_some());
        let beside = misfit(&loaded.model, "default");
        assert!(beside < 1e-4, "{case}: {beside}");
    }
}

#[test]
fn routers_are_adapted_where_they_are_named() {
    for (base, name, parameter) in [
        ("mixtral", "gate", Some("gate.weight")),
        ("qwen3-moe", "gate", Some("gate.weight")),
        ("granitemoe", "router", Some("router.weight")),
        ("jamba", "router", Some("router.weight")),
        ("jetmoe", "layer", None),
    ] {
        let attached = |targets: Targets| {
            let mut loaded = folder::load(&fixture(base), &Device::flex()).unwrap();
            let family = loaded.family().unwrap();
            let adapter = Adapter::new(PeftConfig::new(2, 4.0, targets))
                .based_on(fixture(base).to_string_lossy());
            adapter.attach(&mut loaded.model, family, 0).unwrap();
            let saved = tempfile::tempdir().unwrap();
            adapter.save(&loaded.model, family, saved.path()).unwrap();
            let parts = linear_parts(&loaded.model, "default");
            let routers = parts.keys().filter(|map| map.ends_with(".router")).count();
            let text = std::fs::read_to_string(saved.path().join("adapter_config.json")).unwrap();
            let again = folder::load(saved.path(), &Device::flex()).unwrap();
            let parts_again = linear_parts(&again.model, "default");
            assert_eq!(parts_again.len(), parts.len(), "{base}");
            (
                routers,
                serde_json::from_str::<serde_json::Value>(&text).unwrap(),
            )
        };
        assert_eq!(attached(Targets::AllLinear).0, 0, "{base}");
        let (routers, config) = attached(Targets::List(vec![name.into()]));
        assert!(routers > 0, "{base}");
        match parameter {
            Some(parameter) => {
                assert_eq!(
                    config["target_parameters"],
                    serde_json::json!([parameter]),
                    "{base}"
                );
                assert!(config["target_modules"].is_null(), "{base}");
            }
            None => assert_eq!(
                config["target_modules"],
                serde_json::json!([name]),
                "{base}"
            ),
        }
    }
}
