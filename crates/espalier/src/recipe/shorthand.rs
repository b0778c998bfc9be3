//! Short forms of recipe values: a bare name for a choice without options, a single value for a list of one.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer},
};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

use super::DataOptions;

/// The schema of [`name_or_table`]: that of the choice itself, and the bare names of choices that have options.
pub fn name_or_table_schema<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = T::json_schema(generator);
    let variants = schema.get("oneOf").and_then(Value::as_array);
    let named = |variant: &Value| {
        let name = variant.get("required")?.get(0)?.clone();
        let description = variant.get("description").cloned().unwrap_or_default();
        Some(json!({"type": "string", "const": name, "description": description}))
    };
    let short: Vec<Value> = variants.into_iter().flatten().filter_map(named).collect();
    if let Some(Value::Array(variants)) = schema.get_mut("oneOf") {
        variants.extend(short);
    }
    schema
}

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

/// `"dpo"` means `{ dpo = {} }`; for choices that have no options, the name is all there is.
///
/// # Errors
/// When the name is unknown or the table's options are wrong.
pub fn name_or_table<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    deserializer.deserialize_any(NameOrTable(PhantomData))
}

/// As [`name_or_table`], for a key that may be absent.
///
/// # Errors
/// When the name is unknown or the table's options are wrong.
pub fn optional_name_or_table<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    name_or_table(deserializer).map(Some)
}

struct NameOrTable<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for NameOrTable<T> {
    type Value = T;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("a name such as \"sft\", or a table such as { dpo = { beta = 0.1 } }")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<T, E> {
        let unit = serde_json::Value::String(name.to_owned());
        let table = serde_json::json!({ name: {} });
        let as_table = || T::deserialize(table);
        T::deserialize(unit)
            .or_else(|plain| as_table().map_err(|_| plain))
            .map_err(E::custom)
    }

    fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<T, A::Error> {
        let mut map = Counted {
            entries,
            empty: true,
        };
        let chosen = T::deserialize(MapAccessDeserializer::new(&mut map));
        if chosen.is_err() && map.empty {
            return Err(A::Error::custom(
                "an empty table chooses nothing; expected a name, or a table of one name and its options",
            ));
        }
        let chosen = chosen?;
        match map.next_key::<String>()? {
            None => Ok(chosen),
            Some(second) => Err(A::Error::custom(format!(
                "`{second}` stands beside another choice; give one"
            ))),
        }
    }
}

/// A table that knows whether it has any entry: of an empty one, an enumeration only says that it expected another type.
struct Counted<A> {
    entries: A,
    empty: bool,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Counted<A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, A::Error> {
        let key = self.entries.next_key_seed(seed);
        self.empty &= matches!(key, Ok(None));
        key
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, A::Error> {
        self.entries.next_value_seed(seed)
    }
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
