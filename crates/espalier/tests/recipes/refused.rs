//! Keys that would be ignored, and values that make no sense, are refused before anything runs.

use std::fs;

use espalier::recipe::{Recipe, document};

use super::{NEW, TINY, attempt, command, complaint, two_stages};

/// A recipe of one training stage with these lines in its table.
fn train(lines: &str) -> String {
    format!("output = 'run'\n[[stage]]\nname = 'a'\n[stage.train]\n{lines}\n")
}

const USUAL: &str = "model = 'm'\nobjective = 'sft'\ndata = 'd'\n";

#[test]
fn keys_that_would_be_ignored() {
    let data = |data: &str| {
        train(&format!(
            "model = 'm'\nobjective = 'sft'\ndata = {{ {data} }}"
        ))
    };
    let objective = |objective: &str| train(&USUAL.replace("'sft'", objective));
    let cases = [
        (
            train(&format!("{USUAL}{NEW}")),
            "stage `a`: the stage has both `model` and `new`; give one",
        ),
        (
            train(&format!(
                "objective = 'sft'\ndata = 'd'\nconfig = {{ bidirectional = true }}\n{NEW}"
            )),
            "stage `a`: `config` changes keys of a model that there is already; those of a new one belong into `new.config`",
        ),
        (
            objective("{ dpo = {}, mlm = {} }"),
            "stands beside another choice; give one",
        ),
        (
            objective("{}"),
            "6:13: `objective`: an empty table chooses nothing",
        ),
        (
            train(&format!("{USUAL}adapter = {{ lora = {{}}, state = {{}} }}")),
            "stands beside another choice; give one",
        ),
        (
            data("path = 'd', mistakes = 0.5"),
            "`mistakes` is a key of a world, but the source is a file (`path`)",
        ),
        (
            data("path = 'd', split = 'val'"),
            "`split` is a key of a world",
        ),
        (data("path = 'd', seed = 1"), "`seed` is a key of a world"),
        (data("path = 'd', as = 'text'"), "`as` is a key of a world"),
        (
            data("world = 'g8', form = 'text'"),
            "`form` is a key of a file, but the source is a world (`world`)",
        ),
        (
            data("world = 'g8', columns = { text = 'body' }"),
            "`columns` is a key of a file",
        ),
        (
            data("world = 'g8', skip_malformed = true"),
            "`skip_malformed` is a key of a file",
        ),
        (
            data("world = 'g8', path = 'd'"),
            "a data source has `path` and `world`; give one",
        ),
    ];
    let folder = tempfile::tempdir().unwrap();
    for (text, expected) in cases {
        let message = complaint(folder.path(), &text, &[]);
        assert!(message.contains(expected), "{text}\n{message}");
    }
    assert!(!folder.path().join("run").exists());
}

#[test]
fn values_that_make_no_sense() {
    let cases = [
        (
            "objective={ dpo = { beta = 0 } }",
            "`beta`: 0 is not a positive number",
        ),
        (
            "objective={ mlm = { masked = 2.0 } }",
            "shares lie between 0 and 1",
        ),
        (
            "objective={ simcse = { temperature = nan } }",
            "`temperature` must be positive",
        ),
        (
            "objective={ span_corruption = { density = 1.0 } }",
            "`density` lies between 0 and 1",
        ),
        (
            "objective={ infilling = { share = 0.0 } }",
            "`share` lies between 0 and 1",
        ),
        (
            "adapter={ lora = { alpha = -1.0 } }",
            "`alpha`: -1 is not a positive number",
        ),
        (
            "adapter={ lora = { alpha = nan } }",
            "`alpha`: NaN is not a positive number",
        ),
        (
            "adapter={ lora = { rank = 0 } }",
            "`rank`: 0 is outside 1 to 65536",
        ),
        (
            "epochs=nan",
            "`epochs`: NaN is not above 0 and at most 1000000",
        ),
        (
            "steps=99999999999999999999999",
            "found `99999999999999999999999`, which is too large",
        ),
    ];
    let folder = tempfile::tempdir().unwrap();
    for (change, expected) in cases {
        let message = complaint(folder.path(), &train(USUAL), &[change]);
        assert!(
            message.contains(expected) && message.starts_with("override `"),
            "{change}\n{message}"
        );
    }
    let upcycle = "output = 'run'\n[[stage]]\nname = 'u'\nupcycle = { model = 'm', ";
    for (key, shown) in [
        ("noise = inf", "`noise`: inf"),
        ("balance = nan", "`balance`: NaN"),
        ("noise = -0.1", "`noise`: -0.1"),
    ] {
        let message = complaint(folder.path(), &format!("{upcycle}{key} }}\n"), &[]);
        assert!(
            message.contains(&format!("{shown} is outside 0 to 1000")),
            "{message}"
        );
    }
    let new = format!("{TINY}[[stage]]\nname = 'a'\n[stage.train]\n{NEW}\n");
    let message = complaint(folder.path(), &new, &["stage.a.train.new.heads=3"]);
    assert!(message.contains("`heads` must divide `width`"), "{message}");
    assert!(!folder.path().join("run").exists());
}

#[test]
fn stages_that_do_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let repeat = "output = 'run'\n[[stage]]\nname = 'r'\nrepeat = { times = 2, stage = [] }\n";
    let message = complaint(here, repeat, &[]);
    assert!(
        message.contains("`stage`: a repetition needs at least one stage"),
        "{message}"
    );
    let evaluate = "output = 'run'\n[[stage]]\nname = 'e'\nevaluate = { model = 'm' }\n";
    let message = complaint(here, evaluate, &[]);
    assert!(
        message.contains("stage `e`: the stage measures nothing; give one of `tasks`, `data`"),
        "{message}"
    );
    let like = format!(
        "{}[[stage]]\nname = 'b'\nlike = 'r'\n",
        repeat.replace("[]", "[{ name = 'x', evaluate = { model = 'm' } }]")
    );
    let message = complaint(here, &like, &[]);
    assert!(
        message.contains("7:8: `like`: `r` is a repetition; name one of its stages"),
        "{message}"
    );
}

#[test]
fn perplexity_of_nothing_is_no_figure() {
    let folder = tempfile::tempdir().unwrap();
    let output = attempt(
        folder.path(),
        &two_stages(),
        &["stage.b.evaluate.from=1000"],
    );
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("no token is left whose perplexity could be measured"),
        "{said}"
    );
}

#[test]
fn what_a_stage_says_replaces_the_inherited_alternative() {
    let text = "output = 'o'\n[defaults.train]\nobjective = 'sft'\ndata = { world = 'g8', as = 'text', limit = 4 }\n\
        [[stage]]\nname = 'a'\ntrain.new.layers = 1\n\
        [[stage]]\nname = 'b'\nlike = 'a'\ntrain = { model = 'm', data = { path = 'd' } }\n";
    let recipe: Recipe = document::parse(text, "recipe.toml", &[]).unwrap();
    let written = toml::Table::try_from(&recipe).unwrap();
    let second = &written["stage"][1]["train"];
    assert!(second.get("new").is_none());
    assert_eq!(second["model"].as_str(), Some("m"));
    assert_eq!(second["data"][0]["path"].as_str(), Some("d"));
    assert!(second["data"][0].get("limit").is_none() && second["data"][0].get("world").is_none());
}

#[test]
fn overrides_find_stages_of_repetitions_and_say_where_keys_stand() {
    let text = "output = 'o'\n[[stage]]\nname = 'e'\nevaluate = { model = 'm' }\n\
        [[stage]]\nname = 'r'\nrepeat = { times = 1, stage = [{ name = 'tune', train = { model = 'm', objective = 'sft', data = 'd' } }] }\n\
        [[stage]]\nname = 't'\ntrain = { model = 'm', objective = 'sft', data = 'd' }\n";
    let change = "stage.tune.train.options.batch=3".to_owned();
    let recipe: Recipe = document::parse(text, "recipe.toml", &[change]).unwrap();
    let written = toml::Table::try_from(&recipe).unwrap();
    assert_eq!(
        written["stage"][1]["train"]["options"]["batch"].as_integer(),
        Some(3)
    );
    for (key, place) in [
        ("beta2", "stage.2.train.options.beta2"),
        ("shots", "stage.0.evaluate.shots"),
    ] {
        let error = document::parse::<Recipe>(text, "recipe.toml", &[format!("{key}=1")]);
        let error = error.unwrap_err().to_string();
        assert!(error.contains(&format!("as in `{place}`")), "{error}");
    }
}

#[test]
fn a_short_quickstart_replaces_no_whole_run() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("run")).unwrap();
    let whole = include_str!("../../../../recipes/quickstart.toml");
    fs::write(folder.path().join("run/recipe.toml"), whole).unwrap();
    let arguments = ["quickstart", "--short", "--output", "run"];
    let output = command(folder.path(), &arguments).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(
        said.contains("`run` holds a whole run, which `--short` would replace"),
        "{said}"
    );
}
