//! A file of RWKV weights with the world tokenizer beside it, without a configuration, through every command.
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
};

use burn::tensor::Device;
use espalier::models::{
    checkpoint::{Checkpoint, Dtype},
    families::{Config, rwkv7},
    folder,
    model::LanguageModel,
    source::Seed,
};
use serde_json::{Value, json};

const VOCABULARY: &str = "rwkv_vocab_v20230424.txt";

/// A tiny RWKV-7 in one file, and the authors' vocabulary.
fn bare(folder: &Path) {
    let keys = json!({
        "vocab_size": 65536, "hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32, "head_size": 8,
        "decay_rank": 4, "rate_rank": 4, "value_rank": 4, "gate_rank": 4, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
    });
    let config = Config::from_map("config.json".as_ref(), keys.as_object().unwrap().clone());
    let spec = (rwkv7::FAMILY.read)(&config).unwrap();
    let model = LanguageModel::build(spec, &mut Seed(4), &Device::flex()).unwrap();
    folder::save(&model, folder, None, Dtype::BF16).unwrap();
    fs::rename(
        folder.join("model.safetensors"),
        folder.join("RWKV-x070-tiny.safetensors"),
    )
    .unwrap();
    fs::remove_file(folder.join("config.json")).unwrap();
    fs::remove_file(folder.join("generation_config.json")).unwrap();
    let table = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/fixtures/tokenizers/rwkv-world")
        .join(VOCABULARY);
    fs::copy(table, folder.join(VOCABULARY)).unwrap();
}

fn run(folder: &Path, arguments: &[&str]) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_espalier"));
    let output = command
        .current_dir(folder)
        .args(["--json", "--quiet"])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{arguments:?}: {shown}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_str(&shown).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {shown}"))
}

#[test]
fn a_bare_file_is_inspected_continued_and_trained() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    bare(here);
    let file = "RWKV-x070-tiny.safetensors";
    for path in [file, "."] {
        let inspected = run(here, &["inspect", path]);
        assert_eq!(
            (&inspected["family"], &inspected["tokenizer"]["vocabulary"]),
            (&json!("rwkv7"), &json!(65530))
        );
        let text = run(
            here,
            &[
                "generate",
                path,
                "数据 and words",
                "--max-new-tokens",
                "4",
                "--temperature",
                "0",
            ],
        );
        assert!(text.to_string().contains("数据 and words"), "{text}");
    }
    let recipe = format!(
        "output = \"run\"\n[[stage]]\nname = \"tune\"\n[stage.train]\nmodel = \"{file}\"\nobjective = \"pretrain\"\n\
         data = {{ world = \"g8\", as = \"text\", limit = 8 }}\n[stage.train.options]\nsteps = 2\nbatch = 2\nlength = 32\n"
    );
    fs::write(here.join("recipe.toml"), recipe).unwrap();
    run(here, &["run", "recipe.toml"]);
    let trained = here.join("run/01-tune/model");
    let (before, after) = (
        Checkpoint::open(&here.join(file)).unwrap(),
        Checkpoint::open(&trained).unwrap(),
    );
    assert!(before.names().eq(after.names()));
    assert_ne!(
        before.read_f32("emb.weight", None).unwrap(),
        after.read_f32("emb.weight", None).unwrap()
    );
    assert_eq!(
        fs::read(trained.join(VOCABULARY)).unwrap(),
        fs::read(here.join(VOCABULARY)).unwrap()
    );
    run(here, &["generate", "run", "Once", "--max-new-tokens", "2"]);
}
