//! GaLore: Adam in a subspace of the gradients (arXiv 2403.03507, Algorithms 1 and 2).
//!
//! Every `interval` steps `G = U S V^T`; a matrix with at least as many rows as columns keeps the `rank` first rows of `V^T` as `Q`, another the
//! first columns of `U` as `P`. Moments are of `g = G Q^T` (or `P^T G`), and `W = W (1 - lr wd) - lr c scale N Q` (or `P N`) with
//! `N = M / (sqrt(S) + e)` and `c = sqrt(1 - b2^t) / (1 - b1^t)`. The moments stay as they are when the subspace changes. Only
//! matrices of blocks; the rest follows AdamW.

use burn::tensor::{Tensor, s};
use espalier_kernels::decomposition::{Search, truncated_svd};
use espalier_models::parameter::Parameter;
use serde::{Deserialize, Serialize};

use super::{
    Rule, Slot, Step, Value,
    adamw::{AdamW, AdamWOptions},
    decay, is_hidden_matrix, matrices,
};
use crate::{Error, Result, error::within, options::TrainOptions};

/// Passes of the search for the subspace.
const PASSES: usize = 2;

/// The options of GaLore; `beta1`, `beta2`, `epsilon` and `weight_decay` stand beside the learning rate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct GaLoreOptions {
    /// Dimensions of the subspace.
    #[schemars(range(min = 1))]
    pub rank: usize,
    /// Steps for which a subspace stays.
    #[schemars(range(min = 1))]
    pub interval: usize,
    /// Factor on the update: 0.25 is the paper's for pre-training, 2 LLaMA-Factory's for tuning.
    #[schemars(range(min = 0.0, max = 1e6))]
    pub scale: f64,
}

impl Default for GaLoreOptions {
    fn default() -> Self {
        Self {
            rank: 128,
            interval: 200,
            scale: 0.25,
        }
    }
}

impl GaLoreOptions {
    /// Whether they make sense.
    ///
    /// # Errors
    /// The first that does not.
    pub fn check(&self) -> Result<()> {
        for (key, value) in [("rank", self.rank), ("interval", self.interval)] {
            if value == 0 {
                return Err(Error::Option {
                    key,
                    reason: "must be at least 1".into(),
                });
            }
        }
        within("scale", self.scale, 0.0, 1e6)
    }
}

/// The rule; for every matrix the subspace and two moments in it, for the rest AdamW's.
#[derive(Debug, Clone)]
pub struct GaLore {
    own: GaLoreOptions,
    options: TrainOptions,
    rest: AdamW,
}

/// Rows that project, and the moments.
struct Projected {
    projector: Tensor<2>,
    first: Tensor<2>,
    second: Tensor<2>,
}

impl GaLore {
    /// The rule of these options.
    pub fn new(own: &GaLoreOptions, options: &TrainOptions) -> Self {
        Self {
            own: own.clone(),
            options: options.clone(),
            rest: AdamW::new(&AdamWOptions {}, options),
        }
    }

    /// Lengths of projector and moment of one matrix.
    fn sizes(&self, rows: usize, columns: usize) -> [[usize; 2]; 2] {
        let rank = self.own.rank.min(rows).min(columns);
        match rows >= columns {
            true => [[rank, columns], [rows, rank]],
            false => [[rows, rank], [rank, columns]],
        }
    }

    /// The update of one matrix, without the learning rate, and its new state.
    fn projected(&self, gradient: Tensor<2>, old: Projected, step: Step) -> (Tensor<2>, Projected) {
        let [rows, columns] = gradient.dims();
        let on_the_right = rows >= columns;
        let projector = match (step.number - 1).is_multiple_of(self.own.interval as u64) {
            false => old.projector,
            true => {
                let search = Search::Random {
                    passes: PASSES,
                    seed: step.number,
                };
                let svd = truncated_svd(gradient.clone(), self.own.rank, search);
                if on_the_right { svd.right } else { svd.left }
            }
        };
        let narrow = match on_the_right {
            true => gradient.matmul(projector.clone().transpose()),
            false => projector.clone().transpose().matmul(gradient),
        };
        let (beta1, beta2) = (self.options.beta1, self.options.beta2);
        let first = old.first * beta1 + narrow.clone() * (1.0 - beta1);
        let second = old.second * beta2 + narrow.clone() * narrow * (1.0 - beta2);
        let number = step.number as f64;
        let correction = (1.0 - beta2.powf(number)).sqrt() / (1.0 - beta1.powf(number));
        let direction = first.clone() / (second.clone().sqrt() + self.options.epsilon);
        let direction = match on_the_right {
            true => direction.matmul(projector.clone()),
            false => projector.clone().matmul(direction),
        };
        let state = Projected {
            projector,
            first,
            second,
        };
        (direction * (correction * self.own.scale), state)
    }
}

/// Matrix `i` of a stack of such.
fn of_stack(stack: &Tensor<1>, [rows, columns]: [usize; 2], i: usize) -> Tensor<2> {
    let size = rows * columns;
    let one = stack.clone().slice(s![i * size..(i + 1) * size]);
    one.reshape([rows, columns])
}

fn flat(matrix: Tensor<2>) -> Tensor<1> {
    matrix.flatten(0, 1)
}

impl Rule for GaLore {
    fn slots(&self, parameter: &Parameter) -> Vec<Slot> {
        if !is_hidden_matrix(parameter) {
            return self.rest.slots(parameter);
        }
        let [stack, rows, columns] = matrices(parameter);
        let [projector, moment] = self
            .sizes(rows, columns)
            .map(|[rows, columns]| stack * rows * columns);
        vec![
            Slot::floats("projector", projector),
            Slot::floats("first", moment),
            Slot::floats("second", moment),
        ]
    }

    fn update(
        &self,
        parameter: &mut Parameter,
        gradient: Tensor<1>,
        state: Vec<Value>,
        step: Step,
    ) -> Vec<Value> {
        if !is_hidden_matrix(parameter) {
            return self.rest.update(parameter, gradient, state, step);
        }
        let Ok(state) = <[Value; 3]>::try_from(state) else {
            return Vec::new();
        };
        let [projectors, firsts, seconds] = state.map(Value::floats);
        let [stack, rows, columns] = matrices(parameter);
        let [of_projector, of_moment] = self.sizes(rows, columns);
        let gradient = gradient * step.gradient_scale;
        let mut updates = Vec::with_capacity(stack);
        let mut after: [Vec<Tensor<1>>; 3] = Default::default();
        for i in 0..stack {
            let old = Projected {
                projector: of_stack(&projectors, of_projector, i),
                first: of_stack(&firsts, of_moment, i),
                second: of_stack(&seconds, of_moment, i),
            };
            let (update, new) = self.projected(of_stack(&gradient, [rows, columns], i), old, step);
            updates.push(flat(update));
            let parts = [new.projector, new.first, new.second];
            for (all, part) in after.iter_mut().zip(parts) {
                all.push(flat(part));
            }
        }
        let update = Tensor::cat(updates, 0) * step.learning_rate;
        let keep = 1.0 - step.learning_rate * decay(parameter, self.options.weight_decay);
        parameter.update(|weight| (weight - update) * keep);
        after
            .into_iter()
            .map(|parts| Value::Floats(Tensor::cat(parts, 0)))
            .collect()
    }
}
