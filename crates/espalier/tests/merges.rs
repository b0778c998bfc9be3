//! `espalier merge` as a user meets it: figures, errors that name file and key before anything is written, a killed merge.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may fail loudly"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures")
}

/// A place with the models `a`, `b` and `base`, which tests may damage.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        for name in ["a", "b", "base"] {
            let home = place.path().join(name);
            fs::create_dir(&home).unwrap();
            for entry in fs::read_dir(fixtures().join("merges").join(name)).unwrap() {
                let path = entry.unwrap().path();
                fs::copy(&path, home.join(path.file_name().unwrap())).unwrap();
            }
        }
        let place = Self(place);
        place.write("merge.yaml", TIES);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn merge(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_espalier"))
            .args(["merge", "merge.yaml", "out"])
            .args(arguments)
            .current_dir(self.0.path())
            .env_remove("RUST_BACKTRACE")
            .output()
            .unwrap()
    }

    /// What a merge that must fail says; it must leave nothing.
    fn refused(&self, code: i32) -> String {
        let before = self.entries();
        let output = self.merge(&[]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert_eq!(self.entries(), before, "{said}");
        said
    }

    fn entries(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).unwrap();
        let name = |entry: std::io::Result<fs::DirEntry>| {
            entry.unwrap().file_name().into_string().unwrap()
        };
        let mut names: Vec<String> = entries.map(name).collect();
        names.sort();
        names
    }

    fn change_config(&self, model: &str, key: &str, value: Value) {
        let path = self.path(model).join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config[key] = value;
        fs::write(&path, config.to_string()).unwrap();
    }
}

const TIES: &str = "models:
  - model: a
    parameters: {weight: 0.6, density: 0.5}
  - model: b
    parameters: {weight: 0.4, density: 0.7}
merge_method: ties
base_model: base
dtype: float32
";

#[test]
fn a_merge_is_a_model() {
    let place = Place::new();
    let output = place.merge(&["--json", "--memory", "1.5GiB"]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&said["method"], &said["parameters"]),
        (&json!("ties"), &json!(16_920))
    );
    let out = place.path("out");
    for name in [
        "config.json",
        "model.safetensors",
        "README.md",
        "mergekit_config.yml",
        "merge.html",
    ] {
        assert!(out.join(name).is_file(), "{name}");
    }
    assert!(
        fs::read_to_string(out.join("merge.html"))
            .unwrap()
            .contains("<svg")
    );
    let inspected = Command::new(env!("CARGO_BIN_EXE_espalier"))
        .arg("inspect")
        .arg(&out)
        .output()
        .unwrap();
    assert!(
        inspected.status.success(),
        "{}",
        String::from_utf8_lossy(&inspected.stderr)
    );
    // What is there is not written over.
    assert!(place.refused(1).contains("there is something already"));
}

#[test]
fn unknown_keys_are_told_with_line_and_neighbour() {
    let place = Place::new();
    place.write("merge.yaml", &TIES.replace("density: 0.7", "densiti: 0.7"));
    let said = place.refused(2);
    assert!(
        said.contains("merge.yaml:5: `densiti`: unknown key; did you mean `density`?"),
        "{said}"
    );
}

#[test]
fn what_is_missing_or_damaged_is_named() {
    let place = Place::new();
    place.write("merge.yaml", &TIES.replace("model: b", "model: nowhere"));
    assert!(place.refused(2).contains("`nowhere`"));
    place.write("merge.yaml", TIES);
    place.change_config("b", "vocab_size", json!(62));
    let said = place.refused(1);
    assert!(
        said.contains("b/config.json: `vocab_size` is 62, and 61 in a/config.json")
            || said.contains("`vocab_size` is 62"),
        "{said}"
    );
    place.change_config("b", "vocab_size", json!(61));
    let weights = place.path("b").join("model.safetensors");
    let whole = fs::read(&weights).unwrap();
    fs::write(&weights, &whole[..whole.len() - 4]).unwrap();
    let said = place.refused(1);
    assert!(
        said.contains("b/model.safetensors") && said.contains("download or save it again"),
        "{said}"
    );
    // A tensor of the right size with a number that is none.
    let mut damaged = whole.clone();
    let place_of_last = damaged.len() - 4;
    damaged[place_of_last..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&weights, &damaged).unwrap();
    let said = place.refused(1);
    assert!(
        said.contains("b/model.safetensors: tensor `") && said.contains("NaN"),
        "{said}"
    );
    fs::remove_file(&weights).unwrap();
    let index = r#"{"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}"#;
    place.write("b/model.safetensors.index.json", index);
    let said = place.refused(1);
    assert!(
        said.contains("shard `model-00001-of-00002.safetensors` is missing"),
        "{said}"
    );
}

#[test]
fn shapes_that_differ_are_named() {
    let place = Place::new();
    for entry in fs::read_dir(fixtures().join("llama")).unwrap() {
        let path = entry.unwrap().path();
        if path.ends_with("config.json") || path.ends_with("model.safetensors") {
            fs::copy(&path, place.path("b").join(path.file_name().unwrap())).unwrap();
        }
    }
    // The same family, with a table of another length: the header alone is changed, and with it what the file says of the shape.
    let weights = place.path("b").join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let text = br#""shape":[24,40]"#;
    let at = bytes
        .windows(text.len())
        .position(|part| part == text)
        .unwrap();
    bytes[at..at + text.len()].copy_from_slice(br#""shape":[40,24]"#);
    fs::write(&weights, &bytes).unwrap();
    let said = place.refused(1);
    assert!(
        said.contains("b/model.safetensors: tensor `")
            && said.contains("has shape [40, 24], and [24, 40] in"),
        "{said}"
    );
}

#[test]
fn what_a_killed_merge_left_is_no_hindrance() {
    let place = Place::new();
    fs::create_dir_all(place.path(".out.merging/document-0")).unwrap();
    place.write(
        ".out.merging/document-0/model.safetensors.partial-1",
        "half",
    );
    let output = place.merge(&[]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(place.entries(), ["a", "b", "base", "merge.yaml", "out"]);
}
