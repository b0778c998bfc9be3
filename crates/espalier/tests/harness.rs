//! `espalier eval` beside lm-evaluation-harness 0.4.13 with transformers 5.24: its task files, unchanged, on three small models. The figures
//! and every single answer were measured there (`tests/fixtures/harness/make.py`).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may fail loudly"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures")
}

fn espalier(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_espalier"))
        .args(arguments)
        .env_remove("RUST_BACKTRACE")
        .output()
        .unwrap()
}

fn done(output: Output) -> Output {
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{message}");
    output
}

/// A model of the fixtures with the tokenizer of the harness' run.
fn model(name: &str, folder: &Path) -> String {
    let home = folder.join(name);
    fs::create_dir(&home).unwrap();
    for from in [fixtures().join(name), fixtures().join("harness/tokenizer")] {
        for entry in fs::read_dir(from).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, home.join(path.file_name().unwrap())).unwrap();
        }
    }
    home.to_str().unwrap().to_owned()
}

fn expected() -> Value {
    let text = fs::read_to_string(fixtures().join("harness/expected.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn samples(folder: &Path, task: &str) -> Vec<Value> {
    let text = fs::read_to_string(folder.join(format!("samples_{task}.jsonl"))).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Responses as the harness logs them, one list an item.
fn responses(sample: &Value) -> Vec<Value> {
    match &sample["response"] {
        Value::Object(response) if response.contains_key("texts") => {
            response["texts"].as_array().unwrap().clone()
        }
        response => response["likelihoods"].as_array().unwrap().clone(),
    }
}

fn check_response(own: &Value, theirs: &Value, place: &str) {
    match theirs {
        Value::String(text) => assert_eq!(own, text, "{place}"),
        _ => {
            // Of whole texts the harness gives a number, else a number and whether it is greedy.
            let number = theirs.as_f64().or_else(|| theirs[0].as_f64()).unwrap();
            let found = own["log_probability"].as_f64().unwrap();
            assert!(
                (found - number).abs() < 1e-4 * (1.0 + number.abs()),
                "{place}: {found} {number}"
            );
            if let Some(greedy) = theirs.get(1) {
                assert_eq!(&own["first_choice"], greedy, "{place}");
            }
        }
    }
}

/// Runs the tasks of one call of the harness, and compares all that it logged.
fn compare(name: &str, run: &str, tasks: &[&str], more: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let model = model(name, folder.path());
    let output = folder.path().join("out");
    let (include, data) = (
        fixtures().join("harness/tasks"),
        fixtures().join("harness/data"),
    );
    let places = [
        "--include",
        include.to_str().unwrap(),
        "--data",
        data.to_str().unwrap(),
    ];
    let to = ["--output", output.to_str().unwrap()];
    let said = done(espalier(
        &[
            &["--json", "--quiet", "eval", &model],
            tasks,
            &places,
            &to,
            more,
        ]
        .concat(),
    ));
    let found: Value = serde_json::from_slice(&said.stdout).unwrap();
    let expected = expected();
    let theirs = expected["models"][name][run].as_object().unwrap();
    for (task, theirs) in theirs {
        for (key, value) in theirs["results"].as_object().unwrap() {
            let own = found["results"][task][key].as_f64();
            let own = own.unwrap_or_else(|| panic!("{name} {task} {key}: {found:#}"));
            let value = value.as_f64().unwrap();
            assert!(
                (own - value).abs() < 1e-4 * (1.0 + value.abs()),
                "{name} {task} {key}: {own} {value}"
            );
        }
        let Some(logged) = theirs["responses"].as_array() else {
            continue;
        };
        let own = samples(&output, task);
        assert_eq!(own.len(), logged.len(), "{name} {task}");
        for (number, (own, logged)) in own.iter().zip(logged).enumerate() {
            let place = format!("{name} {task} {number}");
            assert_eq!(
                own["prompt"], expected["prompts"][run][task][number],
                "{place}"
            );
            let (own_responses, logged) = (responses(own), logged.as_array().unwrap());
            assert_eq!(own_responses.len(), logged.len(), "{place}");
            for (own, logged) in own_responses.iter().zip(logged) {
                check_response(own, logged, &place);
            }
            if let Some(filtered) = theirs.get("filtered") {
                let read: Vec<&Value> = own["filtered"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|texts| &texts[0])
                    .collect();
                let filtered: Vec<&Value> = filtered[number].as_array().unwrap().iter().collect();
                assert_eq!(read, filtered, "{place}");
            }
        }
    }
}

/// Includes, templates, choices in lists and in records, functions that are known, a group, whole texts in windows.
const PLAIN: [&str; 6] = [
    "arc_easy",
    "arc_challenge",
    "lambada_openai",
    "wikitext",
    "hellaswag",
    "small_mmlu",
];

#[test]
fn likelihoods_are_the_harness() {
    for name in ["llama", "gpt2", "mamba"] {
        compare(name, "shots None", &PLAIN, &[]);
    }
}

#[test]
fn labelled_examples_are_the_harness() {
    for name in ["llama", "gpt2", "mamba"] {
        compare(
            name,
            "shots 2",
            &["anli_r1", "rte", "arc_easy"],
            &["--shots", "2"],
        );
    }
}

#[test]
fn generated_answers_are_the_harness() {
    for name in ["llama", "gpt2", "mamba"] {
        compare(
            name,
            "gsm8k",
            &["gsm8k"],
            &["--shots", "5", "--max-tokens", "24"],
        );
    }
}

/// The command on one task of the fixtures.
fn on_task(model: &str, task: &str, output: &Path, more: &[&str]) -> Output {
    let (include, data) = (
        fixtures().join("harness/tasks"),
        fixtures().join("harness/data"),
    );
    let places = [
        "--include",
        include.to_str().unwrap(),
        "--data",
        data.to_str().unwrap(),
    ];
    let to = ["--output", output.to_str().unwrap()];
    espalier(
        &[
            &["--json", "--quiet", "eval", model, task],
            &places[..],
            &to,
            more,
        ]
        .concat(),
    )
}

#[test]
fn a_killed_evaluation_goes_on_to_the_same_result() {
    let folder = tempfile::tempdir().unwrap();
    let model = model("llama", folder.path());
    let whole = folder.path().join("whole");
    let first = done(on_task(&model, "arc_easy", &whole, &[]));
    let log = whole.join("responses.jsonl");
    let written = fs::read_to_string(&log).unwrap();
    assert_eq!(written.lines().count(), 24);
    // What a kill leaves: some lines, and the beginning of one.
    let end: usize = written.split_inclusive('\n').take(10).map(str::len).sum();
    fs::write(&log, &written[..end + 20]).unwrap();
    let second = done(on_task(&model, "arc_easy", &whole, &[]));
    assert_eq!(fs::read_to_string(&log).unwrap().lines().count(), 24);
    let figures = |output: &Output| -> Value {
        serde_json::from_slice::<Value>(&output.stdout).unwrap()["results"].clone()
    };
    assert_eq!(figures(&first), figures(&second));
    // Nothing is asked again; another seed of examples or another limit asks for what is new alone.
    done(on_task(&model, "arc_easy", &whole, &["--limit", "5"]));
    assert_eq!(fs::read_to_string(&log).unwrap().lines().count(), 24);
    done(on_task(
        &model,
        "arc_easy",
        &whole,
        &["--limit", "5", "--shots", "1"],
    ));
    assert_eq!(fs::read_to_string(&log).unwrap().lines().count(), 29);
    let page = fs::read_to_string(whole.join("report.html")).unwrap();
    assert!(page.contains("arc_easy") && page.contains("✗ wrong") && page.contains("✓ right"));
    let results: Value =
        serde_json::from_str(&fs::read_to_string(whole.join("results.json")).unwrap()).unwrap();
    for pointer in [
        "/revision",
        "/settings/dtype",
        "/settings/seed",
        "/shots_seed",
        "/versions/espalier",
        "/tasks/0/prompts",
    ] {
        assert!(
            results
                .pointer(pointer)
                .is_some_and(|value| !value.is_null()),
            "{pointer}"
        );
    }
}

#[test]
fn two_models_are_compared_item_by_item() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (folder.path().join("one"), folder.path().join("other"));
    done(on_task(
        &model("gpt2", folder.path()),
        "arc_easy",
        &one,
        &[],
    ));
    let llama = model("llama", folder.path());
    let against = ["--against", one.to_str().unwrap()];
    let output = done(on_task(&llama, "arc_easy", &other, &against));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let compared = &found["comparisons"][0];
    assert_eq!(
        (&compared["task"], &compared["items"]),
        (&"arc_easy".into(), &24.into())
    );
    let marks = |folder: &Path| -> Vec<f64> {
        samples(folder, "arc_easy")
            .iter()
            .map(|sample| sample["marks"]["acc,none"].as_f64().unwrap())
            .collect()
    };
    let (first, second) = (marks(&one), marks(&other));
    let gained = first.iter().zip(&second).filter(|(a, b)| b > a).count();
    let lost = first.iter().zip(&second).filter(|(a, b)| b < a).count();
    let own = found["comparisons"]
        .as_array()
        .unwrap()
        .iter()
        .find(|row| row["figure"] == "acc,none")
        .unwrap();
    assert_eq!(own["only"], serde_json::json!([gained, lost]));
    let difference = own["difference"].as_f64().unwrap();
    assert!((difference - (gained as f64 - lost as f64) / 24.0).abs() < 1e-12);
    let nothing = on_task(&llama, "rte", &other, &against);
    assert_eq!(nothing.status.code(), Some(2));
}

#[test]
fn what_is_not_supported_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let model = model("llama", folder.path());
    let out = folder.path().join("out");
    let file = folder.path().join("task.yaml");
    let usual = "task: own\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: data.jsonl\ntest_split: test\ndoc_to_text: \"{{q}}\"\ndoc_to_target: \"{{a}}\"\n";
    fs::write(
        folder.path().join("data.jsonl"),
        "{\"q\": \"1?\", \"a\": \"2\"}\n",
    )
    .unwrap();
    for (more, words) in [
        (
            "process_docs: !function utils.process_docs\n",
            "`process_docs: !function utils.process_docs`",
        ),
        (
            "metric_list:\n  - metric: bleurt\n",
            "metric `bleurt` is not supported",
        ),
        (
            "metric_list:\n  - metric: acc\n",
            "metric `acc` does not fit",
        ),
        ("doc_to_image: picture\n", "`doc_to_image`: pictures"),
        ("doc_to_txt: a\n", "unknown field `doc_to_txt`"),
        (
            "generation_kwargs:\n  num_beams: 4\n",
            "`num_beams` is not supported",
        ),
        ("description: \"{{nothing}}\"\n", "undefined"),
        (
            "training_split: train\nnum_fewshot: 1\n",
            "has no split `train`",
        ),
    ] {
        fs::write(&file, format!("{usual}{more}")).unwrap();
        let output = on_task(&model, file.to_str().unwrap(), &out, &[]);
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            !output.status.success() && said.contains(words),
            "{more}: {said}"
        );
    }
    fs::write(&file, usual).unwrap();
    done(on_task(
        &model,
        file.to_str().unwrap(),
        &out,
        &["--max-tokens", "4"],
    ));
    let missing = on_task(&model, "arc_esy", &out, &[]);
    assert_eq!(missing.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&missing.stdout).contains("did you mean `arc_easy`"));
}

/// A model with a checker that never has exactly one right gives no trust; the verdicts are those of both orders.
#[test]
fn a_judge_compares_texts_in_both_orders() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (folder.path().join("one"), folder.path().join("other"));
    let short = ["--max-tokens", "8", "--shots", "0"];
    done(on_task(
        &model("gpt2", folder.path()),
        "gsm8k",
        &one,
        &short,
    ));
    let llama = model("llama", folder.path());
    let judge = model("mamba", folder.path());
    let question = folder.path().join("question.txt");
    fs::write(&question, "{question} a {first} b {second} which?").unwrap();
    let judged = [
        "--against",
        one.to_str().unwrap(),
        "--judge",
        &judge,
        "--judge-question",
        question.to_str().unwrap(),
    ];
    let output = done(on_task(
        &llama,
        "gsm8k",
        &other,
        &[&short[..], &judged].concat(),
    ));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let verdicts = &found["judge"];
    assert_eq!(verdicts["pairs"], 12, "{found:#}");
    let outcomes: Vec<u64> = verdicts["outcomes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|count| count.as_u64().unwrap())
        .collect();
    assert_eq!(outcomes.iter().sum::<u64>(), 12);
    let rate = (outcomes[0] as f64 + outcomes[1] as f64 / 2.0) / 12.0;
    assert!((verdicts["win_rate"].as_f64().unwrap() - rate).abs() < 1e-12);
    assert!(
        fs::read_to_string(other.join("report.html"))
            .unwrap()
            .contains("verdicts")
    );
    let alone = on_task(&llama, "gsm8k", &other, &["--judge", &judge]);
    assert_eq!(alone.status.code(), Some(2));
}
