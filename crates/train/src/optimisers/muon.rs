//! Muon: momentum whose matrices are made orthogonal (Keller Jordan, 2024; scaled as in arXiv 2502.16982).
//!
//! `M = b M + (1 - b) G; U = (1 - b) G + b M; X = U / |U|`, five times `A = X X^T; X = a X + (b A + c A A) X`, and
//! `W = W (1 - lr wd) - lr s X`. Matrices of blocks alone; tables, heads, norms and biases follow AdamW with the same learning
//! rate. Products run in f32, where the authors take bf16.

use burn::tensor::Tensor;
use espalier_kernels::optimiser::sum_of_squares;
use espalier_models::parameter::Parameter;
use serde::{Deserialize, Serialize};

use super::{
    Rule, Slot, Step, Value,
    adamw::{AdamW, AdamWOptions},
    decay, is_hidden_matrix, matrices,
};
use crate::{Error, Result, error::within, options::TrainOptions};

/// The coefficients of the iteration, which brings singular values to about 0.7 to 1.1.
const QUINTIC: [f64; 3] = [3.4445, -4.7750, 2.0315];

/// How long a step is.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum MuonScale {
    /// `0.2 sqrt(max(rows, columns))`: as long as AdamW's steps are, whose learning rate and decay fit (arXiv 2502.16982).
    #[default]
    LikeAdamw,
    /// `sqrt(max(1, rows / columns))`: the author's, for learning rates about 0.02.
    Original,
}

/// The options of Muon; `weight_decay` stands beside the learning rate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MuonOptions {
    /// Share of the momentum that stays.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub momentum: f64,
    /// Look ahead along the momentum.
    pub nesterov: bool,
    /// Steps of the iteration that makes a matrix orthogonal.
    #[schemars(range(min = 1, max = 20))]
    pub iterations: usize,
    /// How long a step is.
    pub scale: MuonScale,
}

impl Default for MuonOptions {
    fn default() -> Self {
        Self {
            momentum: 0.95,
            nesterov: true,
            iterations: 5,
            scale: MuonScale::default(),
        }
    }
}

impl MuonOptions {
    /// Whether they make sense.
    ///
    /// # Errors
    /// The first that does not.
    pub fn check(&self) -> Result<()> {
        within("momentum", self.momentum, 0.0, 1.0)?;
        match (1..=20).contains(&self.iterations) {
            true => Ok(()),
            false => Err(Error::Option {
                key: "iterations",
                reason: format!("{} is outside 1 to 20", self.iterations),
            }),
        }
    }
}

/// The nearest matrix with orthonormal rows or columns, about: Newton and Schulz's iteration.
pub fn orthogonalised(matrix: Tensor<2>, iterations: usize) -> Tensor<2> {
    let [rows, columns] = matrix.dims();
    let length = sum_of_squares(matrix.clone().reshape([rows * columns])).sqrt();
    let mut x = matrix / (length + 1e-7);
    if rows > columns {
        x = x.transpose();
    }
    let [a, b, c] = QUINTIC;
    for _ in 0..iterations {
        let gram = x.clone().matmul(x.clone().transpose());
        let inner = gram.clone() * b + gram.clone().matmul(gram) * c;
        x = x.clone() * a + inner.matmul(x);
    }
    match rows > columns {
        true => x.transpose(),
        false => x,
    }
}

/// The rule; one momentum for every matrix, AdamW's two moments for the rest.
#[derive(Debug, Clone)]
pub struct Muon {
    own: MuonOptions,
    weight_decay: f64,
    rest: AdamW,
}

impl Muon {
    /// The rule of these options.
    pub fn new(own: &MuonOptions, options: &TrainOptions) -> Self {
        Self {
            own: own.clone(),
            weight_decay: options.weight_decay,
            rest: AdamW::new(&AdamWOptions {}, options),
        }
    }

    fn scale(&self, rows: usize, columns: usize) -> f64 {
        match self.own.scale {
            MuonScale::LikeAdamw => 0.2 * (rows.max(columns) as f64).sqrt(),
            MuonScale::Original => (rows as f64 / columns as f64).max(1.0).sqrt(),
        }
    }
}

impl Rule for Muon {
    fn slots(&self, parameter: &Parameter) -> Vec<Slot> {
        match is_hidden_matrix(parameter) {
            true => vec![Slot::floats("momentum", parameter.len())],
            false => self.rest.slots(parameter),
        }
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
        let beta = self.own.momentum;
        let keep = 1.0 - step.learning_rate * decay(parameter, self.weight_decay);
        let [stack, rows, columns] = matrices(parameter);
        let rate = step.learning_rate * self.scale(rows, columns);
        let gradient = gradient * (step.gradient_scale * (1.0 - beta));
        let old = state.into_iter().map(Value::floats);
        old.map(|momentum| {
            let momentum = momentum * beta + gradient.clone();
            let direction = match self.own.nesterov {
                true => gradient.clone() + momentum.clone() * beta,
                false => momentum.clone(),
            };
            let each = direction.reshape([stack * rows, columns]);
            let orthogonal = each
                .chunk(stack, 0)
                .into_iter()
                .map(|matrix| orthogonalised(matrix, self.own.iterations))
                .collect();
            let update = Tensor::cat(orthogonal, 0).reshape([stack * rows * columns]);
            parameter.update(|weight| weight * keep - update * rate);
            Value::Floats(momentum)
        })
        .collect()
    }
}
