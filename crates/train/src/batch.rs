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
    taps::{Observer, Unobserved},
};

use crate::{
    Result,
    columns::Columns,
    metrics::{ACCURACY, EXACT_MATCH},
    objectives::{Loss, Metric},
    token_count::TokenCount,
};

/// The column of a pair's margin.
pub const MARGIN: &str = "margin";

/// The column of what is said of a text or its tokens.
pub const LABELS: &str = "labels";

/// Stands for no label, as in transformers.
pub const UNASKED: f64 = -100.0;
/// The column that says whether an answer is a good one: 1, or 0.
pub const DESIRABLE: &str = "desirable";

/// One unit of training data: one or several rows that belong together, and what is known of them.
///
/// ```
/// use espalier_data::encode::Example;
/// use espalier_train::batch::Sample;
/// let mut sample = Sample::example(&Example::new(vec![5, 6, 7], vec![false, true, true]));
/// sample.columns.set_texts("gold", vec!["7".into()]);
/// assert_eq!((sample.rows.len(), sample.tokens()), (1, 3));
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sample {
    /// A text or conversation, or several in one row; of a preference pair the better answer, then the worse one.
    pub rows: Vec<Row>,
    /// Labels, gold answers, rewards, scores of a reference.
    pub columns: Columns,
}

impl Sample {
    /// Rows without columns.
    pub fn new(rows: Vec<Row>) -> Self {
        Self {
            rows,
            columns: Columns::default(),
        }
    }

    /// A row of one example.
    pub fn example(example: &Example) -> Self {
        Self::new(vec![Row::from(example)])
    }

    /// A row of the better answer, and one of the worse; the column [`MARGIN`] says how far apart they are.
    pub fn pair(pair: &Pair) -> Self {
        let mut sample = Self::new([&pair.chosen, &pair.rejected].map(Row::from).to_vec());
        sample.columns.set_numbers(MARGIN, vec![pair.margin]);
        sample
    }

    /// A row of a text of which `values` are said in the column [`LABELS`]: of all of it, or one at each of `places`, and [`UNASKED`]
    /// at its other tokens.
    pub fn labelled(ids: &[u32], places: &[usize], values: &[f64]) -> Self {
        let targets = vec![false; ids.len()];
        let mut sample = Self::example(&Example::new(ids.to_vec(), targets));
        let values = match places {
            [] => values.to_vec(),
            places => {
                let mut all = vec![UNASKED; ids.len()];
                for (place, value) in places.iter().zip(values) {
                    if let Some(at) = all.get_mut(*place) {
                        *at = *value;
                    }
                }
                all
            }
        };
        sample.columns.set_numbers(LABELS, values);
        sample
    }

    /// A row of an answer that is good or bad.
    pub fn judged(example: &Example, desirable: bool) -> Self {
        let mut sample = Self::example(example);
        let verdict = f64::from(u8::from(desirable));
        sample.columns.set_numbers(DESIRABLE, vec![verdict]);
        sample
    }

    /// Tokens that the model reads.
    pub fn tokens(&self) -> usize {
        self.rows.iter().map(|row| row.ids.len()).sum()
    }
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
    /// Tokens that fill rows up, in sources too.
    pub padding: usize,
}

impl TokenBatch {
    /// Pads `rows` on the right; every target is predicted from the token before it.
    pub fn new(rows: &[&Row]) -> Self {
        let mut batch = Self::asking_nothing(Input::packed(rows), tokens_of(rows));
        let time = batch.input.time();
        for (r, row) in rows.iter().enumerate() {
            for (place, target) in row.predictions() {
                batch.ask(r, r * time + place, target);
            }
        }
        batch
    }

    /// Pads `rows` on the right and asks for nothing yet. Their texts are read as wholes: none has a prompt before an answer.
    pub fn unasked(rows: &[&Row]) -> Self {
        let input = Input {
            prompts: None,
            ..Input::packed(rows)
        };
        Self::asking_nothing(input, tokens_of(rows))
    }

    /// A batch of `real` tokens of texts without targets.
    fn asking_nothing(input: Input, real: usize) -> Self {
        let mut batch = Self {
            input,
            predictors: Vec::new(),
            targets: Vec::new(),
            rows: Vec::new(),
            padding: 0,
        };
        batch.padding = batch.read() - real;
        batch
    }

    /// Asks for `target`, predicted from the flat index `predictor`, in row `row`.
    pub fn ask(&mut self, row: usize, predictor: usize, target: u32) {
        self.predictors.push(predictor as u32);
        self.targets.push(target);
        self.rows.push(row);
    }

    /// Sources for an encoder and targets for its decoder, which reads `start`, or where there is none the last of its targets, and
    /// then its targets but the last.
    pub fn translations(pairs: &[(Vec<u32>, Vec<u32>)], start: Option<u32>) -> Self {
        let sources: Vec<Vec<u32>> = pairs.iter().map(|(source, _)| source.clone()).collect();
        let read = |(_, target): &(Vec<u32>, Vec<u32>)| -> Vec<u32> {
            let first = start.or(target.last().copied()).unwrap_or_default();
            std::iter::once(first)
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
        let lengths = |texts: &[Vec<u32>]| texts.iter().map(Vec::len).sum::<usize>();
        let real = lengths(&sources) + lengths(&read);
        let mut batch = Self::asking_nothing(input, real);
        for (r, (_, target)) in pairs.iter().enumerate() {
            for (t, id) in target.iter().enumerate() {
                batch.ask(r, r * time + t, *id);
            }
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

    /// What there is to read and to learn.
    pub fn count(&self) -> TokenCount {
        TokenCount {
            real: (self.read() - self.padding) as u64,
            learned: self.targets.len() as u64,
            padding: self.padding as u64,
        }
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
        self.loss_and_choices(model, &mut Unobserved)
            .map(|(loss, _)| loss)
    }

    /// As [`TokenBatch::loss`], with an observer of the hidden states, and with which targets are the model's first choice;
    /// none of a model that is being trained.
    ///
    /// # Errors
    /// As [`TokenBatch::loss`].
    pub fn loss_and_choices(
        &self,
        model: &LanguageModel,
        observer: &mut dyn Observer,
    ) -> Result<(Loss, Vec<bool>)> {
        let (predicting, auxiliary) = self.predicting(model, observer)?;
        let sum = model.cross_entropy(predicting.clone(), &self.targets)?;
        let count = self.targets.len() as f64;
        let mut loss = Loss::new(sum, count, auxiliary);
        if model.is_training() {
            return Ok((loss, Vec::new()));
        }
        let scores = model.target_scores(predicting, &self.targets)?;
        let right: Vec<bool> = scores.iter().map(|score| score.first_choice).collect();
        loss.metrics
            .push(share(ACCURACY.name, right.iter().copied()));
        loss.metrics.extend(self.exact_match(&right));
        Ok((loss, right))
    }

    /// How many rows have all of their targets right; a row of several documents is no one answer.
    fn exact_match(&self, right: &[bool]) -> Option<Metric> {
        let mut segments = self.input.segments.iter().flatten();
        let rows: Vec<_> = self.rows.iter().zip(right).collect();
        let whole = rows
            .chunk_by(|a, b| a.0 == b.0)
            .map(|row| row.iter().all(|(_, right)| **right));
        segments
            .all(|segment| *segment <= 1)
            .then(|| share(EXACT_MATCH.name, whole))
    }

    /// Log-probability of every target, `[targets]`, and the losses that the model brings along; only the predicting
    /// positions pass the head.
    ///
    /// # Errors
    /// When a token id is outside the vocabulary.
    pub fn log_probabilities(
        &self,
        model: &LanguageModel,
        observer: &mut dyn Observer,
    ) -> Result<(Tensor<1>, AuxiliaryLosses)> {
        let (predicting, auxiliary) = self.predicting(model, observer)?;
        let values = model.log_probabilities(predicting, &self.targets)?;
        Ok((values, auxiliary))
    }

    /// The last hidden states that predict the targets, `[targets, width]`, and the losses that the model brings along.
    ///
    /// # Errors
    /// When a token id is outside the vocabulary.
    pub fn predicting(
        &self,
        model: &LanguageModel,
        observer: &mut dyn Observer,
    ) -> Result<(Tensor<2>, AuxiliaryLosses)> {
        let forward = model.forward(&self.input, None, observer)?;
        let [batch, time, width] = forward.hidden.dims();
        let hidden = embedding(
            forward.hidden.reshape([batch * time, width]),
            &self.predictors,
        );
        Ok((hidden, model.auxiliary_losses(&forward.sides.outputs)))
    }
}

/// Tokens of rows before they are filled up.
fn tokens_of(rows: &[&Row]) -> usize {
    rows.iter().map(|row| row.ids.len()).sum()
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
        let first = Row::from(&Example::new(vec![5, 6, 7], vec![true, false, true]));
        let second = Row::from(&Example::new(vec![8, 9], vec![false, true]));
        let batch = TokenBatch::new(&[&first, &second]);
        assert_eq!(batch.input.ids, [5, 6, 7, 8, 9, 0]);
        let expected = TokenCount {
            real: 5,
            learned: 2,
            padding: 1,
        };
        assert_eq!(batch.count(), expected);
        assert_eq!(
            (batch.predictors, batch.targets, batch.rows),
            (vec![1, 3], vec![7, 9], vec![0, 1])
        );
        assert_eq!(batch.input.segments, Some(vec![1, 1, 1, 1, 1, 0]));
        assert_eq!(batch.input.prompts, Some(vec![2, 2, 2, 1, 1, 0]));
    }
}
