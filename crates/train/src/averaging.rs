//! Averages of the weights along a run, which take the place of the last ones at its end.
//!
//! The moving average is `a = b a + (1 - b) w` after every step, from the weights after the first one on, with `b` at most `(1 + t) / (10 + t)` so
//! that a short run is not held back by its beginning. The average of the last weights is their mean at the last step and at `count - 1` steps before
//! it, `every` apart (arXiv 2209.14981).

use std::collections::BTreeMap;

use burn::tensor::{Tensor, TensorData};
use espalier_models::{model::LanguageModel, parameter::Parameter};
use serde::{Deserialize, Serialize};

use crate::{
    Error, Result,
    error::within,
    named_tensors::{NamedTensor, SavedTensors},
    objectives::Objective,
    trained,
};

/// Which weights are averaged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Average {
    /// A moving average over all steps.
    Moving {
        /// Share of the average that stays after a step.
        decay: f64,
    },
    /// The mean of the last weights.
    Last {
        /// How many.
        count: usize,
        /// Steps between two of them.
        every: usize,
    },
}

impl Average {
    /// Whether it makes sense.
    ///
    /// # Errors
    /// When it does not.
    pub fn check(&self) -> Result<()> {
        match self {
            Self::Moving { decay: 1.0 } => Err(Error::Option {
                key: "decay",
                reason: "1 would leave the average at the first weights; choose less".into(),
            }),
            Self::Moving { decay } => within("decay", *decay, 0.0, 1.0),
            Self::Last { count, every } if *count == 0 || *every == 0 => Err(Error::Option {
                key: "average",
                reason: "`count` and `every` must be at least 1".into(),
            }),
            Self::Last { .. } => Ok(()),
        }
    }

    /// Share of the average that stays when the weights after `step` (from 1) of `total` join it; nothing where they do not.
    fn keeps(&self, step: usize, total: usize) -> Option<f64> {
        match self {
            _ if step == 0 || step > total => None,
            Self::Moving { .. } if step == 1 => Some(0.0),
            Self::Moving { decay } => {
                let step = step as f64;
                Some(decay.min((1.0 + step) / (10.0 + step)))
            }
            Self::Last { count, every } => {
                let before = total - step;
                let is_one = before.is_multiple_of(*every) && before / every < *count;
                // How many have joined before it.
                let earlier = ((total - 1) / every + 1).min(*count) - 1 - before / every;
                is_one.then(|| earlier as f64 / (earlier + 1) as f64)
            }
        }
    }
}

/// An average under way.
#[derive(Debug)]
pub struct Averager {
    average: Average,
    total: usize,
    sums: BTreeMap<String, Tensor<1>>,
}

impl Averager {
    /// The beginning of an average over `total` steps.
    pub fn new(average: Average, total: usize) -> Self {
        Self {
            average,
            total,
            sums: BTreeMap::new(),
        }
    }

    /// Takes in the weights after `step`, from 1.
    pub fn after_step(&mut self, model: &LanguageModel, objective: &dyn Objective, step: usize) {
        let Some(keeps) = self.average.keeps(step, self.total) else {
            return;
        };
        trained::visit(model, objective, &mut |key, p| {
            let now = p.flat();
            let average = match self.sums.remove(key) {
                Some(before) => before * keeps + now * (1.0 - keeps),
                // Of its own: the weight's memory changes in place.
                None => now + 0.0,
            };
            self.sums.insert(key.to_owned(), average);
        });
    }

    /// Puts the average into the place of the weights.
    pub fn apply(&mut self, model: &mut LanguageModel, objective: &mut dyn Objective) {
        trained::visit_mut(model, objective, &mut |key, p| {
            if let Some(average) = self.sums.remove(key) {
                p.set_flat(average);
                p.restore_orthonormal_rows();
            }
        });
    }

    /// Its state, for a checkpoint.
    pub fn state(&self) -> Vec<NamedTensor<'_>> {
        let named = |(key, average): (&String, &Tensor<1>)| {
            NamedTensor::floats(format!("average.{key}"), average.clone())
        };
        self.sums.iter().map(named).collect()
    }

    /// Puts back the average of one parameter after `step` steps.
    ///
    /// # Errors
    /// When it is missing or of another shape.
    pub fn restore(
        &mut self,
        key: &str,
        parameter: &Parameter,
        saved: &SavedTensors,
        step: usize,
    ) -> Result<()> {
        if (1..=step).any(|step| self.average.keeps(step, self.total).is_some()) {
            let shape = [parameter.len()];
            let values = saved.floats(&format!("average.{key}"), &shape)?;
            let device = parameter.device().inner();
            let average = Tensor::from_data(TensorData::new(values, shape), &device);
            self.sums.insert(key.to_owned(), average);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The average of weights that are 1 after the first step, 2 after the second, ...
    fn of_counting(average: &Average, total: usize) -> f64 {
        let mut value = f64::NAN;
        for step in 1..=total {
            match average.keeps(step, total) {
                Some(0.0) => value = step as f64,
                Some(keeps) => value = value * keeps + step as f64 * (1.0 - keeps),
                None => {}
            }
        }
        value
    }

    #[test]
    fn the_last_weights_count_alike() {
        let last = |count, every| Average::Last { count, every };
        assert!((of_counting(&last(3, 10), 100) - 90.0).abs() < 1e-9);
        assert!((of_counting(&last(1, 10), 100) - 100.0).abs() < 1e-9);
        // Steps 5, 15 and 25 are all that there are.
        assert!((of_counting(&last(9, 10), 25) - 15.0).abs() < 1e-9);
        assert!((of_counting(&last(100, 1), 4) - 2.5).abs() < 1e-9);
    }

    #[test]
    fn the_moving_average_follows() {
        let moving = Average::Moving { decay: 0.5 };
        // b is 3 / 12, 4 / 13 and then 5 / 14.
        let expected = [1.0, 1.75, 1.75 * 4.0 / 13.0 + 3.0 * 9.0 / 13.0];
        for (total, expected) in (1..).zip(expected) {
            assert!((of_counting(&moving, total) - expected).abs() < 1e-9);
        }
        assert!((of_counting(&moving, 1000) - 999.0).abs() < 1e-6);
        assert!(Average::Moving { decay: 1.5 }.check().is_err());
        assert!(Average::Last { count: 0, every: 1 }.check().is_err());
    }
}
