//! Next-token prediction: pre-training (every token) and supervised fine-tuning (the assistant's tokens).
//!
//! `loss = sum_t -log p(x_t | x_<t) / N` over the targets, `N` their number in the whole optimisation step. The two
//! objectives differ in the mask alone, which the encoder derives from the chat template.
//! Recipes: `pretrain.toml`, `sft-lora.toml`.

use espalier_data::random::Random;
use espalier_models::model::LanguageModel;
use serde::{Deserialize, Serialize};

use super::{Batch, Loss, Objective, PackedRows, check_causal, registry::Entry, rows};
use crate::{
    Result,
    batch::{Sample, TokenBatch},
    metrics::{ACCURACY, EXACT_MATCH},
    options::TrainOptions,
};

/// The options of next-token prediction; there are none yet.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct NextTokenOptions {}

/// Pre-training's registration.
pub const PRETRAIN: Entry<NextTokenOptions> = Entry::new(
    &[ACCURACY, EXACT_MATCH],
    PackedRows::Apart,
    |_| Ok(()),
    |_, _| Ok(Box::new(NextToken { name: "pretrain" })),
);

/// Supervised fine-tuning's registration.
pub const SFT: Entry<NextTokenOptions> = Entry::new(
    &[ACCURACY, EXACT_MATCH],
    PackedRows::Apart,
    |_| Ok(()),
    |_, _| Ok(Box::new(NextToken { name: "sft" })),
);

/// Cross-entropy of the next token on the chosen positions.
#[derive(Debug, Clone, Copy)]
pub struct NextToken {
    /// The name under which it was asked for.
    pub name: &'static str,
}

impl Objective for NextToken {
    fn name(&self) -> &'static str {
        self.name
    }

    fn packed_rows(&self) -> PackedRows {
        PRETRAIN.packed_rows
    }

    fn check(&self, model: &LanguageModel, _: &[Sample], _: &TrainOptions) -> Result<()> {
        check_causal(self.name, model)
    }

    fn collate(&self, _: &LanguageModel, samples: &[&Sample], _: &mut Random) -> Result<Batch> {
        Batch::of_targets(TokenBatch::new(&rows(self.name, samples)?), samples)
    }

    fn loss(&self, model: &LanguageModel, batch: &Batch) -> Result<Loss> {
        batch.tokens.loss(model)
    }
}
