//! Preference accuracy: the share of pairs in which the chosen answer has the larger log-probability, or the larger score of a reward
//! model.

use espalier_data::encode::Pair;
use espalier_engine::score::{rewards, score};
use espalier_models::model::LanguageModel;

use crate::{Result, statistics::Accuracy};

/// Counts pairs whose better answer has the higher log-probability (sums over the answer's tokens); ties are wrong.
///
/// # Errors
/// When a token id is outside the vocabulary.
pub fn preference_accuracy(
    model: &LanguageModel,
    pairs: &[Pair],
    batch: usize,
) -> Result<Accuracy> {
    let examples: Vec<_> = pairs
        .iter()
        .flat_map(|pair| [pair.chosen.clone(), pair.rejected.clone()])
        .collect();
    let scores = score(model, &examples, batch)?;
    Ok(scores
        .chunks(2)
        .map(|pair| pair[0].log_probability > pair[1].log_probability)
        .collect())
}

/// Counts pairs whose better answer has the higher score of a reward model; ties are wrong.
///
/// # Errors
/// When the model does not give a text one score, or a token id is outside the vocabulary.
pub fn reward_accuracy(model: &LanguageModel, pairs: &[Pair], batch: usize) -> Result<Accuracy> {
    let texts: Vec<Vec<u32>> = pairs
        .iter()
        .flat_map(|pair| [pair.chosen.ids.clone(), pair.rejected.ids.clone()])
        .collect();
    let scores = rewards(model, &texts, batch)?;
    Ok(scores.chunks(2).map(|pair| pair[0] > pair[1]).collect())
}
