//! What must hold of every way to tune a model, through the real binary.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may fail loudly"
)]

mod runs;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use espalier::models::checkpoint::TensorFile;
use serde_json::Value;

/// Ways to tune: their key in a train stage, whether an adapter is left, and what a run without learning may change.
const WAYS: &[(&str, bool, f32)] = &[
    ("adapter = { lora = { rank = 4 } }", true, 0.0),
    (
        "adapter = { lora = { rank = 4, init = 'gaussian', rslora = true, plus_ratio = 4.0 } }",
        true,
        0.0,
    ),
    ("adapter = { lora = { rank = 4, dora = true } }", true, 0.0),
    (
        "adapter = { lora = { rank = 4, dora = true, dropout = 0.1 } }",
        true,
        0.0,
    ),
    (
        "adapter = { lora = { rank = 4, init = 'pissa' } }",
        true,
        1e-4,
    ),
    (
        "adapter = { lora = { rank = 4, init = 'pissa_niter_4', dropout = 0.1 } }",
        true,
        1e-4,
    ),
    (
        "adapter = { lora = { rank = 4, rank_pattern = { q_proj = 2 }, alpha_pattern = { 'mlp.*' = 3.0 }, layers_to_transform = [1], layers_pattern = ['layers'], exclude_modules = ['o_proj'] } }",
        true,
        0.0,
    ),
    (
        "freeze = { layers = 1, modules = ['mlp'], extra_modules = ['norm'] }",
        false,
        0.0,
    ),
];

const BASE: &str = r#"
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

fn recipe(way: &str, model: &str, options: &str) -> String {
    format!(
        "output = \"run\"\n[[stage]]\nname = \"tuned\"\n[stage.train]\nmodel = {model:?}\nobjective = \"pretrain\"\n{way}\n\
         data = {{ world = \"g8\", as = \"text\", limit = 4 }}\n[stage.train.options]\nlength = 128\nwarmup = 0.0\nlog_every = 1\n{options}\n"
    )
}

fn espalier(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_espalier"));
    command.current_dir(folder).arg("--quiet").args(arguments);
    command
}

fn succeeded(output: Output) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}

fn run(folder: &Path, text: &str) {
    fs::write(folder.join("recipe.toml"), text).unwrap();
    succeeded(espalier(folder, &["run", "recipe.toml"]).output().unwrap());
}

/// A trained base in a folder of its own.
fn base(folder: &Path) -> PathBuf {
    let place = folder.join("of-base");
    fs::create_dir(&place).unwrap();
    run(&place, &format!("output = \"run\"\n{BASE}"));
    place.join("run/01-base/model")
}

fn logits(model: &Path) -> Vec<f32> {
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

fn gap(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let pairs = a.iter().zip(b);
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn logged(folder: &Path, key: &str) -> Vec<f64> {
    let text = fs::read_to_string(folder.join("run/01-tuned/metrics.jsonl")).unwrap();
    let value = |line: &str| {
        let line = serde_json::from_str::<Value>(line).unwrap();
        line.get(key).and_then(Value::as_f64)
    };
    text.lines().filter_map(value).collect()
}

#[test]
fn every_way_starts_from_the_base_learns_accumulates_and_is_merged() {
    let folder = tempfile::tempdir().unwrap();
    let base = base(folder.path());
    let name = base.to_string_lossy();
    let (plain, weights) = (
        logits(&base),
        fs::read(base.join("model.safetensors")).unwrap(),
    );
    for (number, (way, is_adapter, allowed)) in WAYS.iter().enumerate() {
        let place = |part: &str| {
            let place = folder.path().join(format!("{part}-{number}"));
            fs::create_dir(&place).unwrap();
            place
        };
        let of = |place: &Path| place.join("run/01-tuned/model");
        let still = place("still");
        run(
            &still,
            &recipe(way, &name, "steps = 2\nbatch = 4\nlearning_rate = 0.0"),
        );
        let difference = gap(&logits(&of(&still)), &plain);
        assert!(difference <= *allowed, "{way}: {difference}");
        // Which inputs are dropped differs with the batches.
        let (whole, parts) = (place("whole"), place("parts"));
        run(
            &whole,
            &recipe(way, &name, "steps = 6\nbatch = 4\nlearning_rate = 2e-3"),
        );
        run(
            &parts,
            &recipe(
                way,
                &name,
                "steps = 6\nbatch = 1\naccumulation = 4\nlearning_rate = 2e-3",
            ),
        );
        let [losses, others] = [&whole, &parts].map(|place| logged(place, "loss"));
        assert!(
            losses.len() == 6 && losses[5] < losses[0],
            "{way}: {losses:?}"
        );
        if !way.contains("dropout") {
            for (a, b) in losses.iter().zip(&others) {
                assert!((a - b).abs() < 1e-4 * a.max(1.0), "{way}: {a} against {b}");
            }
        }
        assert_eq!(fs::read(base.join("model.safetensors")).unwrap(), weights);
        let adapted = logits(&of(&whole));
        assert!(gap(&adapted, &plain) > 1e-3, "{way}");
        if *is_adapter {
            let merged = place("merged");
            let merge = format!(
                "output = \"run\"\n[[stage]]\nname = \"merged\"\n[stage.merge]\nadapters = [{:?}]\n",
                of(&whole)
            );
            run(&merged, &merge);
            let difference = gap(&logits(&merged.join("run/01-merged/model")), &adapted);
            assert!(difference < 1e-5, "{way}: {difference} merged");
        }
    }
}

#[test]
fn a_killed_run_of_any_way_leaves_the_same_files() {
    let folder = tempfile::tempdir().unwrap();
    let base = base(folder.path());
    for (number, (way, ..)) in WAYS.iter().enumerate() {
        let text = recipe(
            way,
            &base.to_string_lossy(),
            "steps = 6\nbatch = 4\nlearning_rate = 2e-3\ncheckpoint_every = 2",
        );
        let [whole, killed] = ["whole", "killed"].map(|part| {
            let place = folder.path().join(format!("{part}-{number}"));
            fs::create_dir(&place).unwrap();
            fs::write(place.join("recipe.toml"), &text).unwrap();
            place
        });
        run(&whole, &text);
        // The first change behind the first checkpoint, wherever that is.
        let mut kill = 12;
        let checkpoint = killed.join("run/01-tuned/checkpoints/step-00000002");
        while !checkpoint.exists() {
            kill += 2;
            assert!(kill < 80);
            let _ = fs::remove_dir_all(killed.join("run"));
            let output = espalier(&killed, &["run", "recipe.toml"])
                .env("ESPALIER_FAULT", format!("kill:{kill}"))
                .output()
                .unwrap();
            assert!(!output.status.success());
        }
        succeeded(espalier(&killed, &["run", "recipe.toml"]).output().unwrap());
        let [expected, found] = [&whole, &killed].map(|place| runs::files(place));
        assert_eq!(runs::difference(&expected, &found), None, "{way}");
    }
}

#[test]
fn threads_change_no_bit_of_what_is_computed_from_the_base() {
    let folder = tempfile::tempdir().unwrap();
    let base = base(folder.path());
    let way = WAYS[5].0;
    let text = recipe(way, &base.to_string_lossy(), "steps = 2\nbatch = 4");
    let files = ["1", "3"].map(|threads| {
        let place = folder.path().join(threads);
        fs::create_dir(&place).unwrap();
        fs::write(place.join("recipe.toml"), &text).unwrap();
        let mut command = espalier(&place, &["run", "recipe.toml"]);
        succeeded(command.env("RAYON_NUM_THREADS", threads).output().unwrap());
        fs::read(place.join("run/01-tuned/model/adapter_model.safetensors")).unwrap()
    });
    assert!(files[0] == files[1]);
}

#[test]
fn models_get_blocks_that_are_trained_alone() {
    let folder = tempfile::tempdir().unwrap();
    let base = base(folder.path());
    let text = format!(
        "output = \"run\"\n[[stage]]\nname = \"wide\"\n[stage.expand]\nmodel = {base:?}\nblocks = 2\n\
         [[stage]]\nname = \"tuned\"\n[stage.train]\nmodel = \"wide\"\nobjective = \"pretrain\"\nfreeze = {{ layers = 2, expanded = true }}\n\
         data = {{ world = \"g8\", as = \"text\", limit = 24 }}\n[stage.train.options]\nlength = 128\nsteps = 4\nlearning_rate = 2e-3\n"
    );
    run(folder.path(), &text);
    let wide = folder.path().join("run/01-wide/model");
    assert_eq!(logits(&wide), logits(&base));
    let tuned = folder.path().join("run/02-tuned/model");
    assert!(gap(&logits(&tuned), &logits(&base)) > 1e-3);
    let open = |folder: &Path| TensorFile::open(&folder.join("model.safetensors")).unwrap();
    let (before, after) = (open(&wide), open(&tuned));
    for name in before.names() {
        let same = before.read_f32(name, None).unwrap() == after.read_f32(name, None).unwrap();
        let is_new = ["layers.1.", "layers.3."]
            .iter()
            .any(|part| name.contains(part));
        assert_ne!(same, is_new, "{name}");
    }
}

#[test]
fn adapters_are_combined_taken_out_and_extracted() {
    let folder = tempfile::tempdir().unwrap();
    let base = base(folder.path());
    let name = base.to_string_lossy();
    let adapters = ["one", "two"].map(|part| {
        let place = folder.path().join(part);
        fs::create_dir(&place).unwrap();
        let seed = part.len() + usize::from(part == "two");
        let options = format!("steps = 6\nbatch = 4\nlearning_rate = 5e-3\nseed = {seed}");
        run(
            &place,
            &recipe("adapter = { lora = { rank = 4 } }", &name, &options),
        );
        place.join("run/01-tuned/model")
    });
    let stage = |text: &str| {
        let place = tempfile::tempdir().unwrap();
        run(
            place.path(),
            &format!("output = \"run\"\n[[stage]]\nname = \"made\"\n{text}"),
        );
        place
    };
    let made = |place: &tempfile::TempDir| place.path().join("run/01-made/model");
    let both = format!(
        "adapters = [{:?}, {:?}]\nweights = [0.5, 2.0]\n",
        adapters[0], adapters[1]
    );
    let merged = stage(&format!("[stage.merge]\n{both}"));
    let expected = logits(&made(&merged));
    assert!(gap(&expected, &logits(&adapters[0])) > 1e-3);
    for (combine, ranks, tolerance) in [
        ("combine = \"cat\"", 8, 1e-4),
        ("combine = \"svd\"\nrank = 8", 8, 1e-4),
        ("combine = \"linear\"", 4, f32::INFINITY),
    ] {
        let place = stage(&format!("[stage.merge]\n{both}{combine}\n"));
        let difference = gap(&logits(&made(&place)), &expected);
        assert!(difference < tolerance, "{combine}: {difference}");
        let file = TensorFile::open(&made(&place).join("adapter_model.safetensors")).unwrap();
        let shape = |name: &str| file.info(name).unwrap().shape[0];
        let downs = file.names().filter(|name| name.contains("lora_A"));
        assert!(downs.map(shape).all(|rank| rank == ranks), "{combine}");
    }
    // One of them is taken out again.
    let one = stage(&format!("[stage.merge]\nadapters = [{:?}]\n", adapters[0]));
    let out = stage(&format!(
        "[stage.merge]\nmodel = {:?}\nadapters = [{:?}]\nweights = [-1.0]\n",
        made(&one),
        adapters[0]
    ));
    assert!(gap(&logits(&made(&out)), &logits(&base)) < 1e-4);
    // What tuning changed is of rank four, and an adapter again.
    for (rank, most) in [(4, 1e-4), (2, f32::INFINITY)] {
        let place = stage(&format!(
            "[stage.extract]\nmodel = {:?}\nbase = {base:?}\nrank = {rank}\n",
            made(&one)
        ));
        let difference = gap(&logits(&made(&place)), &logits(&adapters[0]));
        assert!(difference < most, "{rank}: {difference}");
        let text = fs::read_to_string(place.path().join("run/01-made/stage.json")).unwrap();
        let share = serde_json::from_str::<Value>(&text).unwrap()["result"]["share"]
            .as_f64()
            .unwrap();
        assert!(
            if rank == 4 {
                share > 0.9999
            } else {
                share > 0.3 && share < 0.9999
            },
            "{share}"
        );
    }
}

#[test]
fn what_cannot_be_merged_is_named_as_the_user_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let base = base(folder.path());
    let adapters = ["one", "two"].map(|part| {
        let place = folder.path().join(part);
        fs::create_dir(&place).unwrap();
        let adapter = "adapter = { lora = { rank = 2, modules_to_save = [\"norm\"] } }";
        run(
            &place,
            &recipe(adapter, &base.to_string_lossy(), "steps = 1\nbatch = 4"),
        );
        place.join("run/01-tuned/model")
    });
    let text = format!(
        "output = \"run\"\n[[stage]]\nname = \"made\"\n[stage.merge]\nadapters = [{:?}, {:?}]\n",
        adapters[0], adapters[1]
    );
    fs::write(folder.path().join("recipe.toml"), text).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_espalier"))
        .current_dir(folder.path())
        .args(["run", "recipe.toml"])
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    let names = adapters.map(|path| path.to_string_lossy().into_owned());
    assert!(
        names.iter().all(|name| said.contains(name)) && said.contains("`model."),
        "{said}"
    );
    let inside = ["adapter-2", "`default`", "blocks.", "final_norm"];
    assert!(!inside.iter().any(|word| said.contains(word)), "{said}");
}
