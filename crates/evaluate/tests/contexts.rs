//! Choices that are contexts of one answer, as Winogrande's: its published file, and a file that says so by itself.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may fail loudly"
)]

use std::{fs, path::Path};

use espalier_evaluate::tasks::{
    Prompting, Request, Task,
    build::{self, Limit},
    registry::Registry,
};

/// Winogrande's file as lm-evaluation-harness 0.4.13 has it.
const WINOGRANDE: &str = "task: winogrande
dataset_path: winogrande
dataset_name: winogrande_xl
output_type: multiple_choice
training_split: train
validation_split: validation
doc_to_text: !function preprocess_winogrande.doc_to_text
doc_to_target: !function preprocess_winogrande.doc_to_target
doc_to_choice: !function preprocess_winogrande.doc_to_choice
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
";

const RECORDS: &str = r#"{"sentence": "The cup did not fit into the box because _ was too large.", "option1": "the cup", "option2": "the box", "answer": "1"}
{"sentence": "Ann thanked Eve because _ had helped.", "option1": "Ann", "option2": "Eve", "answer": "2"}
"#;

fn task(folder: &Path, text: &str, shots: Option<usize>) -> espalier_evaluate::Result<Task> {
    let home = folder.join("winogrande");
    fs::create_dir_all(home.join("winogrande_xl")).unwrap();
    for split in ["train", "validation"] {
        fs::write(home.join(format!("winogrande_xl/{split}.jsonl")), RECORDS).unwrap();
    }
    let file = home.join("default.yaml");
    fs::write(&file, text).unwrap();
    let definitions = Registry::default().find(file.to_str().unwrap())?;
    let prompting = Prompting {
        shots,
        seed: 1234,
        system: None,
        chat: None,
        multiturn: false,
    };
    build::task(&definitions[0], Some(folder), &prompting, Limit(None))
}

#[test]
fn each_option_stands_before_the_rest_of_the_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let task = task(folder.path(), WINOGRANDE, None).unwrap();
    let request = &task.items[1].request;
    let Request::Choice {
        continuations,
        gold,
        ..
    } = request
    else {
        panic!("{request:?}");
    };
    assert_eq!(request.context(0), "Ann thanked Eve because Ann");
    assert_eq!(request.context(1), "Ann thanked Eve because Eve");
    assert_eq!(continuations, &[" had helped.", " had helped."]);
    assert_eq!(gold, &[1]);
}

#[test]
fn labelled_examples_are_whole_sentences() {
    let folder = tempfile::tempdir().unwrap();
    let task = task(folder.path(), WINOGRANDE, Some(1)).unwrap();
    let sentences = [
        "The cup did not fit into the box because the cup was too large.",
        "Ann thanked Eve because Eve had helped.",
    ];
    for item in &task.items {
        let (prompt, _) = item.request.prompt().split_once("\n\n").unwrap();
        assert!(sentences.contains(&prompt), "{prompt}");
        assert!(item.request.prompt().ends_with("\n\n"));
    }
}

#[test]
fn a_template_of_digits_names_the_right_context() {
    let folder = tempfile::tempdir().unwrap();
    let text = WINOGRANDE
        .replace(
            "!function preprocess_winogrande.doc_to_text",
            "\"{{answer|int - 1}}\"",
        )
        .replace("!function preprocess_winogrande.doc_to_target", "\"it is\"")
        .replace(
            "!function preprocess_winogrande.doc_to_choice",
            "\"{{[option1, option2]}}\"",
        );
    let found = task(folder.path(), &text, None).unwrap();
    assert_eq!(found.items[0].request.context(1), "the box");
    assert_eq!(found.items[0].request.gold(), ["the cup"]);
    let text = text.replace("|int - 1", "|int + 7");
    let error = task(folder.path(), &text, None).unwrap_err().to_string();
    assert!(
        error.contains("gives 8, and there are 2 choices"),
        "{error}"
    );
}
