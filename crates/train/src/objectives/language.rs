//! Next-token prediction: pre-training (every token) and supervised fine-tuning (the assistant's tokens).
//!
//! `loss = sum_t -log p(x_t | x_<t) / N` over the targets, `N` their number in the whole optimisation step. The two
//! objectives differ in the mask alone, which the encoder derives from the chat template. Fine-tuning may weigh each target by its own
//! probability, through which no gradient flows, `sum_t -p_t log p_t / N` (DFT, arXiv 2508.05629); held-out losses are those without
//! weights.
//! Recipes: `pretrain.toml`, `sft-lora.toml`.

use burn::tensor::Tensor;
use espalier_data::random::Random;
use espalier_models::{model::LanguageModel, taps::Unobserved};
use serde::{Deserialize, Serialize};

use super::{Batch, Loss, Objective, PackedRows, check_causal, registry::Entry, rows};
use crate::{
    Error, Result,
    batch::{Sample, TokenBatch},
    metrics::{ACCURACY, EXACT_MATCH},
    options::TrainOptions,
};

/// The options of pre-training; there are none yet.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct NextTokenOptions {}

/// The options of supervised fine-tuning.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SftOptions {
    /// What a target costs.
    pub loss: TargetLoss,
    /// Which of the assistant's turns are learned, of those that their `weight` leaves.
    pub turns: Turns,
}

/// What a target costs.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum TargetLoss {
    /// Its negative log-probability.
    #[default]
    Nll,
    /// The same times its probability (DFT): what the model holds for impossible is not forced on it.
    Dft,
}

/// Which of the assistant's turns are learned.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Turns {
    /// All.
    #[default]
    All,
    /// The last one of a conversation.
    Last,
}

/// Pre-training's registration.
pub const PRETRAIN: Entry<NextTokenOptions> = Entry::new(
    &[ACCURACY, EXACT_MATCH],
    PackedRows::Apart,
    |_| Ok(()),
    |_, _| {
        Ok(Box::new(NextToken {
            name: "pretrain",
            loss: TargetLoss::Nll,
        }))
    },
);

/// Supervised fine-tuning's registration.
pub const SFT: Entry<SftOptions> = Entry::new(
    &[ACCURACY, EXACT_MATCH],
    PackedRows::Apart,
    |_| Ok(()),
    |options, _| {
        Ok(Box::new(NextToken {
            name: "sft",
            loss: options.loss,
        }))
    },
);

/// Cross-entropy of the next token on the chosen positions.
#[derive(Debug, Clone, Copy)]
pub struct NextToken {
    /// The name under which it was asked for.
    pub name: &'static str,
    /// What a target costs.
    pub loss: TargetLoss,
}

impl Objective for NextToken {
    fn name(&self) -> &'static str {
        self.name
    }

    fn packed_rows(&self) -> PackedRows {
        PRETRAIN.packed_rows
    }

    fn check(&self, model: &LanguageModel, _: &[Sample], options: &TrainOptions) -> Result<()> {
        check_causal(self.name, model)?;
        match options.label_smoothing > 0.0 && self.loss == TargetLoss::Dft {
            true => Err(Error::Option {
                key: "label_smoothing",
                reason: "`loss = \"dft\"` weighs targets as they are; leave it 0".into(),
            }),
            false => Ok(()),
        }
    }

    fn collate(&self, _: &LanguageModel, samples: &[&Sample], _: &mut Random) -> Result<Batch> {
        Batch::of_targets(TokenBatch::new(&rows(self.name, samples)?), samples)
    }

    fn loss(&self, model: &LanguageModel, batch: &Batch) -> Result<Loss> {
        if self.loss == TargetLoss::Nll || !model.is_training() {
            return batch.tokens.loss(model);
        }
        let (likelihoods, auxiliary) = batch.tokens.log_probabilities(model, &mut Unobserved)?;
        Ok(Loss::new(weighed(likelihoods), batch.units, auxiliary))
    }
}

/// The sum of `-p log p`, of log-probabilities `[targets]`, where `p` is a number: `[1]`.
fn weighed(likelihoods: Tensor<1>) -> Tensor<1> {
    let probabilities: Tensor<1> = likelihoods.clone().inner().exp();
    -(likelihoods * probabilities).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    #[test]
    fn worked_example_of_weighed_targets() {
        let likelihoods = Tensor::<1>::from_floats([-1.0, -2.0, -0.5], &Device::flex())
            .autodiff()
            .require_grad();
        let sum = weighed(likelihoods.clone());
        let gradients = sum.backward();
        let mean = sum.inner().into_scalar::<f32>() / 3.0;
        assert!((mean - 0.313_938).abs() < 1e-6, "{mean}");
        // The weight is a number: the gradient is the probability's negative, and nothing more.
        let gradient = likelihoods.grad(&gradients).unwrap();
        let gradient = gradient.into_data().try_into_vec::<f32>().unwrap();
        for (found, log) in gradient.iter().zip([-1.0f32, -2.0, -0.5]) {
            assert!((found + log.exp()).abs() < 1e-6, "{found}");
        }
    }
}
