//! What goes in and out: results as JSON, lines that are no text, files that change while they are read.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::{espalier, fixture, recipe, refused};

/// A model of a run, with a tokenizer and a template.
fn grown(folder: &Path) -> PathBuf {
    let recipe = recipe(folder, "{ world = \"sentence/1\", limit = 8 }");
    let output = espalier(&["--quiet", "run", &recipe]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    folder.join("run/01-train/model")
}

#[test]
fn results_are_json_where_that_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let model = grown(folder.path());
    let json = |arguments: &[&str]| -> serde_json::Value {
        let output = espalier(arguments);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(!output.stderr.contains(&0x1b) && !output.stdout.contains(&0x1b));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let state = folder.path().join("state");
    let saved = json(&[
        "generate",
        &model.to_string_lossy(),
        "Once upon",
        "--save-state",
        &state.to_string_lossy(),
        "--json",
    ]);
    assert_eq!(saved["state"], state.to_string_lossy().as_ref());
    // One layer of one head of 16, keys and values in f32.
    let tokens = saved["tokens"].as_u64().unwrap();
    assert!(tokens > 0);
    assert_eq!(saved["bytes"], tokens * 2 * 16 * 4);
    let traced = folder.path().join("traced.safetensors");
    let written = json(&[
        "trace",
        &fixture("llama").to_string_lossy(),
        &fixture("llama/expected.safetensors").to_string_lossy(),
        &traced.to_string_lossy(),
        "--json",
    ]);
    assert_eq!(written["output"], traced.to_string_lossy().as_ref());
    let logits = written["tensors"]["logits"].as_array().unwrap();
    assert_eq!((logits.len(), &logits[2]), (3, &serde_json::json!(61)));
    assert_eq!(written["tensors"]["loss"], serde_json::json!([]));
}

#[test]
fn a_line_of_bad_utf_8_does_not_end_a_chat() {
    use std::{io::Write, process::Stdio};
    let folder = tempfile::tempdir().unwrap();
    let model = grown(folder.path());
    let mut child = Command::new(env!("CARGO_BIN_EXE_espalier"))
        .args([
            "chat",
            &model.to_string_lossy(),
            "--json",
            "--max-new-tokens",
            "2",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(b"one\ntw\xff\xfe\nthree\n")
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(
        said.contains("line 2 is skipped: its byte 3 is not UTF-8"),
        "{said}"
    );
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), 2);
    assert!(!output.stderr.contains(&0x1b), "{said}");
}

#[cfg(target_os = "linux")]
#[test]
fn weights_that_are_cut_off_while_they_are_in_use_end_the_program_with_a_word() {
    use espalier::models::{checkpoint::Dtype, folder};
    use std::{
        io::{BufRead, BufReader, Write},
        process::Stdio,
    };
    let place = tempfile::tempdir().unwrap();
    let grown = grown(place.path());
    // Weights that are not trained stay in a file that is smaller than they are in f32.
    let loaded = folder::load(&grown, &burn::tensor::Device::flex()).unwrap();
    let model = place.path().join("half");
    folder::save(&loaded.model, &model, Some(&loaded.config), Dtype::BF16).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(grown.join(name), model.join(name)).unwrap();
    }
    let mut child = Command::new(env!("CARGO_BIN_EXE_espalier"))
        .args([
            "chat",
            &model.to_string_lossy(),
            "--json",
            "--max-new-tokens",
            "2",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdin.write_all(b"one\n").unwrap();
    let mut answer = String::new();
    stdout.read_line(&mut answer).unwrap();
    assert!(answer.contains("assistant"), "{answer}");
    let weights = model.join("model.safetensors");
    fs::OpenOptions::new()
        .write(true)
        .open(&weights)
        .unwrap()
        .set_len(8)
        .unwrap();
    stdin.write_all(b"two\n").unwrap();
    drop(stdin);
    let mut said = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1), "{said}");
    assert!(
        said.contains("error: a file of weights became shorter"),
        "{said}"
    );
    // The next one is told of it when it opens the file.
    let next = espalier(&["generate", &model.to_string_lossy(), "a"]);
    refused(&next, 1, "model.safetensors: not a whole safetensors file");
}
