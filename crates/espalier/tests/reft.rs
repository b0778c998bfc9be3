//! What must hold of runs that edit hidden states, through the real binary.
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
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use espalier_models::checkpoint::TensorFile;
use serde_json::Value;

/// A fresh model, and edits of it.
const RECIPE: &str = r#"
output = "run"
[defaults.train]
objective = "sft"
data = { world = "symbols/reverse", as = "chat", limit = 64 }
validation = { world = "symbols/reverse", as = "chat", split = "val", limit = 12 }

[[stage]]
name = "base"
[stage.train]
template = "plain"
new = { vocabulary = 259, width = 32, layers = 2, heads = 2, kv_heads = 1, inner = 64, context = 64, initializer_range = 0.2 }
options = { steps = 2, batch = 8, length = 64, learning_rate = 1e-3 }

[[stage]]
name = "edit"
[stage.train]
model = "base"
adapter = { reft = { rank = 3, positions = "f2+l2" } }
[stage.train.options]
steps = 12
batch = 8
length = 64
learning_rate = 4e-3
warmup = 2
log_every = 1
checkpoint_every = 3
"#;

/// The forms with constraints and without.
const FORMS: [&str; 2] = ["loreft", "direft"];

fn command(folder: &Path, method: &str, changes: &[&str]) -> Command {
    fs::write(folder.join("recipe.toml"), RECIPE).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_espalier"));
    command
        .current_dir(folder)
        .args(["--quiet", "run", "recipe.toml"])
        .arg(format!("stage.edit.train.adapter.reft.method={method}"));
    for change in changes {
        command.arg(format!("stage.edit.train.{change}"));
    }
    command
}

fn train(folder: &Path, method: &str, changes: &[&str]) {
    let output = command(folder, method, changes).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
}

fn logged(folder: &Path, key: &str) -> Vec<f64> {
    let text = fs::read_to_string(folder.join("run/02-edit/metrics.jsonl")).unwrap();
    let value = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        line.get(key).and_then(Value::as_f64)
    };
    text.lines().filter_map(value).collect()
}

/// The files of the edits' weights.
fn saved(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder.join("run/02-edit/model")).unwrap();
    let read = |entry: Result<fs::DirEntry, _>| {
        let entry: fs::DirEntry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        (name, fs::read(entry.path()).unwrap())
    };
    let weighs = |name: &str| name.ends_with(".bin") || name.ends_with(".safetensors");
    entries.map(read).filter(|(name, _)| weighs(name)).collect()
}

fn assert_near(a: &[f64], b: &[f64], tolerance: f64) {
    assert!(!a.is_empty() && a.len() == b.len());
    for (a, b) in a.iter().zip(b) {
        assert!((a - b).abs() <= tolerance, "{a} against {b}");
    }
}

#[test]
fn accumulation_equals_a_larger_batch() {
    for form in FORMS {
        let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        train(whole.path(), form, &["options.steps=5"]);
        let small = [
            "options.steps=5",
            "options.batch=1",
            "options.accumulation=8",
        ];
        train(parts.path(), form, &small);
        for key in ["loss", "gradient_norm"] {
            let (whole, parts) = (logged(whole.path(), key), logged(parts.path(), key));
            assert_near(&whole, &parts, 2e-6 * whole[0].max(1.0));
        }
    }
}

#[test]
fn packing_changes_no_loss() {
    for form in FORMS {
        let (apart, packed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let still = ["options.learning_rate=0.0", "options.steps=1"];
        train(apart.path(), form, &still);
        train(
            packed.path(),
            form,
            &[&still[..], &["options.packing=true"]].concat(),
        );
        let [apart, packed] = [apart, packed].map(|folder| logged(folder.path(), "eval_loss"));
        assert_near(&apart, &packed, 1e-5);
    }
}

#[test]
fn an_identity_is_the_base_and_a_random_start_is_not() {
    let loss = |form: &str, changes: &[&str]| {
        let folder = tempfile::tempdir().unwrap();
        let still = ["options.learning_rate=0.0", "options.steps=1"];
        train(folder.path(), form, &[changes, &still].concat());
        logged(folder.path(), "eval_loss")
    };
    for form in FORMS {
        // No edit is trained at all where a low-rank addition starts from zero.
        let base = loss(form, &["adapter={lora={rank=1}}"]);
        let identity = loss(form, &["adapter.reft.start=identity"]);
        assert_near(&base, &identity, 1e-5);
        assert!((base[0] - loss(form, &[])[0]).abs() > 1e-3);
    }
}

#[test]
fn a_killed_run_goes_on_to_the_same_edits_and_the_same_curve() {
    for form in FORMS {
        let changes = ["adapter.reft.dropout=0.1"];
        let (whole, killed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        train(whole.path(), form, &changes);
        for after in ["step-00000003", "step-00000006"] {
            let mut command = command(killed.path(), form, &changes);
            let quiet = command.stdout(Stdio::null()).stderr(Stdio::null());
            let mut child = quiet.spawn().unwrap();
            let checkpoint = killed.path().join("run/02-edit/checkpoints").join(after);
            let deadline = Instant::now() + Duration::from_secs(120);
            while !checkpoint.exists() && child.try_wait().unwrap().is_none() {
                assert!(Instant::now() < deadline, "no checkpoint appeared");
                sleep(Duration::from_millis(1));
            }
            child.kill().unwrap();
            child.wait().unwrap();
            let model = killed.path().join("run/02-edit/model");
            assert!(!model.exists(), "the run ended before it was killed");
        }
        train(killed.path(), form, &changes);
        let [killed_edits, edits] = [&killed, &whole].map(|folder| saved(folder.path()));
        assert!(!edits.is_empty() && killed_edits == edits, "{form}");
        assert_eq!(logged(killed.path(), "loss"), logged(whole.path(), "loss"));
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let edits = ["1", "2"].map(|threads| {
        let folder = tempfile::tempdir().unwrap();
        let mut command = command(folder.path(), "loreft", &[]);
        let output = command.env("RAYON_NUM_THREADS", threads).output().unwrap();
        assert!(output.status.success());
        saved(folder.path())
    });
    assert!(edits[0].len() == 4 && edits[0] == edits[1]);
}

#[test]
fn directions_stay_orthonormal_and_the_base_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    train(folder.path(), "loreft", &["options.steps=1"]);
    let base = folder.path().join("run/01-base/model/model.safetensors");
    let before = fs::read(&base).unwrap();
    train(
        folder.path(),
        "loreft",
        &["options.steps=100", "options.learning_rate=2e-2"],
    );
    assert_eq!(fs::read(&base).unwrap(), before);
    let losses = logged(folder.path(), "loss");
    assert!(losses[99] < losses[0] - 0.1, "{losses:?}");
    let names: Vec<String> = saved(folder.path()).into_keys().collect();
    let bins: Vec<&String> = names.iter().filter(|name| name.ends_with(".bin")).collect();
    assert_eq!(bins.len(), 4, "{names:?}");
    for name in bins {
        let path = folder.path().join("run/02-edit/model").join(name);
        let file = TensorFile::open(&path).unwrap();
        assert_eq!(file.info("rotate_layer").unwrap().shape, [32, 3]);
        let values = file.read_f32("rotate_layer", None).unwrap();
        for a in 0..3 {
            for b in 0..3 {
                let product = |row: &[f32]| f64::from(row[a]) * f64::from(row[b]);
                let sum: f64 = values.chunks(3).map(product).sum();
                let expected = f64::from(u8::from(a == b));
                assert!((sum - expected).abs() < 1e-6, "{name}: {a} {b}: {sum}");
            }
        }
    }
}

#[test]
fn what_generates_reads_the_folder_and_options_that_make_no_sense_are_named() {
    let folder = tempfile::tempdir().unwrap();
    train(folder.path(), "loreft", &[]);
    let output = Command::new(env!("CARGO_BIN_EXE_espalier"))
        .current_dir(folder.path())
        .args(["inspect", "run/02-edit/model"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("loreft, r = 3, at f2+l2"),
        "{text}"
    );
    for (change, expected) in [
        ("positions=l2+f2", "names no tokens of a prompt"),
        ("rank=33", "more than 32"),
        ("layers=[0, 2]", "2 is no block of this model"),
        ("layers=[1, 1]", "names block 1 twice"),
        ("dropout=1.0", "outside 0 to below 1"),
        ("method=lorefft", "loreft"),
    ] {
        let change = format!("adapter.reft.{change}");
        let output = command(folder.path(), "direft", &[&change])
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{change}: {error}");
        assert!(error.contains(expected), "{change}: {error}");
    }
    let constant = ["adapter.reft.start=identity"];
    let output = command(folder.path(), "consreft", &constant)
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("choose `random`"));
}
