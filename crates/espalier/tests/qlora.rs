//! Adapters over a quantised base, and gradients that are released in the backward, through the real binary.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may fail loudly"
)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use serde_json::Value;

const BASE: &str = r#"
output = "base"
[[stage]]
name = "train"
[stage.train]
objective = "pretrain"
data = { world = "g8", as = "text", limit = 48 }
new = { vocabulary = 300, width = 64, layers = 2, heads = 2, kv_heads = 1, inner = 96, context = 512 }
[stage.train.options]
steps = 6
batch = 8
length = 256
learning_rate = 1e-3
"#;

const TUNED: &str = r#"
output = "run"
[[stage]]
name = "train"
[stage.train]
model = "base/01-train/model"
quantise = { nf4 = { double = true } }
objective = "pretrain"
adapter = { lora = { rank = 4 } }
data = { world = "g8", as = "text", limit = 48 }
validation = { world = "g8", as = "text", split = "val", limit = 12 }
[stage.train.options]
steps = 12
batch = 8
length = 256
learning_rate = 1e-2
warmup = 2
log_every = 1
checkpoint_every = 3
"#;

/// A folder with a trained base.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("base.toml"), BASE).unwrap();
    succeed(espalier(folder.path(), &["--quiet", "run", "base.toml"]));
    fs::write(folder.path().join("recipe.toml"), TUNED).unwrap();
    folder
}

fn espalier(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_espalier"));
    command.current_dir(folder).args(arguments);
    command
}

fn succeed(mut command: Command) -> String {
    let output = command.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    String::from_utf8(output.stdout).unwrap()
}

fn fail(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert!(!output.status.success());
    String::from_utf8(output.stderr).unwrap()
}

fn tune(folder: &Path, output: &str, overrides: &[&str]) -> Command {
    let output = format!("output={output}");
    let mut command = espalier(folder, &["--quiet", "run", "recipe.toml", &output]);
    command.args(overrides);
    command
}

fn logged(folder: &Path, run: &str, key: &str) -> Vec<f64> {
    let path = folder.join(run).join("01-train/metrics.jsonl");
    let value = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        line.get(key).and_then(Value::as_f64)
    };
    fs::read_to_string(path)
        .unwrap()
        .lines()
        .filter_map(value)
        .collect()
}

fn model(folder: &Path, run: &str) -> PathBuf {
    folder.join(run).join("01-train/model")
}

fn adapter(folder: &Path, run: &str) -> Vec<u8> {
    fs::read(model(folder, run).join("adapter_model.safetensors")).unwrap()
}

/// The held-out perplexity of what a run left.
fn perplexity(folder: &Path, path: &str, quantise: &[&str]) -> f64 {
    let held_out = folder.join("held-out.jsonl");
    if !held_out.exists() {
        let texts = [
            "one and two",
            "a b a b a b",
            "north of the river",
            "3 + 4 = 7",
        ];
        let line = |text: &&str| format!("{}\n", serde_json::json!({ "text": text }));
        fs::write(&held_out, texts.iter().map(line).collect::<String>()).unwrap();
    }
    let arguments = [
        &["--json", "eval", path, "--data", "held-out.jsonl"],
        quantise,
    ]
    .concat();
    let text = succeed(espalier(folder, &arguments));
    let found: Value = serde_json::from_str(text.trim()).unwrap();
    fn number(value: &Value) -> Option<f64> {
        match value {
            Value::Object(map) => match map.get("per_token").and_then(Value::as_f64) {
                Some(number) => Some(number),
                None => map.values().find_map(number),
            },
            Value::Array(all) => all.iter().find_map(number),
            _ => None,
        }
    }
    number(&found).unwrap_or_else(|| panic!("{found}"))
}

#[test]
fn an_adapter_over_a_quantised_base_keeps_what_every_run_keeps() {
    let folder = folder();
    let folder = folder.path();
    let base = || fs::read(model(folder, "base").join("model.safetensors")).unwrap();
    let before = base();

    // Nothing changes at step 0.
    succeed(tune(folder, "still", &["learning_rate=0", "steps=1"]));
    let rounded = perplexity(folder, "base/01-train/model", &["--quantise", "nf4"]);
    let full = perplexity(folder, "base/01-train/model", &[]);
    assert!(
        rounded != full && (rounded / full - 1.0).abs() < 0.2,
        "{rounded} {full}"
    );
    let still = perplexity(folder, "still/01-train/model", &["--quantise", "nf4"]);
    assert!((still / rounded - 1.0).abs() < 1e-6, "{still} {rounded}");

    // It learns: behind the warm-up every batch has a lower loss than without learning, and so have held-out texts; the first batch is
    // seen by both alike. What is saved computes what was trained, and the base stays as it is.
    succeed(tune(folder, "whole", &[]));
    succeed(tune(folder, "unlearned", &["learning_rate=0"]));
    let of_both = |key: &str| ["whole", "unlearned"].map(|run| logged(folder, run, key));
    let [losses, plain] = of_both("loss");
    assert_eq!(losses[0], plain[0]);
    let mut pairs = losses.iter().zip(&plain).skip(3);
    assert!(pairs.all(|(a, b)| a < b), "{losses:?} {plain:?}");
    let [held_out, plain] = of_both("eval_loss");
    assert!(held_out.last() < plain.last(), "{held_out:?} {plain:?}");
    assert!(base() == before);
    let evaluated = logged(folder, "whole", "eval_loss");
    let trained = perplexity(folder, "whole/01-train/model", &["--quantise", "nf4"]);
    let unrounded = perplexity(folder, "whole/01-train/model", &[]);
    assert!(
        trained != rounded && unrounded != trained,
        "{trained} {rounded} {unrounded}"
    );
    // Held out by the run and read again, in one step that learns nothing.
    let recipe = TUNED
        .replace("base/01-train/model", "whole/01-train/model")
        .replace("adapter = { lora = { rank = 4 } }\n", "");
    fs::write(folder.join("again.toml"), recipe).unwrap();
    let again = [
        "--quiet",
        "run",
        "again.toml",
        "output=again",
        "learning_rate=0",
        "steps=1",
    ];
    succeed(espalier(folder, &again));
    assert_eq!(
        logged(folder, "again", "eval_loss").last(),
        evaluated.last()
    );

    // Accumulation.
    let few = ["learning_rate=1e-3", "steps=4"];
    succeed(tune(folder, "rows", &[&few[..], &["batch=8"]].concat()));
    let parts = [&few[..], &["batch=2", "accumulation=4"]].concat();
    succeed(tune(folder, "parts", &parts));
    for key in ["loss", "gradient_norm"] {
        let (rows, parts) = (logged(folder, "rows", key), logged(folder, "parts", key));
        assert_eq!(rows.len(), 4);
        for (a, b) in rows.iter().zip(&parts) {
            assert!((a - b).abs() < 2e-6 * a.abs().max(1.0), "{key}: {a} {b}");
        }
    }

    // Threads, and rounding of the constants.
    let mut one = tune(folder, "one", &[]);
    one.env("RAYON_NUM_THREADS", "1");
    succeed(one);
    assert!(adapter(folder, "one") == adapter(folder, "whole"));
    succeed(tune(
        folder,
        "single",
        &["quantise={ nf4 = { double = false } }"],
    ));
    assert!(adapter(folder, "single") != adapter(folder, "whole"));

    // Kills.
    for after in ["step-00000003", "step-00000009"] {
        let mut child = tune(folder, "killed", &[])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let checkpoint = folder.join("killed/01-train/checkpoints").join(after);
        let deadline = Instant::now() + Duration::from_secs(120);
        while !checkpoint.exists() && child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "no checkpoint appeared");
            sleep(Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(
            !model(folder, "killed").exists(),
            "the run ended before it was killed"
        );
    }
    succeed(tune(folder, "killed", &[]));
    assert!(adapter(folder, "killed") == adapter(folder, "whole"));
}

#[test]
fn what_a_quantised_base_cannot_do_is_refused_with_the_fix() {
    let folder = folder();
    let folder = folder.path();
    let plain = TUNED.replace("adapter = { lora = { rank = 4 } }\n", "");
    fs::write(folder.join("plain.toml"), plain).unwrap();
    let cases = [
        (
            espalier(folder, &["run", "plain.toml"]),
            "train an adapter on them",
        ),
        (
            tune(
                folder,
                "a",
                &[
                    "adapter={ lora = { modules_to_save = [\"q_proj\"], target_modules = [\"v_proj\"] } }",
                ],
            ),
            "do not quantise",
        ),
        (
            tune(folder, "b", &["add_tokens=[\"<new>\"]"]),
            "full-precision base",
        ),
        (tune(folder, "c", &["quantise=nf5"]), "nf4"),
        (
            espalier(
                folder,
                &["generate", "base/01-train/model", "a", "--quantise", "int3"],
            ),
            "expected nf4 or fp4",
        ),
    ];
    for (command, fix) in cases {
        let error = fail(command);
        assert!(error.contains(fix), "{error}");
    }
    let text = [
        "generate",
        "base/01-train/model",
        "a",
        "--quantise",
        "fp4",
        "--temperature",
        "0",
    ];
    succeed(espalier(folder, &text));
}

#[test]
fn released_gradients_change_no_bit() {
    let folder = folder();
    let folder = folder.path();
    let full = TUNED
        .replace("quantise = { nf4 = { double = true } }\n", "")
        .replace("adapter = { lora = { rank = 4 } }\n", "");
    fs::write(folder.join("recipe.toml"), full).unwrap();
    let weights = |run: &str| fs::read(model(folder, run).join("model.safetensors")).unwrap();
    for optimiser in ["adamw", "adamw_8bit"] {
        let chosen = format!("optimiser={optimiser}");
        let common = [
            "clip=0",
            "gradient_checkpointing=true",
            "learning_rate=1e-3",
            &chosen,
        ];
        let [kept, released] = ["kept", "released"].map(|how| format!("{how}-{optimiser}"));
        succeed(tune(folder, &kept, &common));
        let release = [&common[..], &["release_gradients=true"]].concat();
        succeed(tune(folder, &released, &release));
        for key in ["loss", "gradient_norm"] {
            assert_eq!(logged(folder, &kept, key), logged(folder, &released, key));
        }
        assert!(weights(&kept) == weights(&released), "{optimiser}");
    }
    let error = fail(tune(
        folder,
        "refused",
        &["release_gradients=true", "gradient_checkpointing=true"],
    ));
    assert!(error.contains("set `clip = 0`"), "{error}");
}
