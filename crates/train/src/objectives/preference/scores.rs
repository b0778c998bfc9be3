//! What a model says of the answers of a batch.

use burn::tensor::{IndexingUpdateOp, Tensor, TensorData};
use espalier_models::{auxiliary_losses::AuxiliaryLosses, model::LanguageModel, taps::Unobserved};

use crate::{
    Result,
    batch::{TokenBatch, integers},
};

/// What a model says of a batch.
#[derive(Debug)]
pub struct Scores {
    /// The last hidden states that predict the targets, `[targets, width]`.
    pub hidden: Tensor<2>,
    /// Log-probability of every target, `[targets]`.
    pub by_target: Tensor<1>,
    /// Losses that the model brings along.
    pub auxiliary: AuxiliaryLosses,
}

impl Scores {
    /// The log-probabilities of a batch's targets.
    ///
    /// # Errors
    /// When a token id is outside the vocabulary.
    pub fn of(model: &LanguageModel, batch: &TokenBatch) -> Result<Self> {
        let (hidden, auxiliary) = batch.predicting(model, &mut Unobserved)?;
        let by_target = model.log_probabilities(hidden.clone(), &batch.targets)?;
        Ok(Self {
            hidden,
            by_target,
            auxiliary,
        })
    }

    /// Log-probability of every row's targets together, each times its weight where weights are given, `[rows]`.
    pub fn by_row(&self, batch: &TokenBatch, weights: Option<Vec<f32>>) -> Tensor<1> {
        let values = match weights {
            None => self.by_target.clone(),
            Some(weights) => self.by_target.clone() * vector(&weights, &self.by_target),
        };
        row_sums(values, &batch.rows, batch.input.batch)
    }
}

/// Sums of the values of each of `count` rows, `[count]`; `rows` says whose a value is.
pub fn row_sums(values: Tensor<1>, rows: &[usize], count: usize) -> Tensor<1> {
    let device = values.device();
    let rows = integers(rows.iter().map(|row| *row as i32), &device);
    let zeros = Tensor::<1>::zeros([count], &device);
    zeros.select_assign(0, rows, values, IndexingUpdateOp::Add)
}

/// Numbers where another tensor is, outside autodiff.
pub fn vector(values: &[f32], beside: &Tensor<1>) -> Tensor<1> {
    Tensor::from_data(TensorData::from(values), &beside.device())
}

/// How many targets each of `count` rows has, `[count]`; `rows` says whose a target is.
pub fn lengths(rows: &[usize], count: usize) -> Vec<f32> {
    let mut lengths = vec![0.0; count];
    for row in rows {
        lengths[*row] += 1.0;
    }
    lengths
}

/// Weights of targets by which what is longer of a pair counts less (LD-DPO, arXiv 2409.06411): 1 for as many tokens as the shorter
/// answer has, `alpha` for the rest. Rows `i` and `rows / 2 + i` are a pair.
pub fn length_weights(batch: &TokenBatch, alpha: f64) -> Vec<f32> {
    let lengths = lengths(&batch.rows, batch.input.batch);
    let pairs = lengths.len() / 2;
    let mut seen = vec![0.0; lengths.len()];
    let weight = |row: &usize| {
        let pair = row % pairs;
        seen[*row] += 1.0;
        match seen[*row] <= lengths[pair].min(lengths[pair + pairs]) {
            true => 1.0,
            false => alpha as f32,
        }
    };
    batch.rows.iter().map(weight).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objectives::preference::{
        halves,
        losses::difference::sigmoid,
        tests::{constant, leaf, near, with_gradients},
    };
    use espalier_data::{encode::Example, packing::Row};

    fn batch(answers: &[usize]) -> TokenBatch {
        let row = |answer: &usize| {
            let targets = (0..2 + answer).map(|t| t >= 2).collect();
            Row::from(&Example::new(vec![3; 2 + answer], targets))
        };
        let rows: Vec<Row> = answers.iter().map(row).collect();
        TokenBatch::new(&rows.iter().collect::<Vec<_>>())
    }

    #[test]
    fn worked_example_of_length_weights() {
        let batch = batch(&[4, 2]);
        let by_row = |by_target: &Tensor<1>, alpha: f64| {
            let scores = Scores {
                hidden: Tensor::zeros([6, 1], &by_target.device()),
                by_target: by_target.clone(),
                auxiliary: AuxiliaryLosses::default(),
            };
            scores.by_row(&batch, Some(length_weights(&batch, alpha)))
        };
        for (alpha, loss, chosen) in [
            (1.0, 0.688160, [-0.04975; 4]),
            (0.5, 0.680725, [-0.049375, -0.049375, -0.024688, -0.024688]),
            (0.0, 0.673347, [-0.049001, -0.049001, 0.0, 0.0]),
        ] {
            let policy = leaf([-1.0, -2.0, -0.5, -1.5, -2.0, -1.0]);
            let reference = constant([-1.2, -1.9, -0.7, -1.0, -1.5, -1.2]);
            let [a, b] = halves(by_row(&policy, alpha) - by_row(&reference, alpha));
            let (found, gradients) = with_gradients(sigmoid((a - b) * 0.1), &[&policy]);
            near(&[found], &[loss], "loss");
            near(&gradients[0][..4], &chosen, "gradients");
        }
    }

    #[test]
    fn tokens_beyond_the_shorter_answer_count_less() {
        let batch = batch(&[4, 1, 2, 3]);
        assert_eq!(lengths(&batch.rows, 4), [4.0, 1.0, 2.0, 3.0]);
        let expected = [1.0, 1.0, 0.5, 0.5, 1.0, 1.0, 1.0, 1.0, 0.5, 0.5];
        assert_eq!(length_weights(&batch, 0.5), expected);
    }
}
