//! Next-token prediction: pre-training (every token) and supervised fine-tuning (the assistant's tokens).
//!
//! `loss = sum_t -log p(x_t | x_<t) / N` over the targets, `N` their number in the whole optimisation step. The two
//! objectives differ in the mask alone, which the encoder derives from the chat template.
//! Recipes: `pretrain.toml`, `sft-lora.toml`.

use espalier_models::model::LanguageModel;

use super::{Batch, Loss, Objective};
use crate::{
    Error, Result,
    batch::{Sample, TokenBatch},
};

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

    fn collate(&self, samples: &[&Sample]) -> Result<Batch> {
        let row = |sample: &&Sample| match sample {
            Sample::Row(row) => Ok(row.clone()),
            Sample::Pair(..) => Err(Error::Option {
                key: "objective",
                reason: format!("`{}` learns from texts and conversations, not from preference pairs", self.name),
            }),
        };
        let rows = samples.iter().map(row).collect::<Result<Vec<_>>>()?;
        let tokens = TokenBatch::new(&rows.iter().collect::<Vec<_>>());
        Ok(Batch { units: tokens.targets.len() as f64, tokens, reference: Vec::new() })
    }

    fn loss(&self, model: &LanguageModel, batch: &Batch) -> Result<Loss> {
        let (sum, auxiliary) = batch.tokens.cross_entropy(model)?;
        Ok(Loss::new(sum, batch.units, auxiliary))
    }
}
