//! Adapter folders that do not fit their configuration or their base are refused, and so are names that mean nothing.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may fail loudly"
)]

use std::{
    fs,
    path::{Path, PathBuf},
};

use burn::tensor::Device;
use espalier_models::{
    adapter::Adapter,
    checkpoint::{Dtype, PeftConfig, TensorFile, TensorPlan, TensorWriter, peft_config::Targets},
    folder,
};
use serde_json::{Value, json};

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures")).join(name)
}

/// A copy of the fixture `peft-lora`, with another configuration and without the tensors that `dropped` accepts.
fn copied(
    change: impl Fn(&mut serde_json::Map<String, Value>),
    dropped: impl Fn(&str) -> bool,
) -> tempfile::TempDir {
    let (folder, source) = (tempfile::tempdir().unwrap(), fixture("peft-lora"));
    let config = fs::read_to_string(source.join("adapter_config.json")).unwrap();
    let mut config: serde_json::Map<String, Value> = serde_json::from_str(&config).unwrap();
    config.insert("base_model_name_or_path".into(), json!(fixture("llama")));
    change(&mut config);
    let config = Value::Object(config).to_string();
    fs::write(folder.path().join("adapter_config.json"), config).unwrap();
    let file = TensorFile::open(&source.join("adapter_model.safetensors")).unwrap();
    let kept: Vec<&str> = file.names().filter(|name| !dropped(name)).collect();
    let plan = |name: &&str| TensorPlan {
        name: (*name).into(),
        dtype: Dtype::F32,
        shape: file.info(name).unwrap().shape.clone(),
    };
    TensorWriter::new(kept.iter().map(plan).collect())
        .unwrap()
        .write_file(&folder.path().join("adapter_model.safetensors"), |name| {
            file.read_f32(name, None)
        })
        .unwrap();
    folder
}

fn complaint(folder: &Path) -> String {
    match folder::load(folder, &Device::flex()) {
        Ok(_) => "loaded".into(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn files_have_what_the_configuration_says() {
    let nothing = |_: &mut serde_json::Map<String, Value>| {};
    assert_eq!(complaint(copied(nothing, |_| false).path()), "loaded");
    let empty = complaint(copied(nothing, |_| true).path());
    assert!(empty.contains("no tensors for `model.layers.0."), "{empty}");
    let half = complaint(copied(nothing, |name| name.contains("layers.1.")).path());
    assert!(half.contains("no tensors for `model.layers.1."), "{half}");
    let rank = copied(
        |config| drop(config.insert("r".into(), 3.into())),
        |_| false,
    );
    let rank = complaint(rank.path());
    assert!(
        rank.contains("has rank 4, but the configuration says 3"),
        "{rank}"
    );
    let pattern = json!({"q_proj": 2});
    let pattern = copied(
        |config| drop(config.insert("rank_pattern".into(), pattern.clone())),
        |_| false,
    );
    let pattern = complaint(pattern.path());
    assert!(
        pattern.contains("has rank 4, but the configuration says 2"),
        "{pattern}"
    );
    let saved = json!(["lm_head"]);
    let saved = copied(
        |config| drop(config.insert("modules_to_save".into(), saved.clone())),
        |_| false,
    );
    let saved = complaint(saved.path());
    assert!(saved.contains("lm_head.weight` is missing"), "{saved}");
}

#[test]
fn the_base_of_an_adapter_is_no_adapter() {
    let own = copied(
        |config| drop(config.insert("base_model_name_or_path".into(), ".".into())),
        |_| false,
    );
    let error = complaint(own.path());
    assert!(error.contains("is an adapter itself"), "{error}");
    let other = json!(fixture("peft-lora"));
    let chain = copied(
        |config| drop(config.insert("base_model_name_or_path".into(), other.clone())),
        |_| false,
    );
    assert!(complaint(chain.path()).contains("is an adapter itself"));
}

#[test]
fn names_that_mean_no_module_are_refused() {
    let attach = |targets: &[&str], saved: &[&str]| {
        let mut loaded = folder::load(&fixture("llama"), &Device::flex()).unwrap();
        let family = loaded.family().unwrap();
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let mut config = PeftConfig::new(2, 4.0, Targets::List(owned(targets)));
        config.modules_to_save = owned(saved);
        match Adapter::new(config).attach(&mut loaded.model, family, 0) {
            Ok(()) => "attached".into(),
            Err(error) => error.to_string(),
        }
    };
    assert_eq!(
        attach(&["q_proj", "layers.1.mlp.up_proj"], &["lm_head"]),
        "attached"
    );
    let target = attach(&["q_proj", "v_porj"], &[]);
    assert!(
        target.contains(
            "`target_modules`: no linear layer that can have an adapter is named `v_porj`; did you mean `v_proj`?"
        ),
        "{target}"
    );
    let saved = attach(&["q_proj"], &["foo"]);
    assert!(
        saved.contains("`modules_to_save`: no module of the model is named `foo`; there are"),
        "{saved}"
    );
}

#[test]
fn a_base_that_is_not_named_is_asked_for() {
    for name in ["", " "] {
        let empty = copied(
            |config| drop(config.insert("base_model_name_or_path".into(), name.into())),
            |_| false,
        );
        let said = complaint(empty.path());
        assert!(
            said.contains("`base_model_name_or_path` is missing or empty; write the folder"),
            "{said}"
        );
    }
}

/// An adapter on the llama fixture whose whole tables that `grown` accepts have one row more than their base's.
fn with_grown_tables(grown_table: impl Fn(&str) -> bool) -> tempfile::TempDir {
    let source = tempfile::tempdir().unwrap();
    let base = fixture("llama");
    let mut loaded = folder::load(&base, &Device::flex()).unwrap();
    let family = loaded.family().unwrap();
    let mut config = PeftConfig::new(2, 4.0, Targets::List(vec!["q_proj".into()]));
    config.modules_to_save = vec!["embed_tokens".into(), "lm_head".into()];
    let adapter = Adapter::new(config).based_on(base.to_string_lossy());
    adapter.attach(&mut loaded.model, family, 0).unwrap();
    adapter.save(&loaded.model, family, source.path()).unwrap();
    let path = source.path().join("adapter_model.safetensors");
    let file = TensorFile::open(&path).unwrap();
    let names: Vec<&str> = file.names().collect();
    let shape = |name: &str| {
        let mut shape = file.info(name).unwrap().shape.clone();
        if !name.contains("lora") && grown_table(name) {
            shape[0] += 1;
        }
        shape
    };
    let plan = |name: &&str| TensorPlan {
        name: (*name).into(),
        dtype: Dtype::F32,
        shape: shape(name),
    };
    let grown = source.path().join("grown.safetensors");
    TensorWriter::new(names.iter().map(plan).collect())
        .unwrap()
        .write_file(&grown, |name| {
            let mut values = file.read_f32(name, None)?;
            values.resize(shape(name).iter().product(), 0.5);
            Ok(values)
        })
        .unwrap();
    fs::rename(grown, path).unwrap();
    source
}

#[test]
fn a_base_grows_with_the_tables_of_its_adapter() {
    let source = with_grown_tables(|_| true);
    let loaded = folder::load(source.path(), &Device::flex()).unwrap();
    let base = folder::load(&fixture("llama"), &Device::flex()).unwrap();
    let tokens = base.model.spec().vocabulary + 1;
    assert_eq!(loaded.model.spec().vocabulary, tokens);
    let advice = format!("`resize_token_embeddings({tokens})`");
    let told = loaded.remarks.iter().any(|remark| remark.contains(&advice));
    assert!(told, "{:?}", loaded.remarks);
}

#[test]
fn a_table_that_grew_alone_is_named() {
    let source = with_grown_tables(|name| name.contains("embed_tokens"));
    let said = complaint(source.path());
    let base = folder::load(&fixture("llama"), &Device::flex()).unwrap();
    let tokens = base.model.spec().vocabulary;
    let sizes = format!(
        "has rows for {} tokens, but the base has {tokens}:",
        tokens + 1
    );
    assert!(
        said.contains(&sizes) && said.contains("`resize_token_embeddings`"),
        "{said}"
    );
}
