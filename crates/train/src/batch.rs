//! Samples to batches: padding, and the list of predictions that the loss asks for.

use burn::tensor::{Device, Int, Tensor, TensorData};
use espalier_data::{
    encode::{Example, Pair},
    packing::Row,
};
use espalier_kernels::embedding::embedding;
use espalier_models::{
    auxiliary_losses::AuxiliaryLosses,
    model::{Input, LanguageModel},
    taps::Unobserved,
};

use crate::{
    Result,
    objectives::{Loss, Metric},
};

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
    Row {
        ids: example.ids.clone(),
        targets,
        positions: (0..length as u32).collect(),
        segments: vec![1; length],
    }
}

/// Tokens before the first target of each token's text: what an answer to it is trained on. A text without targets is all prompt.
fn prompts(row: &Row) -> Vec<u32> {
    let mut prompts = Vec::with_capacity(row.ids.len());
    for text in row.segments.chunk_by(|a, b| a == b) {
        let start = prompts.len();
        let first = (1..text.len()).find(|t| row.targets[start + t]);
        let prompt = first.unwrap_or(text.len()) as u32;
        prompts.extend(std::iter::repeat_n(prompt, text.len()));
    }
    prompts
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
        let time = rows
            .iter()
            .map(|row| row.ids.len())
            .max()
            .unwrap_or(0)
            .max(1);
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
                positions: packed
                    .then(|| rows.iter().flat_map(|row| pad(&row.positions, 0)).collect()),
                segments: (packed || padded)
                    .then(|| rows.iter().flat_map(|row| pad(&row.segments, 0)).collect()),
                prompts: Some(rows.iter().flat_map(|row| pad(&prompts(row), 0)).collect()),
                ..Input::default()
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

    /// Sources for an encoder and targets for its decoder, which reads `start` and its targets but the last.
    pub fn translations(pairs: &[(Vec<u32>, Vec<u32>)], start: u32) -> Self {
        let sources: Vec<Vec<u32>> = pairs.iter().map(|(source, _)| source.clone()).collect();
        let read = |(_, target): &(Vec<u32>, Vec<u32>)| -> Vec<u32> {
            std::iter::once(start)
                .chain(target.iter().copied().take(target.len().saturating_sub(1)))
                .collect()
        };
        let read: Vec<Vec<u32>> = pairs.iter().map(read).collect();
        // Nothing sees padding, because it comes after everything and is never a target.
        let input = Input {
            prompts: Some(vec![
                1;
                read.iter().map(Vec::len).max().unwrap_or(0)
                    * read.len()
            ]),
            segments: None,
            source: Some(Box::new(Input::padded(&sources))),
            ..Input::padded(&read)
        };
        let time = input.time();
        let mut batch = Self {
            input,
            predictors: Vec::new(),
            targets: Vec::new(),
            rows: Vec::new(),
        };
        for (r, (_, target)) in pairs.iter().enumerate() {
            batch
                .predictors
                .extend((0..target.len()).map(|t| (r * time + t) as u32));
            batch.targets.extend(target);
            batch.rows.extend(target.iter().map(|_| r));
        }
        batch
    }

    /// Tokens that the model reads, sources included.
    pub fn read(&self) -> usize {
        self.input.ids.len()
            + self
                .input
                .source
                .as_ref()
                .map_or(0, |source| source.ids.len())
    }

    /// Which positions are text, `[batch * time]`.
    pub fn real(&self) -> Vec<bool> {
        match &self.input.segments {
            Some(segments) => segments.iter().map(|segment| *segment > 0).collect(),
            None => vec![true; self.input.ids.len()],
        }
    }

    /// The cross-entropy of the targets, and, of a model that is not being trained, how many of them are its first choice.
    ///
    /// # Errors
    /// When a token id is outside the vocabulary.
    pub fn loss(&self, model: &LanguageModel) -> Result<Loss> {
        self.loss_and_choices(model).map(|(loss, _)| loss)
    }

    /// As [`TokenBatch::loss`], with which targets are the model's first choice; none of a model that is being trained.
    ///
    /// # Errors
    /// As [`TokenBatch::loss`].
    pub fn loss_and_choices(&self, model: &LanguageModel) -> Result<(Loss, Vec<bool>)> {
        let (predicting, auxiliary) = self.predicting(model)?;
        let sum = model.cross_entropy(predicting.clone(), &self.targets)?;
        let count = self.targets.len() as f64;
        let mut loss = Loss::new(sum, count, auxiliary);
        let mut right = Vec::new();
        if !model.is_training() {
            let scores = model.target_scores(predicting, &self.targets)?;
            right = scores.iter().map(|score| score.first_choice).collect();
            loss.metrics.push(share("accuracy", right.iter().copied()));
            // A row of several documents is no one answer.
            if self
                .input
                .segments
                .iter()
                .flatten()
                .all(|segment| *segment <= 1)
            {
                let rows = right
                    .iter()
                    .zip(&self.rows)
                    .map(|(right, row)| (*row, *right))
                    .collect::<Vec<_>>();
                let whole = rows
                    .chunk_by(|a, b| a.0 == b.0)
                    .map(|row| row.iter().all(|(_, right)| *right));
                loss.metrics.push(share("exact_match", whole));
            }
        }
        Ok((loss, right))
    }

    /// Log-probability of every target, `[targets]`, and the losses that the model brings along; only the predicting
    /// positions pass the head.
    ///
    /// # Errors
    /// When a token id is outside the vocabulary.
    pub fn log_probabilities(&self, model: &LanguageModel) -> Result<(Tensor<1>, AuxiliaryLosses)> {
        let (predicting, auxiliary) = self.predicting(model)?;
        Ok((
            model.log_probabilities(predicting, &self.targets)?,
            auxiliary,
        ))
    }

    /// The hidden states that predict the targets, `[targets, width]`, and the losses that the model brings along.
    fn predicting(&self, model: &LanguageModel) -> Result<(Tensor<2>, AuxiliaryLosses)> {
        let forward = model.forward(&self.input, None, &mut Unobserved)?;
        let [batch, time, width] = forward.hidden.dims();
        let hidden = embedding(
            forward.hidden.reshape([batch * time, width]),
            &self.predictors,
        );
        Ok((hidden, model.auxiliary_losses(&forward.sides.outputs)))
    }
}

/// How often something was right.
pub(crate) fn share(name: &'static str, right: impl Iterator<Item = bool>) -> Metric {
    let mut metric = Metric {
        name,
        sum: 0.0,
        units: 0.0,
    };
    for right in right {
        metric.sum += f64::from(u8::from(right));
        metric.units += 1.0;
    }
    metric
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
        assert_eq!(
            (batch.predictors, batch.targets, batch.rows),
            (vec![1, 3], vec![7, 9], vec![0, 1])
        );
        assert_eq!(batch.input.segments, Some(vec![1, 1, 1, 1, 1, 0]));
        assert_eq!(batch.input.prompts, Some(vec![2, 2, 2, 1, 1, 0]));
    }
}
