//! What of the model is trained: everything, or an adapter.

pub mod lora;
pub mod state;

use espalier_models::{adapter::Adapter, families::Family, model::LanguageModel};
use serde::{Deserialize, Serialize};

use crate::Result;

/// The ways to tune, by name: `adapter = { lora = { rank = 16 } }`. Full fine-tuning when a recipe names none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AdapterOptions {
    /// A low-rank addition to chosen weights.
    Lora(lora::LoraOptions),
    /// The states from which recurrent layers start.
    State(state::StateOptions),
}

impl AdapterOptions {
    /// Attaches fresh adapters and marks them as trained; returns what their folder will say.
    ///
    /// # Errors
    /// When an option makes no sense or no module of the model can have one.
    pub fn attach(&self, model: &mut LanguageModel, family: &Family, seed: u64) -> Result<Adapter> {
        match self {
            Self::Lora(options) => options.attach(model, family, seed).map(Adapter::LowRank),
            Self::State(options) => options.attach(model).map(Adapter::FirstState),
        }
    }
}
