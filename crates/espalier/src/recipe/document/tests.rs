use std::collections::BTreeMap;

use proptest::prelude::*;
use serde::Deserialize;

use super::*;

#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct Recipe {
    name: Option<String>,
    stage: Vec<Stage>,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct Stage {
    name: Option<String>,
    train: Option<Train>,
    evaluate: Option<BTreeMap<String, f64>>,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct Train {
    model: String,
    objective: Objective,
    learning_rate: Option<f64>,
    steps: Option<u32>,
    shuffle: Option<bool>,
    layers: Option<Vec<usize>>,
    adapter: Option<Adapter>,
    schedule: Option<Schedule>,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
enum Objective {
    Pretrain,
    Sft,
    Dpo,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Adapter {
    Lora { rank: usize },
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
enum Schedule {
    Cosine { warmup: usize },
}

const INLINE: &str =
    "[[stage]]\ntrain = { model = \"m\", objective = \"sft\", learning_rate = 1e-3 }\n";
const TWO: &str = "[[stage]]\ntrain = { model = \"a\", objective = \"sft\", steps = 1 }\n\
                   [[stage]]\ntrain = { model = \"b\", objective = \"dpo\", steps = 2 }\n";

fn with(text: &str, overrides: &[&str]) -> Result<Recipe, String> {
    let overrides: Vec<String> = overrides.iter().map(|text| text.to_string()).collect();
    parse(text, "recipe.toml", &overrides).map_err(|error| error.to_string())
}

fn train(text: &str, overrides: &[&str]) -> Train {
    with(text, overrides)
        .unwrap()
        .stage
        .remove(0)
        .train
        .unwrap()
}

fn complaint(text: &str) -> String {
    with(text, &[]).unwrap_err()
}

fn override_complaint(text: &str, change: &str) -> String {
    with(text, &[change]).unwrap_err()
}

const KNOWN: &str = "known keys: `model`, `objective`, `learning_rate`, `steps`, `shuffle`, `layers`, `adapter`, `schedule`";

#[test]
fn unknown_keys_show_the_line_and_the_nearest_key() {
    let expected = format!(
        "recipe.toml:4:1: unknown key `learning_rte`, did you mean `learning_rate`? {KNOWN}\n  \
         4 | learning_rte = 1e-4\n    | ^^^^^^^^^^^^"
    );
    assert_eq!(
        complaint("[[stage]]\n[stage.train]\nmodel = \"m\"\nlearning_rte = 1e-4\n"),
        expected
    );
    let expected = format!(
        "recipe.toml:2:11: unknown key `banana`; {KNOWN}\n  \
         2 | train = {{ banana = 1, model = \"m\" }}\n    |           ^^^^^^"
    );
    assert_eq!(
        complaint("[[stage]]\ntrain = { banana = 1, model = \"m\" }\n"),
        expected
    );
    let expected = "recipe.toml:1:1: unknown key `nme`, did you mean `name`? known keys: `name`, `stage`\n  \
                    1 | nme = 1\n    | ^^^";
    assert_eq!(complaint("nme = 1"), expected);
}

#[test]
fn unknown_keys_inside_enumerations_are_found() {
    let text = "[[stage]]\n[stage.train]\nmodel = \"m\"\nobjective = \"sft\"\nadapter = { lora = { rnk = 8 } }\n";
    let expected = "recipe.toml:5:22: unknown key `rnk`, did you mean `rank`? known keys: `rank`\n  \
                    5 | adapter = { lora = { rnk = 8 } }\n    |                      ^^^";
    assert_eq!(complaint(text), expected);
    let text = "[[stage]]\n[stage.train]\nmodel = \"m\"\nobjective = \"sft\"\nschedule = { kind = \"cosine\", warmp = 8 }\n";
    let expected = "recipe.toml:5:31: unknown key `warmp`, did you mean `warmup`? known keys: `warmup`\n  \
                    5 | schedule = { kind = \"cosine\", warmp = 8 }\n    |                               ^^^^^";
    assert_eq!(complaint(text), expected);
}

#[test]
fn unknown_values_get_the_nearest() {
    let expected = "recipe.toml:2:36: unknown value `sftt` for `objective`, did you mean `sft`? \
                    known values: `pretrain`, `sft`, `dpo`\n  \
                    2 | train = { model = \"m\", objective = \"sftt\" }\n    |                                    ^^^^^^";
    assert_eq!(
        complaint("[[stage]]\ntrain = { model = \"m\", objective = \"sftt\" }"),
        expected
    );
}

#[test]
fn wrong_types_say_what_was_expected() {
    let steps = |value: &str| complaint(&format!("[[stage]]\n[stage.train]\nsteps = {value}\n"));
    let expected = |found: &str, value: &str, carets: &str| {
        format!(
            "recipe.toml:3:9: `steps` expects a whole number that is not negative, found {found}\n  \
             3 | steps = {value}\n    |         {carets}"
        )
    };
    assert_eq!(
        steps("\"many\""),
        expected("`\"many\"`", "\"many\"", "^^^^^^")
    );
    assert_eq!(steps("-1"), expected("`-1`", "-1", "^^"));
    assert_eq!(steps("1.5"), expected("`1.5`", "1.5", "^^^"));
    assert_eq!(steps("[1]"), expected("a list", "[1]", "^^^"));
    let train = "recipe.toml:2:9: `train` expects a table `{...}`, found `5`\n  2 | train = 5\n    |         ^";
    assert_eq!(complaint("[[stage]]\ntrain = 5"), train);
    let shuffle = "recipe.toml:2:21: `shuffle` expects `true` or `false`, found `1`\n  \
                   2 | train = { shuffle = 1 }\n    |                     ^";
    assert_eq!(complaint("[[stage]]\ntrain = { shuffle = 1 }"), shuffle);
}

#[test]
fn missing_keys_name_their_table() {
    let expected = "recipe.toml:2:1: missing key `objective` in `stage.train`\n  2 | [stage.train]\n    | ^^^^^^^^^^^^^";
    assert_eq!(
        complaint("[[stage]]\n[stage.train]\nmodel = \"m\"\n"),
        expected
    );
    let expected = "recipe.toml:2:9: missing key `objective` in `stage.train`\n  \
                    2 | train = { model = \"m\" }\n    |         ^^^^^^^^^^^^^^^";
    assert_eq!(
        complaint("[[stage]]\ntrain = { model = \"m\" }\n"),
        expected
    );
    assert_eq!(complaint(""), "recipe.toml:1:1: missing key `stage`");
}

#[test]
fn syntax_errors_show_the_line() {
    let expected = "recipe.toml:2:8: invalid boolean, expected `true`\n  \
                    2 | name = tiny\n    |        ^^^^";
    assert_eq!(complaint("# a\nname = tiny\n"), expected);
    assert_eq!(
        complaint("name = \"a\"\nname = \"b\"\n"),
        "recipe.toml:2:1: duplicate key\n  2 | name = \"b\"\n    | ^^^^"
    );
}

#[test]
fn carets_follow_characters_and_long_lines_are_cut() {
    let expected = format!(
        "recipe.toml:2:24: unknown key `x`; {KNOWN}\n  2 | train = {{ model = \"é\", x = 1 }}\n    | {}^",
        " ".repeat(23)
    );
    assert_eq!(
        complaint("[[stage]]\ntrain = { model = \"é\", x = 1 }"),
        expected
    );
    let long = format!(
        "[[stage]]\ntrain = {{ model = \"{}\", steps = true }}",
        "é".repeat(5000)
    );
    let message = complaint(&long);
    assert!(
        message.starts_with("recipe.toml:2:5031: `steps` expects"),
        "{message}"
    );
    let lines: Vec<&str> = message.lines().collect();
    assert!(lines[1].chars().count() < 130);
    let caret = lines[2].chars().position(|c| c == '^').unwrap();
    assert_eq!(
        lines[1].chars().skip(caret).take(4).collect::<String>(),
        "true"
    );
}

#[test]
fn overrides_take_full_and_short_paths() {
    assert_eq!(
        train(INLINE, &["stage.0.train.learning_rate=1e-4"]).learning_rate,
        Some(1e-4)
    );
    assert_eq!(
        train(INLINE, &["train.learning_rate=1e-4"]).learning_rate,
        Some(1e-4)
    );
    assert_eq!(
        train(INLINE, &["learning_rate=1e-4"]).learning_rate,
        Some(1e-4)
    );
    assert_eq!(
        train(INLINE, &["learning_rate=1e-4", "learning_rate=2"]).learning_rate,
        Some(2.0)
    );
    assert_eq!(
        train(TWO, &["stage.1.train.steps=9", "stage.0.train.steps=7"]).steps,
        Some(7)
    );
}

#[test]
fn overrides_of_absent_keys_go_to_the_only_stage() {
    assert_eq!(train(INLINE, &["steps=5"]).steps, Some(5));
    assert_eq!(train(INLINE, &["train.steps=5"]).steps, Some(5));
    assert_eq!(
        train(INLINE, &["adapter.lora.rank=8"]).adapter,
        Some(Adapter::Lora { rank: 8 })
    );
    assert_eq!(
        train(INLINE, &["train.adapter={lora={rank=4}}", "lora.rank=2"]).adapter,
        Some(Adapter::Lora { rank: 2 })
    );
    assert_eq!(
        override_complaint(TWO, "learning_rate=1"),
        "override `learning_rate=1`: `learning_rate` is in none of the 2 stages; \
         write its whole path, as in `stage.0.train.options.learning_rate`"
    );
    assert_eq!(
        override_complaint(
            "[[stage]]\ntrain = { model = \"m\", objective = \"sft\" }\nevaluate = { a = 1.0 }",
            "learning_rate=1"
        ),
        "override `learning_rate=1`: `learning_rate` is not in the stage; \
         write its whole path, as in `stage.0.train.options.learning_rate`"
    );
}

#[test]
fn overrides_with_several_places_list_them() {
    assert_eq!(
        override_complaint(TWO, "steps=3"),
        "override `steps=3`: `steps` fits several places; write one of `stage.0.train.steps`, `stage.1.train.steps`"
    );
    assert_eq!(
        override_complaint(TWO, "train.shuffle=true"),
        "override `train.shuffle=true`: `train.shuffle` fits several places; \
         write one of `stage.0.train.shuffle`, `stage.1.train.shuffle`"
    );
}

#[test]
fn options_of_a_choice_stand_beside_its_bare_name() {
    let text = "[[stage]]\ntrain = { model = \"m\", objective = \"sft\", adapter = \"lora\" }\n";
    for change in ["adapter.lora.rank=4", "train.adapter.lora.rank=4"] {
        assert_eq!(
            train(text, &[change]).adapter,
            Some(Adapter::Lora { rank: 4 })
        );
    }
    assert_eq!(
        override_complaint(text, "adapter.rank=4"),
        "override `adapter.rank=4`: `stage.0.train.adapter` is `lora`, whose options are set below its name, \
         as `adapter.lora.OPTION=VALUE`; it has no key `rank`"
    );
}

#[test]
fn what_a_stage_has_of_its_own_is_meant_before_what_stands_deeper() {
    const TABLES: &str = "[[stage]]\n[stage.train]\nmodel = \"m\"\nobjective = { grpo = { rewards = [{ length = { target = 4 } }] } }\n";
    let read = |text: &str, change: &str| {
        parse::<toml::Table>(text, "recipe.toml", &[change.to_owned()]).unwrap()["stage"][0]["train"]
            .clone()
    };
    let given = format!("{TABLES}[stage.train.options]\nlength = 64\n");
    let train = read(&given, "length=96");
    assert_eq!(train["options"]["length"].as_integer(), Some(96));
    let reward = |train: &toml::Value| train["objective"]["grpo"]["rewards"][0]["length"].clone();
    assert_eq!(reward(&train)["target"].as_integer(), Some(4));
    // An option that the recipe does not give yet is meant too, and what no stage has is still found deeper.
    let train = read(TABLES, "length=96");
    assert_eq!(train["length"].as_integer(), Some(96));
    assert_eq!(reward(&train)["target"].as_integer(), Some(4));
    let train = read(TABLES, "target=8");
    assert_eq!(reward(&train)["target"].as_integer(), Some(8));
}

#[test]
fn override_values_are_toml_or_text() {
    assert_eq!(train(INLINE, &["shuffle=true"]).shuffle, Some(true));
    assert_eq!(train(INLINE, &["layers=[1, 2]"]).layers, Some(vec![1, 2]));
    assert_eq!(
        train(INLINE, &["layers=[1, 2]", "layers=[3]"]).layers,
        Some(vec![3])
    );
    assert_eq!(
        train(INLINE, &["model=models/tiny-2.gguf"]).model,
        "models/tiny-2.gguf"
    );
    assert_eq!(train(INLINE, &["model=\"quoted\""]).model, "quoted");
    assert_eq!(train(INLINE, &["model=a=b"]).model, "a=b");
    assert_eq!(train(INLINE, &["model="]).model, "");
    assert_eq!(train(INLINE, &["model=x\nsteps = 1"]).model, "x\nsteps = 1");
    assert_eq!(train(INLINE, &["objective=dpo"]).objective, Objective::Dpo);
    assert_eq!(
        with(&format!("name = \"a\"\n{INLINE}"), &["name=b"])
            .unwrap()
            .name
            .as_deref(),
        Some("b")
    );
}

#[test]
fn wrong_overrides_name_themselves() {
    assert_eq!(
        override_complaint(INLINE, "learning_rte=1e-4"),
        format!(
            "override `learning_rte=1e-4`: unknown key `learning_rte`, did you mean `learning_rate`? {KNOWN}"
        )
    );
    assert_eq!(
        override_complaint(INLINE, "steps=many"),
        "override `steps=many`: `steps` expects a whole number that is not negative, found `\"many\"`"
    );
    assert_eq!(
        override_complaint(INLINE, "objective=dppo"),
        "override `objective=dppo`: unknown value `dppo` for `objective`, did you mean `dpo`? \
         known values: `pretrain`, `sft`, `dpo`"
    );
    assert_eq!(
        override_complaint(INLINE, "adapter={lora={rnk=1}}"),
        "override `adapter={lora={rnk=1}}`: unknown key `rnk`, did you mean `rank`? known keys: `rank`"
    );
    assert_eq!(
        override_complaint(INLINE, "model.path=x"),
        "override `model.path=x`: `stage.0.train.model` is a string, so it has no key `path`"
    );
    assert_eq!(
        override_complaint(TWO, "stage.2.train.steps=1"),
        "override `stage.2.train.steps=1`: `stage` is a list of 2, so it has no element `2`"
    );
    assert_eq!(
        override_complaint(INLINE, "steps"),
        "override `steps`: expected `key=value`, as in `train.learning_rate=1e-4`"
    );
    assert_eq!(
        override_complaint(INLINE, "train..steps=1"),
        "override `train..steps=1`: expected `key=value` with dots between the keys, as in `train.learning_rate=1e-4`"
    );
    let deep = format!("{}=1", vec!["a"; 33].join("."));
    assert_eq!(
        override_complaint(INLINE, &deep),
        format!("override `{deep}`: the path has 33 keys, the limit is 32")
    );
}

#[test]
fn files_are_read_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("recipe.toml");
    let outcome = || load::<Recipe>(&path, &[]).map_err(|error| error.to_string());
    assert_eq!(
        outcome().unwrap_err(),
        format!("{}: No such file or directory (os error 2)", path.display())
    );
    std::fs::write(&path, INLINE).unwrap();
    assert_eq!(outcome().unwrap(), with(INLINE, &[]).unwrap());
    std::fs::write(&path, b"name = \"\xff\"").unwrap();
    let expected = format!(
        "{}: not text: the byte at offset 8 is not UTF-8; is this the right file?",
        path.display()
    );
    assert_eq!(outcome().unwrap_err(), expected);
    std::fs::write(&path, vec![b'#'; (1 << 20) + 1]).unwrap();
    let expected = format!(
        "{}: larger than 1048576 bytes, so not a recipe; is this the right file?",
        path.display()
    );
    assert_eq!(outcome().unwrap_err(), expected);
}

proptest! {
    #[test]
    fn arbitrary_text_never_panics(text in ".*", change in ".*") {
        let _ = with(&text, &[&change]);
    }

    #[test]
    fn nearly_valid_text_never_panics(text in "(\\[\\[?(stage|defaults)(\\.train|\\.repeat|\\.repeat\\.stage)?\\]?\\]\n|(stage|train|model|steps|name|like|times|é)(\\.[a-z0])? ?= ?(1|\"é\"|\\[|\\{|\\}|[0-9é.]{1,3}),?\n?){0,8}",
                                      change in "(stage|train|model|steps|[.0é]){1,4}=?([0-9\\[\\]{}=\"é]{0,5})") {
        let _ = with(&text, &[&change, "steps=1"]);
    }

    #[test]
    fn a_broken_recipe_never_panics(cut in 0usize..70, junk in ".{0,3}") {
        let cut = cut.min(INLINE.len());
        let _ = with(&format!("{}{junk}{}", &INLINE[..cut], &INLINE[cut..]), &[]);
    }
}
