//! Tasks in the stages of a recipe: figures with intervals, comparison of two stages, what is read again, resumption, and the page.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may fail loudly"
)]

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;

/// Two models that are trained in no time, and the same tasks for both; the second is compared with the first.
const RECIPE: &str = r#"
output = "run"
[defaults.train]
objective = "pretrain"
data = { world = "g8", as = "text", limit = 16 }
options = { steps = 3, log_every = 1, batch = 2, length = 32, learning_rate = 1e-3 }
[defaults.train.new]
vocabulary = 300
width = 16
layers = 1
heads = 2
kv_heads = 1
inner = 32
context = 2048
[defaults.evaluate]
tasks = ["colours.yaml", "g1/1"]
sampled_worlds = ["g1/1"]
limit = 6
[[stage]]
name = "small"
train = {}
[[stage]]
name = "evaluate-small"
evaluate.model = "small"
[[stage]]
name = "other"
train.options.seed = 7
[[stage]]
name = "evaluate-other"
evaluate = { model = "other", against = "evaluate-small" }
"#;

const TASK: &str = "task: colours\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: colours.jsonl\ntest_split: test\n\
    output_type: multiple_choice\ndoc_to_text: \"{{question}}\"\ndoc_to_choice: [\"red\", \"green\"]\ndoc_to_target: \"{{gold}}\"\n";

fn records(right: usize) -> String {
    let line = |number: usize| {
        format!("{{\"question\": \"The colour {number} is\", \"gold\": {right}}}\n")
    };
    (0..8).map(line).collect()
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("recipe.toml"), RECIPE).unwrap();
    fs::write(folder.path().join("colours.yaml"), TASK).unwrap();
    fs::write(folder.path().join("colours.jsonl"), records(0)).unwrap();
    folder
}

fn command(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_espalier"));
    command
        .current_dir(folder)
        .args(arguments)
        .output()
        .unwrap()
}

/// Runs the recipe: what it said, and what it wrote.
fn run(folder: &Path, more: &[&str]) -> (String, String) {
    let output = command(folder, &[&["run", "recipe.toml"], more].concat());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    (said, String::from_utf8(output.stdout).unwrap())
}

fn figures(folder: &Path) -> Value {
    serde_json::from_str(&run(folder, &["--json"]).1).unwrap()
}

#[test]
fn tasks_of_a_stage_have_intervals_and_are_compared() {
    let folder = folder();
    let here = folder.path();
    let (_, table) = run(here, &[]);
    for words in [
        "small",
        "other",
        "colours: acc",
        "g1/1: accuracy",
        "g1/1, sampled: accuracy",
        "95% intervals",
        "% (",
    ] {
        assert!(table.contains(words), "{words}: {table}");
    }
    let found = figures(here);
    let acc = &found["evaluate-small"]["tasks"]["colours"]["acc"];
    let [value, low, high] = ["value", "low", "high"].map(|key| acc[key].as_f64().unwrap());
    assert!(
        low <= value && value <= high && high > low && acc["share"] == true,
        "{acc}"
    );
    let tasks = &found["evaluate-small"]["tasks"];
    assert_eq!(
        (
            tasks["colours"]["items"].as_u64(),
            tasks["g1/1"]["items"].as_u64()
        ),
        (Some(6), Some(6))
    );
    let compared = found["evaluate-other"]["against"]["comparisons"]
        .as_array()
        .unwrap();
    let names: Vec<String> = compared
        .iter()
        .map(|entry| format!("{} {}", entry["task"], entry["figure"]))
        .collect();
    assert!(
        names.iter().any(|name| name.contains("g1/1 sampled"))
            && names.iter().any(|name| name.contains("acc,none")),
        "{names:?}"
    );
    assert_eq!(
        found["evaluate-other"]["against"]["evaluation"],
        "evaluate-small"
    );
    // Every item is kept, the log of answers is not.
    let kept = here.join("run/02-evaluate-small");
    let items = fs::read_to_string(kept.join("samples_g1-1.jsonl")).unwrap();
    assert_eq!(items.lines().count(), 6);
    assert!(kept.join("samples_colours.jsonl").is_file() && !kept.join("responses.jsonl").exists());
    let page = fs::read_to_string(here.join("run/report.html")).unwrap();
    for words in [
        "What was measured",
        "The same questions to each model",
        "Item by item",
        "Curves",
        "All figures of evaluate-small",
        "✗ wrong",
    ] {
        assert!(page.contains(words), "{words}");
    }
    let places = [
        "class=\"cards\"",
        "<table>",
        "class=\"bars\"",
        "<svg",
        "class=\"folded\"",
    ]
    .map(|part| page.find(part).unwrap());
    assert!(places.is_sorted(), "what was found comes first: {places:?}");
}

#[test]
fn what_a_killed_stage_was_answered_is_not_asked_again() {
    let folder = folder();
    let here = folder.path();
    run(here, &["--only", "small"]);
    let log = here.join("run/02-evaluate-small/responses.jsonl");
    let mut changes = 1;
    let mut lines = loop {
        let output = Command::new(env!("CARGO_BIN_EXE_espalier"))
            .current_dir(here)
            .args(["--quiet", "run", "recipe.toml", "--only", "evaluate-small"])
            .env("ESPALIER_FAULT", format!("kill:{changes}"))
            .output()
            .unwrap();
        assert!(
            !output.status.success(),
            "it was done before its log had an answer"
        );
        // The last line may be torn.
        let text = fs::read_to_string(&log).unwrap_or_default();
        let whole = text
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let whole: Vec<Value> = whole.collect();
        if whole
            .iter()
            .any(|line| line["response"]["texts"].is_array())
        {
            break whole;
        }
        changes += 1;
    };
    // What is in the log now is what the figures say.
    let written = lines
        .iter_mut()
        .find(|line| line["response"]["texts"].is_array())
        .unwrap();
    written["response"]["texts"][0] = "from the log".into();
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    fs::write(&log, text).unwrap();
    run(here, &["--only", "evaluate-small"]);
    let items = fs::read_to_string(here.join("run/02-evaluate-small/samples_g1-1.jsonl")).unwrap();
    assert_eq!(
        items.matches("from the log").count(),
        2,
        "the answer, and what was read of it: {items}"
    );
    assert!(!log.exists());
}

#[test]
fn changed_records_are_asked_again() {
    let folder = folder();
    let here = folder.path();
    let whole = figures(here);
    let done = |said: &str, stage: &str| {
        said.lines()
            .any(|line| line.ends_with(&format!("{stage}: done before")))
    };
    let (said, _) = run(here, &[]);
    assert!(
        done(&said, "evaluate-small") && done(&said, "evaluate-other"),
        "{said}"
    );
    fs::write(here.join("colours.jsonl"), records(1)).unwrap();
    let (said, _) = run(here, &[]);
    assert!(
        !done(&said, "evaluate-small") && done(&said, "small"),
        "{said}"
    );
    let turned = figures(here);
    let acc = |found: &Value| {
        found["evaluate-small"]["tasks"]["colours"]["acc"]["value"]
            .as_f64()
            .unwrap()
    };
    assert_eq!(
        acc(&whole) + acc(&turned),
        1.0,
        "the other answer is right now"
    );
    // A task that is not there is told before anything is trained.
    let output = command(
        here,
        &[
            "run",
            "recipe.toml",
            "output=elsewhere",
            "defaults.evaluate.tasks=[\"colour.yaml\"]",
        ],
    );
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(
        said.contains("no task `colour.yaml`") && !here.join("elsewhere").exists(),
        "{said}"
    );
}

#[test]
fn ruler_is_a_task_like_others() {
    let folder = folder();
    let here = folder.path();
    run(here, &["--only", "small"]);
    let eval = |more: &[&str]| {
        let arguments = [
            &[
                "--json",
                "eval",
                "run/01-small/model",
                "--limit",
                "2",
                "--output",
                "out",
            ],
            more,
        ]
        .concat();
        command(here, &arguments)
    };
    let output = eval(&["ruler/niah_single_1@1600"]);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{message}");
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let figure = &found["tasks"][0]["figures"][0];
    assert_eq!(
        (figure["metric"].as_str(), figure["value"].as_f64()),
        (Some("score"), Some(0.0)),
        "{found}"
    );
    assert!(figure["high"].as_f64().unwrap() > 0.0);
    for (task, words) in [
        ("ruler/vt", "have a length in tokens"),
        ("ruler/vs@512", "did you mean `vt`"),
        ("ruler/vt@many", "a number of tokens"),
        ("ruler/vt@16", "take a greater length"),
    ] {
        let output = eval(&[task]);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            !output.status.success() && said.contains(words),
            "{task}: {said}"
        );
    }
}
