//! Training and evaluation from the command line: options that go together, and what is refused before work begins.

use std::fs;
use std::path::Path;
use std::process::Output;

use super::{err, espalier, model, out};

/// A file of the lines in a folder.
fn file(folder: &Path, name: &str, lines: &[&str]) -> String {
    let path = folder.join(name);
    fs::write(&path, lines.join("\n")).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Trains the tiny model in a folder of its own.
fn train(folder: &Path, data: &str, more: &[&str]) -> Output {
    let output = folder.join("run");
    let _ = fs::remove_dir_all(&output);
    let output = output.to_str().unwrap();
    let given = [
        "train",
        "--model",
        model(),
        "--data",
        data,
        "--output",
        output,
        "steps=1",
    ];
    espalier(&[&given[..], more].concat())
}

const CHAT: &[&str] = &[r#"{"instruction": "two and three", "output": "five"}"#];
const PAIR: &[&str] = &[r#"{"prompt": "two and three", "chosen": "five", "rejected": "six"}"#];

#[test]
fn options_stand_beside_the_choice_that_they_belong_to() {
    let folder = tempfile::tempdir().unwrap();
    let (chat, pair) = (
        file(folder.path(), "chat.jsonl", CHAT),
        file(folder.path(), "pair.jsonl", PAIR),
    );
    let output = train(
        folder.path(),
        &chat,
        &["--adapter", "lora", "adapter.lora.rank=3"],
    );
    assert!(output.status.success(), "{}", err(&output));
    let adapter = folder.path().join("run/01-train/model/adapter_config.json");
    assert!(fs::read_to_string(adapter).unwrap().contains("\"r\": 3"));
    let recipe = folder.path().join("run/recipe.toml");
    for options in [
        ["--objective=dpo", "objective.dpo.beta=0.25"],
        ["--objective=dpo", "beta=0.25"],
        ["objective.dpo.beta=0.25", "batch=1"],
    ] {
        let output = train(folder.path(), &pair, &options);
        assert!(output.status.success(), "{}", err(&output));
        assert!(fs::read_to_string(&recipe).unwrap().contains("beta = 0.25"));
    }
    let output = train(folder.path(), &chat, &["data.limit=1", "data.form=alpaca"]);
    assert!(output.status.success(), "{}", err(&output));
    assert!(fs::read_to_string(&recipe).unwrap().contains("limit = 1"));
    let output = train(folder.path(), &chat, &["--data", &chat]);
    assert!(err(&output).contains("2 samples"), "{}", err(&output));
    let other = train(
        folder.path(),
        &chat,
        &["--adapter", "lora", "adapter.reft.rank=3"],
    );
    assert_eq!(other.status.code(), Some(2));
    assert!(
        err(&other).contains("it has no key `reft`"),
        "{}",
        err(&other)
    );
}

#[test]
fn adapters_without_modules_or_blocks_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let chat = file(folder.path(), "chat.jsonl", CHAT);
    for (option, words) in [
        (
            "adapter.lora.layers_to_transform=[9]",
            "`layers_to_transform`: 9 is no block of this model, which has 0 to 1",
        ),
        (
            "adapter.lora.target_modules=[]",
            "`target_modules`: the list is empty",
        ),
    ] {
        let output = train(folder.path(), &chat, &["--adapter", "lora", option]);
        assert!(err(&output).contains(words), "{}", err(&output));
        assert!(!output.status.success());
    }
}

#[test]
fn labels_are_classes_or_amounts() {
    let folder = tempfile::tempdir().unwrap();
    let one = file(
        folder.path(),
        "one.jsonl",
        &[
            r#"{"text": "two", "label": "x"}"#,
            r#"{"text": "three", "label": "x"}"#,
        ],
    );
    let numbers = file(
        folder.path(),
        "numbers.jsonl",
        &[
            r#"{"text": "two", "label": 2}"#,
            r#"{"text": "three", "label": 3}"#,
        ],
    );
    let classify = |data: &str, more: &[&str]| {
        let objective = ["--objective", "classify"];
        train(folder.path(), data, &[&objective[..], more].concat())
    };
    let output = classify(&one, &[]);
    assert!(
        !output.status.success() && err(&output).contains("every label is `x`"),
        "{}",
        err(&output)
    );
    let output = classify(&numbers, &[]);
    assert!(
        err(&output).contains("4 classes") && err(&output).contains("are taken for classes"),
        "{}",
        err(&output)
    );
    let output = classify(&numbers, &["config.problem_type=regression"]);
    assert!(
        output.status.success() && err(&output).contains("1 score"),
        "{}",
        err(&output)
    );
    let config = folder.path().join("run/01-train/model/config.json");
    assert!(fs::read_to_string(config).unwrap().contains("regression"));
}

#[test]
fn held_out_data_is_said_once() {
    let folder = tempfile::tempdir().unwrap();
    let chat = file(folder.path(), "chat.jsonl", CHAT);
    for share in ["validation_share=0.5", "validation_count=1"] {
        let output = train(
            folder.path(),
            &chat,
            &[&format!("validation={chat}"), share],
        );
        assert_eq!(output.status.code(), Some(2));
        assert!(
            err(&output).contains("both `validation` and `validation_"),
            "{}",
            err(&output)
        );
    }
}

/// What an evaluation says that is refused; nothing must have been measured.
fn refused(folder: &Path, keys: &str) -> String {
    let text = format!(
        "output = \"run\"\n[[stage]]\nname = \"measure\"\n[stage.evaluate]\nmodel = {:?}\nlimit = 2\n{keys}\n",
        model()
    );
    let recipe = folder.join("recipe.toml");
    fs::write(&recipe, text).unwrap();
    let output = folder.join("run");
    let output = format!("output={}", output.display());
    let found = espalier(&["run", recipe.to_str().unwrap(), &output]);
    assert!(!found.status.success(), "{}{}", out(&found), err(&found));
    assert!(!err(&found).contains("accuracy"), "{}", err(&found));
    err(&found)
}

#[test]
fn what_an_evaluation_needs_is_opened_before_it_measures() {
    let folder = tempfile::tempdir().unwrap();
    let labels = file(
        folder.path(),
        "labels.jsonl",
        &[r#"{"text": "two", "label": 1}"#],
    );
    let tasks = "tasks = [\"g1/1\"]\nsampled_worlds = [\"g1/1\"]\n";
    for (keys, words) in [
        (format!("reward = {:?}", model()), "is no reward model"),
        ("best_of = 4".to_owned(), "name one as `reward`"),
        (
            format!("labels = {labels:?}"),
            "`labels`: the model has no classifier",
        ),
    ] {
        let said = refused(folder.path(), &format!("{tasks}{keys}"));
        assert!(said.contains(words), "{said}");
    }
}

#[test]
fn a_stage_is_run_with_what_it_reads_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let stage = |name: &str, of: &str| {
        format!(
            "[[stage]]\nname = \"{name}\"\nevaluate = {{ model = {of:?}, tasks = [\"g1/1\"], limit = 1 }}\n"
        )
    };
    let data = file(folder.path(), "chat.jsonl", CHAT);
    let tuned = format!(
        "[[stage]]\nname = \"tune\"\ntrain = {{ model = {:?}, objective = \"sft\", data = {data:?}, options = {{ steps = 1 }} }}\n",
        model()
    );
    let text = [
        "output = \"run\"\n",
        &stage("before", model()),
        &tuned,
        &stage("other", "tune"),
        &stage("after", "tune"),
    ]
    .concat();
    let recipe = folder.path().join("recipe.toml");
    fs::write(&recipe, text).unwrap();
    let run = folder.path().join("run");
    let output = format!("output={}", run.display());
    let only = |more: &[&str]| {
        let given = ["run", recipe.to_str().unwrap(), &output];
        espalier(&[&given[..], more].concat())
    };
    let found = only(&["--only", "after"]);
    assert!(found.status.success(), "{}", err(&found));
    let is_done = |name: &str| run.join(name).join("stage.json").is_file();
    let done = ["01-before", "02-tune", "03-other", "04-after"].map(is_done);
    assert_eq!(done, [false, true, false, true]);
    assert!(!run.join("report.html").exists());
    let found = only(&[]);
    assert!(
        err(&found).contains("02 tune: done before"),
        "{}",
        err(&found)
    );
    assert!(is_done("03-other") && run.join("report.html").is_file());
    let found = only(&["--only", "aftr"]);
    assert_eq!(found.status.code(), Some(2));
    assert!(
        err(&found).contains("did you mean `after`?"),
        "{}",
        err(&found)
    );
}
