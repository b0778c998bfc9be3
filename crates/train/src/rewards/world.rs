//! The reward of a generated world: its checker's verdict, 1 or 0.

use burn::tensor::Device;
use espalier_data::worlds::{self, Item};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Asked, Reward, Source, failed, shortened};
use crate::Result;

/// The options of a world's reward: none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct WorldOptions {}

impl Source for WorldOptions {
    fn check(&self) -> Result<()> {
        Ok(())
    }

    fn build(&self, _: &Device) -> Result<Box<dyn Reward>> {
        Ok(Box::new(WorldReward))
    }
}

/// The checker of the world that a prompt is from.
#[derive(Debug, Clone, Copy)]
pub struct WorldReward;

impl Reward for WorldReward {
    fn score(&mut self, answers: &[Asked<'_>]) -> Result<Vec<Option<f64>>> {
        let verdict = |asked: &Asked<'_>| {
            let item = Item::from_json(asked.record).map_err(|error| {
                let record = shortened(&asked.record.to_string());
                failed(
                    "world",
                    format!("{error}; prompts must be a world's (`data = {{ world = \"addition\" }}`), and this one's record is {record}"),
                )
            })?;
            let right = worlds::check(&item, asked.answer)?;
            Ok(Some(f64::from(u8::from(right))))
        };
        answers.iter().map(verdict).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use espalier_data::worlds::Split;
    use serde_json::{Value, json};

    #[test]
    fn the_checker_decides() {
        let item = worlds::item("addition", Split::Train, 3, 0).unwrap();
        let (record, messages) = (item.to_json(), item.question());
        let score = |answer: &str, record: &Value| {
            let asked = Asked {
                messages: &messages,
                answer,
                tokens: 4,
                record,
            };
            WorldReward.score(&[asked])
        };
        assert_eq!(score(&item.solution, &record).unwrap(), [Some(1.0)]);
        assert_eq!(score("999", &record).unwrap(), [Some(0.0)]);
        let error = score("1", &json!({"prompt": "1+1="}))
            .unwrap_err()
            .to_string();
        assert!(error.contains("has no text `task`"), "{error}");
    }
}
