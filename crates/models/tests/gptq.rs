//! Weights of four bits by GPTQ and AWQ compute what their numbers mean (`tests/fixtures/make/gptq.py`).
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail loudly")]

use std::path::PathBuf;

use burn::tensor::Device;
use espalier_models::{
    folder::{self, LoadedModel},
    model::Input,
    parameter::Parameters,
};
use serde_json::json;

fn load(name: &str) -> LoadedModel {
    let folder: PathBuf = format!(
        "{}/../../tests/fixtures/gptq/{name}",
        env!("CARGO_MANIFEST_DIR")
    )
    .into();
    folder::load(&folder, &Device::flex()).unwrap_or_else(|error| panic!("{error}"))
}

/// Logits of rows that are long enough for products in floating point, and short enough for those in integers.
fn logits(loaded: &LoadedModel, length: u32) -> Vec<f32> {
    let input = Input::rows(&[(0..length).map(|i| (i * 7 + 3) % 61).collect()]).unwrap();
    loaded
        .model
        .logits(&input)
        .unwrap()
        .into_data()
        .try_into_vec()
        .unwrap()
}

fn gap(a: &[f32], b: &[f32]) -> f32 {
    a.iter()
        .zip(b)
        .fold(0.0, |gap, (a, b)| gap.max((a - b).abs()))
}

#[test]
fn groups_in_order_stay_in_four_bits() {
    let plain = load("plain");
    for name in ["gptq", "awq"] {
        let packed = load(name);
        let mut rounded = 0;
        packed
            .model
            .visit(&mut |parameter| rounded += usize::from(parameter.is_quantised()));
        assert_eq!(rounded, 14, "{name}");
        let (expected, found) = (logits(&plain, 24), logits(&packed, 24));
        assert!(
            gap(&found, &expected) < 1e-4,
            "{name}: {}",
            gap(&found, &expected)
        );
        // Few rows are rounded to eight bits, fourteen times; that the products themselves are exact is the kernels' test.
        let (expected, found) = (logits(&plain, 4), logits(&packed, 4));
        let size = expected.iter().fold(0f32, |all, x| all.max(x.abs()));
        let gap = gap(&found, &expected);
        assert!(gap > 0.0 && gap < 0.08 * size, "{name}: {gap} of {size}");
    }
}

#[test]
fn groups_out_of_order_become_f16() {
    let (plain, packed) = (load("plain-desc-act"), load("gptq-desc-act"));
    let (expected, found) = (logits(&plain, 24), logits(&packed, 24));
    let gap = gap(&found, &expected);
    assert!(gap < 2e-2, "{gap}");
}

#[test]
fn other_packings_are_refused() {
    let folder: PathBuf = format!(
        "{}/../../tests/fixtures/gptq/gptq",
        env!("CARGO_MANIFEST_DIR")
    )
    .into();
    let refused = |change: serde_json::Value| {
        let changes = json!({ "quantization_config": change });
        let loaded = folder::load_changed(&folder, changes.as_object().unwrap(), &Device::flex());
        loaded.map(|_| ()).unwrap_err().to_string()
    };
    assert!(refused(json!({ "quant_method": "gptq", "bits": 3 })).contains("four bits alone"));
    let newer = json!({ "quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq_v2" });
    assert!(refused(newer).contains("`gptq_v2` is not read, `gptq` is"));
}
