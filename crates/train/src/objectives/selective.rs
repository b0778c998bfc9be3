//! Selective language modelling (Rho-1, arXiv 2404.07965): a reference says which tokens are worth learning.
//!
//! With the reference's loss `L_ref` of every target, computed once before training, when the reference is gone again, and the model's own `L` of this pass, the targets of the largest
//! excess `L - L_ref` are kept, `K = floor(ratio N)` of `N`, and `loss = sum of their L / K`. All tokens are read; no gradient flows through
//! the choice. Held-out losses are those of all targets, as without it. Recipe: `rho-1.toml`.

use burn::tensor::Tensor;
use espalier_data::random::Random;
use espalier_kernels::{embedding::embedding, readback::ReadFloats};
use espalier_models::{model::LanguageModel, taps::Unobserved};
use serde::{Deserialize, Serialize};

use super::{
    Batch, Loss, Metric, Objective, OtherPasses, PackedRows, check_causal, reference,
    registry::Entry, rows,
};
use crate::{
    Error, Result,
    batch::{Sample, TokenBatch},
    metrics::{ACCURACY, EXACT_MATCH, MetricDescription},
    options::TrainOptions,
    rewards::Read,
};

/// The options of selective language modelling.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SelectiveOptions {
    /// The reference: a model or adapter folder, or the name of an earlier stage; over the same vocabulary.
    pub reference: String,
    /// Share of the targets that are learned.
    #[schemars(extend("exclusiveMinimum" = 0.0), range(max = 1.0))]
    pub ratio: f64,
    /// Which targets are learned.
    pub select: Selection,
    /// Among which targets is chosen.
    pub scope: Scope,
}

impl Default for SelectiveOptions {
    fn default() -> Self {
        Self {
            reference: String::new(),
            ratio: 0.6,
            select: Selection::Excess,
            scope: Scope::Batch,
        }
    }
}

/// Which targets are learned.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Selection {
    /// Those whose loss exceeds the reference's the most.
    #[default]
    Excess,
    /// Those with the largest loss.
    HighLoss,
    /// Those with the smallest loss under the reference.
    LowReference,
    /// Any, for comparison.
    Random,
}

impl Selection {
    /// Whether a reference is asked.
    fn needs_reference(self) -> bool {
        matches!(self, Self::Excess | Self::LowReference)
    }
}

/// Among which targets is chosen.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// All of a forward batch.
    #[default]
    Batch,
    /// Those of each row.
    Sequence,
}

impl SelectiveOptions {
    fn check(&self) -> Result<()> {
        if !(self.ratio > 0.0 && self.ratio <= 1.0) {
            return Err(Error::Option {
                key: "ratio",
                reason: format!("{} is outside 0 (excluded) to 1", self.ratio),
            });
        }
        match self.reference.is_empty() == self.select.needs_reference() {
            false => Ok(()),
            true => Err(Error::Option {
                key: "reference",
                reason: match self.reference.is_empty() {
                    true => "name a model folder or an earlier stage, whose losses say what is worth learning".into(),
                    false => "is asked by `select = \"excess\"` and `\"low_reference\"` alone; leave it out".into(),
                },
            }),
        }
    }
}

/// The objective's registration.
pub const ENTRY: Entry<SelectiveOptions> = Entry::new(
    &[
        MetricDescription::share(
            "selected/share",
            "selected targets",
            "share of the targets that were learned",
        ),
        MetricDescription::number(
            "selected/excess",
            "losses of targets",
            "loss of the learned targets less the reference's",
        ),
        MetricDescription::number(
            "selected/all_loss",
            "losses of targets",
            "loss of all targets, learned or not",
        ),
        ACCURACY,
        EXACT_MATCH,
    ],
    PackedRows::Apart,
    SelectiveOptions::check,
    |options, _| Ok(Box::new(Selective::new(options.clone()))),
)
.that_reads(|options| {
    let named = !options.reference.is_empty();
    let reference = named.then_some(&mut options.reference);
    reference.map(Read::Peer).into_iter().collect()
});

/// The column of the reference's losses, one for each target of a sample.
const REFERENCE: &str = "reference_loss";

/// The column of what is drawn for each target of a batch.
const DRAWN: &str = "drawn";

/// The objective.
#[derive(Debug)]
pub struct Selective {
    options: SelectiveOptions,
}

impl Selective {
    /// The reference is read where samples are prepared.
    pub fn new(options: SelectiveOptions) -> Self {
        Self { options }
    }

    /// How many targets are learned of so many in each of some groups.
    fn learned(&self, tokens: &TokenBatch) -> usize {
        let of = |count: usize| kept(count, self.options.ratio);
        match self.options.scope {
            Scope::Batch => of(tokens.targets.len()),
            Scope::Sequence => groups(tokens).map(|group| of(group.len())).sum(),
        }
    }

    /// The places of the targets that are learned, ascending, by their losses and the reference's.
    fn chosen(
        &self,
        tokens: &TokenBatch,
        own: &[f32],
        reference: &[f64],
        drawn: &[f64],
    ) -> Vec<u32> {
        let score = |place: usize| match self.options.select {
            Selection::Excess => f64::from(own[place]) - reference[place],
            Selection::HighLoss => f64::from(own[place]),
            Selection::LowReference => -reference[place],
            Selection::Random => drawn[place],
        };
        let largest = |group: &[usize]| {
            let mut places = group.to_vec();
            // Stable: of equal scores the first counts.
            places.sort_by(|a, b| score(*b).total_cmp(&score(*a)));
            places.truncate(kept(group.len(), self.options.ratio));
            places
        };
        let mut chosen: Vec<usize> = match self.options.scope {
            Scope::Batch => largest(&(0..own.len()).collect::<Vec<_>>()),
            Scope::Sequence => groups(tokens).flat_map(|group| largest(&group)).collect(),
        };
        chosen.sort_unstable();
        chosen.into_iter().map(|place| place as u32).collect()
    }
}

/// `floor(ratio n)` of `n`, and one at least where there are any.
fn kept(count: usize, ratio: f64) -> usize {
    // A share such as 0.7 of 10 is 7, though the product in f64 may be just below.
    let whole = (count as f64 * ratio + 1e-9).floor() as usize;
    whole.clamp(count.min(1), count)
}

/// The targets of each row.
fn groups(tokens: &TokenBatch) -> impl Iterator<Item = Vec<usize>> + '_ {
    let mut start = 0;
    tokens.rows.chunk_by(|a, b| a == b).map(move |group| {
        let first = start;
        start += group.len();
        (first..start).collect()
    })
}

impl Objective for Selective {
    fn name(&self) -> &'static str {
        "selective"
    }

    fn packed_rows(&self) -> PackedRows {
        ENTRY.packed_rows
    }

    fn check(&self, model: &LanguageModel, _: &[Sample], options: &TrainOptions) -> Result<()> {
        check_causal(self.name(), model)?;
        match options.label_smoothing > 0.0 {
            true => Err(Error::Option {
                key: "label_smoothing",
                reason: "a choice by losses needs them as they are; leave it 0".into(),
            }),
            false => Ok(()),
        }
    }

    /// A pass over all samples of a reference that is taken to be as large as the model.
    fn other_passes(&self, model: &LanguageModel) -> OtherPasses {
        let pass = 2.0 * model.spec().active_parameter_count();
        let asked = f64::from(u8::from(self.options.select.needs_reference()));
        OtherPasses {
            once: asked * pass,
            each: 0.0,
        }
    }

    fn prepare(&self, model: &LanguageModel, samples: &mut [Sample]) -> Result<()> {
        if !self.options.select.needs_reference() {
            return Ok(());
        }
        let reference = &reference::load(&self.options.reference, model)?;
        reference::in_turn(samples, &mut |chunk| {
            let all: Vec<&Sample> = chunk.iter().collect();
            let tokens = TokenBatch::new(&rows(self.name(), &all)?);
            let (states, _) = tokens.predicting(reference, &mut Unobserved)?;
            let scores = reference.target_scores(states, &tokens.targets)?;
            let mut of_rows = vec![Vec::new(); chunk.len()];
            for (row, score) in tokens.rows.iter().zip(scores) {
                of_rows[*row].push(-f64::from(score.log_probability));
            }
            for (sample, losses) in chunk.iter_mut().zip(of_rows) {
                sample.columns.set_numbers(REFERENCE, losses);
            }
            Ok(())
        })
    }

    fn collate(
        &self,
        model: &LanguageModel,
        samples: &[&Sample],
        random: &mut Random,
    ) -> Result<Batch> {
        let tokens = TokenBatch::new(&rows(self.name(), samples)?);
        if !model.is_training() {
            return Batch::of_targets(tokens, samples);
        }
        let units = self.learned(&tokens);
        let count = tokens.targets.len();
        let mut batch = Batch::new(tokens, units, samples)?;
        if self.options.select == Selection::Random {
            let drawn = (0..count).map(|_| random.f()).collect();
            batch.columns.set_numbers(DRAWN, drawn);
        }
        Ok(batch)
    }

    fn loss(&self, model: &LanguageModel, batch: &Batch) -> Result<Loss> {
        if !model.is_training() {
            return batch.tokens.loss(model);
        }
        let tokens = &batch.tokens;
        let count = tokens.targets.len();
        let (likelihoods, auxiliary) = tokens.log_probabilities(model, &mut Unobserved)?;
        let losses: Tensor<1> = -likelihoods;
        let own = losses.clone().floats();
        let column = |name: &str, wanted: bool| match wanted {
            true => batch.columns.numbers(name, count),
            false => Ok(&[][..]),
        };
        let reference = column(REFERENCE, self.options.select.needs_reference())?;
        let drawn = column(DRAWN, self.options.select == Selection::Random)?;
        let chosen = self.chosen(tokens, &own, reference, drawn);
        let mut loss = Loss::new(sum_of(losses, &chosen), batch.units, auxiliary);
        loss.metrics.extend(metrics(&own, reference, &chosen));
        Ok(loss)
    }
}

/// The sum of some losses `[targets]`, through which alone gradients flow: `[1]`.
fn sum_of(losses: Tensor<1>, chosen: &[u32]) -> Tensor<1> {
    let count = losses.dims()[0];
    embedding(losses.reshape([count, 1]), chosen).sum()
}

fn metrics(own: &[f32], reference: &[f64], chosen: &[u32]) -> Vec<Metric> {
    let metric = |name, sum, units: usize| Metric {
        name,
        sum,
        units: units as f64,
    };
    let excess = |place: &u32| {
        let place = *place as usize;
        f64::from(own[place]) - reference[place]
    };
    let all: f64 = own.iter().map(|loss| f64::from(*loss)).sum();
    let mut metrics = vec![
        metric("selected/share", chosen.len() as f64, own.len()),
        metric("selected/all_loss", all, own.len()),
    ];
    if reference.len() == own.len() {
        let sum = chosen.iter().map(excess).sum();
        metrics.push(metric("selected/excess", sum, chosen.len()));
    }
    metrics
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;
    use espalier_data::{encode::Example, packing::Row};

    const OWN: [f32; 8] = [0.3, 2.9, 3.1, 0.1, 2.6, 0.8, 4.5, 0.9];
    const REFERENCES: [f64; 8] = [0.2, 1.5, 3.0, 0.1, 2.0, 0.9, 4.0, 0.05];

    fn objective(ratio: f64, select: Selection, scope: Scope) -> Selective {
        Selective::new(SelectiveOptions {
            reference: "x".into(),
            ratio,
            select,
            scope,
        })
    }

    /// Eight targets in two rows of four.
    fn tokens() -> TokenBatch {
        let row = Row::from(&Example::new(vec![5; 5], vec![true; 5]));
        TokenBatch::new(&[&row, &row])
    }

    #[test]
    fn worked_example_of_the_excess() {
        let chosen = |ratio, select, scope| {
            let objective = objective(ratio, select, scope);
            objective.chosen(&tokens(), &OWN, &REFERENCES, &[])
        };
        let found = chosen(0.6, Selection::Excess, Scope::Batch);
        assert_eq!(found, [1, 4, 6, 7]);
        let losses = Tensor::<1>::from_floats(OWN, &Device::flex())
            .autodiff()
            .require_grad();
        let sum = sum_of(losses.clone(), &found);
        let gradients = sum.backward();
        let gradient = losses.grad(&gradients).unwrap();
        assert_eq!(
            gradient.into_data().try_into_vec::<f32>().unwrap(),
            [0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 1.0]
        );
        let mean = sum.inner().into_scalar::<f32>() / 4.0;
        assert!((mean - 2.725).abs() < 1e-6, "{mean}");
        assert_eq!(chosen(1.0, Selection::Excess, Scope::Batch).len(), 8);
        assert_eq!(chosen(0.25, Selection::HighLoss, Scope::Batch), [2, 6]);
        assert_eq!(chosen(0.25, Selection::LowReference, Scope::Batch), [3, 7]);
        // Two of each row's four.
        assert_eq!(
            chosen(0.5, Selection::Excess, Scope::Sequence),
            [0, 1, 4, 7]
        );
    }

    #[test]
    fn of_equal_scores_the_first_counts_and_one_is_always_kept() {
        let objective = objective(0.5, Selection::HighLoss, Scope::Batch);
        let found = objective.chosen(&tokens(), &[1.0; 8], &[], &[]);
        assert_eq!(found, [0, 1, 2, 3]);
        assert_eq!(
            [kept(10, 0.7), kept(3, 0.1), kept(0, 0.5), kept(8, 0.6)],
            [7, 1, 0, 4]
        );
    }

    #[test]
    fn a_reference_is_named_where_it_is_asked() {
        let options = |reference: &str, select| SelectiveOptions {
            reference: reference.into(),
            select,
            ..SelectiveOptions::default()
        };
        assert!(options("x", Selection::Excess).check().is_ok());
        assert!(options("", Selection::HighLoss).check().is_ok());
        assert!(options("", Selection::Excess).check().is_err());
        assert!(options("x", Selection::Random).check().is_err());
        let wrong = SelectiveOptions {
            ratio: 0.0,
            ..options("x", Selection::Excess)
        };
        assert!(
            wrong
                .check()
                .unwrap_err()
                .to_string()
                .starts_with("`ratio`")
        );
    }
}
