//! Parity with Hugging Face transformers, PEFT and RWKV's own package through the real binary: logits, loss, every gradient,
//! greedy tokens. (RWKV's gradients are those of the papers' formulas in f64, whose logits are the package's.)
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may fail loudly"
)]

use std::{path::PathBuf, process::Command};

use espalier::models::checkpoint::{Dtype, TensorFile, TensorPlan, TensorWriter};

/// Absolute tolerance in f32.
const TOLERANCE: f32 = 1e-4;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures")).join(name)
}

/// Every instruction set for which the operators are compiled; those that this processor lacks fall back.
const LEVELS: [&str; 4] = ["portable", "avx2", "avx512", "avx512bf16"];

/// Runs `trace` on a fixture with every instruction set and compares everything that its expectations hold.
fn check(name: &str) {
    let expected = TensorFile::open(&fixture(name).join("expected.safetensors")).unwrap();
    let any = |start: &str| expected.names().any(|tensor| tensor.starts_with(start));
    let mut asked = Vec::new();
    if any("grad.") {
        asked.push("--gradients");
    }
    if any("generated") {
        asked.extend(["--generate", "12"]);
    }
    if any("state.") {
        asked.push("--states");
    }
    LEVELS
        .iter()
        .for_each(|level| check_level(name, level, &asked));
}

fn check_level(name: &str, level: &str, asked: &[&str]) {
    let folder = fixture(name);
    let output = tempfile::tempdir().unwrap();
    let traced = output.path().join("traced.safetensors");
    let expected_path = folder.join("expected.safetensors");
    let run = Command::new(env!("CARGO_BIN_EXE_espalier"))
        .arg("trace")
        .args(asked)
        .args([&folder, &expected_path, &traced])
        .env(espalier::kernels::simd::LEVEL_VARIABLE, level)
        .output()
        .unwrap();
    assert!(
        run.status.success(),
        "{}",
        String::from_utf8_lossy(&run.stderr)
    );
    let (expected, found) = (
        TensorFile::open(&expected_path).unwrap(),
        TensorFile::open(&traced).unwrap(),
    );
    let given = ["input_ids", "attention_mask", "labels"];
    for tensor in expected.names().filter(|tensor| !given.contains(tensor)) {
        let info = found
            .info(tensor)
            .unwrap_or_else(|| panic!("{name}: `{tensor}` was not written"));
        let (ours, theirs) = (&info.shape, &expected.info(tensor).unwrap().shape);
        // States are written as they are remembered, without a shape.
        let is_state =
            tensor.starts_with("state.") && ours.iter().eq([&theirs.iter().product::<usize>()]);
        assert!(is_state || ours == theirs, "{name}: shape of `{tensor}`");
        if tensor == "generated" {
            assert_eq!(
                found.read_i64(tensor).unwrap(),
                expected.read_i64(tensor).unwrap(),
                "{name}: greedy tokens"
            );
            continue;
        }
        let (ours, theirs) = (
            found.read_f32(tensor, None).unwrap(),
            expected.read_f32(tensor, None).unwrap(),
        );
        let gap = ours
            .iter()
            .zip(&theirs)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        assert!(gap <= TOLERANCE, "{name}: `{tensor}` differs by {gap}");
    }
    let gradients = found
        .names()
        .filter(|tensor| tensor.starts_with("grad."))
        .count();
    let wanted = expected
        .names()
        .filter(|tensor| tensor.starts_with("grad."))
        .count();
    assert_eq!(gradients, wanted, "{name}: number of gradients");
}

#[test]
fn ids_without_a_batch_are_a_row() {
    let folder = fixture("rwkv6-finch");
    let expected = TensorFile::open(&folder.join("expected.safetensors")).unwrap();
    let ids: Vec<f32> = expected
        .read_i64("input_ids")
        .unwrap()
        .into_iter()
        .map(|id| id as f32)
        .collect();
    let output = tempfile::tempdir().unwrap();
    let [input, traced] =
        ["input.safetensors", "traced.safetensors"].map(|name| output.path().join(name));
    let plan = TensorPlan {
        name: "input_ids".into(),
        dtype: Dtype::I64,
        shape: vec![ids.len()],
    };
    TensorWriter::new(vec![plan])
        .unwrap()
        .write_file(&input, |_| Ok(ids.clone()))
        .unwrap();
    let run = Command::new(env!("CARGO_BIN_EXE_espalier"))
        .arg("trace")
        .args([&folder, &input, &traced])
        .status();
    assert!(run.unwrap().success());
    let found = TensorFile::open(&traced).unwrap();
    let [ours, theirs] = [&found, &expected].map(|file| file.info("logits").unwrap().shape.clone());
    assert_eq!(ours, [ids.len(), theirs[theirs.len() - 1]]);
}

#[test]
fn threads_change_no_bit() {
    let folder = fixture("qwen3");
    let output = tempfile::tempdir().unwrap();
    let traced = |threads: &str| {
        let path = output.path().join(threads);
        let run = Command::new(env!("CARGO_BIN_EXE_espalier"))
            .args(["trace", "--gradients"])
            .args([&folder, &folder.join("expected.safetensors"), &path])
            .env("RAYON_NUM_THREADS", threads)
            .status()
            .unwrap();
        assert!(run.success());
        std::fs::read(path).unwrap()
    };
    assert_eq!(traced("1"), traced("4"));
}

/// The fixtures, found by looking: a new one is tested by lying in its folder.
fn fixtures() -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(fixture(""))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|folder| folder.join("expected.safetensors").exists())
        .map(|folder| folder.file_name().unwrap().to_str().unwrap().to_owned())
        .collect();
    names.sort();
    assert!(names.len() > 30);
    names
}

/// Half of the fixtures each, for the tests run side by side.
fn check_half(half: usize) {
    let wrong: Vec<String> = fixtures()
        .into_iter()
        .skip(half)
        .step_by(2)
        .filter(|name| std::panic::catch_unwind(|| check(name)).is_err())
        .collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn every_other_fixture_agrees() {
    check_half(0);
}

#[test]
fn the_fixtures_between_agree() {
    check_half(1);
}
