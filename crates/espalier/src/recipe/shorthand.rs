//! Short forms of recipe values: a bare name for a choice without options, a single value for a list of one.

use std::fmt;

pub use espalier_train::choice::{name_or_table, name_or_table_schema, optional_name_or_table};
use schemars::{Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer},
};
use serde_json::{Value, json};

use super::DataOptions;

/// The schema of [`one_or_many`].
pub fn one_or_many_schema(generator: &mut SchemaGenerator) -> Schema {
    let one = json!([
        {"type": "string", "description": "A file of records."},
        generator.subschema_for::<DataOptions>(),
    ]);
    let mut several = one.clone();
    if let Value::Array(several) = &mut several {
        several.push(json!({"type": "array", "items": {"anyOf": one}}));
    }
    json_schema!({"anyOf": several})
}

/// A path, a table, or a list of these.
///
/// # Errors
/// When a key is unknown or a value has the wrong type.
pub fn one_or_many<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<DataOptions>, D::Error> {
    deserializer.deserialize_any(OneOrMany)
}

struct OneOrMany;

impl<'de> Visitor<'de> for OneOrMany {
    type Value = Vec<DataOptions>;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("a path, a table such as { world = \"g8\" }, or a list of these")
    }

    fn visit_str<E: Error>(self, path: &str) -> Result<Self::Value, E> {
        Ok(vec![DataOptions {
            path: Some(path.into()),
            ..DataOptions::default()
        }])
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        DataOptions::deserialize(MapAccessDeserializer::new(map)).map(|data| vec![data])
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Self::Value, A::Error> {
        let mut all = Vec::new();
        while let Some(Element(mut some)) = sequence.next_element()? {
            all.append(&mut some);
        }
        Ok(all)
    }
}

/// One element of a list of data sources.
struct Element(Vec<DataOptions>);

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        one_or_many(deserializer).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use espalier_train::objectives::ObjectiveOptions;

    use crate::stages::train::TrainStage;

    fn train(body: &str) -> TrainStage {
        toml::from_str(body).unwrap()
    }

    #[test]
    fn short_and_long_forms_mean_the_same() {
        let short = train("model = 'm'\nobjective = 'dpo'\nadapter = 'lora'\ndata = 'a.jsonl'");
        let long = train(
            "model = 'm'\nobjective = { dpo = {} }\nadapter = { lora = {} }\ndata = [{ path = 'a.jsonl' }]",
        );
        assert_eq!(short, long);
        let mixed = train(
            "model = 'm'\nobjective = 'sft'\ndata = ['a.jsonl', { world = 'g8', limit = 5 }]",
        );
        assert_eq!(mixed.data[1].limit, Some(5));
        assert_eq!(mixed.objective, ObjectiveOptions::Sft(Default::default()));
    }

    #[test]
    fn unknown_names_are_errors() {
        let error = toml::from_str::<TrainStage>("model = 'm'\nobjective = 'sfft'\ndata = 'a'")
            .unwrap_err();
        assert!(
            error.message().contains("unknown variant `sfft`"),
            "{}",
            error.message()
        );
        let error =
            toml::from_str::<TrainStage>("model = 'm'\nobjective = 'sft'\ndata = { wrld = 'a' }")
                .unwrap_err();
        assert!(
            error.message().contains("unknown field `wrld`"),
            "{}",
            error.message()
        );
    }
}
