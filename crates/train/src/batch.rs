//! Samples to batches: padding, and the list of predictions that the loss asks for.

use burn::tensor::{Device, Int, Tensor, TensorData};
use espalier_data::{
    encode::{Example, Pair},
    packing::Row,
};
use espalier_kernels::embedding::embedding;
use espalier_models::{
    auxiliary::Auxiliary,
    model::{Input, LanguageModel},
    taps::Unobserved,
};

use crate::Result;

/// One unit of training data.
#[derive(Debug, Clone)]
pub enum Sample {
    /// A row of one or several examples.
    Row(Row),
    /// A better and a worse answer, with the reference's log-probabilities `[chosen, rejected]` once they are known.
    Pair(Pair, [f64; 2]),
}

impl Sample {
    /// A row of one example.
    pub fn example(example: Example) -> Self {
        Self::Row(single(&example))
    }

    /// Tokens that the model reads.
    pub fn tokens(&self) -> usize {
        match self {
            Self::Row(row) => row.ids.len(),
            Self::Pair(pair, _) => pair.chosen.ids.len() + pair.rejected.ids.len(),
        }
    }
}

/// An example as a row of its own.
pub fn single(example: &Example) -> Row {
    let length = example.ids.len();
    let mut targets = example.targets.clone();
    if let Some(first) = targets.first_mut() {
        *first = false;
    }
    Row { ids: example.ids.clone(), targets, positions: (0..length as u32).collect(), segments: vec![1; length] }
}

/// Rows padded to one length, and the positions whose predictions count.
#[derive(Debug, Clone)]
pub struct TokenBatch {
    /// What the model reads.
    pub input: Input,
    /// Flat index of the hidden state that predicts each target: `[targets]`.
    pub predictors: Vec<u32>,
    /// The token to be predicted: `[targets]`.
    pub targets: Vec<u32>,
    /// The row of each target: `[targets]`.
    pub rows: Vec<usize>,
}

impl TokenBatch {
    /// Pads `rows` on the right. Padding is a segment of its own, so that nothing sees it and routers leave it out.
    pub fn new(rows: &[&Row]) -> Self {
        let time = rows.iter().map(|row| row.ids.len()).max().unwrap_or(0).max(1);
        let packed = rows.iter().any(|row| row.segments.iter().any(|s| *s != 1));
        let padded = rows.iter().any(|row| row.ids.len() < time);
        let pad = |values: &[u32], filler: u32| {
            let mut padded = values.to_vec();
            padded.resize(time, filler);
            padded
        };
        let mut batch = Self {
            input: Input {
                ids: rows.iter().flat_map(|row| pad(&row.ids, 0)).collect(),
                batch: rows.len(),
                positions: packed.then(|| rows.iter().flat_map(|row| pad(&row.positions, 0)).collect()),
                segments: (packed || padded).then(|| rows.iter().flat_map(|row| pad(&row.segments, 0)).collect()),
            },
            predictors: Vec::new(),
            targets: Vec::new(),
            rows: Vec::new(),
        };
        for (r, row) in rows.iter().enumerate() {
            for t in (1..row.ids.len()).filter(|t| row.targets[*t]) {
                batch.predictors.push((r * time + t - 1) as u32);
                batch.targets.push(row.ids[t]);
                batch.rows.push(r);
            }
        }
        batch
    }

    /// Log-probability of every target, `[targets]`, and the losses that the model brings along; only the predicting
    /// positions pass the head.
    ///
    /// # Errors
    /// When a token id is outside the vocabulary.
    pub fn log_probabilities(&self, model: &LanguageModel) -> Result<(Tensor<1>, Auxiliary)> {
        let (predicting, auxiliary) = self.predicting(model)?;
        Ok((model.log_probabilities(predicting, &self.targets)?, auxiliary))
    }

    /// Negative sum of the targets' log-probabilities, `[1]`, and the losses that the model brings along.
    ///
    /// # Errors
    /// When a token id is outside the vocabulary.
    pub fn cross_entropy(&self, model: &LanguageModel) -> Result<(Tensor<1>, Auxiliary)> {
        let (predicting, auxiliary) = self.predicting(model)?;
        Ok((model.cross_entropy(predicting, &self.targets)?, auxiliary))
    }

    /// The hidden states that predict the targets, `[targets, width]`.
    fn predicting(&self, model: &LanguageModel) -> Result<(Tensor<2>, Auxiliary)> {
        let forward = model.forward(&self.input, None, &mut Unobserved)?;
        let [batch, time, width] = forward.hidden.dims();
        let hidden = embedding(forward.hidden.reshape([batch * time, width]), &self.predictors);
        Ok((hidden, model.auxiliary(&forward.sides)))
    }
}

/// A vector of integers.
pub fn integers(values: impl Iterator<Item = i32>, device: &Device) -> Tensor<1, Int> {
    let values: Vec<i32> = values.collect();
    let count = values.len();
    Tensor::from_data(TensorData::new(values, [count]), device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_predicted_from_the_position_before_them() {
        let first = single(&Example::new(vec![5, 6, 7], vec![true, false, true]));
        let second = single(&Example::new(vec![8, 9], vec![false, true]));
        let batch = TokenBatch::new(&[&first, &second]);
        assert_eq!(batch.input.ids, [5, 6, 7, 8, 9, 0]);
        assert_eq!((batch.predictors, batch.targets, batch.rows), (vec![1, 3], vec![7, 9], vec![0, 1]));
        assert_eq!(batch.input.segments, Some(vec![1, 1, 1, 1, 1, 0]));
    }
}
