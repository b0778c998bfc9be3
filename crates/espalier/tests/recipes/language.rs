//! What recipes say, and what is refused with its line.

use std::fs;

use espalier::recipe::{Recipe, document};

use super::{NEW, TINY, complaint, run, two_stages};

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
fn freezing_replaces_an_inherited_adapter_and_an_adapter_freezing() {
    let text = "output = 'o'\n[[stage]]\nname = 'a'\ntrain = { model = 'm', data = 'd', objective = 'sft', adapter = 'lora', validation_share = 0.5 }\n\
        [[stage]]\nname = 'b'\nlike = 'a'\ntrain = { freeze = { layers = 2 }, validation_count = 3 }\n\
        [[stage]]\nname = 'c'\nlike = 'b'\ntrain.adapter.lora.rank = 2\n";
    let recipe: Recipe = document::parse(text, "recipe.toml", &[]).unwrap();
    let written = toml::Table::try_from(&recipe).unwrap();
    let has = |stage: usize, key: &str| written["stage"][stage]["train"].get(key).is_some();
    let found = [0, 1, 2].map(|stage| [has(stage, "adapter"), has(stage, "freeze")]);
    assert_eq!(found, [[true, false], [false, true], [true, false]]);
}

#[test]
fn another_choice_replaces_the_inherited_one() {
    let text = "output = 'o'\n[defaults.train]\nmodel = 'm'\ndata = 'd'\nobjective = { dpo = { beta = 0.2 } }\n\
        [[stage]]\nname = 'a'\ntrain.objective = { dpo = { ld_alpha = 1.0 } }\n\
        [[stage]]\nname = 'b'\ntrain.objective = { simcse = { temperature = 0.1 } }\n\
        [[stage]]\nname = 'c'\ntrain.objective = 'sft'\n";
    let recipe: Recipe = document::parse(text, "recipe.toml", &[]).unwrap();
    let written = toml::Table::try_from(&recipe).unwrap();
    let objective = |stage: usize| &written["stage"][stage]["train"]["objective"];
    assert_eq!(objective(0)["dpo"]["beta"].as_float(), Some(0.2));
    assert_eq!(objective(0)["dpo"]["ld_alpha"].as_float(), Some(1.0));
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
            format!("[defaults.evaluate]\nlimt = 1\n{stage}"),
            "3:1: unknown key `limt`, did you mean `limit`?",
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
            "11:1: the stage has `train` already, so `evaluate` cannot stand beside it",
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
        let message = complaint(here, &text, &[]);
        assert!(message.contains(expected), "{text}\n{message}");
        assert!(!here.join("run").exists());
    }
    let message = complaint(
        here,
        &two_stages(),
        &["defaults.evaluate.tasks=[\"sentense/2\"]"],
    );
    assert!(message.contains("did you mean `sentence/2`?") && !here.join("run").exists());
    let near = format!(
        "{TINY}[[stage]]\nname = 'model'\n[stage.train]\n{NEW}\n{}",
        stage("evaluate.model = 'modle'")
    );
    let message = complaint(here, &near, &[]);
    assert!(message.contains("did you mean `model`?"), "{message}");
}
