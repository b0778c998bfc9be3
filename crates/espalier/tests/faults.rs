//! A disk that fails once, or a process that dies, at any change of a run: the same command afterwards ends with the same bits.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may fail loudly"
)]

mod runs;

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use runs::{difference, files};

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
        assert_eq!(
            difference(&expected, &files(folder.path())),
            None,
            "after {fault}"
        );
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
