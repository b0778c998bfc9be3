//! The JSON Schema (2020-12) of recipes, made from the definitions: for editors, and for the reference of keys.

use schemars::{JsonSchema, Schema, transform::Transform};
use schemars::{SchemaGenerator, generate::SchemaSettings, transform::transform_subschemas};
use serde_json::{Value, json};

use super::written::RecipeFile;

/// The schema of recipe files.
///
/// Keys that a stage needs may come from its defaults or from the stage that it is like, so a kind's table requires none.
///
/// ```
/// let schema = espalier::recipe::schema::schema();
/// let stage = &schema["$defs"]["StageTable"];
/// assert_eq!(stage["additionalProperties"], false);
/// assert!(stage["properties"]["train"].is_object());
/// ```
pub fn schema() -> Value {
    let mut schema = whole();
    let kinds = &schema["$defs"]["Defaults"]["properties"];
    let names: Vec<String> = kinds
        .as_object()
        .into_iter()
        .flat_map(|kinds| kinds.values())
        .filter_map(|kind| Some(reference(kind)?.to_owned()))
        .collect();
    for name in names {
        if let Some(table) = schema["$defs"][&name].as_object_mut() {
            table.remove("required");
        }
    }
    schema
}

/// The schema with the keys that a kind's table requires.
pub(super) fn whole() -> Value {
    of::<RecipeFile>()
}

/// What stands before a key in the table of a kind of stage: nothing, or `options.`; none where the kind has no such key.
pub(super) fn place_of_key(kind: &str, key: &str) -> Option<&'static str> {
    let schema = whole();
    let keys = |table: &Value| {
        schema["$defs"][reference(table)?]["properties"]
            .as_object()
            .cloned()
    };
    let own = keys(&schema["$defs"]["StageTable"]["properties"][kind])?;
    if own.contains_key(key) {
        return Some("");
    }
    let options = keys(own.get("options")?)?;
    options.contains_key(key).then_some("options.")
}

/// Whether a choice by this name, such as `dpo` of `objective`, has an option `key`; `place` is the path of the choice in the table of a kind.
pub(super) fn choice_has(kind: &str, place: &[&str], name: &str, key: &str) -> bool {
    let schema = whole();
    let resolved = |value: &Value| match reference(value) {
        Some(name) => schema["$defs"][name].clone(),
        None => value.clone(),
    };
    let mut table = resolved(&schema["$defs"]["StageTable"]["properties"][kind]);
    for step in place {
        table = resolved(&table["properties"][*step]);
    }
    let variants = table["oneOf"].as_array().into_iter().flatten();
    let mut options = variants.filter_map(|variant| variant["properties"].get(name));
    options.any(|options| resolved(options)["properties"].get(key).is_some())
}

/// A type's schema as recipes write it: TOML has no null, so an optional key is one that may be absent.
fn of<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::draft2020_12()
        .with_transform(WithoutNull)
        .with_transform(WithoutExamples);
    SchemaGenerator::new(settings)
        .into_root_schema_for::<T>()
        .to_value()
}

/// The name of the definition that a schema refers to.
pub(super) fn reference(schema: &Value) -> Option<&str> {
    schema.get("$ref")?.as_str()?.strip_prefix("#/$defs/")
}

#[derive(Debug, Clone)]
struct WithoutNull;

impl Transform for WithoutNull {
    fn transform(&mut self, schema: &mut Schema) {
        transform_subschemas(self, schema);
        match schema.get_mut("default") {
            Some(Value::Null) => drop(schema.remove("default")),
            Some(Value::Object(keys)) => keys.retain(|_, value| !value.is_null()),
            _ => {}
        }
        if let Some(Value::Array(types)) = schema.get_mut("type") {
            types.retain(|name| name != "null");
            if let [only] = &types[..] {
                let only = only.clone();
                schema.insert("type".into(), only);
            }
        }
        let null = json!({"type": "null"});
        if let Some(Value::Array(choices)) = schema.get_mut("anyOf") {
            choices.retain(|choice| *choice != null);
            if let [Value::Object(only)] = &choices[..] {
                let only = only.clone();
                schema.remove("anyOf");
                for (key, value) in only {
                    schema.insert(key, value);
                }
            }
        }
    }
}

/// Descriptions are those of the definitions, whose examples are programs.
#[derive(Debug, Clone)]
struct WithoutExamples;

impl Transform for WithoutExamples {
    fn transform(&mut self, schema: &mut Schema) {
        transform_subschemas(self, schema);
        if let Some(Value::String(text)) = schema.get_mut("description")
            && let Some((words, _)) = text.split_once("```")
        {
            *text = words.trim_end().to_owned();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::recipe::document::inheritance::CHOICES;

    #[test]
    fn keys_that_choose_are_known_to_inheritance() {
        let schema = schema();
        let chooses = |value: &Value| {
            let variants = value["oneOf"].as_array().into_iter().flatten();
            variants
                .into_iter()
                .any(|variant| variant["required"].is_array())
        };
        let definitions = schema["$defs"].as_object().unwrap().values();
        let properties = definitions.filter_map(|table| table["properties"].as_object());
        let choices: BTreeSet<&str> = properties
            .flatten()
            .filter(|(_, value)| chooses(value))
            .map(|(key, _)| key.as_str())
            .collect();
        assert_eq!(choices, CHOICES.iter().copied().collect());
    }

    #[test]
    fn nothing_may_be_null() {
        assert!(!schema().to_string().contains("null"));
    }
}
