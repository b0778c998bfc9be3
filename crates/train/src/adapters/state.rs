//! State tuning: what recurrent layers remember before the first token is trained, and nothing else. A few thousand numbers
//! take the place of a prompt; the weights can serve other states beside.
//!
//! Recipe: `state-tuning.toml`. RWKV's authors tune the states of RWKV's heads; here all that a block's mixer remembers is
//! tuned, of any family. It takes larger steps than weights do: a learning rate of 0.01 to 1.

use espalier_models::{
    adapter::{FirstStateConfig, first_state},
    model::LanguageModel,
};
use serde::{Deserialize, Serialize};

use crate::Result;

/// The options of state tuning; there are none yet.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct StateOptions {}

impl StateOptions {
    /// Attaches states of zeros, which change nothing, and marks them as trained.
    ///
    /// # Errors
    /// When the model has no recurrent layers.
    pub fn attach(&self, model: &mut LanguageModel) -> Result<FirstStateConfig> {
        first_state::attach(model)?;
        Ok(FirstStateConfig::default())
    }
}
