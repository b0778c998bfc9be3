//! How a model rates given tokens: their log-probabilities, and whether they are its first choice.

use burn::tensor::Tensor;
use espalier_kernels::{
    cross_entropy::log_probabilities,
    readback::{ReadFloats, ReadIntegers},
};

use crate::{Result, model::LanguageModel};

/// Rows of logits that are made at once: with 128 thousand words 128 MiB.
const LOGIT_ROWS: usize = 256;

/// What a model makes of one target.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TargetScore {
    /// Natural log-probability.
    pub log_probability: f32,
    /// Whether no token is likelier.
    pub first_choice: bool,
}

impl LanguageModel {
    /// The scores of `targets` `[tokens]` from the `hidden` states `[tokens, width]` that predict them, without gradients.
    /// The logits of a few rows exist at a time.
    ///
    /// # Errors
    /// When a target is outside the vocabulary, or there is no head over it.
    pub fn target_scores(&self, hidden: Tensor<2>, targets: &[u32]) -> Result<Vec<TargetScore>> {
        self.check_head()?;
        self.check_ids(targets)?;
        let hidden = hidden.inner();
        let mut scores = Vec::with_capacity(targets.len());
        for (i, targets) in targets.chunks(LOGIT_ROWS).enumerate() {
            let rows = hidden.clone().narrow(0, i * LOGIT_ROWS, targets.len());
            let logits = self.head(rows).inner();
            let choices = logits.clone().argmax(1).integers();
            let values = log_probabilities(logits, targets).floats();
            let found = values.iter().zip(&choices).zip(targets);
            scores.extend(found.map(|((value, choice), target)| TargetScore {
                log_probability: *value,
                first_choice: *choice == i64::from(*target),
            }));
        }
        Ok(scores)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{model::Input, source::Seed, spec::ModelSpec};
    use burn::tensor::Device;

    #[test]
    fn many_rows_are_scored_as_all_at_once() {
        let spec = ModelSpec::llama(64, 16, 2, 2, 1, 32, 1024);
        let model = LanguageModel::build(spec, &mut Seed(0), &Device::flex()).unwrap();
        let ids: Vec<u32> = (0..600).map(|i| i * 7 % 64).collect();
        let hidden = model
            .hidden(&Input::rows(std::slice::from_ref(&ids)).unwrap(), None)
            .unwrap()
            .reshape([600, 16]);
        let scores = model.target_scores(hidden.clone(), &ids).unwrap();
        let logits = model.head(hidden);
        let expected = log_probabilities(logits.clone(), &ids).floats();
        let choices = logits.argmax(1).integers();
        for (i, score) in scores.iter().enumerate() {
            assert!((score.log_probability - expected[i]).abs() < 1e-5);
            assert_eq!(score.first_choice, choices[i] == i64::from(ids[i]));
        }
        assert!(scores.iter().any(|score| score.first_choice));
        assert!(
            model
                .target_scores(
                    model
                        .hidden(&Input::rows(&[vec![1]]).unwrap(), None)
                        .unwrap()
                        .reshape([1, 16]),
                    &[64]
                )
                .is_err()
        );
    }
}
