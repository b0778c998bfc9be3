//! JSON whose objects have every key once.
//!
//! JSON leaves open what a key means that stands twice in an object, and readers differ: most take the last value. In a record that would
//! lose text without a word.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// A value without an object that has a key twice; reading one that has is an error with its place.
#[derive(Debug, PartialEq)]
pub(super) struct Unambiguous(pub Value);

impl<'de> Deserialize<'de> for Unambiguous {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue).map(Self)
    }
}

struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("any JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Unambiguous(item)) = items.next_element()? {
            list.push(item);
        }
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if map.contains_key(&key) {
                let key: String = key.chars().take(40).collect();
                return Err(A::Error::custom(format!(
                    "the key `{key}` stands twice in an object; keep one of them"
                )));
            }
            let Unambiguous(value) = entries.next_value()?;
            map.insert(key, value);
        }
        Ok(map.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn read(text: &str) -> Result<Value, String> {
        let read = serde_json::from_str(text).map(|Unambiguous(value)| value);
        read.map_err(|error| error.to_string())
    }

    #[test]
    fn a_key_that_stands_twice_is_named_with_its_place() {
        let same = json!([{"a": 1, "b": {"a": [null, true, -2, 0.5, "x"]}}, {"a": 3}]);
        assert_eq!(read(&same.to_string()), Ok(same));
        assert_eq!(
            read("{\"a\": 1,\n\"a\": 1}").unwrap_err(),
            "the key `a` stands twice in an object; keep one of them at line 2 column 3"
        );
        let inner = r#"{"messages": [{"role": "user", "content": "x", "role": "user"}]}"#;
        assert!(read(inner).unwrap_err().starts_with("the key `role`"));
        // An escape is the same key all the same.
        assert!(read(r#"{"a": 1, "\u0061": 2}"#).is_err());
    }

    proptest! {
        #[test]
        fn everything_else_is_read_as_always(text in r#"[\[\]{}:,"a-c0-9.\-\\nulltrue ]{0,30}"#) {
            match (serde_json::from_str::<Value>(&text), read(&text)) {
                (Ok(value), Ok(own)) => prop_assert_eq!(value, own),
                (Ok(_), Err(reason)) => prop_assert!(reason.contains("stands twice"), "{}", reason),
                (Err(_), own) => prop_assert!(own.is_err()),
            }
        }
    }
}
