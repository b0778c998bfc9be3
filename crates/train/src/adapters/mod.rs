//! What of the model is trained: everything, or an adapter.

pub mod lora;

use espalier_models::{checkpoint::PeftConfig, families::Family, model::LanguageModel};
use serde::{Deserialize, Serialize};

use crate::Result;

/// The ways to tune, by name: `adapter = { lora = { rank = 16 } }`. Full fine-tuning when a recipe names none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdapterOptions {
    /// A low-rank addition to chosen weights.
    Lora(lora::LoraOptions),
}

impl AdapterOptions {
    /// Attaches fresh adapters and marks them as trained; returns what PEFT calls them.
    ///
    /// # Errors
    /// When an option makes no sense or no module matches.
    pub fn attach(&self, model: &mut LanguageModel, family: &Family, seed: u64) -> Result<PeftConfig> {
        match self {
            Self::Lora(options) => options.attach(model, family, seed),
        }
    }
}
