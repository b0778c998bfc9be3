//! A loss by its name, or several with weights: `loss = "sigmoid"`, `loss = { sigmoid = 0.8, bco_pair = 0.2, sft = 1.0 }` (MPO, arXiv
//! 2411.10442).

use std::{collections::BTreeMap, fmt};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{IntoDeserializer, MapAccess, Visitor, value},
};

use super::PairLoss;
use crate::{Error, Result};

/// Losses and their weights.
///
/// ```
/// use espalier_train::objectives::preference::losses::mixture::Mixture;
/// let one: Mixture = serde_json::from_str("\"ipo\"")?;
/// let same: Mixture = serde_json::from_str(r#"{ "ipo": 1.0 }"#)?;
/// assert_eq!(one, same);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Mixture(BTreeMap<PairLoss, f64>);

impl From<PairLoss> for Mixture {
    fn from(loss: PairLoss) -> Self {
        Self(BTreeMap::from([(loss, 1.0)]))
    }
}

impl Mixture {
    /// Every loss with its weight.
    pub fn iter(&self) -> impl Iterator<Item = (PairLoss, f64)> + '_ {
        self.0.iter().map(|(loss, weight)| (*loss, *weight))
    }

    /// Whether a loss is among them for which this holds.
    pub fn any(&self, holds: fn(PairLoss) -> bool) -> bool {
        self.0.keys().copied().any(holds)
    }

    /// Whether all weights make sense.
    ///
    /// # Errors
    /// When there is no loss, or a weight is not a positive number.
    pub fn check(&self) -> Result<()> {
        let wrong = |reason: String| Error::Option {
            key: "loss",
            reason,
        };
        if self.0.is_empty() {
            return Err(wrong("an empty table is no loss; name one".into()));
        }
        match self.0.values().find(|w| !(**w > 0.0 && w.is_finite())) {
            Some(weight) => Err(wrong(format!(
                "the weight {weight} is not a positive number; leave the loss out instead"
            ))),
            None => Ok(()),
        }
    }
}

impl Serialize for Mixture {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.iter().next() {
            Some((loss, 1.0)) if self.0.len() == 1 => loss.serialize(serializer),
            _ => self.0.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Mixture {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NameOrWeights)
    }
}

struct NameOrWeights;

impl<'de> Visitor<'de> for NameOrWeights {
    type Value = Mixture;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("the name of a loss, or a table such as { sigmoid = 1.0, sft = 0.2 }")
    }

    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Mixture, E> {
        let name: value::StrDeserializer<'_, E> = name.into_deserializer();
        PairLoss::deserialize(name).map(Mixture::from)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Mixture, A::Error> {
        BTreeMap::deserialize(value::MapAccessDeserializer::new(map)).map(Mixture)
    }
}

impl JsonSchema for Mixture {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Mixture".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let losses = PairLoss::json_schema(generator);
        let weights = json_schema!({
            "type": "object",
            "propertyNames": losses,
            "additionalProperties": {"type": "number", "exclusiveMinimum": 0.0},
        });
        json_schema!({"anyOf": [losses, weights]})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_tables_come_back() {
        for text in [
            r#""apo_zero""#,
            r#"{"sigmoid":0.8,"bco_pair":0.2,"sft":1.0}"#,
        ] {
            let mixture: Mixture = serde_json::from_str(text).unwrap();
            mixture.check().unwrap();
            assert_eq!(serde_json::to_string(&mixture).unwrap(), text);
        }
    }

    #[test]
    fn what_is_no_loss_is_refused() {
        let read = |text: &str| serde_json::from_str::<Mixture>(text);
        let error = read(r#""sigmoyd""#).unwrap_err().to_string();
        assert!(error.contains("unknown variant `sigmoyd`, expected one of `sigmoid`"));
        assert!(read(r#"{"sigmoyd": 1.0}"#).is_err() && read("1").is_err());
        for text in ["{}", r#"{"hinge": 0.0}"#, r#"{"hinge": -1.0}"#] {
            assert!(read(text).unwrap().check().is_err(), "{text}");
        }
    }
}
