//! A disk that fails once, or a process that dies, at any change of a run: the same command afterwards ends with the same bits.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may fail loudly"
)]

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;

/// A fresh model is trained, then an adapter on it, then both are measured.
const RECIPE: &str = r#"
output = "run"

[[stage]]
name = "grow"
[stage.train]
objective = "pretrain"
data = { world = "g8", as = "text", limit = 8 }
validation = { world = "g8", as = "text", split = "val", limit = 2 }
new = { vocabulary = 280, width = 16, layers = 1, heads = 2, kv_heads = 1, inner = 24, context = 256 }
[stage.train.options]
steps = 4
batch = 2
length = 128
learning_rate = 1e-3
log_every = 1
checkpoint_every = 2

[[stage]]
name = "tune"
[stage.train]
objective = "sft"
model = "grow"
data = { world = "sentence/1", limit = 8 }
adapter = { lora = { rank = 2 } }
[stage.train.options]
steps = 3
batch = 2
length = 128
learning_rate = 1e-3
log_every = 2
checkpoint_every = 1

[[stage]]
name = "measure"
[stage.evaluate]
model = "tune"
data = { world = "g8", as = "text", split = "val", limit = 2 }
"#;

fn run(folder: &Path, fault: Option<&str>) -> Output {
    fs::write(folder.join("recipe.toml"), RECIPE).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_espalier"));
    command
        .current_dir(folder)
        .env("RAYON_NUM_THREADS", "1")
        .args(["--quiet", "run", "recipe.toml"]);
    if let Some(fault) = fault {
        command.env("ESPALIER_FAULT", fault);
    }
    command.output().unwrap()
}

/// The files of a run by name, without what tells of time and of checkpoints.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    fn visit(root: &Path, folder: &Path, found: &mut BTreeMap<String, Vec<u8>>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path
                .strip_prefix(root)
                .unwrap()
                .to_string_lossy()
                .into_owned();
            if path.is_dir() {
                visit(root, &path, found);
            } else if name.ends_with(".jsonl") {
                found.insert(name, without_times(&fs::read_to_string(&path).unwrap()));
            } else if ![
                ".lock",
                "hashes.json",
                "report.html",
                "stage.json",
                "result.json",
            ]
            .iter()
            .any(|with_times| name.ends_with(with_times))
            {
                found.insert(name, without_place(fs::read(&path).unwrap(), root));
            } else {
                found.insert(name, Vec::new());
            }
        }
    }
    let mut found = BTreeMap::new();
    visit(folder, &folder.join("run"), &mut found);
    found
}

/// A file's bytes, and where it names its own folder, a name that all runs share.
fn without_place(bytes: Vec<u8>, root: &Path) -> Vec<u8> {
    match String::from_utf8(bytes) {
        Ok(text) => text.replace(&*root.to_string_lossy(), "").into_bytes(),
        Err(error) => error.into_bytes(),
    }
}

fn without_times(log: &str) -> Vec<u8> {
    let line = |line: &str| {
        let mut value: Value = serde_json::from_str(line).unwrap();
        let map = value.as_object_mut().unwrap();
        map.retain(|key, _| !key.contains("second") && !key.contains("memory"));
        value.to_string()
    };
    log.lines()
        .map(line)
        .collect::<Vec<_>>()
        .join("\n")
        .into_bytes()
}

/// Every change of a run is hit, each in a run of its own, until one is past the last.
fn every_change(kind: &str) {
    let whole = tempfile::tempdir().unwrap();
    let output = run(whole.path(), None);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let expected = files(whole.path());
    let mut hit = 0;
    for change in 1.. {
        let folder = tempfile::tempdir().unwrap();
        let fault = format!("{kind}:{change}");
        let broken = run(folder.path(), Some(&fault));
        if broken.status.success() {
            break;
        }
        let error = String::from_utf8_lossy(&broken.stderr);
        if kind == "fail" {
            assert_eq!(broken.status.code(), Some(1), "{fault}: {error}");
            assert_eq!(error.trim_end().lines().count(), 1, "{fault}: {error}");
            assert!(
                error.contains("No space left") || error.contains("no storage space"),
                "{fault}: {error}"
            );
        }
        let again = run(folder.path(), None);
        let error = String::from_utf8_lossy(&again.stderr);
        assert!(again.status.success(), "after {fault}: {error}");
        let found = files(folder.path());
        let names = |files: &BTreeMap<String, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&found), names(&expected), "after {fault}");
        for (name, bytes) in &expected {
            assert!(found[name] == *bytes, "after {fault}: {name} differs");
        }
        hit += 1;
    }
    assert!(hit > 100, "{hit} changes were hit");
}

#[test]
fn a_change_that_fails_loses_nothing() {
    every_change("fail");
}

#[test]
fn a_kill_at_a_change_loses_nothing() {
    every_change("kill");
}
