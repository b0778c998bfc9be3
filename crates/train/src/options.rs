//! The options of a training run, with the defaults that users of other tools expect.

use std::collections::BTreeMap;

use espalier_kernels::linear::Precision;
use serde::{Deserialize, Serialize};

use crate::{
    Error, Result,
    averaging::Average,
    choice,
    error::{at_least, within},
    optimisers::OptimiserOptions,
    schedule::Schedule,
};

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
    /// Fill rows with several examples that cannot see each other; long documents (`pretrain`) then become several pieces.
    pub packing: bool,
    /// Put examples of like length, of 50 steps at a time, into a batch, which spares padding; the batch with the longest comes first, the
    /// others in any order.
    pub group_by_length: bool,
    /// Arithmetic of the matrix products: `f32`, or `bf16` with f32 weights, sums and optimiser state.
    pub precision: Precision,
    /// Compute each block a second time in the backward instead of keeping its inner values: less memory, a third more work.
    pub gradient_checkpointing: bool,
    /// Update each block as soon as the backward has its gradients, which are then let go: one block's exist at a time. Needs
    /// `gradient_checkpointing`, and neither clips nor accumulates.
    pub release_gradients: bool,
    /// Share of what attention and feed-forward layers add that is dropped at random in training.
    #[schemars(range(min = 0.0, max = 0.99))]
    pub dropout: f64,
    /// Share of every target token's weight that all tokens get alike; held-out losses are those of the targets alone.
    #[schemars(range(min = 0.0, max = 0.99))]
    pub label_smoothing: f64,
    /// Noise on the embeddings in training (NEFTune): its strength, 5 to 15 in the paper, 0 for none.
    #[schemars(range(min = 0.0, max = 1e6))]
    pub embedding_noise: f64,
    /// Leave an average of the weights instead of the last ones: `{ moving = { decay = 0.999 } }` over all steps, or `{ last = { count = 5, every = 100 } }`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub average: Option<Average>,
    /// The rule by which parameters are updated.
    #[serde(deserialize_with = "choice::name_or_table")]
    #[schemars(schema_with = "choice::name_or_table_schema::<OptimiserOptions>")]
    pub optimiser: OptimiserOptions,
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
    /// Periods of `cosine_restarts`.
    #[schemars(range(min = 1))]
    pub cycles: usize,
    /// Steps in which `warmup_stable_decay` falls; below 1, a share of all steps.
    #[schemars(range(min = 0.0, max = 1e9))]
    pub decay: f64,
    /// Factors on the learning rate by patterns (regular expressions) that occur in a parameter's name in the checkpoint; of several they are
    /// multiplied.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub learning_rates: BTreeMap<String, f64>,
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
            release_gradients: false,
            dropout: 0.0,
            label_smoothing: 0.0,
            embedding_noise: 0.0,
            average: None,
            optimiser: OptimiserOptions::default(),
            learning_rate: 2e-5,
            schedule: Schedule::Cosine,
            warmup: 0.03,
            final_learning_rate: 0.0,
            cycles: 1,
            decay: 0.1,
            learning_rates: BTreeMap::new(),
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
        let positive = |key, value: usize| at_least(key, value, 1);
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
        if self.length < 2 {
            return Err(Error::Option {
                key: "length",
                reason: "must be at least 2: a token, and the one that it predicts".into(),
            });
        }
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
        positive("cycles", self.cycles)?;
        within("decay", self.decay, 0.0, 1e9)?;
        for factor in self.learning_rates.values() {
            within("learning_rates", *factor, 0.0, 1e6)?;
        }
        within("embedding_noise", self.embedding_noise, 0.0, 1e6)?;
        self.average.as_ref().map_or(Ok(()), Average::check)?;
        self.optimiser.check()?;
        within("weight_decay", self.weight_decay, 0.0, 1e3)?;
        within("beta1", self.beta1, 0.0, 0.999_999_9)?;
        within("beta2", self.beta2, 0.0, 0.999_999_9)?;
        within("epsilon", self.epsilon, 0.0, 1.0)?;
        within("clip", self.clip, 0.0, 1e9)?;
        self.check_release()
    }

    /// Whether gradients that are released are not needed later.
    fn check_release(&self) -> Result<()> {
        let reason = match self {
            Self {
                release_gradients: false,
                ..
            } => return Ok(()),
            Self {
                gradient_checkpointing: false,
                ..
            } => {
                "blocks give their gradients away when they run again in the backward; set `gradient_checkpointing = true`"
            }
            Self {
                accumulation: 2.., ..
            } => {
                "a block is updated by every backward, and cannot wait for others; set `accumulation = 1` and raise `batch`"
            }
            Self { clip, .. } if *clip > 0.0 => {
                "the norm over all gradients is known when they are gone; set `clip = 0`"
            }
            _ => return Ok(()),
        };
        Err(Error::Option {
            key: "release_gradients",
            reason: reason.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn released_gradients_exclude_what_needs_them() {
        let right = TrainOptions {
            gradient_checkpointing: true,
            release_gradients: true,
            clip: 0.0,
            ..Default::default()
        };
        right.check().unwrap();
        type Change = fn(&mut TrainOptions);
        let changes: [(Change, &str); 3] = [
            (
                |options| options.gradient_checkpointing = false,
                "set `gradient_checkpointing = true`",
            ),
            (|options| options.accumulation = 2, "set `accumulation = 1`"),
            (|options| options.clip = 1.0, "set `clip = 0`"),
        ];
        for (change, fix) in changes {
            let mut wrong = right.clone();
            change(&mut wrong);
            let error = wrong.check().unwrap_err().to_string();
            assert!(error.contains(fix), "{error}");
        }
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
