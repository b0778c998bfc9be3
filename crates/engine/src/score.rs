//! Log-probabilities of given targets, in padded batches: the basis of perplexity and of preference accuracy.

use espalier_data::{encode::Example, packing::Row};
use espalier_kernels::{embedding::embedding, readback::ReadFloats};
use espalier_models::{
    model::{Input, LanguageModel},
    target_scores::TargetScore,
};

use crate::{Error, Result};

/// The log-probability of one example's targets.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Score {
    /// Sum of the targets' natural log-probabilities.
    pub log_probability: f64,
    /// Number of targets.
    pub targets: usize,
    /// Targets that are the model's first choice.
    pub first_choices: usize,
}

/// Scores every example; examples of like length share a batch, so little is padded.
///
/// ```
/// use burn::tensor::Device;
/// use espalier_data::{encode::Example, packing::Row};
/// use espalier_engine::score::score;
/// use espalier_models::{model::LanguageModel, source::Seed, spec::ModelSpec};
/// let model = LanguageModel::build(ModelSpec::llama(64, 16, 2, 2, 1, 32, 32), &mut Seed(0), &Device::flex())?;
/// let scores = score(&model, &[Example::new(vec![1, 2, 3], vec![false, true, true])], 8)?;
/// assert_eq!(scores[0].targets, 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// When a token id is outside the vocabulary, or the model sees what it would predict.
pub fn score(model: &LanguageModel, examples: &[Example], batch: usize) -> Result<Vec<Score>> {
    if model.spec().bidirectional {
        return Err(Error::NoLikelihood);
    }
    let mut order: Vec<usize> = (0..examples.len())
        .filter(|i| examples[*i].target_count() > 0)
        .collect();
    order.sort_by_key(|i| examples[*i].ids.len());
    let mut scores = vec![Score::default(); examples.len()];
    for chunk in order.chunks(batch.max(1)) {
        let rows: Vec<&Example> = chunk.iter().map(|i| &examples[*i]).collect();
        for (i, score) in chunk.iter().zip(score_rows(model, &rows)?) {
            scores[*i] = score;
        }
    }
    Ok(scores)
}

/// The score that a reward model gives each text, read at its last token; texts of like length share a batch.
///
/// # Errors
/// When the model does not give a text one score, or a token id is outside the vocabulary.
pub fn rewards(model: &LanguageModel, texts: &[Vec<u32>], batch: usize) -> Result<Vec<f64>> {
    let mut order: Vec<usize> = (0..texts.len()).filter(|i| !texts[*i].is_empty()).collect();
    order.sort_by_key(|i| texts[*i].len());
    let mut rewards = vec![f64::NEG_INFINITY; texts.len()];
    for chunk in order.chunks(batch.max(1)) {
        let rows: Vec<Vec<u32>> = chunk.iter().map(|i| texts[*i].clone()).collect();
        let input = Input::padded(&rows);
        let scores = model.class_scores(model.hidden(&input, None)?, &input)?;
        if scores.dims() != [rows.len(), 1] {
            return Err(Error::NoReward);
        }
        for (i, score) in chunk.iter().zip(scores.floats()) {
            rewards[*i] = f64::from(score);
        }
    }
    Ok(rewards)
}

/// The natural log-probability of each token of a text from token `first` on, by all tokens before it; the first token of all has
/// none.
///
/// # Errors
/// When a token id is outside the vocabulary, or the model sees what it would predict.
pub fn token_log_probabilities(
    model: &LanguageModel,
    ids: &[u32],
    first: usize,
) -> Result<Vec<f64>> {
    if model.spec().bidirectional {
        return Err(Error::NoLikelihood);
    }
    let example = Example::answered(ids.to_vec(), first.max(1));
    if example.target_count() == 0 {
        return Ok(Vec::new());
    }
    let (_, scores) = target_scores(model, &[&example])?;
    let log_probability = |score: TargetScore| f64::from(score.log_probability);
    Ok(scores.into_iter().map(log_probability).collect())
}

fn score_rows(model: &LanguageModel, rows: &[&Example]) -> Result<Vec<Score>> {
    let (owners, found) = target_scores(model, rows)?;
    let mut scores = vec![Score::default(); rows.len()];
    for (r, target) in owners.iter().zip(found) {
        scores[*r].log_probability += f64::from(target.log_probability);
        scores[*r].targets += 1;
        scores[*r].first_choices += usize::from(target.first_choice);
    }
    Ok(scores)
}

/// The score of every target, and the row that each belongs to.
fn target_scores(
    model: &LanguageModel,
    rows: &[&Example],
) -> Result<(Vec<usize>, Vec<TargetScore>)> {
    let rows: Vec<Row> = rows.iter().map(|example| Row::from(*example)).collect();
    let input = Input::packed(&rows.iter().collect::<Vec<_>>());
    let time = input.time();
    let (mut owners, mut predictors, mut targets) = (Vec::new(), Vec::new(), Vec::new());
    for (r, row) in rows.iter().enumerate() {
        for (place, target) in row.predictions() {
            owners.push(r);
            predictors.push((r * time + place) as u32);
            targets.push(target);
        }
    }
    let hidden = model.hidden(&input, None)?;
    let [_, _, width] = hidden.dims();
    let predicting = embedding(hidden.reshape([rows.len() * time, width]), &predictors);
    Ok((owners, model.target_scores(predicting, &targets)?))
}
