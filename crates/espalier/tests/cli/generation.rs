//! Texts that models write: prompts, samplers, beams, stops, and what `generation_config.json` says.

use std::path::Path;

use espalier::data::tokenizer::Tokenizer;
use serde_json::Value;

use super::{err, espalier, json, model, out};

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

/// A copy of the tiny model with this `generation_config.json`.
pub fn generating(text: &str) -> tempfile::TempDir {
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
        "{{\"suppress_tokens\": {others:?}, \"top_h\": 0.5}}"
    ));
    for more in [&[][..], &["--beams", "2"]] {
        let output = generate(&one, more);
        assert_eq!(json(&output)["text"], "ttt", "{}", err(&output));
        let named = err(&output).matches("left out: `top_h`").count();
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
