//! Hostile and broken input through the real binary: one line with the fix, the right exit code, nothing half-written.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may fail loudly"
)]

mod refused;
mod streams;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures")).join(name)
}

fn espalier(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_espalier"))
        .args(arguments)
        .output()
        .unwrap()
}

/// A copy of the llama fixture that a test may damage.
fn model() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixture("llama")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    folder
}

/// Asserts one line of error with `part` in it and this exit code.
fn refused(output: &Output, code: i32, part: &str) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{error}");
    assert!(error.contains(part), "`{part}` is not in: {error}");
    assert_eq!(error.trim_end().lines().count(), 1, "{error}");
    assert!(!error.contains("panicked"), "{error}");
}

/// Traces a damaged model; whatever is wrong, no output appears.
fn traced(folder: &Path, part: &str) {
    let output = folder.join("traced.safetensors");
    let input = fixture("llama/expected.safetensors");
    let run = espalier(&[
        "trace",
        &folder.to_string_lossy(),
        &input.to_string_lossy(),
        &output.to_string_lossy(),
    ]);
    refused(&run, 1, part);
    assert!(!output.exists());
}

fn with_config(change: impl Fn(&mut serde_json::Map<String, serde_json::Value>), part: &str) {
    let folder = model();
    let path = folder.path().join("config.json");
    let mut config: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    change(config.as_object_mut().unwrap());
    fs::write(&path, config.to_string()).unwrap();
    traced(folder.path(), part);
}

#[test]
fn absurd_configurations() {
    with_config(
        |c| drop(c.insert("num_attention_heads".into(), 0.into())),
        "num_attention_heads",
    );
    with_config(
        |c| drop(c.insert("hidden_size".into(), 1_000_000_000_000_000_000u64.into())),
        "hidden_size",
    );
    with_config(
        |c| drop(c.insert("num_key_value_heads".into(), 3.into())),
        "num_key_value_heads",
    );
    with_config(
        |c| drop(c.insert("vocab_size".into(), (-1).into())),
        "vocab_size",
    );
    with_config(
        |c| drop(c.insert("intermediate_size".into(), 41.into())),
        "model.safetensors: tensor `model.layers.0.mlp.gate_proj.weight` has shape",
    );
    with_config(
        |c| drop(c.insert("architectures".into(), vec!["LlamaForCausalML"].into())),
        "LlamaForCausalLM",
    );
    with_config(
        |c| {
            c.insert("architectures".into(), vec![""].into());
            c.remove("model_type");
        },
        "unknown architecture ``; `espalier families` lists all that are known",
    );
    with_config(|c| drop(c.remove("hidden_size")), "hidden_size");
}

#[test]
fn broken_files() {
    let folder = model();
    fs::write(folder.path().join("config.json"), "{\"architectures\": [").unwrap();
    traced(folder.path(), "config.json");

    let folder = model();
    let weights = folder.path().join("model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap();
    traced(folder.path(), "model.safetensors");

    let mut lying = bytes;
    lying[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    fs::write(&weights, lying).unwrap();
    traced(folder.path(), "model.safetensors");

    fs::remove_file(&weights).unwrap();
    traced(folder.path(), "safetensors");
}

#[test]
fn pickles_are_read_and_not_run() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rwkv.pth");
    let inspected = |part: &str| {
        refused(&espalier(&["inspect", &path.to_string_lossy()]), 1, part);
        refused(
            &espalier(&["inspect", &folder.path().to_string_lossy()]),
            1,
            part,
        );
    };
    let whole = fs::read(fixture("pth/rwkv7.pth")).unwrap();
    // The name that rebuilds tensors becomes another of its length.
    let name = b"ctorch._utils\n_rebuild_tensor_v2\n";
    let place = whole
        .windows(name.len())
        .position(|part| part == name)
        .unwrap();
    let mut evil = whole.clone();
    evil[place..place + name.len()].copy_from_slice(b"cposix\nsystem_that_would_do_harm\n");
    fs::write(&path, evil).unwrap();
    inspected("asks for `posix.system_that_would_do_harm`");
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    inspected("rwkv.pth: not a whole zip archive");
    fs::write(&path, b"MZ").unwrap();
    inspected("rwkv.pth");
}

#[test]
fn tokens_outside_the_vocabulary() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("input.safetensors");
    let plan = espalier::models::checkpoint::TensorPlan {
        name: "input_ids".into(),
        dtype: espalier::models::checkpoint::Dtype::I64,
        shape: vec![1, 2],
    };
    let writer = espalier::models::checkpoint::TensorWriter::new(vec![plan]).unwrap();
    writer.write_file(&input, |_| Ok(vec![1.0, 61.0])).unwrap();
    let output = folder.path().join("output.safetensors");
    let llama = fixture("llama");
    let run = espalier(&[
        "trace",
        &llama.to_string_lossy(),
        &input.to_string_lossy(),
        &output.to_string_lossy(),
    ]);
    refused(&run, 1, "token 61");
    assert!(!output.exists());
}

/// A recipe that would train a fresh model on `data`.
fn recipe(folder: &Path, data: &str) -> String {
    let path = folder.join("recipe.toml");
    let text = format!(
        "output = {:?}\n[[stage]]\nname = \"train\"\n[stage.train]\nobjective = \"sft\"\ndata = {data}\n\
         new = {{ vocabulary = 300, width = 32, layers = 1, heads = 2, kv_heads = 1, inner = 64 }}\n\
         [stage.train.options]\nsteps = 2\nlength = 128\n",
        folder.join("run")
    );
    fs::write(&path, text).unwrap();
    path.to_string_lossy().into_owned()
}

#[test]
fn unusable_data() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data.jsonl");
    let quoted = format!("{:?}", data.to_string_lossy());
    let recipe = recipe(folder.path(), &quoted);
    let run = || espalier(&["--quiet", "run", &recipe]);
    refused(&run(), 1, "data.jsonl");
    fs::write(&data, "").unwrap();
    refused(&run(), 1, "data.jsonl");
    fs::write(
        &data,
        "{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}]}\n",
    )
    .unwrap();
    refused(&run(), 1, "data.jsonl:1");
    fs::write(
        &data,
        "{\"instruction\": \"a\", \"output\": \"b\"}\nnot json\n",
    )
    .unwrap();
    refused(&run(), 1, "data.jsonl:2");
    assert!(!folder.path().join("run/01-train/model").exists());
}

#[test]
fn wrong_recipes_exit_with_2() {
    let folder = tempfile::tempdir().unwrap();
    let path = recipe(folder.path(), "{ world = \"g8\", limit = 4 }");
    let run = |overrides: &[&str]| espalier(&[&["--quiet", "run", &path], overrides].concat());
    for (overrides, part) in [
        (["learning_rte=1"], "learning_rate"),
        (["batch=many"], "batch"),
        (["objective=dpoo"], "did you mean `dpo`"),
        (["optimiser=adam"], "known values: `adamw`"),
    ] {
        let output = run(&overrides);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains(part), "{error}");
    }
    let text = fs::read_to_string(&path)
        .unwrap()
        .replace("steps = 2", "stepps = 2");
    fs::write(&path, text).unwrap();
    let error = String::from_utf8_lossy(&run(&[]).stderr).into_owned();
    assert!(
        error.contains("recipe.toml:9:1") && error.contains("did you mean `steps`"),
        "{error}"
    );
}

#[cfg(unix)]
#[test]
fn a_full_disk_leaves_nothing_half_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = recipe(folder.path(), "{ world = \"sentence/1\", limit = 8 }");
    // A limit on the size of files fails as a full disk does, in the middle of a write.
    let script = format!(
        "trap '' XFSZ; ulimit -f 24; exec {} --quiet run {path}",
        env!("CARGO_BIN_EXE_espalier")
    );
    let output = Command::new("bash").args(["-c", &script]).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("run"), "{error}");
    let checkpoints = folder.path().join("run/01-train/checkpoints");
    assert_eq!(
        fs::read_dir(checkpoints).unwrap().count(),
        0,
        "a half-written checkpoint was left"
    );
    assert!(
        !folder
            .path()
            .join("run/01-train/model/model.safetensors")
            .exists()
    );
}

/// A safetensors file of zeros with the given tensors.
fn zeros(path: &Path, tensors: &[(&str, &[usize])]) {
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, shape) in tensors {
        let start = end;
        end += 4 * shape.iter().product::<usize>();
        let info =
            serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [start, end]});
        header.insert((*name).to_owned(), info);
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + end, 0);
    fs::write(path, bytes).unwrap();
}

#[test]
fn adapters_that_do_not_fit() {
    let down = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
    let up = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight";
    let shapes: [(&[usize], &[usize]); 4] = [
        (&[], &[]),
        (&[4], &[64]),
        (&[4, 3], &[64, 4]),
        (&[4, 1, 64], &[64, 4]),
    ];
    for (down_shape, up_shape) in shapes {
        let folder = tempfile::tempdir().unwrap();
        let config = fs::read_to_string(fixture("peft-lora/adapter_config.json")).unwrap();
        let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
        config["base_model_name_or_path"] = fixture("llama").to_string_lossy().into();
        fs::write(
            folder.path().join("adapter_config.json"),
            config.to_string(),
        )
        .unwrap();
        zeros(
            &folder.path().join("adapter_model.safetensors"),
            &[(down, down_shape), (up, up_shape)],
        );
        traced(folder.path(), "do not fit the base");
    }
}
