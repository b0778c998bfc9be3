//! Preference losses without a reference: CPO (arXiv 2401.08417), SimPO (arXiv 2405.14734) and AlphaPO (arXiv 2501.03884).
//!
//! With `u` an answer's log-probability, of `ipo` and `simpo` its mean over tokens, and `x = u_w - u_l`: `sigmoid` `-ls(beta x)`, `hinge`
//! `max(0, 1 - beta x)`, `ipo` `(x - 1 / (2 beta))^2`, `simpo` `-ls(beta x - gamma)`, `simpo_hinge` `max(0, 1 + gamma - beta x)`. With `alpha` other than 0 `u` becomes
//! `(1 - exp(-alpha u)) / alpha` first (AlphaPO). `cpo_alpha` times the negative log-likelihood of the better answers is added, a mean over
//! the tokens of the step. Recipe: `preferences.toml`.

use burn::tensor::Tensor;
use espalier_data::random::Random;
use espalier_kernels::readback::ReadFloats;
use espalier_models::model::LanguageModel;
use serde::{Deserialize, Serialize};

use super::{
    ACCURACIES, CHOSEN, LOGPS_CHOSEN, LOGPS_REJECTED, MARGINS, NLL_LOSS, REJECTED, better_tokens,
    collate_pairs, halves,
    losses::difference::{hinge, ipo, smoothed},
    metrics_of_pairs,
    scores::{Scores, lengths, vector},
};
use crate::{
    Error, Result,
    batch::Sample,
    error::{not_negative, positive, within},
    objectives::{Batch, Loss, Metric, Objective, PackedRows, check_causal, registry::Entry},
    options::TrainOptions,
};

/// The options of CPO and SimPO.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CpoOptions {
    /// The loss of a pair.
    pub loss: CpoLoss,
    /// Scale of the log-probabilities; of `ipo` and `simpo`, which take their means, 10 to 100 times that of DPO.
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub beta: f64,
    /// Weight of the better answers' negative log-likelihood; 1 where absent, and 0 for `simpo` and `simpo_hinge`, which have none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0))]
    pub cpo_alpha: Option<f64>,
    /// The margin that SimPO asks for, in units of the reward (`gamma`, not `gamma / beta`); 0.5 where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0))]
    pub simpo_gamma: Option<f64>,
    /// The shape of AlphaPO's reward; at 0 it is the log-probability.
    #[schemars(range(min = -10.0, max = 10.0))]
    pub alpha: f64,
    /// Share of pairs that are taken to be the wrong way round, of `sigmoid` and `simpo`.
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 0.5))]
    pub label_smoothing: f64,
}

/// A loss of pairs without a reference.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum CpoLoss {
    /// `-ls(beta x)`.
    #[default]
    Sigmoid,
    /// `max(0, 1 - beta x)`.
    Hinge,
    /// `(x - 1 / (2 beta))^2`, of means over tokens.
    Ipo,
    /// `-ls(beta x - gamma)`, of means over tokens.
    Simpo,
    /// `max(0, 1 + gamma - beta x)`, of means over tokens.
    SimpoHinge,
}

impl CpoLoss {
    fn is_simpo(self) -> bool {
        matches!(self, Self::Simpo | Self::SimpoHinge)
    }

    fn takes_means(self) -> bool {
        self.is_simpo() || self == Self::Ipo
    }
}

impl Default for CpoOptions {
    fn default() -> Self {
        Self {
            loss: CpoLoss::default(),
            beta: 0.1,
            cpo_alpha: None,
            simpo_gamma: None,
            alpha: 0.0,
            label_smoothing: 0.0,
        }
    }
}

impl CpoOptions {
    /// # Errors
    /// When a number is out of its range, or an option says something that the loss does not read.
    fn check(&self) -> Result<()> {
        positive("beta", self.beta)?;
        not_negative("cpo_alpha", self.likelihood())?;
        not_negative("simpo_gamma", self.gamma())?;
        within("alpha", self.alpha, -10.0, 10.0)?;
        let unread = |key, reason: &str| {
            Err(Error::Option {
                key,
                reason: reason.into(),
            })
        };
        if self.simpo_gamma.is_some() && !self.loss.is_simpo() {
            return unread(
                "simpo_gamma",
                "only `simpo` and `simpo_hinge` ask for a margin",
            );
        }
        let smooth = matches!(self.loss, CpoLoss::Sigmoid | CpoLoss::Simpo);
        match self.label_smoothing {
            0.0 => Ok(()),
            share if !(share > 0.0 && share < 0.5) => unread(
                "label_smoothing",
                &format!("{share} is not at least 0 and below 0.5"),
            ),
            _ if smooth => Ok(()),
            _ => unread("label_smoothing", "only `sigmoid` and `simpo` know it"),
        }
    }

    fn gamma(&self) -> f64 {
        self.simpo_gamma.unwrap_or(0.5)
    }

    fn likelihood(&self) -> f64 {
        let usual = if self.loss.is_simpo() { 0.0 } else { 1.0 };
        self.cpo_alpha.unwrap_or(usual)
    }

    /// The loss of every pair from the log-probabilities of better and worse answers, means where the loss takes these, `[pairs]`.
    fn of(&self, [better, worse]: [Tensor<1>; 2]) -> Tensor<1> {
        let shaped = |u: Tensor<1>| match self.alpha {
            0.0 => u,
            alpha => (-(u * -alpha).exp() + 1.0) / alpha,
        };
        let x = shaped(better) - shaped(worse);
        let scaled = x.clone() * self.beta;
        match self.loss {
            CpoLoss::Sigmoid => smoothed(scaled, self.label_smoothing),
            CpoLoss::Hinge => hinge(scaled),
            CpoLoss::Ipo => ipo(x, self.beta),
            CpoLoss::Simpo => smoothed(scaled - self.gamma(), self.label_smoothing),
            CpoLoss::SimpoHinge => hinge(scaled - self.gamma()),
        }
    }
}

/// The objective's registration.
pub const ENTRY: Entry<CpoOptions> = Entry::of_pairs(
    &[
        CHOSEN,
        REJECTED,
        MARGINS,
        ACCURACIES,
        LOGPS_CHOSEN,
        LOGPS_REJECTED,
        NLL_LOSS,
    ],
    PackedRows::Refused,
    CpoOptions::check,
    |options, _| {
        Ok(Box::new(Cpo {
            options: options.clone(),
        }))
    },
);

/// The objective.
#[derive(Debug, Clone)]
pub struct Cpo {
    options: CpoOptions,
}

impl Objective for Cpo {
    fn name(&self) -> &'static str {
        "cpo"
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
        collate_pairs(self.name(), samples)
    }

    fn loss(&self, model: &LanguageModel, batch: &Batch) -> Result<Loss> {
        let rows = batch.tokens.input.batch;
        let scores = Scores::of(model, &batch.tokens)?;
        let logps = scores.by_row(&batch.tokens, None);
        let read = match self.options.loss.takes_means() {
            true => {
                let lengths = lengths(&batch.tokens.rows, rows);
                logps.clone() / vector(&lengths, &scores.by_target)
            }
            false => logps.clone(),
        };
        let losses = self.options.of(halves(read.clone()));
        let likelihood = -scores.by_target.narrow(0, 0, better_tokens(batch)).sum();
        let sum = losses.sum() + likelihood.clone() * (self.options.likelihood() * batch.exchange);
        let mut loss = Loss::new(sum, batch.units, scores.auxiliary);
        let rewards = halves(read * self.options.beta);
        loss.metrics
            .extend(metrics_of_pairs(rewards, halves(logps)));
        loss.metrics.push(Metric {
            name: NLL_LOSS.name,
            sum: f64::from(likelihood.floats()[0]),
            units: better_tokens(batch) as f64,
        });
        Ok(loss)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objectives::preference::tests::{leaf, near, with_gradients};

    fn options(text: &str) -> CpoOptions {
        serde_json::from_str(&text.replace('\'', "\"")).unwrap()
    }

    #[test]
    fn worked_examples() {
        // Sums -12 and -15 over 6 and 8 tokens; gradients are of the sums.
        for (text, expected) in [
            ("{'cpo_alpha': 0}", [0.554355, -0.042556, 0.042556]),
            ("{}", [2.554355, -0.209222, 0.042556]),
            ("{'loss': 'hinge', 'cpo_alpha': 0}", [0.7, -0.1, 0.1]),
            (
                "{'loss': 'ipo', 'cpo_alpha': 0}",
                [26.265625, -1.708333, 1.28125],
            ),
            (
                "{'loss': 'simpo', 'beta': 2}",
                [1.136871, -0.226393, 0.169795],
            ),
            (
                "{'loss': 'simpo', 'beta': 2, 'label_smoothing': 0.1}",
                [1.061871, -0.19306, 0.144795],
            ),
            (
                "{'loss': 'simpo_hinge', 'beta': 2}",
                [1.75, -0.333333, 0.25],
            ),
            (
                "{'loss': 'simpo', 'beta': 2, 'alpha': 0.25}",
                [1.245286, -0.391374, 0.2845],
            ),
        ] {
            let options = options(text);
            options.check().unwrap();
            let (better, worse) = (leaf([-12.0]), leaf([-15.0]));
            let read = match options.loss.takes_means() {
                true => [better.clone() / 6.0, worse.clone() / 8.0],
                false => [better.clone(), worse.clone()],
            };
            let loss = options.of(read) - better.clone() / 6.0 * options.likelihood();
            let (found, gradients) = with_gradients(loss, &[&better, &worse]);
            let all = [vec![found], gradients.concat()].concat();
            near(&all, &expected, text);
        }
    }

    #[test]
    fn senseless_options_are_refused() {
        for (text, key) in [
            ("{'beta': 0}", "`beta`"),
            ("{'cpo_alpha': -1}", "`cpo_alpha`"),
            ("{'simpo_gamma': 1}", "`simpo_gamma`"),
            (
                "{'loss': 'hinge', 'label_smoothing': 0.1}",
                "`label_smoothing`",
            ),
            ("{'label_smoothing': 0.5}", "`label_smoothing`"),
            ("{'alpha': 11}", "`alpha`"),
        ] {
            let error = options(text).check().unwrap_err().to_string();
            assert!(error.starts_with(key), "{text}: {error}");
        }
    }
}
