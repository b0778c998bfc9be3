//! A finished result goes only when the next one is there.

use std::{
    fs,
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{NEW, TINY, command, complaint, run, skipped, two_stages, weights};

/// The names of a run's folders.
fn folders(run: &Path) -> Vec<String> {
    let entries = fs::read_dir(run).unwrap().map(|entry| entry.unwrap());
    let folders = entries.filter(|entry| entry.path().is_dir());
    let mut names: Vec<String> = folders
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

const WHOLE: [&str; 2] = ["01-a", "02-b"];

#[test]
fn a_rerun_that_fails_costs_no_finished_model() {
    let folder = tempfile::tempdir().unwrap();
    let (here, recipe) = (folder.path(), two_stages());
    run(here, &recipe, &[]);
    let before = weights(&here.join("run"));
    fs::write(here.join("wrong.jinja"), "{% if %}").unwrap();
    let failing = ["run", "recipe.toml", "stage.a.train.template=wrong.jinja"];
    let output = command(here, &failing).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("run again to replace run/01-a"), "{said}");
    assert!(weights(&here.join("run")) == before);
    assert_eq!(skipped(&run(here, &recipe, &[]).0), ["a", "b"]);
}

#[test]
fn a_killed_replacement_goes_on_to_the_same_weights() {
    let folder = tempfile::tempdir().unwrap();
    let (here, recipe) = (folder.path(), two_stages());
    let longer = ["steps=60", "defaults.train.options.checkpoint_every=2"];
    run(here, &recipe, &[&longer[..], &["output=whole"]].concat());
    run(here, &recipe, &[]);
    let before = weights(&here.join("run"));
    let arguments = [&["--quiet", "run", "recipe.toml"], &longer[..]].concat();
    let mut child = command(here, &arguments).spawn().unwrap();
    let checkpoints = here.join("run/01-a.partial/checkpoints");
    let is_whole = |entry: std::io::Result<fs::DirEntry>| {
        entry.is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with("step-"))
    };
    let begun = Instant::now();
    while !fs::read_dir(&checkpoints).is_ok_and(|mut entries| entries.any(is_whole)) {
        assert!(begun.elapsed() < Duration::from_secs(120) && child.try_wait().unwrap().is_none());
        sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(weights(&here.join("run")) == before);
    let (said, _) = run(here, &recipe, &longer);
    assert!(said.contains("goes on after step"), "{said}");
    assert!(weights(&here.join("run")) == weights(&here.join("whole")));
    assert_eq!(folders(&here.join("run")), WHOLE);
    assert_eq!(skipped(&run(here, &recipe, &longer).0), ["a", "b"]);
}

#[test]
fn an_exchange_killed_between_its_renamings_is_made_up_for() {
    let folder = tempfile::tempdir().unwrap();
    let (here, recipe) = (folder.path(), two_stages());
    let other = ["learning_rate=2e-3"];
    run(here, &recipe, &[&other[..], &["output=other"]].concat());
    run(here, &recipe, &[]);
    let run_folder = here.join("run");
    fs::rename(run_folder.join("01-a"), run_folder.join("01-a.old")).unwrap();
    fs::rename(here.join("other/01-a"), run_folder.join("01-a.partial")).unwrap();
    let next = fs::read(run_folder.join("01-a.partial/model/model.safetensors")).unwrap();
    // With the keys of the result before, that is back.
    assert_eq!(skipped(&run(here, &recipe, &[]).0), ["a", "b"]);
    // With those of the next one, it is taken as it is.
    let (said, _) = run(here, &recipe, &other);
    assert!(!said.contains("step 1"), "{said}");
    assert!(weights(&run_folder) == next);
    assert_eq!(folders(&run_folder), WHOLE);
}

#[test]
fn a_stage_does_not_read_what_it_replaces() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    run(here, &two_stages(), &[]);
    let before = weights(&here.join("run"));
    let tune = |model: &str, name: &str| {
        format!(
            "{TINY}[[stage]]\nname = '{name}'\ntrain = {{ model = '{model}', adapter = 'lora' }}\n"
        )
    };
    for model in ["run", "run/01-a", "run/01-a/model"] {
        let message = complaint(here, &tune(model, "a"), &[]);
        let expected =
            "stage `a`: it reads `run/01-a/model`, which lies in the folder that it would replace";
        assert!(message.contains(expected), "{message}");
    }
    // An adapter stands on its base.
    run(here, &tune("run", "tune"), &["output=adapter"]);
    let message = complaint(here, &tune("adapter", "a"), &[]);
    assert!(message.contains("01-a/model`, which lies in"), "{message}");
    assert!(weights(&here.join("run")) == before);
}

#[test]
fn a_run_without_a_model_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    fs::create_dir_all(here.join("killed/01-train/checkpoints")).unwrap();
    let recipe = format!("{TINY}[[stage]]\nname = 'a'\ntrain.model = './killed'\n");
    fs::write(here.join("recipe.toml"), &recipe).unwrap();
    let output = command(here, &["run", "recipe.toml", "--json"])
        .output()
        .unwrap();
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    let message = result["error"]["message"].as_str().unwrap();
    assert!(message.contains("no finished run's model/"), "{message}");
}

#[test]
fn an_output_needs_a_name() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = format!("{TINY}[[stage]]\nname = 'a'\n[stage.train]\n{NEW}\n");
    let message = complaint(folder.path(), &recipe, &["output="]);
    assert!(
        message.contains("override `output=`: `output`: the folder's name is empty"),
        "{message}"
    );
}
