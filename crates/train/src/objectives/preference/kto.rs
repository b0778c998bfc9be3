//! Kahneman-Tversky Optimization (arXiv 2402.01306): single answers that are good or bad, each held against what the policy does elsewhere.
//!
//! With `r = log pi(y|x) - log ref(y|x)`, a good answer costs `lambda_D (1 - sigmoid(beta (r - z)))`, a bad one
//! `lambda_U (1 - sigmoid(beta (z - r)))`, a mean over answers. `z = max(0, mean_i [log pi(y'_i|x_i) - log ref(y'_i|x_i)])` estimates the
//! divergence from the reference without gradient; `y'_i` is the answer of the row before in the same forward pass, which does not belong
//! to `x_i`, cut where it would be longer than the longest row. So a forward pass needs two rows; where a pass over the data leaves one alone, its `z` is 0. `apo_zero_unpaired` has
//! no `z` (APO, arXiv 2408.06266). A pair is two answers. The recommended weights make `lambda_D n_D / (lambda_U n_U)` 1 to 4/3. Recipe:
//! `preferences.toml`.

use burn::tensor::{Tensor, activation::sigmoid};
use espalier_data::{encode::Example, packing::Row, random::Random};
use espalier_kernels::readback::ReadFloats;
use espalier_models::model::LanguageModel;
use serde::{Deserialize, Serialize};

use super::{
    CHOSEN, LOGPS_CHOSEN, LOGPS_REJECTED, MARGINS, REJECTED,
    scores::{Scores, vector},
    sum,
};
use crate::{
    Error, Result,
    batch::{DESIRABLE, Sample, TokenBatch},
    error::{not_negative, positive},
    metrics::MetricDescription,
    named_tensors::SavedTensors,
    objectives::{
        Batch, Loss, Metric, Objective, ObjectiveState, OtherPasses, PackedRows, check_causal,
        reference::{self, Reference, ReferenceOptions},
        registry::Entry,
        rows,
    },
    options::TrainOptions,
};

/// The options of KTO.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct KtoOptions {
    /// The loss of an answer.
    pub loss: KtoLoss,
    /// How far the model may leave the reference: the smaller, the further.
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub beta: f64,
    /// Weight of good answers.
    #[schemars(range(min = 0.0))]
    pub desirable_weight: f64,
    /// Weight of bad answers.
    #[schemars(range(min = 0.0))]
    pub undesirable_weight: f64,
    /// Whose log-probabilities the policy's are measured against: `start`, `without_adapter`, `{ folder = "PATH" }`, or one that follows the
    /// policy, `{ moving = { every = 64, mix = 0.6 } }`; for `apo_zero_unpaired` also `none`.
    #[serde(deserialize_with = "reference::named")]
    #[schemars(schema_with = "crate::choice::name_or_table_schema::<ReferenceOptions>")]
    pub reference: ReferenceOptions,
}

/// A loss of single answers.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum KtoLoss {
    /// Against the policy's divergence from the reference.
    #[default]
    Kto,
    /// Against nothing: `z` is 0.
    ApoZeroUnpaired,
}

impl Default for KtoOptions {
    fn default() -> Self {
        Self {
            loss: KtoLoss::default(),
            beta: 0.1,
            desirable_weight: 1.0,
            undesirable_weight: 1.0,
            reference: ReferenceOptions::default(),
        }
    }
}

fn wrong(key: &'static str, reason: impl Into<String>) -> Error {
    Error::Option {
        key,
        reason: reason.into(),
    }
}

impl KtoOptions {
    /// # Errors
    /// When a number is out of its range, or there is nothing to measure against.
    fn check(&self) -> Result<()> {
        positive("beta", self.beta)?;
        not_negative("desirable_weight", self.desirable_weight)?;
        not_negative("undesirable_weight", self.undesirable_weight)?;
        self.reference.check()?;
        match (self.loss, &self.reference) {
            (KtoLoss::Kto, ReferenceOptions::None) => Err(wrong(
                "reference",
                "`kto` is held against the divergence from a reference; choose one, or the loss `apo_zero_unpaired`",
            )),
            _ => Ok(()),
        }
    }

    /// The loss of every answer from its log-ratio, `[rows]`; `verdicts` are 1 of good answers and 0 of bad ones.
    fn of(&self, ratios: Tensor<1>, verdicts: &[f64], z: f64) -> Tensor<1> {
        let each = |good: f64, bad: f64| -> Vec<f32> {
            let choose = |verdict: &f64| if *verdict > 0.0 { good } else { bad };
            verdicts.iter().map(|v| choose(v) as f32).collect()
        };
        let away = vector(&each(-self.beta, self.beta), &ratios);
        let weights = vector(
            &each(self.desirable_weight, self.undesirable_weight),
            &ratios,
        );
        sigmoid((ratios - z) * away) * weights
    }
}

/// The objective's registration.
pub const ENTRY: Entry<KtoOptions> = Entry::of_verdicts(
    &[
        CHOSEN,
        REJECTED,
        MARGINS,
        LOGPS_CHOSEN,
        LOGPS_REJECTED,
        MetricDescription::number(
            "kl",
            "divergence from the reference",
            "estimate of the policy's divergence from the reference, on answers to other prompts",
        ),
    ],
    PackedRows::Refused,
    KtoOptions::check,
    |options, _| Ok(Box::new(Kto::new(options.clone())?)),
)
.that_reads(|options| options.reference.reads());

/// The objective.
#[derive(Debug, Clone)]
pub struct Kto {
    options: KtoOptions,
    reference: Reference,
}

impl Kto {
    /// Checks the options.
    ///
    /// # Errors
    /// As the options' check.
    pub fn new(options: KtoOptions) -> Result<Self> {
        options.check()?;
        Ok(Self {
            reference: Reference::new(options.reference.clone()),
            options,
        })
    }

    /// The divergence from the reference, from the answers that stand behind other prompts.
    fn divergence(&self, model: &LanguageModel, batch: &Batch) -> Result<f64> {
        let (Some(mismatched), Some(reference)) = (&batch.beside, self.reference.kept()) else {
            return Ok(0.0);
        };
        Ok(divergence(
            &log_probabilities(&model.frozen(), mismatched)?,
            &log_probabilities(reference, mismatched)?,
        ))
    }
}

/// `max(0, mean(policy - reference))`.
fn divergence(policy: &[f64], reference: &[f64]) -> f64 {
    let ratios = policy.iter().zip(reference).map(|(p, r)| p - r);
    (ratios.sum::<f64>() / policy.len().max(1) as f64).max(0.0)
}

/// The log-probability of every row's answer.
fn log_probabilities(model: &LanguageModel, tokens: &TokenBatch) -> Result<Vec<f64>> {
    let rows = Scores::of(model, tokens)?.by_row(tokens, None).floats();
    Ok(rows.into_iter().map(f64::from).collect())
}

/// Every row's prompt with the answer of the row before, the first one's with that of the last; none where there is one row.
fn mismatched(rows: &[&Row]) -> Option<TokenBatch> {
    let longest = rows.iter().map(|row| row.ids.len()).max()?;
    let before = rows.iter().cycle().skip(rows.len() - 1);
    let joined = |(row, before): (&&Row, &&Row)| {
        let (start, end) = (row.prompt_length(), before.prompt_length());
        let answer = &before.ids[end..];
        let mut ids = [&row.ids[..start], answer].concat();
        ids.truncate(longest);
        Row::from(&Example::answered(ids, start))
    };
    let joined: Vec<Row> = rows.iter().zip(before).map(joined).collect();
    (rows.len() > 1).then(|| TokenBatch::new(&joined.iter().collect::<Vec<_>>()))
}

impl Objective for Kto {
    fn name(&self) -> &'static str {
        "kto"
    }

    fn packed_rows(&self) -> PackedRows {
        ENTRY.packed_rows
    }

    fn predicts_tokens(&self) -> bool {
        false
    }

    fn check(&self, model: &LanguageModel, of: &[Sample], options: &TrainOptions) -> Result<()> {
        check_causal(self.name(), model)?;
        self.reference.check(model)?;
        let judged = |sample: &Sample| sample.columns.numbers(DESIRABLE, 1).is_ok();
        if !of.iter().all(judged) {
            return Err(wrong(
                "data",
                "`kto` learns from answers with a verdict: give every record a `label`, true or false, or give pairs",
            ));
        }
        match self.options.loss == KtoLoss::Kto && options.batch < 2 {
            true => Err(wrong(
                "batch",
                "`kto` holds an answer against those to other prompts of its batch; give at least 2",
            )),
            false => Ok(()),
        }
    }

    fn kept_bytes(&self, model: &LanguageModel) -> u64 {
        self.reference
            .kept_bytes(model, self.options.loss == KtoLoss::Kto)
    }

    fn other_passes(&self, model: &LanguageModel) -> OtherPasses {
        self.reference.passes(model, false)
    }

    fn start(&mut self, model: &LanguageModel, _: u64) -> Result<()> {
        self.reference
            .start(model, self.options.loss == KtoLoss::Kto)
    }

    fn prepare(&self, model: &LanguageModel, samples: &mut [Sample]) -> Result<()> {
        self.reference
            .prepare(model, samples, &|reference, samples| {
                log_probabilities(reference, &TokenBatch::new(&rows(self.name(), samples)?))
            })
    }

    fn collate(&self, _: &LanguageModel, samples: &[&Sample], _: &mut Random) -> Result<Batch> {
        let rows = rows(self.name(), samples)?;
        let mut batch = Batch::new(TokenBatch::new(&rows), samples.len(), samples)?;
        if self.options.loss == KtoLoss::Kto {
            batch.beside = mismatched(&rows);
        }
        Ok(batch)
    }

    fn loss(&self, model: &LanguageModel, batch: &Batch) -> Result<Loss> {
        let count = batch.units as usize;
        let verdicts = batch.columns.numbers(DESIRABLE, count)?;
        let scores = Scores::of(model, &batch.tokens)?;
        let logps = scores.by_row(&batch.tokens, None);
        let live = |model: &LanguageModel| log_probabilities(model, &batch.tokens);
        let ratios = logps.clone() - self.reference.of_batch(batch, count, model, &live)?;
        let z = self.divergence(model, batch)?;
        let losses = self.options.of(ratios.clone(), verdicts, z);
        let mut loss = Loss::new(losses.sum(), batch.units, scores.auxiliary);
        let rewards = ratios * self.options.beta;
        loss.metrics
            .extend(metrics(rewards.floats(), logps.floats(), verdicts));
        loss.metrics.push(Metric {
            name: "kl",
            sum: z * batch.units,
            units: batch.units,
        });
        Ok(loss)
    }

    fn after_step(&mut self, model: &LanguageModel, step: usize) -> Result<()> {
        self.reference.after_step(model, step)
    }

    fn state(&self) -> ObjectiveState<'_> {
        ObjectiveState {
            tensors: self.reference.state(),
            ..ObjectiveState::default()
        }
    }

    fn restore(&mut self, tensors: &SavedTensors, _: &serde_json::Value) -> Result<()> {
        self.reference.restore(tensors)
    }
}

/// What is logged of good and of bad answers; nothing of those that a batch has not. Margins are differences of the two means of a batch.
fn metrics(rewards: Vec<f32>, logps: Vec<f32>, verdicts: &[f64]) -> Vec<Metric> {
    let of = |values: &[f32], good: bool| -> Vec<f64> {
        let both = values.iter().zip(verdicts);
        let chosen = both.filter(|(_, verdict)| (**verdict > 0.0) == good);
        chosen.map(|(value, _)| f64::from(*value)).collect()
    };
    let mut metrics = vec![
        sum(CHOSEN.name, &of(&rewards, true)),
        sum(REJECTED.name, &of(&rewards, false)),
        sum(LOGPS_CHOSEN.name, &of(&logps, true)),
        sum(LOGPS_REJECTED.name, &of(&logps, false)),
    ];
    let mean = |metric: &Metric| metric.sum / metric.units;
    let margin = mean(&metrics[0]) - mean(&metrics[1]);
    if margin.is_finite() {
        metrics.push(sum(MARGINS.name, &[margin]));
    }
    metrics.retain(|metric| metric.units > 0.0);
    metrics
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objectives::preference::tests::{constant, leaf, near, with_gradients};

    fn options(text: &str) -> KtoOptions {
        serde_json::from_str(&text.replace('\'', "\"")).unwrap()
    }

    const HEAVY: &str = "{'undesirable_weight': 1.33}";

    #[test]
    fn single_answers() {
        for (text, z, verdict, logp, reference, expected) in [
            ("{}", 0.4, 1.0, -12.0, -13.0, [0.485004, -0.024978]),
            ("{}", 0.4, 0.0, -15.0, -14.5, [0.477515, 0.024949]),
            (HEAVY, 0.4, 0.0, -15.0, -14.5, [0.635095, 0.033183]),
            ("{}", 0.0, 1.0, -12.0, -13.0, [0.475021, -0.024938]),
            ("{}", 0.0, 0.0, -15.0, -14.5, [0.487503, 0.024984]),
        ] {
            let logp = leaf([logp]);
            let ratio = logp.clone() - constant([reference]);
            let loss = options(text).of(ratio, &[verdict], z);
            let (found, gradients) = with_gradients(loss, &[&logp]);
            near(&[found, gradients[0][0]], &expected, text);
        }
    }

    #[test]
    fn a_batch_of_four() {
        let z = divergence(&[-20.0, -18.0, -22.0, -19.0], &[-20.5, -18.6, -22.2, -19.3]);
        assert!((z - 0.4).abs() < 1e-9);
        assert_eq!(divergence(&[-2.0], &[-1.0]), 0.0);
        let verdicts = [1.0, 0.0, 1.0, 0.0];
        for (text, z, losses, mean) in [
            ("{}", z, [0.485004, 0.477515, 0.4975, 0.465057], 0.481269),
            (HEAVY, z, [0.485004, 0.635095, 0.4975, 0.618526], 0.559031),
            (
                "{'loss': 'apo_zero_unpaired'}",
                0.0,
                [0.475021, 0.487503, 0.487503, 0.475021],
                0.481262,
            ),
        ] {
            let logps = leaf([-10.0, -12.0, -9.0, -11.0]);
            let ratios = logps.clone() - constant([-11.0, -11.5, -9.5, -10.0]);
            let found = options(text).of(ratios, &verdicts, z);
            near(&found.clone().inner().floats(), &losses, text);
            let (found, gradients) = with_gradients(found.mean(), &[&logps]);
            near(&[found], &[mean], text);
            if text == "{}" {
                let expected = [-0.006244, 0.006237, -0.00625, 0.006219];
                near(&gradients[0], &expected, "gradients");
            }
        }
    }

    #[test]
    fn prompts_get_the_answers_of_the_rows_before() {
        let row = |ids: &[u32], prompt: usize| Row::from(&Example::answered(ids.to_vec(), prompt));
        let rows = [
            row(&[1, 2, 3], 2),
            row(&[4, 5, 6, 7], 1),
            row(&[8, 9, 10], 2),
        ];
        let rows: Vec<&Row> = rows.iter().collect();
        let tokens = mismatched(&rows).unwrap();
        let of_row = |row: usize| {
            let targets = tokens.targets.iter().zip(&tokens.rows);
            let of_row = targets.filter(|(_, r)| **r == row);
            of_row.map(|(target, _)| *target).collect::<Vec<_>>()
        };
        // The third is cut to the longest row.
        assert_eq!(tokens.input.ids, [1, 2, 10, 0, 4, 3, 0, 0, 8, 9, 5, 6]);
        assert_eq!(
            [of_row(0), of_row(1), of_row(2)],
            [vec![10], vec![3], vec![5, 6]]
        );
        assert!(mismatched(&rows[..1]).is_none());
    }

    #[test]
    fn senseless_options_are_refused() {
        for (text, key) in [
            ("{'beta': 0}", "`beta`"),
            ("{'desirable_weight': -1}", "`desirable_weight`"),
            ("{'reference': 'none'}", "`reference`"),
        ] {
            let error = options(text).check().unwrap_err().to_string();
            assert!(error.starts_with(key), "{text}: {error}");
        }
        options("{'loss': 'apo_zero_unpaired', 'reference': 'none'}")
            .check()
            .unwrap();
    }
}
