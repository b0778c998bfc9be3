//! The commands through the real binary: exit codes, messages, JSON, and help here, the rest by theme.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may fail loudly"
)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use burn::tensor::Device;
use espalier::data::template::{CHATML, ChatTemplate};
use espalier::data::tokenizer::{BpeOptions, Tokenizer};
use espalier::models::{
    checkpoint::Dtype, folder, model::LanguageModel, source::Seed, spec::ModelSpec,
};
use serde_json::Value;

mod chat;
mod data;
mod generation;
mod models;
mod probe;
mod training;

const VERBS: [&[&str]; 18] = [
    &["quickstart"],
    &["run"],
    &["train"],
    &["chat"],
    &["generate"],
    &["serve"],
    &["eval"],
    &["probe"],
    &["probe", "ruler"],
    &["probe", "needles"],
    &["probe", "val"],
    &["probe", "longppl"],
    &["data"],
    &["data", "generate"],
    &["data", "show"],
    &["inspect"],
    &["trace"],
    &["doctor"],
];

fn espalier(arguments: &[&str]) -> Output {
    command(arguments).stdin(Stdio::null()).output().unwrap()
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_espalier"));
    command.args(arguments).env_remove("RUST_BACKTRACE");
    command
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_str(&out(output))
        .unwrap_or_else(|error| panic!("{error}: {}{}", out(output), err(output)))
}

/// A tiny model with fresh weights, a tokenizer and a chat template.
fn model() -> &'static str {
    static MODEL: OnceLock<(tempfile::TempDir, String)> = OnceLock::new();
    let make = || {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tiny");
        let texts = vec!["the sum of two and three is five".to_string(); 4];
        let options = BpeOptions {
            vocabulary: 280,
            ..Default::default()
        };
        let tokenizer = Tokenizer::train_byte_level_bpe(texts.into_iter(), &options).unwrap();
        let mut spec = ModelSpec::llama(tokenizer.vocabulary_size(), 16, 2, 2, 1, 32, 64);
        spec.eos = vec![tokenizer.id("<|im_end|>").unwrap()];
        let model = LanguageModel::build(spec, &mut Seed(1), &Device::flex()).unwrap();
        folder::save(&model, &path, None, Dtype::F32).unwrap();
        tokenizer
            .with_template(ChatTemplate::new(CHATML).unwrap())
            .save(&path)
            .unwrap();
        let path = path.to_str().unwrap().to_string();
        (folder, path)
    };
    &MODEL.get_or_init(make).1
}

fn fixture(name: &str) -> String {
    format!("{}/../../tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn every_verb_has_help_with_an_example() {
    for verb in VERBS {
        let output = espalier(&[verb, &["--help"]].concat());
        assert_eq!(output.status.code(), Some(0), "{verb:?}");
        assert!(
            out(&output).contains("Example:\n  espalier "),
            "{verb:?}: {}",
            out(&output)
        );
    }
    assert!(out(&espalier(&["--help"])).contains("quickstart"));
    assert!(out(&espalier(&["--version"])).starts_with("espalier "));
}

#[test]
fn wrong_commands_exit_with_two() {
    let cases: [(&[&str], &str); 9] = [
        (&["chta", "m"], "tip: a similar subcommand exists: 'chat'"),
        (&["chat"], "required arguments were not provided"),
        (&["chat", "m", "--device", "cdua"], "did you mean `cuda`?"),
        (&["doctor", "--device", "metal"], "--features metal"),
        (&["generate", "m"], "there is no prompt"),
        (
            &["generate", model(), "a", "--top-p", "1.5"],
            "top_p = 1.5: expected more than 0",
        ),
        (
            &["data", "generate", "sentense/2"],
            "did you mean `sentence/2`?",
        ),
        (
            &["data", "generate", "g1/1", "--split", "training"],
            "expected `train`, `val` or `test`",
        ),
        (
            &["data", "show", "nothing.jsonl"],
            "`nothing.jsonl`: no such file, and no generated task",
        ),
    ];
    for (arguments, message) in cases {
        let output = espalier(arguments);
        assert_eq!(
            output.status.code(),
            Some(2),
            "{arguments:?}: {}",
            err(&output)
        );
        assert!(
            err(&output).starts_with("error: ") && err(&output).contains(message),
            "{arguments:?}: {}",
            err(&output)
        );
        assert_eq!(out(&output), "");
        let output = espalier(&[arguments, &["--json"]].concat());
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert_eq!(json(&output)["error"]["kind"], "usage");
        assert_eq!(err(&output), "");
    }
}

#[test]
fn what_is_wrong_with_a_later_stage_is_said_before_the_first_one_runs() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("run");
    let recipe = fixture("../../recipes/mixture-of-depths.toml");
    for (key, said) in [
        (
            "stage.2.train.new.config.mod_gate=tanh",
            "key `mod_gate`: unknown `tanh`",
        ),
        (
            "stage.3.train.options.label_smoothing=2",
            "`label_smoothing`: 2 is outside",
        ),
    ] {
        let run = espalier(&["run", &recipe, &format!("output={}", output.display()), key]);
        assert_eq!(run.status.code(), Some(2), "{}", err(&run));
        assert!(
            err(&run).contains("stage `routed") && err(&run).contains(said),
            "{}",
            err(&run)
        );
        assert!(!output.exists());
    }
}

#[test]
fn failed_work_exits_with_one() {
    let hub = espalier(&["chat", "some-org/some-model"]);
    assert_eq!(hub.status.code(), Some(1));
    assert_eq!(err(&hub).lines().count(), 1);
    assert!(
        err(&hub).contains("hubs cannot be reached yet")
            && err(&hub).contains("hf download some-org/some-model")
    );
    let near = format!("{}s", fixture("llama"));
    assert!(err(&espalier(&["inspect", &near])).contains("did you mean `llama`?"));
    assert!(
        err(&espalier(&["inspect", &fixture("")]))
            .contains("neither config.json nor adapter_config.json")
    );
    let bare = espalier(&["generate", &fixture("llama"), "a", "--json"]);
    assert_eq!(bare.status.code(), Some(1));
    assert_eq!(json(&bare)["error"]["code"], 1);
}

#[test]
fn doctor_knows_this_machine() {
    let value = json(&espalier(&["doctor", "--json"]));
    assert!(
        value["threads"].as_u64().unwrap() > 0 && value["memory_total_bytes"].as_u64().unwrap() > 0
    );
    assert!(value["matmul_gflops"].as_f64().unwrap() > 0.0);
    assert_eq!(value["devices"][0], "cpu");
}

#[test]
fn a_closed_pipe_is_no_failure() {
    let mut child = command(&["data", "generate", "g1", "--count", "100000"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_failed_write_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path: PathBuf = Path::new("missing").join("data.jsonl");
    let output = command(&[
        "data",
        "generate",
        "g1/1",
        "--output",
        path.to_str().unwrap(),
    ])
    .current_dir(folder.path())
    .output()
    .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn options_that_make_no_sense_exit_with_two() {
    for (more, message) in [
        (
            &["--length-penalty=nan"][..],
            "--length-penalty NaN: expected a number from -100",
        ),
        (
            &["--length-penalty=-1e300"],
            "expected a number from -100 to 100",
        ),
        (&["--stop", ""], "--stop '': every text has an empty one"),
        (
            &["--top-k", "-5"],
            "invalid value '-5' for '--top-k <COUNT>'",
        ),
        (
            &["--max-new-tokens", "-5"],
            "invalid value '-5' for '--max-new-tokens",
        ),
    ] {
        let output = espalier(&[&["generate", model(), "a"], more].concat());
        assert_eq!(output.status.code(), Some(2), "{}", err(&output));
        assert!(err(&output).contains(message), "{}", err(&output));
        assert!(!err(&output).contains("'-- -5'"), "{}", err(&output));
    }
    let world = espalier(&["eval", model(), "zzz"]);
    assert_eq!(world.status.code(), Some(2), "{}", err(&world));
    let threads = command(&["generate", model(), "a"])
        .env("RAYON_NUM_THREADS", "100000")
        .output()
        .unwrap();
    assert_eq!(threads.status.code(), Some(2));
    assert!(err(&threads).contains("RAYON_NUM_THREADS=100000: expected a number up to"));
}

#[cfg(target_os = "linux")]
#[test]
fn help_that_nobody_gets_is_a_failure() {
    for flag in ["--help", "--version"] {
        let full = std::fs::File::options()
            .write(true)
            .open("/dev/full")
            .unwrap();
        let output = command(&[flag]).stdout(full).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", err(&output));
        assert!(err(&output).contains("No space left"), "{}", err(&output));
    }
}
