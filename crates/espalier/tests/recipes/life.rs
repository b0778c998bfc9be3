//! What is run again, what goes on, and what stages leave to each other.

use std::{
    fs,
    thread::sleep,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{NEW, TINY, append, command, complaint, copy, run, skipped, two_stages, weights};

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
fn a_stage_leaves_data_for_later_ones() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = format!(
        "{TINY}[[stage]]\nname = 'a'\n[stage.train]\n{NEW}\nvalidation_share = 0.25\n\
         [[stage]]\nname = 'b'\nevaluate = {{ model = 'a', data = {{ from = 'a.validation' }} }}\n"
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
