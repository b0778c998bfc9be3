//! Adafactor: a second moment that is a row and a column (arXiv 1804.04235, Algorithms 4 and 5).
//!
//! `b = 1 - t^-c; R = b R + (1 - b) mean_columns(g^2 + e); C = b C + (1 - b) mean_rows(g^2 + e); V = R C / mean(R);
//! u = g / sqrt(V); w = w (1 - lr wd) - lr u / max(1, RMS(u) / d)`. Vectors have the whole moment. The step size is the learning rate,
//! as the Hugging Face trainer has it (`scale_parameter` and `relative_step` off); there is no momentum.

use burn::tensor::Tensor;
use espalier_kernels::optimiser::sum_of_squares;
use espalier_models::parameter::Parameter;
use serde::{Deserialize, Serialize};

use super::{Rule, Slot, Step, Value, decay, matrices};
use crate::{Result, error::within, options::TrainOptions};

/// Added to the squares of gradients.
const FLOOR: f64 = 1e-30;

/// The options of Adafactor; `weight_decay` stands beside the learning rate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AdafactorOptions {
    /// The second moment's decay after `t` steps is `1 - t^-decay`.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub decay: f64,
    /// Largest root mean square of an update, in learning rates.
    #[schemars(range(min = 1e-6, max = 1e6))]
    pub clip: f64,
}

impl Default for AdafactorOptions {
    fn default() -> Self {
        Self {
            decay: 0.8,
            clip: 1.0,
        }
    }
}

impl AdafactorOptions {
    /// Whether they make sense.
    ///
    /// # Errors
    /// The first that does not.
    pub fn check(&self) -> Result<()> {
        within("decay", self.decay, 0.0, 1.0)?;
        within("clip", self.clip, 1e-6, 1e6)
    }
}

/// The rule; a row and a column of every matrix, or as many numbers as a vector has.
#[derive(Debug, Clone)]
pub struct Adafactor {
    own: AdafactorOptions,
    weight_decay: f64,
}

impl Adafactor {
    /// The rule of these options.
    pub fn new(own: &AdafactorOptions, options: &TrainOptions) -> Self {
        Self {
            own: own.clone(),
            weight_decay: options.weight_decay,
        }
    }
}

/// A moment moved towards its new value.
fn towards(old: Tensor<1>, new: Tensor<1>, beta: f64) -> Tensor<1> {
    old * beta + new * (1.0 - beta)
}

impl Rule for Adafactor {
    fn slots(&self, parameter: &Parameter) -> Vec<Slot> {
        let [stack, rows, columns] = matrices(parameter);
        match parameter.shape().len() {
            0 | 1 => vec![Slot::floats("second", parameter.len())],
            _ => vec![
                Slot::floats("row", stack * rows),
                Slot::floats("column", stack * columns),
            ],
        }
    }

    fn update(
        &self,
        parameter: &mut Parameter,
        gradient: Tensor<1>,
        state: Vec<Value>,
        step: Step,
    ) -> Vec<Value> {
        let keep = 1.0 - step.learning_rate * decay(parameter, self.weight_decay);
        let beta = 1.0 - (step.number as f64).powf(-self.own.decay);
        let gradient = gradient * step.gradient_scale;
        let squares = gradient.clone() * gradient.clone() + FLOOR;
        let [stack, rows, columns] = matrices(parameter);
        let mut old = state.into_iter().map(Value::floats);
        let (inverse_root, state) = match (old.next(), old.next()) {
            (Some(row), Some(column)) => {
                let squares: Tensor<3> = squares.reshape([stack, rows, columns]);
                let row = towards(row, squares.clone().mean_dim(2).flatten(0, 2), beta);
                let column = towards(column, squares.mean_dim(1).flatten(0, 2), beta);
                let by_row: Tensor<3> = row.clone().reshape([stack, rows, 1]);
                let by_column: Tensor<3> = column.clone().reshape([stack, 1, columns]);
                let share = by_row.clone() / by_row.mean_dim(1);
                let root = share.sqrt().recip() * by_column.sqrt().recip();
                (root.flatten(0, 2), vec![row, column])
            }
            (Some(second), None) => {
                let second = towards(second, squares, beta);
                (second.clone().sqrt().recip(), vec![second])
            }
            _ => return Vec::new(),
        };
        let update = gradient * inverse_root;
        let mean_square = sum_of_squares(update.clone()) / parameter.len().max(1) as f64;
        let length = (mean_square.sqrt() / self.own.clip).max(1.0);
        parameter.update(|weight| weight * keep - update * (step.learning_rate / length));
        state.into_iter().map(Value::Floats).collect()
    }
}
