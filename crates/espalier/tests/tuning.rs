//! Blocks that are added and trained alone, or left out, and adapters that are combined, taken out and extracted, through the real binary.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may fail loudly"
)]

mod tuned;

use std::{fs, path::Path, process::Command};

use espalier::models::checkpoint::TensorFile;
use serde_json::Value;
use tuned::{base, espalier, gap, logits, recipe, run};

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
fn blocks_that_compute_nothing_are_pruned_and_nobody_misses_them() {
    let folder = tempfile::tempdir().unwrap();
    let base = base(folder.path());
    let text = format!(
        "output = \"run\"\n[[stage]]\nname = \"wide\"\n[stage.expand]\nmodel = {base:?}\nblocks = 2\n\
         [[stage]]\nname = \"pruned\"\n[stage.prune]\nmodel = \"wide\"\nremove = 2\nby = \"influence\"\n\
         data = {{ world = \"g8\", as = \"text\", limit = 8 }}\n\
         [[stage]]\nname = \"first\"\ndepth = {{ model = \"wide\", blocks = [[0, 1]] }}\n\
         [[stage]]\nname = \"twice\"\ndepth = {{ model = \"wide\", blocks = [[0, 1], [1, 2], [1, 4]] }}\n"
    );
    run(folder.path(), &text);
    let model = |name: &str| folder.path().join("run").join(name).join("model");
    let pruned = model("02-pruned");
    assert_eq!(logits(&pruned), logits(&base));
    let blocks = |folder: &Path| -> u64 {
        let config = fs::read(folder.join("config.json")).unwrap();
        let config: Value = serde_json::from_slice(&config).unwrap();
        config["num_hidden_layers"].as_u64().unwrap()
    };
    assert_eq!((blocks(&pruned), blocks(&model("03-first"))), (2, 1));
    // A block that computes nothing may stand twice.
    assert_eq!(blocks(&model("04-twice")), 5);
    assert_eq!(logits(&model("04-twice")), logits(&base));
    let stage = fs::read(folder.path().join("run/02-pruned/stage.json")).unwrap();
    let stage: Value = serde_json::from_slice(&stage).unwrap();
    assert!(stage.to_string().contains("\"removed\":[1,3]"), "{stage}");
    let report = fs::read_to_string(folder.path().join("run/report.html")).unwrap();
    assert!(report.contains("half turn"));
}

#[test]
fn depths_that_cannot_be_are_told_before_anything_runs() {
    let folder = tempfile::tempdir().unwrap();
    let base = base(folder.path());
    for (stage, part) in [
        (
            "prune = { model = MODEL, remove = 2, by = \"deepest\" }",
            "`remove`: 2 of 2 blocks leaves none",
        ),
        ("prune = { model = MODEL, remove = 1 }", "`data` is missing"),
        (
            "depth = { model = MODEL, blocks = [[1, 1]] }",
            "[1, 1] holds no block",
        ),
        (
            "depth = { model = MODEL, blocks = [[0, 9]] }",
            "the model has 2 blocks, counted from 0; there is no block 2",
        ),
        (
            "depth = { model = MODEL, blocks = [] }",
            "`blocks` is empty",
        ),
    ] {
        let stage = stage.replace("MODEL", &format!("{base:?}"));
        let text = format!("output = \"wrong\"\n[[stage]]\nname = \"made\"\n{stage}\n");
        let path = folder.path().join("wrong.toml");
        fs::write(&path, text).unwrap();
        let output = espalier(folder.path(), &["run", &path.to_string_lossy()])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(part), "{said}");
        assert!(!folder.path().join("wrong/01-made/model").exists());
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
fn an_adapter_of_a_whole_tuning_does_what_the_tuning_did() {
    let folder = tempfile::tempdir().unwrap();
    let base = base(folder.path());
    let options = "steps = 6\nbatch = 4\nlearning_rate = 5e-3";
    let name = base.to_string_lossy();
    run(folder.path(), &recipe("", &name, options));
    let tuned = folder.path().join("run/01-tuned/model");
    let extracted = |more: &str| {
        let place = tempfile::tempdir().unwrap();
        let stage = format!("[stage.extract]\nmodel = {tuned:?}\nbase = {base:?}\nrank = 64\n");
        let text = format!("output = \"run\"\n[[stage]]\nname = \"made\"\n{stage}{more}");
        run(place.path(), &text);
        let found = logits(&place.path().join("run/01-made/model"));
        let record = fs::read_to_string(place.path().join("run/01-made/stage.json")).unwrap();
        let record: Value = serde_json::from_str(&record).unwrap();
        let left = record["result"]["left"].as_u64().unwrap();
        (gap(&found, &logits(&tuned)), left)
    };
    // The table of tokens, which is the head too, and the norms are kept whole.
    let (whole, left) = extracted("");
    assert!(whole < 1e-4 && left == 0, "{whole} {left}");
    let (without, left) = extracted("modules_to_save = []\n");
    assert!(without > 1e-2 && left > 0, "{without} {left}");
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
