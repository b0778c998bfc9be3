//! Next-token prediction: pre-training (every token) and supervised fine-tuning (the assistant's tokens).
//!
//! `loss = sum_t -log p(x_t | x_<t) / N` over the targets, `N` their number in the whole optimisation step. The two
//! objectives differ in the mask alone, which the encoder derives from the chat template.
//! Recipes: `pretrain.toml`, `sft-lora.toml`.

use espalier_data::random::Random;
use espalier_models::model::LanguageModel;

use super::{Batch, Loss, Objective, rows};
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

    fn prepare(&self, model: &LanguageModel, _: &mut [Sample]) -> Result<()> {
        let reason = match (model.spec().encoder.is_some(), model.spec().bidirectional) {
            (true, _) => "an encoder-decoder learns by `seq2seq`, `span_corruption` or `infilling`",
            (false, true) => {
                "a model that sees the whole text would only learn to copy the next token; take `mlm`, `mntp` or `simcse`"
            }
            (false, false) => return Ok(()),
        };
        Err(Error::Option {
            key: "objective",
            reason: format!("`{}`: {reason}", self.name),
        })
    }

    fn collate(&self, samples: &[&Sample], _: &mut Random) -> Result<Batch> {
        let tokens = TokenBatch::new(&rows(self.name, samples)?);
        Ok(Batch {
            units: tokens.targets.len() as f64,
            tokens,
            reference: Vec::new(),
        })
    }

    fn loss(&self, model: &LanguageModel, batch: &Batch) -> Result<Loss> {
        batch.tokens.loss(model)
    }
}
