//! State tuning: what recurrent layers remember before the first token is trained, and nothing else. A few thousand numbers
//! take the place of a prompt; the weights can serve other states beside.
//!
//! Recipe: `state-tuning.toml`. RWKV's authors tune the states of RWKV's heads; here all that a block's mixer remembers is
//! tuned, of any family. It takes larger steps than weights do: a learning rate of 0.01 to 1.

use espalier_models::adapter::{Adapter, FirstStateConfig};
use serde::{Deserialize, Serialize};

use super::{Tuning, Whole};
use crate::{Error, Result};

/// The options of state tuning; there are none yet.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct StateOptions {}

impl Tuning for StateOptions {
    fn adapter(&self) -> Result<Adapter> {
        Ok(Adapter::new(FirstStateConfig {}))
    }

    fn with_modules(&self, _: Vec<String>, whole: Whole) -> Result<Adapter> {
        let fresh = match whole {
            Whole::Vocabulary => "rows of new tokens",
            Whole::Classifier => "a classifier",
        };
        Err(Error::Option {
            key: "adapter",
            reason: format!(
                "state tuning trains no weights, so {fresh} would stay as they begin; tune with `lora`, or without an adapter"
            ),
        })
    }
}
