//! Adapters that PEFT made on every family: what they compute here is what PEFT computed, and they are saved under PEFT's names.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may fail loudly"
)]

mod fixture_lists;

use burn::tensor::Device;
use espalier_models::{checkpoint::TensorFile, folder};
use fixture_lists::{
    fixture,
    outputs::{computed, gap},
};

/// The models that have an adapter of PEFT's, found by looking.
fn adapted() -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(fixture("adapters"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert!(names.len() > 20);
    names
}

#[test]
fn adapters_of_peft_compute_what_they_compute_there() {
    let mut wrong = Vec::new();
    for name in adapted() {
        let folder = fixture("adapters").join(&name);
        let expected = TensorFile::open(&folder.join("expected.safetensors")).unwrap();
        let loaded = match folder::load(&folder, &Device::flex()) {
            Ok(loaded) => loaded,
            Err(error) => {
                wrong.push(format!("{name}: {error}"));
                continue;
            }
        };
        let (ours, theirs) = computed(&loaded.model, &expected);
        let base = folder::load(&fixture(&name), &Device::flex())
            .unwrap()
            .model;
        let (plain, _) = computed(&base, &expected);
        assert!(
            gap(&plain, &theirs) > 1e-2,
            "{name}: the adapter does nothing"
        );
        let difference = gap(&ours, &theirs);
        if difference > 1e-4 {
            wrong.push(format!("{name}: differs by {difference}"));
        }
        // What is saved has PEFT's names and computes the same.
        let saved = tempfile::tempdir().unwrap();
        let family = loaded.family().unwrap();
        loaded
            .adapter
            .as_ref()
            .unwrap()
            .save(&loaded.model, family, saved.path())
            .unwrap();
        let names = |folder: &std::path::Path| {
            let file = TensorFile::open(&folder.join("adapter_model.safetensors")).unwrap();
            file.names().map(str::to_owned).collect::<Vec<String>>()
        };
        assert_eq!(names(saved.path()), names(&folder), "{name}");
        let path = saved.path().join("adapter_config.json");
        let mut config: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        config["base_model_name_or_path"] = fixture(&name).to_string_lossy().into();
        std::fs::write(&path, config.to_string()).unwrap();
        let again = folder::load(saved.path(), &Device::flex()).unwrap();
        let (again, _) = computed(&again.model, &expected);
        assert!(gap(&again, &ours) < 1e-5, "{name}: {}", gap(&again, &ours));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
