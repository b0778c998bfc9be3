//! Folders of sentence-transformers: the vectors are the library's, and what is saved of such a model is such a folder again.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may fail loudly"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

#[derive(serde::Deserialize)]
struct Expected {
    text: String,
    vector: Vec<f64>,
}

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures"))
        .join(format!("sentence-transformers-{name}"))
}

fn espalier(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_espalier"))
        .args(arguments)
        .output()
        .unwrap()
}

fn embed(model: &Path, arguments: &[&str]) -> Vec<Vec<f64>> {
    let output = espalier(&[&["embed", model.to_str().unwrap(), "--json"], arguments].concat());
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    let lines = String::from_utf8(output.stdout).unwrap();
    let vector = |line: &str| {
        let row: Value = serde_json::from_str(line).unwrap();
        serde_json::from_value(row["embedding"].clone()).unwrap()
    };
    lines.lines().map(vector).collect()
}

fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    assert_eq!(a.len(), b.len());
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

fn expected(name: &str) -> Vec<Expected> {
    serde_json::from_slice(&fs::read(fixture(name).join("vectors.json")).unwrap()).unwrap()
}

fn check(name: &str, model: &Path) {
    let expected = expected(name);
    // Texts with line breaks cannot stand in a file of lines.
    let texts: Vec<&str> = expected.iter().map(|case| case.text.as_str()).collect();
    let vectors = embed(model, &[&["--"], &texts[..]].concat());
    for (case, vector) in expected.iter().zip(&vectors) {
        let largest = case
            .vector
            .iter()
            .zip(vector)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f64::max);
        // A text that is nothing but its prompt has vectors without length or end in the library.
        assert!(
            cosine(&case.vector, vector) > 0.999_999,
            "{name} {:?}: {largest}",
            case.text
        );
        assert!(largest < 1e-4, "{name} {:?}: {largest}", case.text);
    }
    assert_eq!(vectors.len(), expected.len());
}

#[test]
fn every_way_of_pooling_gives_the_library_s_vectors() {
    check("every-mode", &fixture("every-mode"));
}

#[test]
fn the_default_prompt_is_read_and_not_pooled() {
    check("without-prompt", &fixture("without-prompt"));
    let model = fixture("without-prompt");
    let by_name = embed(&model, &["--prompt-name", "query", "hello world"]);
    let by_text = embed(&model, &["--prompt", "on the cat: ", "hello world"]);
    let without = embed(&model, &["--prompt-name", "document", "hello world"]);
    assert!(by_name == by_text && by_name != without);
    let output = espalier(&[
        "embed",
        model.to_str().unwrap(),
        "--prompt-name",
        "qeury",
        "x",
    ]);
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(
        message.contains("no prompt is called `qeury`; there are document, query"),
        "{message}"
    );
}

#[test]
fn layers_limits_and_small_letters_of_an_older_folder() {
    check("dense", &fixture("dense"));
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}

#[test]
fn a_module_that_is_not_read_is_named() {
    let folder = tempfile::tempdir().unwrap();
    copy(&fixture("every-mode"), folder.path());
    let list = fs::read_to_string(folder.path().join("modules.json")).unwrap();
    fs::write(
        folder.path().join("modules.json"),
        list.replace("pooling.Pooling", "cnn.CNN"),
    )
    .unwrap();
    let output = espalier(&["embed", folder.path().to_str().unwrap(), "x"]);
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(
        message.contains("modules.json: a module `CNN` at `1_Pooling` is not read"),
        "{message}"
    );
}

#[test]
fn what_is_saved_is_such_a_folder_again() {
    let folder = tempfile::tempdir().unwrap();
    let (data, run) = (folder.path().join("texts.jsonl"), folder.path().join("run"));
    fs::write(
        &data,
        "{\"text\":\"hello world\"}\n{\"text\":\"the cat sat\"}\n",
    )
    .unwrap();
    let (data, run) = (data.to_str().unwrap(), run.to_str().unwrap());
    for name in ["dense", "without-prompt"] {
        let model = fixture(name);
        // Steps of no size leave the weights as they are.
        let options = [
            "steps=1",
            "batch=2",
            "learning_rate=1e-30",
            "weight_decay=0",
            "length=16",
            "dropout=0.1",
        ];
        let output = espalier(
            &[
                &[
                    "train",
                    "--model",
                    model.to_str().unwrap(),
                    "--data",
                    data,
                    "--objective",
                    "simcse",
                    "--output",
                    run,
                ],
                &options[..],
            ]
            .concat(),
        );
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        check(name, Path::new(run));
        fs::remove_dir_all(run).unwrap();
    }
}

#[test]
fn vectors_are_cut_to_the_dimensions_that_the_folder_names() {
    let folder = tempfile::tempdir().unwrap();
    copy(&fixture("every-mode"), folder.path());
    let whole = &embed(folder.path(), &["hello world"])[0];
    let path = folder.path().join("config_sentence_transformers.json");
    let text = fs::read_to_string(&path).unwrap_or_else(|_| "{}".into());
    let mut config: Value = serde_json::from_str(&text).unwrap();
    config["truncate_dim"] = 8.into();
    fs::write(&path, config.to_string()).unwrap();
    let cut = &embed(folder.path(), &["hello world"])[0];
    assert_eq!(cut.len(), 8);
    assert_eq!(cut[..], whole[..8]);
}
