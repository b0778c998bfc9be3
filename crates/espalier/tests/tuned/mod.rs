//! Small trained models, and runs that tune them through the real binary.
#![allow(dead_code, reason = "not every test uses all of it")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use espalier::models::checkpoint::TensorFile;
use serde_json::Value;

/// A decoder of attention.
pub const BASE: &str = r#"
[[stage]]
name = "base"
[stage.train]
objective = "pretrain"
data = { world = "g8", as = "text", limit = 48 }
new = { vocabulary = 300, width = 32, layers = 2, heads = 2, kv_heads = 1, inner = 64, context = 512 }
[stage.train.options]
steps = 8
batch = 8
length = 128
learning_rate = 3e-3
"#;

/// A recipe that tunes `model` in this way, a key of its stage, with these options.
pub fn recipe(way: &str, model: &str, options: &str) -> String {
    // Packed documents lose nothing; what they are compared with must not either.
    let length = if options.contains("packing") {
        512
    } else {
        128
    };
    format!(
        "output = \"run\"\n[[stage]]\nname = \"tuned\"\n[stage.train]\nmodel = {model:?}\nobjective = \"pretrain\"\n{way}\n\
         data = {{ world = \"g8\", as = \"text\", limit = 4 }}\nvalidation = {{ world = \"g8\", as = \"text\", split = \"val\", limit = 4 }}\n\
         [stage.train.options]\nlength = {length}\nwarmup = 0.0\nlog_every = 1\n{options}\n"
    )
}

/// The program in this folder.
pub fn espalier(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_espalier"));
    command.current_dir(folder).arg("--quiet").args(arguments);
    command
}

/// Fails with what the program said where it failed.
pub fn succeeded(output: Output) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}

/// Runs a recipe in a folder.
pub fn run(folder: &Path, text: &str) {
    fs::write(folder.join("recipe.toml"), text).unwrap();
    succeeded(espalier(folder, &["run", "recipe.toml"]).output().unwrap());
}

/// A trained base in a folder of its own, of this recipe.
pub fn base_of(folder: &Path, name: &str, recipe: &str) -> PathBuf {
    let place = folder.join(format!("of-{name}"));
    fs::create_dir(&place).unwrap();
    run(&place, &format!("output = \"run\"\n{recipe}"));
    place.join("run/01-base/model")
}

/// A trained decoder of attention in a folder of its own.
pub fn base(folder: &Path) -> PathBuf {
    base_of(folder, "base", BASE)
}

/// What a model computes of a few tokens.
pub fn logits(model: &Path) -> Vec<f32> {
    let given = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/fixtures/llama/expected.safetensors"
    );
    let output = tempfile::tempdir().unwrap();
    let traced = output.path().join("traced.safetensors");
    let arguments = [
        "trace",
        &model.to_string_lossy(),
        given,
        &traced.to_string_lossy(),
    ];
    succeeded(espalier(output.path(), &arguments).output().unwrap());
    let file = TensorFile::open(&traced).unwrap();
    file.read_f32("logits", None).unwrap()
}

/// The largest difference.
pub fn gap(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let pairs = a.iter().zip(b);
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// The values of a key in the log of a run, in order.
pub fn logged(folder: &Path, key: &str) -> Vec<f64> {
    let text = fs::read_to_string(folder.join("run/01-tuned/metrics.jsonl")).unwrap();
    let value = |line: &str| {
        let line = serde_json::from_str::<Value>(line).unwrap();
        line.get(key).and_then(Value::as_f64)
    };
    text.lines().filter_map(value).collect()
}
