//! The language of recipes and the life of a run's folder, through the real binary.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may fail loudly"
)]

mod language;
mod life;
mod refused;
mod replaced;

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;

/// What all recipes here share: a fresh model that is trained in no time.
const TINY: &str = r#"
output = "run"
[defaults.train]
objective = "pretrain"
data = { world = "g8", as = "text", limit = 16 }
options = { steps = 1, batch = 2, length = 32, learning_rate = 1e-3 }
[defaults.evaluate]
data = { world = "g8", as = "text", split = "test", limit = 2 }
length = 32
"#;

const NEW: &str = "new = { vocabulary = 300, width = 16, layers = 1, heads = 2, kv_heads = 1, inner = 32, context = 64 }";

/// A recipe of a training stage `a` and its evaluation `b`.
fn two_stages() -> String {
    format!(
        "{TINY}[[stage]]\nname = \"a\"\n[stage.train]\n{NEW}\n[[stage]]\nname = \"b\"\nevaluate.model = \"a\"\n"
    )
}

fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_espalier"));
    command.current_dir(folder).args(arguments);
    command
}

/// Runs a recipe, whatever comes of it.
fn attempt(folder: &Path, recipe: &str, overrides: &[&str]) -> Output {
    fs::write(folder.join("recipe.toml"), recipe).unwrap();
    let arguments = [&["run", "recipe.toml", "--json"], overrides].concat();
    command(folder, &arguments).output().unwrap()
}

/// Runs a recipe; what it said, and its figures.
fn run(folder: &Path, recipe: &str, overrides: &[&str]) -> (String, Value) {
    let output = attempt(folder, recipe, overrides);
    let said = String::from_utf8(output.stderr).unwrap();
    let result = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}{result}");
    (said, serde_json::from_str(&result).unwrap())
}

/// The message of a recipe that is refused.
fn complaint(folder: &Path, recipe: &str, overrides: &[&str]) -> String {
    let output = attempt(folder, recipe, overrides);
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(2), "{result}");
    result["error"]["message"].as_str().unwrap().to_owned()
}

/// The stages that were done before, in order.
fn skipped(said: &str) -> Vec<&str> {
    let lines = said
        .lines()
        .filter_map(|line| line.strip_suffix(": done before"));
    lines.map(|line| line.split(' ').nth(1).unwrap()).collect()
}

fn append(path: &Path, text: &str) {
    let old = fs::read_to_string(path).unwrap_or_default();
    fs::write(path, old + text).unwrap();
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

fn weights(run: &Path) -> Vec<u8> {
    fs::read(run.join("01-a/model/model.safetensors")).unwrap()
}
