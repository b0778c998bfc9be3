//! The language of recipes and the life of a run's folder, through the real binary.
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
    thread::sleep,
    time::{Duration, Instant},
};

use espalier::recipe::{Recipe, document};
use serde_json::Value;

/// What all recipes here share: a fresh model that is trained in no time.
const TINY: &str = r#"
output = "run"
[defaults.train]
objective = "pretrain"
data = { world = "g8", as = "text", limit = 16 }
options = { steps = 1, batch = 2, length = 32, learning_rate = 1e-3 }
[defaults.evaluate]
data = { world = "g8", as = "text", split = "test", limit = 2 }
length = 32
"#;

const NEW: &str = "new = { vocabulary = 300, width = 16, layers = 1, heads = 2, kv_heads = 1, inner = 32, context = 64 }";

/// A recipe of a training stage `a` and its evaluation `b`.
fn two_stages() -> String {
    format!(
        "{TINY}[[stage]]\nname = \"a\"\n[stage.train]\n{NEW}\n[[stage]]\nname = \"b\"\nevaluate.model = \"a\"\n"
    )
}

fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_espalier"));
    command.current_dir(folder).args(arguments);
    command
}

/// Runs a recipe, whatever comes of it.
fn attempt(folder: &Path, recipe: &str, overrides: &[&str]) -> Output {
    fs::write(folder.join("recipe.toml"), recipe).unwrap();
    let arguments = [&["run", "recipe.toml", "--json"], overrides].concat();
    command(folder, &arguments).output().unwrap()
}

/// Runs a recipe; what it said, and its figures.
fn run(folder: &Path, recipe: &str, overrides: &[&str]) -> (String, Value) {
    let output = attempt(folder, recipe, overrides);
    let said = String::from_utf8(output.stderr).unwrap();
    let result = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}{result}");
    (said, serde_json::from_str(&result).unwrap())
}

/// The message of a recipe that is refused.
fn complaint(folder: &Path, recipe: &str, overrides: &[&str]) -> String {
    let output = attempt(folder, recipe, overrides);
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(2), "{result}");
    result["error"]["message"].as_str().unwrap().to_owned()
}

/// The stages that were done before, in order.
fn skipped(said: &str) -> Vec<&str> {
    let lines = said
        .lines()
        .filter_map(|line| line.strip_suffix(": done before"));
    lines.map(|line| line.split(' ').nth(1).unwrap()).collect()
}

fn append(path: &Path, text: &str) {
    let old = fs::read_to_string(path).unwrap_or_default();
    fs::write(path, old + text).unwrap();
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

#[test]
fn what_changed_and_what_stands_on_it_is_run_again() {
    let folder = tempfile::tempdir().unwrap();
    let (here, recipe) = (folder.path(), two_stages());
    assert_eq!(skipped(&run(here, &recipe, &[]).0), [""; 0]);
    assert_eq!(skipped(&run(here, &recipe, &[]).0), ["a", "b"]);
    let commented = format!("# a word\n{recipe}");
    let (said, _) = run(here, &commented, &["defaults.train.options.log_every=3"]);
    assert_eq!(skipped(&said), ["a", "b"]);
    let (said, _) = run(here, &recipe, &["defaults.evaluate.data.limit=3"]);
    assert_eq!(skipped(&said), ["a"]);
    let (said, _) = run(here, &recipe, &["learning_rate=2e-3"]);
    assert_eq!(skipped(&said), [""; 0]);
    assert!(
        said.contains("01 a: its keys, or what it reads, have changed; run again"),
        "{said}"
    );
    // The same work again leaves the same model, so what stands on it stays.
    fs::remove_file(here.join("run/01-a/stage.json")).unwrap();
    fs::remove_dir_all(here.join("run/01-a/checkpoints")).unwrap();
    let (said, _) = run(here, &recipe, &["learning_rate=2e-3"]);
    assert_eq!(skipped(&said), ["b"]);
}

#[test]
fn what_is_lost_or_of_another_version_is_run_again() {
    let folder = tempfile::tempdir().unwrap();
    let (here, recipe) = (folder.path(), two_stages());
    run(here, &recipe, &[]);
    let weights = here.join("run/01-a/model/model.safetensors");
    let before = fs::read(&weights).unwrap();
    fs::remove_file(&weights).unwrap();
    let (said, _) = run(here, &recipe, &[]);
    assert!(
        said.contains("01 a: what it left has changed or is gone; run again"),
        "{said}"
    );
    assert_eq!(skipped(&said), ["b"]);
    assert!(fs::read(&weights).unwrap() == before);
    let record = here.join("run/02-b/stage.json");
    fs::write(&record, "{\"fingerprint\": \"0123\", \"result\": {}}").unwrap();
    let (said, _) = run(here, &recipe, &[]);
    assert!(
        said.contains("02 b: its record is of another version of espalier"),
        "{said}"
    );
    assert_eq!(skipped(&said), ["a"]);
}

#[test]
fn every_file_that_is_read_counts() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    run(here, &two_stages(), &[]);
    copy(&here.join("run/01-a/model"), &here.join("base"));
    fs::write(
        here.join("data.jsonl"),
        "{\"text\": \"one two\"}\n{\"text\": \"three\"}\n",
    )
    .unwrap();
    fs::write(here.join("chat.jinja"), "{{ messages[0].content }}").unwrap();
    let recipe = "output = 'second'\n[[stage]]\nname = 'tune'\n[stage.train]\nmodel = 'base'\nobjective = 'pretrain'\n\
        adapter = 'lora'\ndata = 'data.jsonl'\ntemplate = 'chat.jinja'\noptions = { steps = 1, batch = 1, length = 16 }\n\
        [[stage]]\nname = 'test'\nevaluate = { model = 'tune', data = { world = 'g8', as = 'text', limit = 1 }, length = 16 }\n";
    run(here, recipe, &[]);
    assert_eq!(skipped(&run(here, recipe, &[]).0), ["tune", "test"]);
    for (file, text) in [
        ("base/config.json", "\n"),
        ("base/generation_config.json", "\n"),
        ("base/tokenizer.json", "\n"),
        ("base/tokenizer_config.json", "\n"),
        ("base/special_tokens_map.json", "\n"),
        ("base/added_tokens.json", "\n"),
        ("base/chat_template.jinja", "{{ messages }}"),
        ("data.jsonl", "{\"text\": \"four\"}\n"),
        ("chat.jinja", "."),
    ] {
        let path = here.join(file);
        match path.exists() || !file.ends_with(".json") {
            true => append(&path, text),
            false => fs::write(&path, "{}").unwrap(),
        }
        let (said, _) = run(here, recipe, &[]);
        assert!(!skipped(&said).contains(&"tune"), "{file}: {said}");
        assert_eq!(
            skipped(&run(here, recipe, &[]).0),
            ["tune", "test"],
            "{file}"
        );
    }
    let weights = here.join("base/model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let last = bytes.len() - 4;
    bytes[last..].copy_from_slice(&0.25f32.to_le_bytes());
    fs::write(&weights, bytes).unwrap();
    assert_eq!(skipped(&run(here, recipe, &[]).0), [""; 0]);
}

#[test]
fn an_input_that_is_missing_costs_no_finished_work() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    run(here, &two_stages(), &[]);
    copy(&here.join("run/01-a/model"), &here.join("base"));
    let recipe = format!("{TINY}[[stage]]\nname = 'tune'\ntrain.model = 'base'\n");
    run(here, &recipe, &["output=second"]);
    fs::rename(here.join("base"), here.join("away")).unwrap();
    let message = complaint(here, &recipe, &["output=second"]);
    assert!(
        message.contains("model `base` is not a folder"),
        "{message}"
    );
    assert!(here.join("second/01-tune/model/model.safetensors").exists());
    fs::rename(here.join("away"), here.join("base")).unwrap();
    assert_eq!(skipped(&run(here, &recipe, &["output=second"]).0), ["tune"]);
}

#[test]
fn stages_inherit_and_the_nearer_word_counts() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let recipe = format!(
        "{TINY}[[stage]]\nname = 'a'\n[stage.train]\n{NEW}\noptions = {{ steps = 2, warmup = 1 }}\n\
         [[stage]]\nname = 'b'\nlike = 'a'\ntrain.options.warmup = 2\ntrain.new.width = 32\n"
    );
    run(here, &recipe, &[]);
    let resolved: Recipe = document::load(&here.join("run/recipe.toml"), &[]).unwrap();
    let text = toml::to_string(&resolved.stage[1]).unwrap();
    let table: toml::Table = toml::from_str(&text).unwrap();
    let (train, options) = (&table["train"], &table["train"]["options"]);
    assert_eq!(options["warmup"].as_float(), Some(2.0), "of the stage");
    assert_eq!(train["new"]["width"].as_integer(), Some(32), "of the stage");
    assert_eq!(
        options["steps"].as_integer(),
        Some(2),
        "of the one that it is like"
    );
    assert_eq!(
        train["new"]["heads"].as_integer(),
        Some(2),
        "of the one that it is like"
    );
    assert_eq!(options["batch"].as_integer(), Some(2), "of the defaults");
    // Overrides reach the defaults and single stages, by number and by name.
    let overrides = [
        "defaults.train.options.batch=1",
        "stage.b.train.options.warmup=0",
        "stage.0.train.options.steps=1",
    ];
    run(here, &recipe, &overrides);
    let text = fs::read_to_string(here.join("run/recipe.toml")).unwrap();
    let table: toml::Table = toml::from_str(&text).unwrap();
    let options = |stage: usize| &table["stage"][stage]["train"]["options"];
    assert_eq!(
        (
            options(0)["batch"].as_integer(),
            options(1)["batch"].as_integer()
        ),
        (Some(1), Some(1))
    );
    assert_eq!(
        (
            options(0)["steps"].as_integer(),
            options(1)["steps"].as_integer()
        ),
        (Some(1), Some(1))
    );
    assert_eq!(
        (
            options(0)["warmup"].as_float(),
            options(1)["warmup"].as_float()
        ),
        (Some(1.0), Some(0.0))
    );
}

#[test]
fn another_choice_replaces_the_inherited_one() {
    let text = "output = 'o'\n[defaults.train]\nmodel = 'm'\ndata = 'd'\nobjective = { dpo = { beta = 0.2 } }\n\
        [[stage]]\nname = 'a'\ntrain.objective = { dpo = { sft_weight = 1.0 } }\n\
        [[stage]]\nname = 'b'\ntrain.objective = { simcse = { temperature = 0.1 } }\n\
        [[stage]]\nname = 'c'\ntrain.objective = 'sft'\n";
    let recipe: Recipe = document::parse(text, "recipe.toml", &[]).unwrap();
    let written = toml::Table::try_from(&recipe).unwrap();
    let objective = |stage: usize| &written["stage"][stage]["train"]["objective"];
    assert_eq!(objective(0)["dpo"]["beta"].as_float(), Some(0.2));
    assert_eq!(objective(0)["dpo"]["sft_weight"].as_float(), Some(1.0));
    assert!(objective(1).get("dpo").is_none());
    assert!(objective(2).get("sft").is_some() && objective(2).get("dpo").is_none());
}

#[test]
fn what_is_wrong_is_shown_with_its_line() {
    let stage =
        "[[stage]]\nname = 'a'\n[stage.train]\nmodel = 'm'\nobjective = 'sft'\ndata = 'd'\n";
    let repeat = |times: &str| {
        let body = "[[stage.repeat.stage]]\nname = 'tune'\ntrain = { model = 'm', objective = 'sft', data = 'd' }\n";
        format!("[[stage]]\nname = 'r'\n[stage.repeat]\ntimes = {times}\n{body}")
    };
    let cases = [
        (
            format!("[defaults.train]\nlearning_rte = 1\n{stage}"),
            "3:1: unknown key `learning_rte`",
        ),
        (
            format!("[defaults.train.options]\nlearning_rte = 1\n{stage}"),
            "3:1: unknown key `learning_rte`, did you mean `learning_rate`?",
        ),
        (
            format!("[defaults.evaluate]\nitms = 1\n{stage}"),
            "3:1: unknown key `itms`, did you mean `items`?",
        ),
        (
            format!("[defaults.trian]\n{stage}"),
            "2:11: unknown key `trian`, did you mean `train`? known keys: `train`, `evaluate`, `upcycle`",
        ),
        (
            format!("[defaults.train]\noptions = {{ steps = 'x' }}\n{stage}"),
            "3:21: `steps` expects a whole number",
        ),
        (
            format!("{stage}[[stage]]\nname = 'b'\nlike = 'aa'\n"),
            "10:8: `like`: there is no stage `aa`, did you mean `a`? stages above: `a`",
        ),
        (
            format!("{stage}[[stage]]\nname = 'b'\nlike = 'b'\n"),
            "10:8: `like`: stage `b` cannot be like itself",
        ),
        (
            format!("[[stage]]\nname = 'b'\nlike = 'a'\n{stage}"),
            "4:8: `like`: stage `a` comes later; there is none above",
        ),
        (
            format!("{stage}[[stage]]\nname = 'b'\nlike = 'a'\nevaluate.model = 'a'\n"),
            "the stage has `evaluate` already, so `train` cannot stand beside it",
        ),
        (
            format!("{stage}[[stage]]\nname = 'b'\n"),
            "8:1: the stage does nothing; give one of `train`, `evaluate`, `upcycle`",
        ),
        (
            format!("{stage}[[stage]]\nname = 'b'\nlike = 'a'\ntrain.options.stps = 1\n"),
            "11:15: unknown key `stps`, did you mean `steps`?",
        ),
        (repeat("0"), "5:9: `times`: 0 is outside 1 to 1000"),
        (
            repeat("1000000000000"),
            "5:9: `times`: 1000000000000 is outside 1 to 1000",
        ),
        (
            format!(
                "{stage}[[stage]]\nname = 'tune-2'\nlike = 'a'\n{}",
                repeat("2")
            ),
            "two stages are named `tune-2`",
        ),
        (
            format!("{stage}[[stage]]\nname = 'a'\nlike = 'a'\n"),
            "9:8: two stages are named `a`",
        ),
        (
            format!("seeds = []\n{stage}"),
            "2:9: `seeds`: expected at least one seed",
        ),
        (
            format!("seeds = [1, 2, 1]\n{stage}"),
            "2:9: `seeds`: seed 1 is given twice",
        ),
        (
            format!("seeds = [-1]\n{stage}"),
            "2:10: `seeds` expects a whole number that is not negative",
        ),
    ];
    let folder = tempfile::tempdir().unwrap();
    for (text, expected) in cases {
        let message = complaint(folder.path(), &format!("output = 'run'\n{text}"), &[]);
        assert!(message.contains(expected), "{text}\n{message}");
        assert!(
            message.starts_with("recipe.toml:") && message.contains('^'),
            "{message}"
        );
    }
    let message = complaint(
        folder.path(),
        &format!("output = 'run'\n{stage}"),
        &["defaults.train.stps=1"],
    );
    assert!(
        message.contains("override `defaults.train.stps=1`: unknown key `stps`"),
        "{message}"
    );
}

#[test]
fn references_are_checked_before_anything_runs() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let train = |more: &str| format!("{TINY}[[stage]]\nname = 'a'\n[stage.train]\n{NEW}\n{more}");
    let share = train("validation_share = 0.5\n");
    let plain = train("");
    let stage = |body: &str| format!("[[stage]]\nname = 'b'\n{body}\n");
    for (text, expected) in [
        (
            format!("{plain}{}", stage("evaluate.model = 'b'")),
            "stage `b`: it cannot read what it leaves itself",
        ),
        (
            format!("{}{}", stage("evaluate.model = 'a'"), &plain[TINY.len()..]),
            "stage `b`: it reads `a`, but stage `a` comes later",
        ),
        (
            format!(
                "{plain}{}[[stage]]\nname = 'c'\nevaluate.model = 'b'\n",
                stage("evaluate.model = 'a'")
            ),
            "stage `c`: `b` is a report, not a model",
        ),
        (
            format!(
                "{share}{}",
                stage("evaluate = { model = 'a', data = { from = 'a' } }")
            ),
            "`a` is a model, not a data set",
        ),
        (
            format!("{share}{}", stage("evaluate = { model = 'a.validation' }")),
            "`a.validation` is a data set, not a model",
        ),
        (
            format!(
                "{share}{}",
                stage("evaluate = { model = 'a', data = { from = 'a.validaton' } }")
            ),
            "no stage above leaves `a.validaton`; did you mean `a.validation`?",
        ),
        (
            format!(
                "{plain}{}",
                stage("evaluate = { model = 'a', data = { from = 'a.validation' } }")
            ),
            "no stage above leaves `a.validation`; no stage above leaves a data set",
        ),
        (
            format!(
                "{share}{}",
                stage("evaluate = { model = 'a', data = 'a.validation' }")
            ),
            "what the stage left is `data = { from = \"a.validation\" }`",
        ),
        (
            format!("{plain}{}", stage("evaluate.model = 'previous.a'")),
            "`previous.a` has a meaning inside of `repeat` only",
        ),
    ] {
        let text = if text.contains("output") {
            text
        } else {
            format!("{TINY}{text}")
        };
        // The shared defaults bring data of a world along.
        let text = text.replace(
            "data = { world = \"g8\", as = \"text\", split = \"test\", limit = 2 }\n",
            "",
        );
        let message = complaint(here, &text, &[]);
        assert!(message.contains(expected), "{text}\n{message}");
        assert!(!here.join("run").exists());
    }
    let message = complaint(
        here,
        &two_stages(),
        &["defaults.evaluate.worlds=[\"sentense/2\"]"],
    );
    assert!(message.contains("did you mean `sentence/2`?") && !here.join("run").exists());
    let near = format!(
        "{TINY}[[stage]]\nname = 'model'\n[stage.train]\n{NEW}\n{}",
        stage("evaluate.model = 'modle'")
    );
    let message = complaint(here, &near, &[]);
    assert!(message.contains("did you mean `model`?"), "{message}");
}

#[test]
fn a_stage_leaves_data_for_later_ones() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = format!(
        "{}[[stage]]\nname = 'a'\n[stage.train]\n{NEW}\nvalidation_share = 0.25\n\
         [[stage]]\nname = 'b'\nevaluate = {{ model = 'a', data = {{ from = 'a.validation' }} }}\n",
        TINY.replace(
            "data = { world = \"g8\", as = \"text\", split = \"test\", limit = 2 }\n",
            ""
        )
    );
    let (_, figures) = run(folder.path(), &recipe, &[]);
    let held_out = fs::read_to_string(folder.path().join("run/01-a/validation.jsonl")).unwrap();
    assert_eq!(held_out.lines().count(), 4);
    assert!(figures["b"]["perplexity"]["tokens"].as_u64().unwrap() > 0);
    assert_eq!(skipped(&run(folder.path(), &recipe, &[]).0), ["a", "b"]);
    let (said, _) = run(folder.path(), &recipe, &["validation_share=0.5"]);
    assert_eq!(skipped(&said), [""; 0]);
}

#[test]
fn rounds_start_from_the_one_before() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let recipe = format!(
        "{TINY}[[stage]]\nname = 'a'\n[stage.train]\n{NEW}\n[[stage]]\nname = 'rounds'\n[stage.repeat]\ntimes = 2\n\
         first = {{ tune = 'a' }}\n[[stage.repeat.stage]]\nname = 'tune'\ntrain = {{ model = 'previous.tune' }}\n\
         [[stage.repeat.stage]]\nname = 'test'\nevaluate.model = 'tune'\n[[stage]]\nname = 'last'\nevaluate.model = 'tune'\n"
    );
    let (_, figures) = run(here, &recipe, &[]);
    let names: Vec<&String> = figures.as_object().unwrap().keys().collect();
    assert_eq!(names, ["a", "tune-1", "test-1", "tune-2", "test-2", "last"]);
    let perplexity = |stage: &str| figures[stage]["perplexity"]["per_token"].as_f64().unwrap();
    assert_ne!(perplexity("test-1"), perplexity("test-2"));
    assert_eq!(perplexity("last"), perplexity("test-2"));
    // Two steps one by one from the same start: the second round stands on the first.
    let chained = format!(
        "{TINY}[[stage]]\nname = 'tune'\ntrain.model = 'run/02-tune-1/model'\n[[stage]]\nname = 'test'\nevaluate.model = 'tune'\n"
    );
    let (_, second) = run(here, &chained, &["output=chained"]);
    assert_eq!(
        second["test"]["perplexity"]["per_token"].as_f64(),
        Some(perplexity("test-2"))
    );
    let (said, _) = run(here, &recipe, &["stage.rounds.repeat.times=3"]);
    assert_eq!(
        skipped(&said),
        ["a", "tune-1", "test-1", "tune-2", "test-2"]
    );
}

fn weights(run: &Path) -> Vec<u8> {
    fs::read(run.join("01-a/model/model.safetensors")).unwrap()
}

#[test]
fn seeds_run_the_whole_recipe_and_are_summed_up() {
    let folder = tempfile::tempdir().unwrap();
    let (here, recipe) = (folder.path(), two_stages());
    let (_, plain) = run(here, &recipe, &["output=plain"]);
    let (_, results) = run(here, &recipe, &["seeds=[0, 1, 2]"]);
    let perplexity = |result: &Value| result["b"]["perplexity"]["per_token"].as_f64().unwrap();
    let values = ["0", "1", "2"].map(|seed| perplexity(&results["seeds"][seed]));
    assert_eq!(values[0], perplexity(&plain), "seed 0 is the plain run");
    assert!(values[0] != values[1] && values[1] != values[2]);
    assert!(weights(&here.join("run/seed-0")) == weights(&here.join("plain")));
    assert!(weights(&here.join("run/seed-1")) != weights(&here.join("plain")));
    let figure = &results["summary"]["b"]["perplexity.per_token"];
    let mean = values.iter().sum::<f64>() / 3.0;
    assert!((figure["mean"].as_f64().unwrap() - mean).abs() < 1e-9);
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    assert!((figure["standard_deviation"].as_f64().unwrap() - (squares / 2.0).sqrt()).abs() < 1e-9);
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    assert_eq!(
        (figure["minimum"].as_f64(), figure["runs"].as_u64()),
        (Some(least), Some(3))
    );
    let report = fs::read_to_string(here.join("run/report.html")).unwrap();
    assert!(report.contains("standard deviation") && report.contains("perplexity.per_token"));
    assert!(here.join("run/seed-2/report.html").exists());
    let output = command(here, &["run", "recipe.toml", "seeds=[0, 1, 2]"])
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(skipped(&said), ["a", "b", "a", "b", "a", "b"]);
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(
        table.contains("standard deviation") && table.contains("perplexity.per_token"),
        "{table}"
    );
}

#[test]
fn a_killed_run_of_seeds_goes_on_to_the_same_weights() {
    let folder = tempfile::tempdir().unwrap();
    let (here, recipe) = (folder.path(), two_stages());
    let longer = [
        "seeds=[0, 1]",
        "steps=60",
        "defaults.train.options.checkpoint_every=2",
    ];
    run(here, &recipe, &[&longer[..], &["output=whole"]].concat());
    fs::write(here.join("recipe.toml"), &recipe).unwrap();
    let arguments = [&["--quiet", "run", "recipe.toml"], &longer[..]].concat();
    let mut child = command(here, &arguments).spawn().unwrap();
    let checkpoints = here.join("run/seed-1/01-a/checkpoints");
    let begun = Instant::now();
    let is_whole = |entry: std::io::Result<fs::DirEntry>| {
        entry.is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with("step-"))
    };
    while !fs::read_dir(&checkpoints).is_ok_and(|mut entries| entries.any(is_whole)) {
        assert!(begun.elapsed() < Duration::from_secs(120) && child.try_wait().unwrap().is_none());
        sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!here.join("run/seed-1/01-a/stage.json").exists());
    let (said, _) = run(here, &recipe, &longer);
    assert_eq!(skipped(&said), ["a", "b"], "those of seed 0");
    assert!(said.contains("goes on after step"), "{said}");
    for seed in ["seed-0", "seed-1"] {
        assert!(weights(&here.join("run").join(seed)) == weights(&here.join("whole").join(seed)));
    }
}
