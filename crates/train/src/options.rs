//! The options of a training run, with the defaults that users of other tools expect.

use espalier_kernels::linear::Precision;
use serde::{Deserialize, Serialize};

use crate::{Error, Result, optimisers::OptimiserName};

/// More rows than anybody puts into a forward pass, and more passes than into a step: a slip, that would ask for all memory.
const MOST_ROWS: usize = 1 << 16;

/// Tokens of the longest example.
const LONGEST: usize = 1 << 24;

/// How long, how fast and how often.
///
/// ```
/// use espalier_train::options::TrainOptions;
/// let options = TrainOptions::default();
/// assert_eq!(options.total_steps(100)?, 13); // one epoch of 100 examples by 8
/// # Ok::<(), espalier_train::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TrainOptions {
    /// Optimiser steps; overrides `epochs`.
    #[schemars(range(min = 1))]
    pub steps: Option<usize>,
    /// Passes over the data.
    #[schemars(range(max = 1e6), extend("exclusiveMinimum" = 0.0))]
    pub epochs: f64,
    /// Examples (or packed rows) of one forward pass.
    #[schemars(range(min = 1, max = MOST_ROWS))]
    pub batch: usize,
    /// Forward passes of one optimiser step.
    #[schemars(range(min = 1, max = MOST_ROWS))]
    pub accumulation: usize,
    /// Longest example in tokens; longer ones keep their beginning.
    #[schemars(range(min = 2, max = LONGEST))]
    pub length: usize,
    /// Fill rows with several examples that cannot see each other.
    pub packing: bool,
    /// Put examples of like length into a batch, which spares padding; the longest come first in every 50 steps.
    pub group_by_length: bool,
    /// Arithmetic of the matrix products: `f32`, or `bf16` with f32 weights, sums and optimiser state.
    pub precision: Precision,
    /// Compute each block a second time in the backward instead of keeping its inner values: less memory, a third more work.
    pub gradient_checkpointing: bool,
    /// Share of what attention and feed-forward layers add that is dropped at random in training.
    #[schemars(range(min = 0.0, max = 0.99))]
    pub dropout: f64,
    /// Share of every target token's weight that all tokens get alike; held-out losses are those of the targets alone.
    #[schemars(range(min = 0.0, max = 0.99))]
    pub label_smoothing: f64,
    /// The rule by which parameters are updated.
    pub optimiser: OptimiserName,
    /// Peak step size.
    #[schemars(range(min = 0.0, max = 1e3))]
    pub learning_rate: f64,
    /// Its course after warm-up.
    pub schedule: Schedule,
    /// Steps of linear warm-up; below 1, a share of all steps.
    #[schemars(range(min = 0.0, max = 1e9))]
    pub warmup: f64,
    /// Step size at the end, as a share of the peak (cosine and linear).
    #[schemars(range(min = 0.0, max = 1.0))]
    pub final_learning_rate: f64,
    /// Decoupled weight decay, on matrices only.
    #[schemars(range(min = 0.0, max = 1e3))]
    pub weight_decay: f64,
    /// Decay of Adam's first moment.
    #[schemars(range(min = 0.0, max = 0.999_999_9))]
    pub beta1: f64,
    /// Decay of Adam's second moment.
    #[schemars(range(min = 0.0, max = 0.999_999_9))]
    pub beta2: f64,
    /// Adam's epsilon.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub epsilon: f64,
    /// Longest gradient, in the L2 norm over all parameters; 0 turns clipping off.
    #[schemars(range(min = 0.0, max = 1e9))]
    pub clip: f64,
    /// Seed of data order and fresh weights.
    pub seed: u64,
    /// Steps between lines of the log.
    #[schemars(range(min = 1))]
    pub log_every: usize,
    /// Steps between evaluations; 0 evaluates at the end only.
    pub evaluate_every: usize,
    /// Steps between checkpoints; 0 writes none before the end.
    pub checkpoint_every: usize,
    /// Checkpoints that are kept.
    #[schemars(range(min = 1))]
    pub keep_checkpoints: usize,
}

/// The course of the step size after warm-up.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Half a cosine from the peak to the end value.
    #[default]
    Cosine,
    /// A straight line from the peak to the end value.
    Linear,
    /// The peak throughout.
    Constant,
    /// The peak times `sqrt(warmup / step)`, without an end (arXiv 1706.03762, equation 3).
    InverseSquareRoot,
}

impl Default for TrainOptions {
    fn default() -> Self {
        Self {
            steps: None,
            epochs: 1.0,
            batch: 8,
            accumulation: 1,
            length: 1024,
            packing: false,
            group_by_length: false,
            precision: Precision::F32,
            gradient_checkpointing: false,
            dropout: 0.0,
            label_smoothing: 0.0,
            optimiser: OptimiserName::AdamW,
            learning_rate: 2e-5,
            schedule: Schedule::Cosine,
            warmup: 0.03,
            final_learning_rate: 0.0,
            weight_decay: 0.0,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            clip: 1.0,
            seed: 0,
            log_every: 10,
            evaluate_every: 0,
            checkpoint_every: 100,
            keep_checkpoints: 2,
        }
    }
}

impl TrainOptions {
    /// Examples of one optimiser step.
    pub fn examples_per_step(&self) -> usize {
        self.batch * self.accumulation
    }

    /// Optimiser steps for `examples` examples; the last step of a pass holds what is left of it.
    ///
    /// # Errors
    /// When an option makes no sense.
    pub fn total_steps(&self, examples: usize) -> Result<usize> {
        self.check()?;
        let by_epochs = || {
            let steps = examples.div_ceil(self.examples_per_step()).max(1);
            (self.epochs * steps as f64).ceil().max(1.0) as usize
        };
        Ok(self.steps.unwrap_or_else(by_epochs))
    }

    /// Whether every option is within its range.
    ///
    /// # Errors
    /// The first that is not.
    pub fn check(&self) -> Result<()> {
        let positive = |key, value: usize| match value {
            0 => Err(Error::Option {
                key,
                reason: "must be at least 1".into(),
            }),
            _ => Ok(()),
        };
        let within = |key, value: f64, low: f64, high: f64| match value >= low && value <= high {
            true => Ok(()),
            false => Err(Error::Option {
                key,
                reason: format!("{value} is outside {low} to {high}"),
            }),
        };
        let at_most = |key, value: usize, most: usize| match value <= most {
            true => positive(key, value),
            false => Err(Error::Option {
                key,
                reason: format!("{value} is more than {most}"),
            }),
        };
        at_most("batch", self.batch, MOST_ROWS)?;
        at_most("accumulation", self.accumulation, MOST_ROWS)?;
        at_most("length", self.length, LONGEST)?;
        positive("length", self.length.saturating_sub(1))?;
        positive("steps", self.steps.unwrap_or(1))?;
        positive("log_every", self.log_every)?;
        positive("keep_checkpoints", self.keep_checkpoints)?;
        if !(self.epochs > 0.0 && self.epochs <= 1e6) {
            return Err(Error::Option {
                key: "epochs",
                reason: format!("{} is not above 0 and at most 1000000", self.epochs),
            });
        }
        within("dropout", self.dropout, 0.0, 0.99)?;
        within("label_smoothing", self.label_smoothing, 0.0, 0.99)?;
        within("learning_rate", self.learning_rate, 0.0, 1e3)?;
        within("warmup", self.warmup, 0.0, 1e9)?;
        within("final_learning_rate", self.final_learning_rate, 0.0, 1.0)?;
        within("weight_decay", self.weight_decay, 0.0, 1e3)?;
        within("beta1", self.beta1, 0.0, 0.999_999_9)?;
        within("beta2", self.beta2, 0.0, 0.999_999_9)?;
        within("epsilon", self.epsilon, 0.0, 1.0)?;
        within("clip", self.clip, 0.0, 1e9)
    }

    /// Step size of step `step` (from 0) of `total`.
    pub fn learning_rate_at(&self, step: usize, total: usize) -> f64 {
        let warmup = if self.warmup < 1.0 {
            (self.warmup * total as f64).ceil()
        } else {
            self.warmup
        };
        let step = step as f64;
        if step < warmup {
            return self.learning_rate * (step + 1.0) / warmup;
        }
        let progress = ((step - warmup) / (total as f64 - warmup).max(1.0)).min(1.0);
        let share = match self.schedule {
            Schedule::Constant => 1.0,
            Schedule::InverseSquareRoot => (warmup.max(1.0) / (step + 1.0)).sqrt(),
            Schedule::Linear => 1.0 - (1.0 - self.final_learning_rate) * progress,
            Schedule::Cosine => {
                let wave = 0.5 * (1.0 + (std::f64::consts::PI * progress).cos());
                self.final_learning_rate + (1.0 - self.final_learning_rate) * wave
            }
        };
        self.learning_rate * share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_begin_peak_and_end_where_they_should() {
        let options = TrainOptions {
            learning_rate: 1.0,
            warmup: 10.0,
            final_learning_rate: 0.1,
            ..Default::default()
        };
        assert!((options.learning_rate_at(0, 110) - 0.1).abs() < 1e-12);
        assert!((options.learning_rate_at(10, 110) - 1.0).abs() < 1e-12);
        assert!((options.learning_rate_at(60, 110) - 0.55).abs() < 1e-12);
        assert!((options.learning_rate_at(110, 110) - 0.1).abs() < 1e-12);
        let linear = TrainOptions {
            schedule: Schedule::Linear,
            ..options.clone()
        };
        assert!((linear.learning_rate_at(35, 110) - 0.775).abs() < 1e-12);
        let constant = TrainOptions {
            schedule: Schedule::Constant,
            ..options
        };
        assert_eq!(constant.learning_rate_at(100, 110), 1.0);
    }

    #[test]
    fn the_first_transformers_schedule() {
        // d^-0.5 min(s^-0.5, s W^-1.5), steps s counted from 1.
        let (width, warmup) = (512f64, 4000f64);
        let options = TrainOptions {
            learning_rate: (width * warmup).powf(-0.5),
            schedule: Schedule::InverseSquareRoot,
            warmup,
            ..Default::default()
        };
        assert!((options.learning_rate_at(3999, 100_000) - 6.9877e-4).abs() < 1e-8);
        for step in [1f64, 1000.0, 4000.0, 4001.0, 16000.0, 100_000.0] {
            let expected = width.powf(-0.5) * step.powf(-0.5).min(step * warmup.powf(-1.5));
            assert!(
                (options.learning_rate_at(step as usize - 1, 100_000) - expected).abs() < 1e-12,
                "step {step}"
            );
        }
    }

    #[test]
    fn a_pass_ends_with_its_last_example() {
        // transformers: ceil(epochs * ceil(ceil(examples / batch) / accumulation)).
        let steps = |examples, batch, accumulation, epochs| {
            let options = TrainOptions {
                batch,
                accumulation,
                epochs,
                ..Default::default()
            };
            options.total_steps(examples).unwrap()
        };
        assert_eq!(steps(3, 1, 16, 1.0), 1);
        assert_eq!(steps(3, 1, 16, 5.0), 5);
        assert_eq!(steps(9, 2, 2, 2.0), 6);
        assert_eq!(steps(9, 2, 2, 0.5), 2);
        assert_eq!(steps(8, 2, 2, 1.5), 3);
    }

    #[test]
    fn senseless_options_are_refused() {
        let wrong = TrainOptions {
            batch: 0,
            ..Default::default()
        };
        assert_eq!(
            wrong.total_steps(10).unwrap_err().to_string(),
            "`batch`: must be at least 1"
        );
        let wrong = TrainOptions {
            learning_rate: f64::NAN,
            ..Default::default()
        };
        assert!(wrong.total_steps(10).is_err());
    }
}
