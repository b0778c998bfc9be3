//! WPO (arXiv 2406.11827): pairs that the policy would hardly write itself count less, as if they had been sampled from it.
//!
//! A pair's loss is multiplied by `W(y_w) W(y_l)`, with `W(y) = exp(mean_t [lp_t - ln sum_v p_t(v)^2])`: every token's probability over
//! the one that is expected where tokens are sampled. No gradient passes through.

use burn::tensor::Tensor;
use espalier_kernels::readback::ReadFloats;
use espalier_models::model::LanguageModel;

use super::scores::{Scores, lengths, vector};
use crate::{Result, batch::TokenBatch};

/// Rows of logits that exist at once.
const LOGIT_ROWS: usize = 256;

/// The weight of every row, `[rows]`.
///
/// # Errors
/// When the model has no head over its vocabulary.
pub fn of_rows(model: &LanguageModel, batch: &TokenBatch, scores: &Scores) -> Result<Vec<f32>> {
    model.check_head()?;
    let hidden = scores.hidden.clone().inner();
    let mut expected = Vec::with_capacity(batch.targets.len());
    for (i, targets) in batch.targets.chunks(LOGIT_ROWS).enumerate() {
        let rows = hidden.clone().narrow(0, i * LOGIT_ROWS, targets.len());
        expected.extend(log_collisions(model.head(rows).inner()).floats());
    }
    let found = scores.by_target.clone().floats();
    Ok(weights(&found, &expected, batch))
}

/// `ln sum_v p(v)^2` of every row of logits `[rows, vocabulary]`: `[rows]`.
fn log_collisions(logits: Tensor<2>) -> Tensor<1> {
    let logits = logits.clone() - logits.max_dim(1);
    let log_sum = |scale: f64| (logits.clone() * scale).exp().sum_dim(1).log();
    (log_sum(2.0) - log_sum(1.0) * 2.0).flatten::<1>(0, 1)
}

fn weights(log_probabilities: &[f32], log_collisions: &[f32], batch: &TokenBatch) -> Vec<f32> {
    let mut sums = vec![0.0; batch.input.batch];
    for ((row, found), expected) in batch.rows.iter().zip(log_probabilities).zip(log_collisions) {
        sums[*row] += found - expected;
    }
    let mean = |(sum, length): (f32, f32)| (sum / length.max(1.0)).exp();
    let lengths = lengths(&batch.rows, batch.input.batch);
    sums.into_iter().zip(lengths).map(mean).collect()
}

/// The weights of pairs, whose better answers come first, `[pairs]`.
pub fn of_pairs(rows: &[f32], beside: &Tensor<1>) -> Tensor<1> {
    let (better, worse) = rows.split_at(rows.len() / 2);
    let products: Vec<f32> = better.iter().zip(worse).map(|(w, l)| w * l).collect();
    vector(&products, beside)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;
    use espalier_data::{encode::Example, packing::Row};

    #[test]
    fn worked_example() {
        // Distributions [.7, .2, .1] and [.5, .3, .2], of which tokens 0 and 1 are found.
        let rows = [[0.7f32, 0.2, 0.1], [0.5, 0.3, 0.2]];
        let logits =
            Tensor::<2>::from_floats(rows.map(|row| row.map(f32::ln)), &Device::flex()) + 3.0;
        let row = Row::from(&Example::new(vec![0, 0, 1], vec![false, true, true]));
        let batch = TokenBatch::new(&[&row]);
        let found = [0.7f32.ln(), 0.3f32.ln()];
        let weights = weights(&found, &log_collisions(logits).floats(), &batch);
        assert!((weights[0] - 1.011_628).abs() < 2e-6, "{weights:?}");
        let pair = of_pairs(&[2.0, 3.0, 0.5, 2.0], &Tensor::zeros([1], &Device::flex()));
        assert_eq!(pair.floats(), [1.0, 6.0]);
    }
}
