//! Online DPO (arXiv 2402.04792): direct preference optimisation of pairs that the policy writes as it learns.
//!
//! Each prompt is answered twice; the answer with the larger reward is the better one of a pair, whose loss is that of DPO (arXiv
//! 2305.18290, Eq. 7): `-log sigmoid(beta ((log pi(y_w) - log ref(y_w)) - (log pi(y_l) - log ref(y_l))))`. Of two answers with equal
//! rewards, or one without, nothing is learned. Recipe: `online.toml`.

use burn::tensor::Tensor;
use espalier_data::packing::Row;
use espalier_kernels::readback::ReadFloats;
use espalier_models::model::LanguageModel;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    COMMON, Method, Online,
    answers::{Answers, constant},
    common_metrics, log_probabilities,
    rollout::{Actor, RolloutOptions, Written},
    with_common,
};
use crate::{
    Result,
    batch::{Sample, TokenBatch},
    columns::Columns,
    error::positive,
    metrics::MetricDescription,
    objectives::{Batch, Loss, Metric, registry::Entry},
};

/// The options of online DPO.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct OnlineDpoOptions {
    /// How answers are written and scored.
    pub rollout: RolloutOptions,
    /// How far the policy may leave the reference: the smaller, the further.
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub beta: f64,
}

impl Default for OnlineDpoOptions {
    fn default() -> Self {
        Self {
            rollout: RolloutOptions::default(),
            beta: 0.1,
        }
    }
}

impl OnlineDpoOptions {
    /// # Errors
    /// The first option that makes no sense.
    fn check(&self) -> Result<()> {
        positive("beta", self.beta)?;
        self.rollout.check()
    }
}

const OWN: [MetricDescription; 4] = [
    MetricDescription::number(
        "rewards/chosen",
        "rewards of the pairs",
        "beta times the log-ratio of the better answers to the reference",
    ),
    MetricDescription::number(
        "rewards/rejected",
        "rewards of the pairs",
        "beta times the log-ratio of the worse answers to the reference",
    ),
    MetricDescription::number(
        "rewards/margins",
        "rewards of the pairs",
        "the first less the second",
    ),
    MetricDescription::share(
        "rewards/accuracies",
        "preference accuracy",
        "share of the pairs whose better answer has the larger log-ratio",
    ),
];

const METRICS: [MetricDescription; COMMON.len() + OWN.len()] = with_common(&OWN);

/// The objective's registration.
pub const ENTRY: Entry<OnlineDpoOptions> = Entry::of_prompts(
    &METRICS,
    |options| options.rollout.reads(),
    OnlineDpoOptions::check,
    |options, _| {
        Ok(Box::new(Online::new(
            OnlineDpo(options.clone()),
            options.rollout.clone(),
        )))
    },
);

/// Column of a pair: whether one of its answers is better.
const DECIDED: &str = "decided";

/// The method.
#[derive(Debug, Clone)]
pub struct OnlineDpo(OnlineDpoOptions);

impl Method for OnlineDpo {
    fn name(&self) -> &'static str {
        "online_dpo"
    }

    fn answers(&self) -> usize {
        2
    }

    /// Pairs of the better and the worse answer.
    fn judge(&self, _: &Actor, _: &LanguageModel, written: Written) -> Result<Vec<Sample>> {
        let Written {
            answers, rewards, ..
        } = written;
        let pairs = answers.chunks_exact(2).zip(rewards.chunks_exact(2));
        pairs
            .map(|(answers, rewards)| {
                let (decided, better) = match rewards {
                    [Some(first), Some(second)] => (first != second, usize::from(second > first)),
                    _ => (false, 0),
                };
                let order = [&answers[better], &answers[1 - better]];
                let mut columns = Columns::joined(order.map(|answer| &answer.columns))?;
                columns.set_numbers(DECIDED, vec![f64::from(u8::from(decided))]);
                let rows = order
                    .iter()
                    .flat_map(|answer| answer.rows.clone())
                    .collect();
                Ok(Sample { rows, columns })
            })
            .collect()
    }

    /// The pairs one after the other, the better answer first in each.
    fn batch(&self, judged: &[&Sample]) -> Result<Batch> {
        let rows: Vec<&Row> = judged.iter().flat_map(|pair| &pair.rows).collect();
        let mut batch = Batch::new(TokenBatch::new(&rows), judged.len(), judged)?;
        batch.units = batch.columns.numbers(DECIDED, judged.len())?.iter().sum();
        Ok(batch)
    }

    fn loss(&self, actor: &Actor, model: &LanguageModel, batch: &Batch) -> Result<Loss> {
        let (tokens, device) = (&batch.tokens, model.device());
        let (_, new, auxiliary) = actor.scores(model, tokens)?;
        let scores = log_probabilities(batch, new, false, device)?;
        let answers = Answers::new(&tokens.rows, tokens.input.batch, device);
        let ratios = answers.sums(scores.new.clone() - scores.reference.clone());
        let pairs = tokens.input.batch / 2;
        let sides = ratios.reshape([pairs, 2]);
        let side = |side: usize| sides.clone().narrow(1, side, 1).reshape([pairs]);
        let decided = batch.columns.numbers(DECIDED, pairs)?;
        let sum =
            pair_losses(side(0), side(1), self.0.beta) * constant(decided.iter().copied(), device);
        let mut loss = Loss::new(sum.sum(), batch.units, auxiliary);
        loss.metrics.extend(common_metrics(batch, &scores)?);
        let (better, worse) = (side(0).floats(), side(1).floats());
        loss.metrics.extend(self.metrics(&better, &worse, decided));
        Ok(loss)
    }
}

/// The loss of each pair of log-ratios, `[pairs]`.
fn pair_losses(better: Tensor<1>, worse: Tensor<1>, beta: f64) -> Tensor<1> {
    -burn::tensor::activation::log_sigmoid((better - worse) * beta)
}

impl OnlineDpo {
    /// Of the decided pairs.
    fn metrics(&self, better: &[f32], worse: &[f32], decided: &[f64]) -> Vec<Metric> {
        let pairs = better.iter().zip(worse).zip(decided);
        let pairs: Vec<(f64, f64)> = pairs
            .filter(|(_, decided)| **decided > 0.0)
            .map(|((better, worse), _)| (f64::from(*better), f64::from(*worse)))
            .collect();
        let beta = self.0.beta;
        let sums = [
            pairs.iter().map(|(better, _)| beta * better).sum(),
            pairs.iter().map(|(_, worse)| beta * worse).sum(),
            pairs
                .iter()
                .map(|(better, worse)| beta * (better - worse))
                .sum(),
            pairs
                .iter()
                .filter(|(better, worse)| better > worse)
                .count() as f64,
        ];
        let units = pairs.len() as f64;
        let metric = |(metric, sum): (&MetricDescription, f64)| Metric {
            name: metric.name,
            sum,
            units,
        };
        OWN.iter().zip(sums).map(metric).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::rollout::{ENDED, OLD, REFERENCE};
    use super::*;
    use burn::tensor::Device;
    use espalier_data::encode::Example;

    fn written(rewards: &[Option<f64>]) -> Written {
        let answer = |number: u32| {
            let example = Example::new(vec![1, 2 + number], vec![false, true]);
            let mut sample = Sample::example(&example);
            for name in [ENDED, REFERENCE, OLD] {
                sample.columns.set_numbers(name, vec![f64::from(number)]);
            }
            sample
        };
        Written {
            answers: (0..rewards.len() as u32).map(answer).collect(),
            group: 2,
            rewards: rewards.to_vec(),
            shown: Vec::new(),
        }
    }

    #[test]
    fn the_better_answer_comes_first_and_ties_do_not_count() {
        let method = OnlineDpo(OnlineDpoOptions::default());
        let rewards = [Some(0.0), Some(1.0), Some(0.5), Some(0.5), Some(1.0), None];
        let spec = espalier_models::spec::ModelSpec::llama(16, 8, 1, 2, 1, 16, 32);
        let mut seed = espalier_models::source::Seed(0);
        let model = LanguageModel::build(spec, &mut seed, &Device::flex()).unwrap();
        let actor = Actor::new(RolloutOptions::default());
        let pairs = method.judge(&actor, &model, written(&rewards)).unwrap();
        let last = |pair: &Sample| [0, 1].map(|row: usize| pair.rows[row].ids[1] - 2);
        assert_eq!(
            pairs.iter().map(last).collect::<Vec<_>>(),
            [[1, 0], [2, 3], [4, 5]]
        );
        assert_eq!(pairs[0].columns.numbers(REFERENCE, 2).unwrap(), [1.0, 0.0]);
        let batch = method.batch(&pairs.iter().collect::<Vec<_>>()).unwrap();
        assert_eq!(batch.units, 1.0);
        assert_eq!(batch.columns.numbers(DECIDED, 3).unwrap(), [1.0, 0.0, 0.0]);
    }

    #[test]
    fn a_pair_costs_what_it_costs_in_dpo() {
        let of = |value: f32| Tensor::<1>::from_floats([value], &Device::flex());
        let loss = pair_losses(of(1.0), of(-0.5), 0.1).floats()[0];
        assert!((loss - 0.620_957).abs() < 2e-6, "{loss}");
    }
}
