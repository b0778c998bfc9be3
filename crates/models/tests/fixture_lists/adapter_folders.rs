//! Adapter folders: what they hold, and how far a model is from what is expected of it.

use std::{collections::BTreeSet, fs, path::Path};

use burn::tensor::Device;
use espalier_models::{
    checkpoint::TensorFile,
    folder::{self, LoadedModel},
    model::LanguageModel,
};
use serde_json::{Map, Value};

use super::outputs;

/// Loads a model or adapter.
pub fn load(folder: &Path) -> LoadedModel {
    folder::load(folder, &Device::flex()).unwrap()
}

/// The largest difference from what PEFT computes.
pub fn gap(folder: &Path, model: &LanguageModel) -> f32 {
    let expected = TensorFile::open(&folder.join("expected.safetensors")).unwrap();
    let (ours, theirs) = outputs::computed(model, &expected);
    outputs::gap(&ours, &theirs)
}

/// The names of an adapter's tensors.
pub fn names(folder: &Path) -> BTreeSet<String> {
    let paths = ["safetensors", "bin"].map(|end| folder.join(format!("adapter_model.{end}")));
    let path = paths.into_iter().find(|path| path.exists()).unwrap();
    let file = TensorFile::open(&path).unwrap();
    file.names().map(str::to_owned).collect()
}

/// What an adapter's configuration says.
pub fn configuration(folder: &Path) -> Map<String, Value> {
    let text = fs::read_to_string(folder.join("adapter_config.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}
