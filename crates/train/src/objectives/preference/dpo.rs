//! Direct Preference Optimization (arXiv 2305.18290, Eq. 7) and the losses that share its forward pass.
//!
//! With `a = log pi(y_w) - log ref(y_w)` and `b` likewise for the worse answer (sums over the answer's tokens),
//! `loss = -log sigmoid(beta (a - b))`, a mean over pairs; [`PairLoss`] has the others, of which several may be added with weights. A loss
//! over a whole batch (`aot`) is one over the pairs of a forward pass, however many of these a step has; so is the mean of rewards that
//! `bco` subtracts, which moves in every forward pass and is kept in checkpoints. With `ld_alpha` the tokens by which an answer is longer
//! than the other count less (LD-DPO), with `weighting` pairs that the policy would hardly write itself (WPO). Recipes: `dpo.toml`,
//! `preferences.toml`.

use std::cell::Cell;

use burn::tensor::Tensor;
use espalier_data::random::Random;
use espalier_kernels::readback::ReadFloats;
use espalier_models::model::LanguageModel;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    ACCURACIES, CHOSEN, LOGPS_CHOSEN, LOGPS_REJECTED, MARGINS, NLL_LOSS, REJECTED, better_tokens,
    collate_pairs, halves,
    losses::{
        Constants, PairLoss, Pairs,
        absolute::RunningMean,
        divergence::{self, Divergence},
        mixture::Mixture,
    },
    metrics_of_pairs,
    scores::{Scores, length_weights, lengths, vector},
    weights,
};
use crate::{
    Error, Result,
    batch::{Sample, TokenBatch},
    error::{positive, within},
    named_tensors::SavedTensors,
    objectives::{
        Batch, Loss, Metric, Objective, ObjectiveState, OtherPasses, PackedRows, check_causal,
        reference::{self, Reference, ReferenceOptions},
        registry::Entry,
    },
    options::TrainOptions,
};

/// The options of DPO.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DpoOptions {
    /// How far the model may leave the reference: the smaller, the further.
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub beta: f64,
    /// The loss of a pair by its name, or several with weights: `{ sigmoid = 1.0, sft = 0.2 }`.
    pub loss: Mixture,
    /// Share of pairs that are taken to be the wrong way round; where absent 0.1 for `robust` and `cdpo`, 0.001 for `exo_pair`, 0 for `aot`
    /// and `aot_unpaired`, and the other losses know none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 0.5))]
    pub label_smoothing: Option<f64>,
    /// Temperature of `discopop`.
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub discopop_tau: f64,
    /// The divergence from the reference: `reverse_kl`, `forward_kl`, `js_divergence`, or `{ alpha_divergence = { alpha = 0.5 } }`.
    #[serde(deserialize_with = "divergence::named")]
    #[schemars(schema_with = "crate::choice::name_or_table_schema::<Divergence>")]
    pub f_divergence: Divergence,
    /// What the tokens by which an answer is longer than the other count (LD-DPO); 1 where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub ld_alpha: Option<f64>,
    /// Weigh pairs by how likely the policy would write them itself (WPO); `sft` stays as it is.
    pub weighting: bool,
    /// Whose log-probabilities the policy's are measured against: `start`, `without_adapter`, `none`, `{ folder = "PATH" }`, or one that
    /// follows the policy, `{ moving = { every = 64, mix = 0.6 } }`.
    #[serde(deserialize_with = "reference::named")]
    #[schemars(schema_with = "crate::choice::name_or_table_schema::<ReferenceOptions>")]
    pub reference: ReferenceOptions,
}

/// DiscoPOP's temperature.
const USUAL_TAU: f64 = 0.05;

impl Default for DpoOptions {
    fn default() -> Self {
        Self {
            beta: 0.1,
            loss: PairLoss::Sigmoid.into(),
            label_smoothing: None,
            discopop_tau: USUAL_TAU,
            f_divergence: Divergence::default(),
            ld_alpha: None,
            weighting: false,
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

impl DpoOptions {
    /// # Errors
    /// When a number is out of its range, or an option says something that no loss reads.
    fn check(&self) -> Result<()> {
        positive("beta", self.beta)?;
        positive("discopop_tau", self.discopop_tau)?;
        self.loss.check()?;
        self.f_divergence.check()?;
        self.reference.check()?;
        self.check_smoothing()?;
        within("ld_alpha", self.ld_alpha.unwrap_or(1.0), 0.0, 1.0)?;
        if self.discopop_tau != USUAL_TAU && !self.loss.any(|loss| loss == PairLoss::Discopop) {
            let reason = "only `discopop` has a temperature; leave it out, or choose that loss";
            return Err(wrong("discopop_tau", reason));
        }
        if self.weighting && self.loss.any(PairLoss::is_of_batch) {
            let reason =
                "`aot` sorts pairs, which then have no weights of their own; leave one of them out";
            return Err(wrong("weighting", reason));
        }
        let other = self.f_divergence != Divergence::ReverseKl;
        if other && self.loss.any(|loss| !loss.allows_divergence()) {
            let reason = "other divergences than `reverse_kl` go with `sigmoid`, `sigmoid_norm`, `hinge`, `ipo`, `ipo_raw`, `exo_pair`, \
                          `robust`, `cdpo`, `discopop` and `sft` alone";
            return Err(wrong("f_divergence", reason));
        }
        Ok(())
    }

    fn check_smoothing(&self) -> Result<()> {
        let key = "label_smoothing";
        let Some(share) = self.label_smoothing else {
            return Ok(());
        };
        if !(0.0..0.5).contains(&share) {
            return Err(wrong(
                key,
                format!("{share} is not at least 0 and below 0.5"),
            ));
        }
        if !self.loss.any(PairLoss::is_smoothed) {
            let reason = "only `robust`, `cdpo`, `exo_pair`, `aot` and `aot_unpaired` know it; `cdpo` is `sigmoid` with label smoothing";
            return Err(wrong(key, reason));
        }
        match share == 0.0 && self.loss.any(|loss| loss == PairLoss::ExoPair) {
            true => Err(wrong(key, "`exo_pair` needs some, for example 0.001")),
            false => Ok(()),
        }
    }
}

/// The objective's registration.
pub const ENTRY: Entry<DpoOptions> = Entry::of_pairs(
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
    DpoOptions::check,
    |options, _| Ok(Box::new(Dpo::new(options.clone())?)),
)
.that_reads(|options| options.reference.reads());

/// The objective.
#[derive(Debug, Clone)]
pub struct Dpo {
    options: DpoOptions,
    reference: Reference,
    /// The mean of all rewards so far; it moves in forward passes, which see the objective as it is.
    rewards: Cell<RunningMean>,
}

impl Dpo {
    /// Checks the options.
    ///
    /// # Errors
    /// As the options' check.
    pub fn new(options: DpoOptions) -> Result<Self> {
        options.check()?;
        Ok(Self {
            reference: Reference::new(options.reference.clone()),
            options,
            rewards: Cell::default(),
        })
    }

    /// The log-probability of every row, of answers that are longer than the other as `ld_alpha` says.
    fn by_row(&self, scores: &Scores, tokens: &TokenBatch) -> Tensor<1> {
        let weights = self
            .options
            .ld_alpha
            .map(|alpha| length_weights(tokens, alpha));
        scores.by_row(tokens, weights)
    }

    /// A reference's log-probabilities of the rows of a batch of pairs, pair after pair.
    fn reference_scores(&self, model: &LanguageModel, tokens: &TokenBatch) -> Result<Vec<f64>> {
        let [chosen, rejected] =
            halves(self.by_row(&Scores::of(model, tokens)?, tokens)).map(ReadFloats::floats);
        let pairs = chosen.into_iter().zip(rejected);
        Ok(pairs
            .flat_map(|(c, r)| [f64::from(c), f64::from(r)])
            .collect())
    }

    /// The numbers of the formulas; the rewards of a batch that is trained on count for `bco`'s mean before that is used.
    fn constants(&self, training: bool, ratios: &[Tensor<1>; 2]) -> Constants {
        if training && self.options.loss.any(|loss| loss == PairLoss::Bco) {
            let rewards = ratios.clone().map(|r| (r * self.options.beta).floats());
            self.rewards.set(self.rewards.get().with(&rewards.concat()));
        }
        Constants {
            beta: self.options.beta,
            label_smoothing: self.options.label_smoothing,
            tau: self.options.discopop_tau,
            mean_reward: self.rewards.get().value(),
        }
    }
}

/// Even and odd places of a vector that goes through pairs.
fn by_side(pairs: Tensor<1>) -> [Tensor<1>; 2] {
    let count = pairs.dims()[0] / 2;
    let sides = pairs.reshape([count, 2]);
    [0, 1].map(|side| sides.clone().narrow(1, side, 1).flatten::<1>(0, 1))
}

impl Objective for Dpo {
    fn name(&self) -> &'static str {
        "dpo"
    }

    fn packed_rows(&self) -> PackedRows {
        ENTRY.packed_rows
    }

    fn predicts_tokens(&self) -> bool {
        false
    }

    fn check(&self, model: &LanguageModel, _: &[Sample], _: &TrainOptions) -> Result<()> {
        check_causal(self.name(), model)?;
        self.reference.check(model)
    }

    fn kept_bytes(&self, model: &LanguageModel) -> u64 {
        self.reference.kept_bytes(model, false)
    }

    fn other_passes(&self, model: &LanguageModel) -> OtherPasses {
        self.reference.passes(model, false)
    }

    fn start(&mut self, model: &LanguageModel, _: u64) -> Result<()> {
        self.reference.start(model, false)
    }

    fn prepare(&self, model: &LanguageModel, samples: &mut [Sample]) -> Result<()> {
        self.reference
            .prepare(model, samples, &|reference, samples| {
                let batch = collate_pairs(self.name(), samples)?;
                self.reference_scores(reference, &batch.tokens)
            })
    }

    /// All better answers come first, then all worse ones.
    fn collate(&self, _: &LanguageModel, samples: &[&Sample], _: &mut Random) -> Result<Batch> {
        collate_pairs(self.name(), samples)
    }

    fn loss(&self, model: &LanguageModel, batch: &Batch) -> Result<Loss> {
        let count = batch.units as usize;
        let scores = Scores::of(model, &batch.tokens)?;
        let logps = halves(self.by_row(&scores, &batch.tokens));
        let live = |model: &LanguageModel| self.reference_scores(model, &batch.tokens);
        let reference = by_side(self.reference.of_batch(batch, 2 * count, model, &live)?);
        let margins = |[better, worse]: [Tensor<1>; 2]| better - worse;
        let ratios: [Tensor<1>; 2] =
            std::array::from_fn(|side| logps[side].clone() - reference[side].clone());
        let constants = self.constants(model.is_training(), &ratios);
        let [chosen, rejected] = ratios.clone().map(|r| self.options.f_divergence.score(r));
        let [chosen_tokens, rejected_tokens] = halves(vector(
            &lengths(&batch.tokens.rows, 2 * count),
            &scores.by_target,
        ));
        let pairs = Pairs {
            chosen,
            rejected,
            chosen_tokens,
            rejected_tokens,
            policy_margins: margins(logps.clone()),
            reference_margins: margins(reference),
        };
        let weights = match self.options.weighting {
            true => {
                let rows = weights::of_rows(model, &batch.tokens, &scores)?;
                Some(weights::of_pairs(&rows, &scores.by_target))
            }
            false => None,
        };
        let likelihood = -scores.by_target.narrow(0, 0, better_tokens(batch)).sum();
        let term = |(loss, weight): (PairLoss, f64)| match (loss.of(&pairs, constants), &weights) {
            (None, _) => likelihood.clone() * (weight * batch.exchange),
            (Some(losses), None) => losses.sum() * weight,
            (Some(losses), Some(weights)) => (losses * weights.clone()).sum() * weight,
        };
        let zero = Tensor::zeros([1], model.device());
        let sum = self
            .options
            .loss
            .iter()
            .map(term)
            .fold(zero, |sum, one| sum + one);
        let mut loss = Loss::new(sum, count as f64, scores.auxiliary);
        let rewards = ratios.map(|ratio| ratio * self.options.beta);
        loss.metrics.extend(metrics_of_pairs(rewards, logps));
        loss.metrics.push(Metric {
            name: NLL_LOSS.name,
            sum: f64::from(likelihood.floats()[0]),
            units: better_tokens(batch) as f64,
        });
        Ok(loss)
    }

    fn after_step(&mut self, model: &LanguageModel, step: usize) -> Result<()> {
        self.reference.after_step(model, step)
    }

    fn state(&self) -> ObjectiveState<'_> {
        ObjectiveState {
            tensors: self.reference.state(),
            value: serde_json::json!(self.rewards.get().to_bits()),
        }
    }

    fn restore(&mut self, tensors: &SavedTensors, value: &Value) -> Result<()> {
        let bits = serde_json::from_value(value.clone()).map_err(|error| {
            let fix = "give another output folder";
            wrong(
                "objective",
                format!("the checkpoint keeps no mean of rewards ({error}); {fix}"),
            )
        })?;
        self.rewards.set(RunningMean::from_bits(bits));
        self.reference.restore(tensors)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objectives::preference::tests::constant;

    fn options(text: &str) -> Result<Dpo> {
        Dpo::new(serde_json::from_str(&text.replace('\'', "\"")).unwrap())
    }

    #[test]
    fn senseless_options_are_refused() {
        for (text, key) in [
            ("{'beta': 0}", "`beta`"),
            ("{'loss': {}}", "`loss`"),
            ("{'loss': {'sft': -1}}", "`loss`"),
            ("{'label_smoothing': 0.1}", "`label_smoothing`"),
            (
                "{'loss': 'robust', 'label_smoothing': 0.5}",
                "`label_smoothing`",
            ),
            (
                "{'loss': 'exo_pair', 'label_smoothing': 0}",
                "`label_smoothing`",
            ),
            ("{'discopop_tau': 0.1}", "`discopop_tau`"),
            ("{'loss': 'discopop', 'discopop_tau': 0}", "`discopop_tau`"),
            (
                "{'loss': 'nca_pair', 'f_divergence': 'forward_kl'}",
                "`f_divergence`",
            ),
            (
                "{'f_divergence': {'alpha_divergence': {'alpha': -1}}}",
                "`f_divergence`",
            ),
            ("{'loss': 'aot', 'weighting': true}", "`weighting`"),
            ("{'ld_alpha': 1.5}", "`ld_alpha`"),
            ("{'reference': {'moving': {'every': 0}}}", "`reference`"),
        ] {
            let error = options(text).unwrap_err().to_string();
            assert!(error.starts_with(key), "{text}: {error}");
        }
        for text in [
            "{'loss': 'robust', 'label_smoothing': 0.2}",
            "{'loss': {'sigmoid': 1, 'sft': 0.5}, 'f_divergence': 'js_divergence'}",
            "{'loss': 'discopop', 'discopop_tau': 0.1, 'weighting': true, 'ld_alpha': 0}",
            "{'reference': 'none'}",
        ] {
            options(text).unwrap();
        }
    }

    #[test]
    fn columns_go_through_pairs() {
        let [chosen, rejected] = by_side(constant([1.0, 2.0, 3.0, 4.0]));
        assert_eq!(
            [chosen.floats(), rejected.floats()],
            [[1.0, 3.0], [2.0, 4.0]]
        );
    }
}
