//! The schema of recipes and the reference of their keys, as the real binary writes them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may fail loudly"
)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use espalier::recipe::{Recipe, document, schema};
use espalier::train::{
    adapters::AdapterOptions, objectives::ObjectiveOptions, options::TrainOptions,
};
use serde_json::{Value, json};

/// What the binary writes to standard output.
fn written(arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_espalier"));
    String::from_utf8(command.args(arguments).output().unwrap().stdout).unwrap()
}

/// The files of a folder of the repository with an ending.
fn files(folder: &str, ending: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .join(folder);
    let paths = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    paths
        .filter(|path| path.extension().is_some_and(|e| e == ending))
        .collect()
}

/// What a value breaks of a schema, for the words that ours uses.
fn broken(schema: &Value, value: &Value, root: &Value) -> Option<String> {
    if let Some(name) = schema.get("$ref").and_then(Value::as_str) {
        let definition = &root["$defs"][name.strip_prefix("#/$defs/").unwrap()];
        assert!(definition.is_object(), "{name}");
        return broken(definition, value, root);
    }
    let one = |schemas: &Value| {
        let errors = schemas
            .as_array()
            .unwrap()
            .iter()
            .map(|schema| broken(schema, value, root));
        let errors: Vec<String> = errors.collect::<Option<Vec<String>>>()?;
        Some(format!("none of {errors:?}"))
    };
    if let Some(error) = ["anyOf", "oneOf"]
        .iter()
        .find_map(|key| one(schema.get(*key)?))
    {
        return Some(error);
    }
    if schema.get("const").is_some_and(|wanted| wanted != value) {
        return Some(format!("{value} is not {}", schema["const"]));
    }
    if schema
        .get("enum")
        .is_some_and(|all| !all.as_array().unwrap().contains(value))
    {
        return Some(format!("{value} is none of {}", schema["enum"]));
    }
    let fits = match schema.get("type").and_then(Value::as_str) {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("integer") => value.is_u64() || value.is_i64(),
        Some("number") => value.is_number(),
        Some("boolean") => value.is_boolean(),
        Some(other) => panic!("type {other}"),
        None => true,
    };
    if !fits {
        return Some(format!("{value} is no {}", schema["type"]));
    }
    let bound = |key: &str| schema.get(key).and_then(Value::as_f64);
    if let Some(number) = value.as_f64()
        && (bound("minimum").is_some_and(|low| number < low)
            || bound("exclusiveMinimum").is_some_and(|low| number <= low)
            || bound("maximum").is_some_and(|high| number > high)
            || bound("exclusiveMaximum").is_some_and(|high| number >= high))
    {
        return Some(format!("{number} is out of range"));
    }
    if let Some(elements) = value.as_array().filter(|_| schema.get("items").is_some()) {
        return elements
            .iter()
            .find_map(|element| broken(&schema["items"], element, root));
    }
    let table = value.as_object()?;
    let missing = schema
        .get("required")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    if let Some(key) = missing
        .into_iter()
        .find(|key| !table.contains_key(key.as_str().unwrap()))
    {
        return Some(format!("{key} is missing"));
    }
    table
        .iter()
        .find_map(|(key, value)| match schema["properties"].get(key) {
            Some(schema) => broken(schema, value, root).map(|error| format!("{key}: {error}")),
            None if schema.get("additionalProperties") == Some(&json!(false)) => {
                Some(format!("unknown {key}"))
            }
            None => None,
        })
}

#[test]
fn the_schema_accepts_all_recipes_and_no_unknown_key() {
    let schema: Value = serde_json::from_str(&written(&["run", "--schema"])).unwrap();
    assert_eq!(
        schema["$schema"],
        "https://json-schema.org/draft/2020-12/schema"
    );
    let check = |text: &str| {
        let value: Value = toml::from_str(text).unwrap();
        broken(&schema, &value, &schema)
    };
    let recipes = files("recipes", "toml");
    assert!(recipes.len() > 15);
    for path in recipes {
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(check(&text), None, "{}", path.display());
        document::load::<Recipe>(&path, &[]).unwrap();
    }
    let more = "output = 'o'\nseeds = [0, 1]\n[[stage]]\nname = 'r'\n[stage.repeat]\ntimes = 2\nfirst = { a = 'm' }\n\
        [[stage.repeat.stage]]\nname = 'a'\ntrain = { model = 'previous.a', objective = 'dpo', adapter = 'lora', data = ['d', { from = 'x' }] }\n\
        [[stage]]\nname = 'g'\n[stage.train]\nmodel = 'm'\ndata = 'd'\nobjective.grpo.rollout.rewards = ['world', { length = { target = 3 } }]\n";
    assert_eq!(check(more), None);
    for (old, new) in [
        ("objective = 'dpo'", "objectiv = 'dpo'"),
        ("objective = 'dpo'", "objective = 'dppo'"),
        ("objective = 'dpo'", "objective = { dpo = { bta = 1 } }"),
        ("times = 2", "times = 0"),
        ("times = 2", "tmes = 2"),
        ("seeds = [0, 1]", "seeds = [-1]"),
        ("seeds = [0, 1]", "sed = 1"),
        ("from = 'x'", "form = 'x'"),
        ("adapter = 'lora'", "options = { batch = 0 }"),
        // A bare name of what cannot do without options.
        ("['world'", "['command'"),
        ("['world'", "['model'"),
        ("['world'", "['worlds'"),
    ] {
        assert!(more.contains(old));
        assert!(check(&more.replace(old, new)).is_some(), "{new}");
    }
}

#[test]
fn the_reference_of_keys_is_the_definitions() {
    let reference = written(&["run", "--keys"]);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/recipe-keys.md");
    assert!(
        fs::read_to_string(path).unwrap() == reference,
        "docs/recipe-keys.md is not up to date: espalier run --keys > docs/recipe-keys.md"
    );
    let of_training = written(&["train", "--keys"]);
    let row = |key: &str| {
        let line = of_training
            .lines()
            .find(|line| line.starts_with(&format!("| `{key}` |")));
        line.unwrap_or_else(|| panic!("{key}: {of_training}"))
            .to_owned()
    };
    for key in [
        "objective",
        "learning_rate",
        "beta",
        "rank",
        "world",
        "vocabulary",
    ] {
        assert!(reference.contains(&row(key)), "{key}");
    }
    assert!(!of_training.contains("| `retrieval` |"));
    assert!(row("batch").contains("| `8` | at least 1, at most 65536 |"));
    assert!(
        reference
            .lines()
            .all(|line| !line.starts_with("| ") || !line.ends_with("|  |")),
        "a key without a word"
    );
}

#[test]
fn ranges_of_the_schema_are_those_that_are_checked() {
    let schema = schema::schema();
    let properties = schema["$defs"]["TrainOptions"]["properties"]
        .as_object()
        .unwrap();
    let accepted = |key: &str, value: f64| {
        let whole = properties[key]["type"] == "integer";
        let value = if whole {
            json!(value as i64)
        } else {
            json!(value)
        };
        let options = serde_json::from_value::<TrainOptions>(json!({ key: value }));
        options.is_ok_and(|options| options.check().is_ok())
    };
    let mut bounded = 0;
    for (key, property) in properties {
        let bound = |name: &str| property.get(name).and_then(Value::as_f64);
        let step = if property["type"] == "integer" {
            1.0
        } else {
            1e-9
        };
        if let Some(low) = bound("minimum") {
            assert!(
                accepted(key, low) && !accepted(key, low - step),
                "{key} from {low}"
            );
            bounded += 1;
        }
        if let Some(low) = bound("exclusiveMinimum") {
            assert!(
                !accepted(key, low) && accepted(key, low + step),
                "{key} above {low}"
            );
        }
        if let Some(high) = bound("maximum") {
            assert!(
                accepted(key, high) && !accepted(key, high * 1.001),
                "{key} to {high}"
            );
        } else if property["type"] == "number" {
            assert!(
                accepted(key, 1e300),
                "{key} has a limit that the schema does not know"
            );
        }
    }
    assert!(bounded > 15);
}

#[test]
fn what_the_schema_refuses_of_choices_is_refused() {
    let schema = schema::schema();
    let objective = |options: Value| {
        serde_json::from_value::<ObjectiveOptions>(options).is_ok_and(|o| o.check().is_ok())
    };
    let adapter = |options: Value| {
        serde_json::from_value::<AdapterOptions>(options).is_ok_and(|o| o.check().is_ok())
    };
    let mut refused = 0;
    for (definition, name) in [
        ("DpoOptions", "dpo"),
        ("KtoOptions", "kto"),
        ("OrpoOptions", "orpo"),
        ("CpoOptions", "cpo"),
        ("MaskingOptions", "mlm"),
        ("SimcseOptions", "simcse"),
        ("SpanOptions", "span_corruption"),
        ("InfillingOptions", "infilling"),
        ("LoraOptions", "lora"),
    ] {
        let accepted = |options: Value| match name {
            "lora" => adapter(json!({ name: options })),
            _ => objective(json!({ name: options })),
        };
        assert!(accepted(json!({})), "{name}");
        let properties = schema["$defs"][definition]["properties"].as_object();
        for (key, property) in properties.unwrap() {
            let bound = |name: &str| property.get(name).and_then(Value::as_f64);
            let outside = [
                bound("minimum").map(|low| low - 1e-6),
                bound("exclusiveMinimum"),
                bound("maximum").map(|high| high * 1.001),
                bound("exclusiveMaximum"),
            ];
            let numeric = ["number", "integer"].contains(&property["type"].as_str().unwrap_or(""));
            assert!(
                !numeric || outside.iter().any(Option::is_some),
                "{name}.{key} has no range"
            );
            for value in outside.into_iter().flatten() {
                let value = match property["type"] == "integer" {
                    true => json!(value.floor().max(0.0) as u64),
                    false => json!(value),
                };
                assert!(!accepted(json!({ key: value })), "{name}.{key} = {value}");
                refused += 1;
            }
        }
    }
    assert!(refused > 12);
}
