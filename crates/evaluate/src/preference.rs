//! Preference accuracy: the share of pairs in which the chosen answer has the larger log-probability.

use espalier_data::encode::Pair;
use espalier_engine::score::score;
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
