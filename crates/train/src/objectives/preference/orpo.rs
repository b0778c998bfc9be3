//! Odds Ratio Preference Optimization (arXiv 2403.07691): supervised fine-tuning on the better answers, and a term that holds their odds
//! above those of the worse ones. There is no reference.
//!
//! `loss = NLL - beta * mean ls(ln(odds_w / odds_l))`, with the odds of a token's mean log-probability. The likelihood is a mean over the
//! tokens of the step, of prompts and better answers as in TRL and the authors' code, or of the answers alone. Recipe: `preferences.toml`.

use burn::tensor::{Tensor, activation::log_sigmoid};
use espalier_data::random::Random;
use espalier_kernels::readback::ReadFloats;
use espalier_models::model::LanguageModel;
use serde::{Deserialize, Serialize};

use super::{
    ACCURACIES, CHOSEN, LOGPS_CHOSEN, LOGPS_REJECTED, MARGINS, NLL_LOSS, REJECTED, collate_pairs,
    halves, metrics_of_pairs, odds,
    scores::{Scores, lengths, row_sums, vector},
};
use crate::{
    Result,
    batch::Sample,
    error::positive,
    metrics::MetricDescription,
    objectives::{Batch, Loss, Metric, Objective, PackedRows, check_causal, registry::Entry},
    options::TrainOptions,
};

/// The options of ORPO.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct OrpoOptions {
    /// Weight of the odds' term, the paper's lambda.
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub beta: f64,
    /// The tokens whose likelihood is learned beside the better answers'.
    pub nll_on: Likelihood,
}

/// The tokens whose likelihood is learned.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Likelihood {
    /// Those of prompt and better answer.
    #[default]
    Full,
    /// Those of the better answer.
    Completion,
}

impl Default for OrpoOptions {
    fn default() -> Self {
        Self {
            beta: 0.1,
            nll_on: Likelihood::default(),
        }
    }
}

/// The objective's registration.
pub const ENTRY: Entry<OrpoOptions> = Entry::of_pairs(
    &[
        CHOSEN,
        REJECTED,
        MARGINS,
        ACCURACIES,
        LOGPS_CHOSEN,
        LOGPS_REJECTED,
        NLL_LOSS,
        MetricDescription::number(
            "log_odds_ratio",
            "log-odds",
            "log-sigmoid of the log-odds of the better answer over the worse",
        ),
        MetricDescription::number(
            "log_odds_chosen",
            "log-odds",
            "log-odds of the better answer less those of the worse",
        ),
    ],
    PackedRows::Refused,
    |options| positive("beta", options.beta),
    |options, _| {
        Ok(Box::new(Orpo {
            options: options.clone(),
        }))
    },
);

/// The objective.
#[derive(Debug, Clone)]
pub struct Orpo {
    options: OrpoOptions,
}

/// The rows of the answers' tokens, which come first; behind them are the prompts of better answers.
fn answers(rows: &[usize]) -> &[usize] {
    let falls = rows.windows(2).position(|two| two[1] < two[0]);
    &rows[..falls.map_or(rows.len(), |place| place + 1)]
}

impl Objective for Orpo {
    fn name(&self) -> &'static str {
        "orpo"
    }

    fn packed_rows(&self) -> PackedRows {
        ENTRY.packed_rows
    }

    fn predicts_tokens(&self) -> bool {
        false
    }

    fn check(&self, model: &LanguageModel, _: &[Sample], _: &TrainOptions) -> Result<()> {
        check_causal(self.name(), model)
    }

    fn collate(&self, _: &LanguageModel, samples: &[&Sample], _: &mut Random) -> Result<Batch> {
        let mut batch = collate_pairs(self.name(), samples)?;
        if self.options.nll_on == Likelihood::Full {
            let time = batch.tokens.input.time();
            for (row, sample) in samples.iter().enumerate() {
                let better = &sample.rows[0];
                let prompt = (1..better.ids.len()).filter(|t| !better.targets[*t]);
                for t in prompt {
                    batch.tokens.ask(row, row * time + t - 1, better.ids[t]);
                    batch.second_units += 1.0;
                }
            }
        }
        Ok(batch)
    }

    fn loss(&self, model: &LanguageModel, batch: &Batch) -> Result<Loss> {
        let count = batch.units as usize;
        let rows = &batch.tokens.rows;
        let Scores {
            by_target,
            auxiliary,
            ..
        } = Scores::of(model, &batch.tokens)?;
        let learned: Vec<f32> = rows.iter().map(|row| f32::from(*row < count)).collect();
        let likelihood = -(by_target.clone() * vector(&learned, &by_target)).sum();
        let answers = answers(rows);
        let of_answers = by_target.clone().narrow(0, 0, answers.len());
        let logps = row_sums(of_answers, answers, 2 * count);
        let means = logps.clone() / vector(&lengths(answers, 2 * count), &by_target);
        let [chosen, rejected] = halves(means.clone());
        let ratio = odds::log_ratio(chosen, rejected);
        let odds = log_sigmoid(ratio.clone());
        let sum = likelihood.clone() * batch.exchange - odds.clone().sum() * self.options.beta;
        let metric = |name, values: Tensor<1>, units: f64| Metric {
            name,
            sum: values.floats().into_iter().map(f64::from).sum(),
            units,
        };
        let units = learned.into_iter().map(f64::from).sum();
        let rewards = halves(means * self.options.beta);
        let mut loss = Loss::new(sum, batch.units, auxiliary);
        loss.metrics
            .extend(metrics_of_pairs(rewards, halves(logps)));
        loss.metrics.extend([
            metric(NLL_LOSS.name, likelihood, units),
            metric("log_odds_ratio", odds, batch.units),
            metric("log_odds_chosen", ratio, batch.units),
        ]);
        Ok(loss)
    }
}
