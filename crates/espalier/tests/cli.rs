//! The commands through the real binary: exit codes, messages, JSON, and help.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may fail loudly"
)]

use std::io::Write;
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

const VERBS: [&[&str]; 12] = [
    &["quickstart"],
    &["run"],
    &["train"],
    &["chat"],
    &["generate"],
    &["eval"],
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
fn generation_is_reproducible_and_counts() {
    let arguments = [
        "generate",
        model(),
        "the sum",
        "two",
        "--json",
        "--max-new-tokens",
        "6",
        "--seed",
        "5",
    ];
    let first = espalier(&arguments);
    assert_eq!(first.status.code(), Some(0), "{}", err(&first));
    let lines: Vec<Value> = out(&first)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(
        (&lines[0]["prompt"], &lines[1]["prompt"]),
        (&"the sum".into(), &"two".into())
    );
    assert!(
        lines
            .iter()
            .all(|line| line["tokens"].as_u64().unwrap() <= 6 && line["finish"].is_string())
    );
    let again: Vec<Value> = out(&espalier(&arguments))
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(
        (&again[0]["text"], &again[1]["text"]),
        (&lines[0]["text"], &lines[1]["text"])
    );
    let plain = espalier(&[
        "generate",
        model(),
        "the sum",
        "--max-new-tokens",
        "6",
        "--seed",
        "5",
        "--quiet",
    ]);
    assert_eq!(
        out(&plain).trim_end_matches('\n'),
        lines[0]["text"].as_str().unwrap().trim_end_matches('\n')
    );
    assert_eq!(err(&plain), "");
}

#[test]
fn prompts_come_from_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("prompts.txt");
    std::fs::write(&path, "\u{feff}one\n\ntwo\n").unwrap();
    let arguments = [
        "generate",
        model(),
        "--file",
        path.to_str().unwrap(),
        "--chat",
        "--json",
        "--max-new-tokens",
        "3",
    ];
    let output = out(&espalier(&arguments));
    let prompt = |line| serde_json::from_str::<Value>(line).unwrap()["prompt"].clone();
    let prompts: Vec<Value> = output.lines().map(prompt).collect();
    assert_eq!(prompts, ["one", "", "two"]);
    // Without a template a blank line is no token to go on from.
    let plain = [&arguments[..4], &arguments[5..]].concat();
    assert!(err(&espalier(&plain)).is_empty());
    let place = format!("{}:2: the ", path.display());
    assert!(out(&espalier(&plain)).contains(&format!("{place}prompt is empty")));
    let embed = ["embed", model(), "--file", path.to_str().unwrap(), "--json"];
    assert!(out(&espalier(&embed)).contains(&format!("{place}text is empty")));
    let argument = out(&espalier(&["embed", model(), "one", "", "--json"]));
    assert!(
        argument.contains("argument 2 of 2: the text is empty"),
        "{argument}"
    );
}

#[test]
fn benchmarks_report_speed() {
    let bench = |job: &str, more: &[&str]| {
        let mut arguments = vec!["bench", job];
        arguments.extend((job != "attention" && job != "matmul").then(model));
        json(&espalier(&[&arguments[..], more, &["--json"]].concat()))
    };
    let generate = bench("generate", &["--prompt", "8", "--new", "4", "--batch", "2"]);
    assert!(generate["prefill_tokens_per_second"].as_f64().unwrap() > 0.0);
    assert!(generate["decode_tokens_per_second"].as_f64().unwrap() > 0.0);
    assert_eq!(
        (&generate["batch"], &generate["new"]),
        (&2.into(), &4.into())
    );
    for (job, more) in [
        ("train", "--batch"),
        ("lora", "--batch"),
        ("dpo", "--pairs"),
    ] {
        let figures = bench(job, &[more, "2", "--length", "8", "--runs", "1"]);
        assert!(
            figures["tokens_per_second"].as_f64().unwrap() > 0.0,
            "{figures}"
        );
    }
    let attention = bench(
        "attention",
        &["--length", "70", "--heads", "2", "--runs", "1"],
    );
    assert!(attention["gflops"].as_f64().unwrap() > 0.0);
    assert!(
        bench("matmul", &["--rows", "16", "--runs", "1"])["peak_gflops"]
            .as_f64()
            .unwrap()
            > 0.0
    );
    assert_eq!(
        espalier(&["bench", "generate", model(), "--new", "1"])
            .status
            .code(),
        Some(2)
    );
}

#[test]
fn chat_answers_once_or_line_by_line() {
    let once = espalier(&[
        "chat",
        model(),
        "--prompt",
        "two and three?",
        "--max-new-tokens",
        "4",
        "--json",
    ]);
    assert_eq!(once.status.code(), Some(0), "{}", err(&once));
    assert_eq!(json(&once)["role"], "assistant");
    let mut child = command(&[
        "chat",
        model(),
        "--json",
        "--max-new-tokens",
        "4",
        "--quiet",
    ])
    .stdin(Stdio::piped())
    .stdout(Stdio::piped())
    .spawn()
    .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(b"hello\n/reset\n/system be brief\nagain\n/quit\nnever\n")
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        (output.status.code(), out(&output).lines().count()),
        (Some(0), 2)
    );
}

#[test]
fn a_full_context_forgets_the_oldest() {
    let mut child = command(&["chat", model(), "--json", "--max-new-tokens", "3"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all("one two three four\n".repeat(4).as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    assert_eq!(out(&output).lines().count(), 4);
    assert!(
        err(&output).contains("the oldest exchange is left out"),
        "{}",
        err(&output)
    );
    let long = espalier(&["chat", model(), "--prompt", &"word ".repeat(80)]);
    assert_eq!(long.status.code(), Some(1));
    assert!(
        err(&long).contains("the model's context 64; shorten it"),
        "{}",
        err(&long)
    );
}

#[test]
fn inspect_describes_models_and_adapters() {
    let value = json(&espalier(&["inspect", &fixture("qwen3"), "--json"]));
    assert_eq!(
        (&value["family"], &value["dtype"]),
        (&"qwen3".into(), &"f32".into())
    );
    // The file holds each parameter once, in four bytes.
    assert_eq!(
        value["parameters"].as_u64().unwrap() * 4,
        value["file_bytes"].as_u64().unwrap()
    );
    let whole = &value["memory"]["kinds"][0];
    assert_eq!(
        (&whole["format"], &whole["place"]),
        (&"f32".into(), &"owned".into())
    );
    assert_eq!(whole["bytes"], value["file_bytes"]);
    let tiny = espalier(&["inspect", model()]);
    assert!(out(&tiny).contains("attention 2/1 heads of 8, rotary 10000 ← RMSNorm"));
    assert!(
        out(&tiny).contains("<|im_start|>user\n  Hello<|im_end|>"),
        "{}",
        out(&tiny)
    );
}

/// Matrices of a file in bf16 stay there, norms do not.
#[test]
fn inspect_tells_what_stays_in_the_file() {
    use espalier_models::{checkpoint::Dtype, folder};
    let loaded = folder::load(fixture("qwen3").as_ref(), &burn::tensor::Device::flex()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    folder::save(
        &loaded.model,
        folder.path(),
        Some(&loaded.config),
        Dtype::BF16,
    )
    .unwrap();
    let value = json(&espalier(&[
        "inspect",
        folder.path().to_str().unwrap(),
        "--json",
    ]));
    let kinds = value["memory"]["kinds"].as_array().unwrap();
    let kind = |format: &str, place: &str| {
        let same = |kind: &&serde_json::Value| kind["format"] == format && kind["place"] == place;
        kinds.iter().find(same).unwrap()["bytes"].as_u64().unwrap()
    };
    let (mapped, owned) = (kind("bf16", "mapped"), kind("f32", "owned"));
    assert!(mapped > 10 * owned);
    assert_eq!(mapped + owned / 2, value["file_bytes"].as_u64().unwrap());
    assert_eq!(
        mapped + owned,
        value["memory"]["load_bytes"].as_u64().unwrap()
    );
    let embedding = &value["weights"][0];
    assert_eq!(
        (&embedding["name"], &embedding["place"]),
        (&"embedding.weight".into(), &"mapped".into())
    );
}

#[test]
fn worlds_are_generated_and_shown() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sums.jsonl");
    let file = path.to_str().unwrap();
    let made = espalier(&[
        "data", "generate", "g1/2", "--count", "20", "--output", file, "--json",
    ]);
    assert_eq!(json(&made)["count"], 20);
    assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 20);
    let printed = espalier(&["data", "generate", "g1/2", "--count", "20"]);
    assert_eq!(out(&printed), std::fs::read_to_string(&path).unwrap());
    let structure = out(&espalier(&["data", "show", file, "--count", "2"]));
    assert!(structure.contains("record 2: conversation") && !structure.contains("record 3"));
    let shown = out(&espalier(&["data", "show", file, "--tokenizer", model()]));
    assert!(
        shown.contains("<|im_start|>assistant\n⟦") && shown.contains("learned"),
        "{shown}"
    );
    let pairs = espalier(&[
        "data",
        "show",
        "sentence/2",
        "--form",
        "preference",
        "--tokenizer",
        model(),
    ]);
    assert!(out(&pairs).contains("rejected, "), "{}", err(&pairs));
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

/// The only line of JSON for each prompt.
fn generated(arguments: &[&str]) -> Vec<Value> {
    let output = espalier(&[&["generate", model(), "--json"], arguments].concat());
    assert!(output.status.success(), "{}", err(&output));
    let text = out(&output);
    let line = |line: &str| serde_json::from_str(line).unwrap();
    text.lines().map(line).collect()
}

#[test]
fn stop_strings_end_every_kind_of_generation() {
    let prompts = ["the sum of two", "three is five and"];
    for kind in [&["--temperature", "0"][..], &["--beams", "3"]] {
        let common = [&["--max-new-tokens", "24"], kind].concat();
        let whole = generated(&[&prompts[..], &common].concat());
        for (prompt, whole) in prompts.iter().zip(&whole) {
            let text = whole["text"].as_str().unwrap();
            let Some(stop) = text.chars().nth(2).filter(|stop| *stop != '\u{fffd}') else {
                continue;
            };
            let stop = stop.to_string();
            let stopping = [&common[..], &["--stop", &stop]].concat();
            let alone = generated(&[&[*prompt][..], &stopping].concat()).remove(0);
            let both = generated(&[&prompts[..], &stopping].concat());
            let index = prompts.iter().position(|other| other == prompt).unwrap();
            for key in ["text", "tokens", "finish"] {
                assert_eq!(both[index][key], alone[key], "{kind:?}, {key}");
            }
            let kept = alone["text"].as_str().unwrap();
            assert!(!kept.contains(&stop), "{kind:?}: {kept:?} holds {stop:?}");
            if kind[0] == "--temperature" {
                assert_eq!(alone["finish"], "stop");
                assert_eq!(kept, text.split(&stop).next().unwrap());
                assert!(alone["tokens"].as_u64() < whole["tokens"].as_u64());
            }
        }
    }
}

#[test]
fn beams_refuse_what_says_how_tokens_are_drawn() {
    let output = espalier(&["generate", model(), "a", "--beams", "2", "--top-p", "0.5"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(err(&output).contains("--top-p"), "{}", err(&output));
}

#[test]
fn bits_per_byte_count_the_bytes_that_are_scored() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("text.jsonl");
    let text = "the sum of two and three is five ".repeat(20);
    std::fs::write(&path, serde_json::json!({ "text": text }).to_string()).unwrap();
    let path = path.to_str().unwrap();
    let tokenizer = Tokenizer::load(Path::new(model())).unwrap();
    let ids = tokenizer.encode_ids(&text, true).unwrap();
    for length in [16, 40, 1024] {
        let output = espalier(&[
            "--json",
            "eval",
            model(),
            "--data",
            path,
            "--length",
            &length.to_string(),
        ]);
        let figures = &json(&output)["perplexity"];
        let figure = |key: &str| figures[key].as_f64().unwrap();
        let bytes = tokenizer
            .decode(&ids[1..ids.len().min(length)], true)
            .unwrap();
        assert_eq!(figure("bytes"), bytes.len() as f64);
        let bits = figure("tokens") * figure("per_token").log2() / figure("bytes");
        assert!((figure("bits_per_byte") - bits).abs() < 1e-9);
        assert_eq!(
            err(&output).contains("keep their beginning"),
            length < ids.len()
        );
    }
}

#[test]
fn a_plan_tells_of_truncation_and_padding() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("text.jsonl");
    let lines = (0..64).map(|line| {
        let words = 1 + line % 8;
        let text = "five ".repeat(words * words);
        serde_json::json!({ "text": text }).to_string() + "\n"
    });
    std::fs::write(&path, lines.collect::<String>()).unwrap();
    let train = |name: &str, options: &[&str]| {
        let output = folder.path().join(name);
        let arguments = [
            "train",
            "--model",
            model(),
            "--data",
            path.to_str().unwrap(),
            "--objective",
            "pretrain",
            "--output",
            output.to_str().unwrap(),
            "length=48",
            "batch=2",
        ];
        let output = espalier(&[&arguments[..], options].concat());
        assert!(output.status.success(), "{}", err(&output));
        let said = err(&output);
        let of = |start: &str, end: &str| {
            let line = said.lines().find(|line| line.contains(start)).unwrap();
            let from = line.find(start).unwrap() + start.len();
            line[from..].split(end).next().unwrap().to_owned()
        };
        assert!(
            said.contains("records are longer than `length` = 48"),
            "{said}"
        );
        assert_eq!(of("steps, ", ";"), of(" for ", " (planned"), "{said}");
        (of("steps, ", ";"), said)
    };
    let (shuffled, said) = train("shuffled", &["seed=1"]);
    assert!(shuffled.contains("learned") && shuffled.contains("padding"));
    assert!(said.contains("`group_by_length = true`"), "{said}");
    let (grouped, said) = train("grouped", &["seed=1", "group_by_length=true"]);
    assert!(!said.contains("`group_by_length = true`"), "{said}");
    let share = |text: &str| -> u32 {
        let words: Vec<&str> = text.split_whitespace().collect();
        let sign = words.iter().position(|word| *word == "%");
        sign.map_or(0, |sign| words[sign - 1].parse().unwrap())
    };
    assert!(share(&grouped) < share(&shuffled), "{grouped} {shuffled}");
}

/// A copy of the tiny model with this `generation_config.json`.
fn generating(text: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(model()).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    std::fs::write(folder.path().join("generation_config.json"), text).unwrap();
    folder
}

#[test]
fn a_model_generates_as_its_makers_say() {
    let tokenizer = Tokenizer::load(Path::new(model())).unwrap();
    let letter = tokenizer.id("t").unwrap();
    let others: Vec<u32> = (0..tokenizer.vocabulary_size() as u32)
        .filter(|id| *id != letter)
        .collect();
    let generate = |folder: &tempfile::TempDir, more: &[&str]| {
        let path = folder.path().to_str().unwrap();
        let mut arguments = vec![
            "generate",
            path,
            "the sum",
            "--json",
            "--max-new-tokens",
            "3",
        ];
        arguments.extend(more);
        espalier(&arguments)
    };
    let one = generating(&format!(
        "{{\"suppress_tokens\": {others:?}, \"typical_p\": 0.5}}"
    ));
    for more in [&[][..], &["--beams", "2"]] {
        let output = generate(&one, more);
        assert_eq!(json(&output)["text"], "ttt", "{}", err(&output));
        let named = err(&output).matches("left out: `typical_p`").count();
        assert_eq!(named, 1, "{}", err(&output));
        assert_eq!(err(&generate(&one, &[more, &["--quiet"]].concat())), "");
    }
    // Beams are followed unless somebody says how to draw.
    let beams = generating(r#"{"num_beams": 3}"#);
    let own = generate(&beams, &[]);
    let asked = generate(&beams, &["--beams", "3"]);
    assert_eq!(json(&own)["text"], json(&asked)["text"]);
    assert!(err(&own).contains("follows 3 beams"), "{}", err(&own));
    let drawn = generate(&beams, &["--temperature", "0.5"]);
    assert!(drawn.status.success());
    for output in [&asked, &drawn] {
        assert!(!err(output).contains("follows"), "{}", err(output));
    }
    let wrong = generating(r#"{"eos_token_id": "2"}"#);
    let output = espalier(&["generate", wrong.path().to_str().unwrap(), "a"]);
    assert!(
        err(&output).contains("generation_config.json: key `eos_token_id`"),
        "{}",
        err(&output)
    );
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

#[test]
fn texts_beyond_the_context_are_told_of_once() {
    let said = |arguments: &[&str]| err(&espalier(arguments));
    let long = "word ".repeat(80);
    let remark = "go beyond the context of 64 that the model was made for";
    for more in [&[][..], &["--beams", "2"], &["--json"], &["another"]] {
        let arguments = [&["generate", model(), &long, "--max-new-tokens", "2"], more].concat();
        assert_eq!(said(&arguments).matches(remark).count(), 1);
    }
    assert_eq!(said(&["embed", model(), &long]).matches(remark).count(), 1);
    assert!(!said(&["generate", model(), "a", "--max-new-tokens", "2"]).contains(remark));
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data.jsonl");
    std::fs::write(&data, serde_json::json!({ "text": long }).to_string()).unwrap();
    let evaluated = said(&["eval", model(), "--data", data.to_str().unwrap()]);
    assert_eq!(evaluated.matches(remark).count(), 1, "{evaluated}");
}

#[test]
fn one_line_that_is_too_long_does_not_end_a_chat() {
    let mut child = command(&["chat", model(), "--max-new-tokens", "2"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = format!("hello\n{}\nstill here?\n", "word ".repeat(80));
    child
        .stdin
        .take()
        .unwrap()
        .write_all(lines.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", err(&output));
    assert!(out(&output).lines().count() >= 2, "{}", out(&output));
    assert!(
        err(&output).contains("the model's context 64; shorten it")
            && err(&output).contains("without an answer: 1 of the lines, the first of them line 2"),
        "{}",
        err(&output)
    );
    // Nothing that was said before is forgotten for it.
    let before = err(&output);
    let before = before.split("shorten it").next().unwrap();
    assert!(!before.contains("left out"), "{before}");
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

/// What is read twice must be a file: a pipe gives its data once.
#[cfg(unix)]
#[test]
fn pipes_are_no_data() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("data.jsonl");
    let made = Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    let (pipe, output) = (pipe.to_str().unwrap(), folder.path().join("run"));
    let output = output.to_str().unwrap();
    let train = [
        "train",
        "--model",
        model(),
        "--data",
        pipe,
        "--output",
        output,
    ];
    for arguments in [
        &train[..],
        &["eval", model(), "--data", pipe],
        &["data", "show", pipe],
    ] {
        let output = espalier(arguments);
        assert_eq!(output.status.code(), Some(1), "{}", err(&output));
        assert!(
            err(&output).contains("write it to a file first"),
            "{}",
            err(&output)
        );
    }
}

#[test]
fn files_of_other_programs_above_a_model_are_not_read() {
    let above = generating("{}");
    let folder = above.path().join("model");
    std::fs::create_dir(&folder).unwrap();
    for entry in std::fs::read_dir(model()).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
    }
    let elsewhere = r#"[{"path": "other", "type": "sentence_transformers.models.Transformer"}]"#;
    for text in [r#"{"name": "my web app"}"#, "no json", "[3]", elsewhere] {
        std::fs::write(above.path().join("modules.json"), text).unwrap();
        let output = espalier(&["embed", folder.to_str().unwrap(), "hi"]);
        assert_eq!(output.status.code(), Some(0), "{text}: {}", err(&output));
    }
    // A list that names this folder counts, and what is wrong with it is said.
    let own = r#"[{"path": "model", "type": "sentence_transformers.models.Transformer"}, {"path": "x", "type": "x.Unknown"}]"#;
    std::fs::write(above.path().join("modules.json"), own).unwrap();
    let output = espalier(&["embed", folder.to_str().unwrap(), "hi"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(err(&output).contains("modules.json"), "{}", err(&output));
}
