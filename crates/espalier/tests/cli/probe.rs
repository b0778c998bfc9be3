//! Probes of long contexts, and the dials of the worlds.

use std::fs;

use espalier::data::random::fnv;
use serde_json::Value;

use super::{err, espalier, fixture, json, model, out};

fn lines(path: &std::path::Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn ruler_is_asked_scored_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let (page, answers) = (folder.path().join("ruler.html"), folder.path().join("kept"));
    let arguments = [
        "probe",
        "ruler",
        model(),
        "--lengths",
        "2500,3000",
        "--tasks",
        "niah_single_1,vt",
        "--samples",
        "2",
        "--json",
        "--report",
        page.to_str().unwrap(),
        "--save",
        answers.to_str().unwrap(),
    ];
    let output = espalier(&arguments);
    let figures = json(&output);
    assert_eq!(figures["tasks"]["vt"]["3000"], 0.0, "{figures}");
    assert_eq!(figures["effective_length"], Value::Null);
    assert_eq!(figures["scores"].as_array().unwrap().len(), 2);
    assert!(
        err(&output).contains("go beyond the context"),
        "{}",
        err(&output)
    );
    let page = fs::read_to_string(page).unwrap();
    assert!(page.contains("niah_single_1") && page.contains("<svg"));
    for line in lines(&answers.join("3000/vt.jsonl")) {
        let length = line["length"].as_u64().unwrap();
        assert!((2400..=3000).contains(&length), "{length}");
        assert!(line["pred"].is_string() && line["outputs"].as_array().unwrap().len() == 5);
    }
}

/// The prompts of the authors' generator, from the command line.
#[test]
fn prompts_alone_need_a_tokenizer_only() {
    let folder = tempfile::tempdir().unwrap();
    let published = fs::read_to_string(format!("{}/expected.json", fixture("ruler"))).unwrap();
    let published: Vec<Value> = serde_json::from_str(&published).unwrap();
    let run = published
        .iter()
        .find(|run| run["task"] == "qa_1" && run["length"] == 2048);
    let tokenizer = fixture("tokenizers/bpe-bytelevel");
    let data = fixture("ruler");
    let arguments = [
        "probe",
        "ruler",
        &tokenizer,
        "--lengths",
        "2048",
        "--tasks",
        "qa_1",
        "--samples",
        "3",
        "--prompts-only",
        "--quiet",
        "--data",
        &data,
        "--save",
        folder.path().to_str().unwrap(),
    ];
    let output = espalier(&arguments);
    assert!(output.status.success(), "{}", err(&output));
    let lines = lines(&folder.path().join("2048/qa_1/validation.jsonl"));
    let hash = |line: &Value| format!("{:016x}", fnv(line["input"].as_str().unwrap()));
    let rows = run.unwrap()["rows"].as_array().unwrap();
    assert_eq!(
        lines.iter().map(hash).collect::<Vec<_>>(),
        rows.iter()
            .map(|row| row["hash"].as_str().unwrap())
            .collect::<Vec<_>>()
    );
}

#[test]
fn needles_become_a_picture() {
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("needles.html");
    let arguments = [
        "probe",
        "needles",
        model(),
        "--lengths",
        "1200,1600,2000",
        "--depths",
        "0,100",
        "--samples",
        "1",
        "--chat",
        "--json",
        "--report",
        page.to_str().unwrap(),
    ];
    let output = espalier(&arguments);
    let figures = json(&output);
    assert_eq!(figures["scores"].as_array().unwrap().len(), 2, "{figures}");
    let page = fs::read_to_string(page).unwrap();
    assert_eq!(page.matches("<rect class=\"series-0").count(), 6);
    assert!(page.contains("2,000") && page.contains("100 %"));
}

#[test]
fn places_of_a_context_are_probed() {
    let arguments = [
        "probe",
        "val",
        model(),
        "--length",
        "2500",
        "--spans",
        "4",
        "--sets",
        "1",
        "--json",
        "--batch",
        "2",
    ];
    let figures = json(&espalier(&arguments));
    let tasks = figures["tasks"].as_array().unwrap();
    let names: Vec<&str> = tasks
        .iter()
        .map(|task| task["task"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["document", "code", "database"]);
    assert!(tasks.iter().all(|task| task["spans"].as_array().unwrap().len() == 4 && task["average"].is_number()));
}

#[test]
fn long_perplexity_counts_key_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text.txt");
    fs::write(&text, "the sum of two and three is five, and so on and on").unwrap();
    let text = text.to_str().unwrap();
    let all = json(&espalier(&[
        "probe",
        "longppl",
        model(),
        text,
        "--short",
        "8",
        "--window",
        "4",
        "--gain",
        "-1000",
        "--loss",
        "1000",
        "--json",
    ]));
    // Every token behind the short context is key where nothing is asked of it.
    assert_eq!(
        all["key_tokens"].as_u64().unwrap() + 7,
        all["tokens"].as_u64().unwrap()
    );
    assert!(all["longppl"].as_f64().unwrap() > 1.0);
    let none = json(&espalier(&["probe", "longppl", model(), text, "--json"]));
    assert_eq!(none["longppl"], Value::Null);
}

#[test]
fn wrong_probes_are_told() {
    let output = espalier(&["probe", "ruler", model(), "--tasks", "vtt"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        err(&output).contains("did you mean `vt`?"),
        "{}",
        err(&output)
    );
    let output = espalier(&[
        "probe",
        "ruler",
        model(),
        "--tasks",
        "vt",
        "--lengths",
        "100",
    ]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        err(&output).contains("take a greater length"),
        "{}",
        err(&output)
    );
    let output = espalier(&["probe", "needles", model(), "--depths", "101"]);
    assert_eq!(output.status.code(), Some(2));
    let output = espalier(&["probe", "val", model(), "--data", "absent"]);
    assert!(
        err(&output).contains("document_sentences.jsonl"),
        "{}",
        err(&output)
    );
}

#[test]
fn worlds_have_dials() {
    let output = espalier(&[
        "data",
        "generate",
        "g5/asc:numbers=12",
        "--count",
        "2",
        "--items",
    ]);
    let first: Value = serde_json::from_str(out(&output).lines().next().unwrap()).unwrap();
    assert_eq!(first["task"], "g5/asc:numbers=12");
    assert_eq!(first["answer"].as_str().unwrap().split(' ').count(), 12);
    let output = espalier(&["data", "generate", "g5/asc:numbers=1"]);
    assert!(
        err(&output).contains("a number from 2 to 64"),
        "{}",
        err(&output)
    );
    let worlds = json(&espalier(&["data", "worlds", "--json"]));
    let first = &worlds["worlds"][0]["tasks"][0];
    assert_eq!(
        (&first["task"], &first["hash"]),
        (&"g1/1".into(), &"ee02ce71e568fad7".into())
    );
    let named = |world: &&Value| world["world"] == "g3";
    let recall = worlds["worlds"]
        .as_array()
        .unwrap()
        .iter()
        .find(named)
        .unwrap();
    assert_eq!(recall["dials"][0]["dial"], "pairs");
}
