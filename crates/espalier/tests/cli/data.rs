//! Data: generated, shown, measured, and planned with.

use std::path::Path;
use std::process::Command;

use espalier::data::tokenizer::Tokenizer;

use serde_json::Value;

use super::{err, espalier, json, model, out};

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
fn records_are_shown_as_an_objective_reads_them() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pairs.jsonl");
    let line = r#"{"prompt": "two and three", "chosen": "five", "rejected": "six"}"#;
    std::fs::write(&path, line).unwrap();
    let shown = |objective: &str| {
        let path = path.to_str().unwrap();
        let arguments = [
            "--json",
            "data",
            "show",
            path,
            "--tokenizer",
            model(),
            "--objective",
            objective,
        ];
        let output = espalier(&arguments);
        assert!(output.status.success(), "{}", err(&output));
        let lines = out(&output);
        let lines = lines
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.collect::<Vec<Value>>()
    };
    let pair = shown("dpo");
    assert!(
        pair[0]["chosen"].is_object() && pair[0]["rejected"].is_object(),
        "{pair:?}"
    );
    let verdicts = shown("kto");
    assert!(
        verdicts[0]["desirable"].is_object() && verdicts[1]["undesirable"].is_object(),
        "{verdicts:?}"
    );
    let prompt = shown("grpo");
    assert_eq!(prompt[0]["learned"], 0, "{prompt:?}");
    assert!(
        !prompt[0]["shown"].as_str().unwrap().contains("five"),
        "{prompt:?}"
    );
    let wrong = espalier(&["data", "show", path.to_str().unwrap(), "--objective", "dpp"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(
        err(&wrong).contains("did you mean `dpo`?"),
        "{}",
        err(&wrong)
    );
}
