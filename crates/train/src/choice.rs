//! A choice with options in a recipe: its bare name, or a table of the name and the options.

use std::{fmt, marker::PhantomData};

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer},
};
use serde_json::{Value, json};

/// The schema of [`name_or_table`]: that of the choice itself, and the bare names of choices whose options may all be left out; one that
/// is given with a text, or cannot do without some option, has none.
pub fn name_or_table_schema<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = T::json_schema(generator);
    let variants = schema.get("oneOf").and_then(Value::as_array);
    let named = |variant: &Value| {
        let name = variant.get("required")?.get(0)?.clone();
        let options = variant.get("properties")?.get(name.as_str()?)?;
        let defined = options
            .get("$ref")
            .and_then(|path| path.as_str()?.rsplit('/').next())
            .and_then(|name| generator.definitions().get(name));
        let options = defined.unwrap_or(options);
        let needed = options.get("required").and_then(Value::as_array);
        let is_needed = needed.is_some_and(|needed| !needed.is_empty());
        if is_needed || options.get("type") == Some(&json!("string")) {
            return None;
        }
        let description = variant.get("description").cloned().unwrap_or_default();
        Some(json!({"type": "string", "const": name, "description": description}))
    };
    let short: Vec<Value> = variants.into_iter().flatten().filter_map(named).collect();
    if let Some(Value::Array(variants)) = schema.get_mut("oneOf") {
        variants.extend(short);
    }
    schema
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

/// A list whose elements are as [`name_or_table`] reads them; a single one may stand for itself.
///
/// # Errors
/// When a name is unknown or a table's options are wrong.
pub fn names_or_tables<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    deserializer.deserialize_any(NamesOrTables(PhantomData))
}

/// The schema of [`names_or_tables`].
pub fn names_or_tables_schema<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    let one = name_or_table_schema::<T>(generator);
    let mut choices = match one.get("oneOf") {
        Some(Value::Array(choices)) => choices.clone(),
        _ => vec![one.clone().to_value()],
    };
    choices.insert(0, json!({"type": "array", "items": one}));
    schemars::json_schema!({"anyOf": choices})
}

struct NamesOrTables<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for NamesOrTables<T> {
    type Value = Vec<T>;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter
            .write_str("a list of names or of tables of one name and its options, or a single one")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Vec<T>, E> {
        Ok(vec![NameOrTable(PhantomData).visit_str(name)?])
    }

    fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<Vec<T>, A::Error> {
        Ok(vec![NameOrTable(PhantomData).visit_map(entries)?])
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Vec<T>, A::Error> {
        let mut all = Vec::new();
        while let Some(Element(element)) = elements.next_element()? {
            all.push(element);
        }
        Ok(all)
    }
}

/// An element of a list.
struct Element<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Element<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        name_or_table(deserializer).map(Self)
    }
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
        let said = |plain: serde_json::Error| {
            as_table().map_err(|full| needed(name, &full.to_string()).unwrap_or(plain.to_string()))
        };
        T::deserialize(unit).or_else(said).map_err(E::custom)
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

/// What is to be said of a bare name whose options cannot all be left out, by the error of its empty table.
fn needed(name: &str, error: &str) -> Option<String> {
    let option = error.strip_prefix("missing field `")?.strip_suffix('`')?;
    Some(format!(
        "`{name}` needs `{option}`; give a table such as {{ {name} = {{ {option} = ... }} }}"
    ))
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
