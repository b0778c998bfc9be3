//! What must hold of every training run, through the real binary.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may fail loudly"
)]

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use serde_json::Value;

/// A recipe of one stage that trains a small fresh model.
const RECIPE: &str = r#"
output = "run"
[[stage]]
name = "train"
[stage.train]
objective = "pretrain"
data = { world = "g8", as = "text", limit = 48 }
validation = { world = "g8", as = "text", split = "val", limit = 12 }
new = { vocabulary = 300, width = 32, layers = 2, heads = 2, kv_heads = 1, inner = 64, context = 512 }
[stage.train.options]
steps = 12
batch = 8
length = 256
learning_rate = 1e-3
warmup = 2
log_every = 1
checkpoint_every = 3
"#;

/// Runs the recipe in `folder` with overrides.
fn train(folder: &Path, overrides: &[&str]) {
    let output = command(folder, overrides).output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn command(folder: &Path, overrides: &[&str]) -> Command {
    fs::write(folder.join("recipe.toml"), RECIPE).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_espalier"));
    command
        .current_dir(folder)
        .args(["--quiet", "run", "recipe.toml"])
        .args(overrides);
    command
}

/// The values of a key in the metrics log, in order.
fn logged(folder: &Path, key: &str) -> Vec<f64> {
    let text = fs::read_to_string(folder.join("run/01-train/metrics.jsonl")).unwrap();
    let value = |line: &str| {
        serde_json::from_str::<Value>(line)
            .unwrap()
            .get(key)
            .and_then(Value::as_f64)
    };
    text.lines().filter_map(value).collect()
}

fn weights(folder: &Path) -> Vec<u8> {
    fs::read(folder.join("run/01-train/model/model.safetensors")).unwrap()
}

fn assert_near(a: &[f64], b: &[f64], tolerance: f64) {
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().zip(b) {
        assert!((a - b).abs() <= tolerance, "{a} against {b}");
    }
}

#[test]
fn accumulation_equals_a_larger_batch() {
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    train(
        whole.path(),
        &["batch=8", "accumulation=1", "learning_rate=1e-4", "steps=5"],
    );
    train(
        parts.path(),
        &["batch=1", "accumulation=8", "learning_rate=1e-4", "steps=5"],
    );
    for key in ["loss", "gradient_norm"] {
        let (whole, parts) = (logged(whole.path(), key), logged(parts.path(), key));
        assert_eq!(whole.len(), 5);
        // 1e-6 of the value: one unit in the last place of an f32 is 1.2e-7 of it.
        let scale = whole.iter().copied().fold(0.0, f64::max);
        assert_near(&whole, &parts, 1e-6 * scale.max(1.0));
    }
}

#[test]
fn packing_changes_no_loss() {
    let (apart, packed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // Without learning, the held-out loss shows the same model on the same tokens in both layouts.
    train(
        apart.path(),
        &[
            "packing=false",
            "learning_rate=0.0",
            "steps=1",
            "length=512",
        ],
    );
    train(
        packed.path(),
        &["packing=true", "learning_rate=0.0", "steps=1", "length=512"],
    );
    let (apart, packed) = (
        logged(apart.path(), "eval_loss"),
        logged(packed.path(), "eval_loss"),
    );
    assert_near(&apart, &packed, 1e-5);
}

#[test]
fn recomputing_blocks_changes_no_bit() {
    let (kept, recomputed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    train(kept.path(), &["steps=4"]);
    train(
        recomputed.path(),
        &["steps=4", "gradient_checkpointing=true"],
    );
    assert_eq!(
        logged(kept.path(), "loss"),
        logged(recomputed.path(), "loss")
    );
    assert_eq!(weights(kept.path()), weights(recomputed.path()));
}

#[test]
fn bf16_products_learn_as_f32_ones_do() {
    let (f32, bf16) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    train(f32.path(), &["steps=12"]);
    train(bf16.path(), &["steps=12", "precision=bf16"]);
    let (f32, bf16) = (logged(f32.path(), "loss"), logged(bf16.path(), "loss"));
    assert_ne!(f32, bf16);
    // Losses near 5.7, rounded to one part in 256 at each of a dozen layers.
    assert_near(&f32, &bf16, 0.02);
}

#[test]
fn the_same_seed_gives_the_same_run_and_another_seed_another() {
    let folders = [(); 3].map(|()| tempfile::tempdir().unwrap());
    for (folder, seed) in folders.iter().zip(["seed=7", "seed=7", "seed=8"]) {
        train(
            folder.path(),
            &[&format!("stage.0.train.options.{seed}"), "steps=4"],
        );
    }
    assert_eq!(weights(folders[0].path()), weights(folders[1].path()));
    assert_ne!(weights(folders[0].path()), weights(folders[2].path()));
}

#[test]
fn a_killed_run_goes_on_to_the_same_weights_and_the_same_curve() {
    let (whole, killed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    train(whole.path(), &[]);
    for after in ["step-00000003", "step-00000009"] {
        let mut child = command(killed.path(), &[])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let checkpoint = killed.path().join("run/01-train/checkpoints").join(after);
        let deadline = Instant::now() + Duration::from_secs(120);
        while !checkpoint.exists() && child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "no checkpoint appeared");
            sleep(Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(
            !killed.path().join("run/01-train/model").exists(),
            "the run ended before it was killed"
        );
    }
    train(killed.path(), &[]);
    assert_eq!(weights(killed.path()), weights(whole.path()));
    let log =
        |folder: &Path| fs::read_to_string(folder.join("run/01-train/metrics.jsonl")).unwrap();
    assert_eq!(log(killed.path()), log(whole.path()));
}

#[test]
fn a_loss_that_is_not_finite_stops_the_run_with_its_step() {
    let folder = tempfile::tempdir().unwrap();
    train(folder.path(), &["steps=1"]);
    let path = folder.path().join("run/01-train/model/model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&path, bytes).unwrap();
    let fresh = RECIPE.lines().find(|line| line.starts_with("new")).unwrap();
    let recipe = RECIPE
        .replace(fresh, "model = 'run/01-train/model'")
        .replace("\"run\"", "\"second\"");
    fs::write(folder.path().join("second.toml"), recipe).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_espalier"));
    let output = command
        .current_dir(folder.path())
        .args(["--quiet", "run", "second.toml"])
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("step 1: the loss is not finite"), "{error}");
    assert!(!folder.path().join("second/01-train/model").exists());
}

#[test]
fn memory_stays_flat() {
    let folder = tempfile::tempdir().unwrap();
    let sizes = [
        "steps=300",
        "batch=2",
        "length=64",
        "checkpoint_every=0",
        "stage.0.train.new.layers=1",
    ];
    let mut child = command(folder.path(), &sizes)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut resident: Vec<(usize, u64)> = Vec::new();
    while child.try_wait().unwrap().is_none() {
        let steps = fs::read_to_string(folder.path().join("run/01-train/metrics.jsonl"))
            .map_or(0, |log| log.lines().count());
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .unwrap_or_default();
        if let Some(kilobytes) = line
            .split_whitespace()
            .next()
            .and_then(|number| number.parse().ok())
        {
            resident.push((steps, kilobytes));
        }
        sleep(Duration::from_millis(5));
    }
    assert!(child.wait().unwrap().success());
    let largest = |from: usize, to: usize| {
        resident
            .iter()
            .filter(|(step, _)| (from..to).contains(step))
            .map(|(_, size)| *size)
            .max()
            .unwrap_or(0)
    };
    let (early, late) = (largest(20, 100), largest(200, 301));
    assert!(early > 0 && late > 0, "the run was too quick to be watched");
    assert!(late < early + 8 * 1024, "from {early} KiB to {late} KiB");
}
