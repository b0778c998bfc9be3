//! Sums over the tokens of answers, and answers' numbers for each of their tokens, as differentiable operations.

use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::{
    batch::integers,
    objectives::preference::scores::{lengths, row_sums},
};

/// Which answer each token belongs to. Tokens are the targets of a batch, all answers' one after the other.
#[derive(Debug)]
pub struct Answers<'a> {
    rows: &'a [usize],
    lengths: Vec<f64>,
    device: Device,
}

impl<'a> Answers<'a> {
    /// `rows`: the answer of each token; `count`: the answers.
    pub fn new(rows: &'a [usize], count: usize, device: &Device) -> Self {
        Self {
            rows,
            lengths: lengths(rows, count).into_iter().map(f64::from).collect(),
            device: device.clone().inner(),
        }
    }

    /// Tokens of each answer.
    pub fn lengths(&self) -> &[f64] {
        &self.lengths
    }

    /// Of `[tokens]` the sum over each answer, `[answers]`.
    pub fn sums(&self, tokens: Tensor<1>) -> Tensor<1> {
        row_sums(tokens, self.rows, self.lengths.len())
    }

    /// Of `[tokens]` the mean over each answer, `[answers]`.
    pub fn means(&self, tokens: Tensor<1>) -> Tensor<1> {
        let inverse = self.lengths.iter().map(|length| 1.0 / length.max(1.0));
        self.sums(tokens) * self.constant(inverse)
    }

    /// Of `[answers]` the number of each token's answer, `[tokens]`.
    pub fn spread(&self, answers: Tensor<1>) -> Tensor<1> {
        answers.select(0, self.indices())
    }

    /// As [`Answers::spread`], of plain numbers.
    pub fn spread_constant(&self, answers: &[f64]) -> Tensor<1> {
        self.constant(self.rows.iter().map(|row| answers[*row]))
    }

    /// Plain numbers as a tensor outside autodiff.
    pub fn constant(&self, values: impl Iterator<Item = f64>) -> Tensor<1> {
        constant(values, &self.device)
    }

    fn indices(&self) -> Tensor<1, Int> {
        integers(self.rows.iter().map(|row| *row as i32), &self.device)
    }
}

/// Plain numbers as a tensor outside autodiff, `[count]`.
pub fn constant(values: impl Iterator<Item = f64>, device: &Device) -> Tensor<1> {
    let values: Vec<f32> = values.map(|value| value as f32).collect();
    let count = values.len();
    Tensor::from_data(TensorData::new(values, [count]), &device.clone().inner())
}
