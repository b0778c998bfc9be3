//! Embeddings of texts: hidden states of the last layer, `[batch, time, width]`, pooled to one vector a text.

use espalier_kernels::readback::ReadFloats;
use espalier_models::{
    model::{Input, LanguageModel},
    pooling::Pooling,
};

use crate::{Error, Result};

/// The vectors of tokenised texts, each of the model's width, not normalised; of an encoder-decoder its encoder's.
///
/// ```
/// use burn::tensor::Device;
/// use espalier_engine::embed::embed;
/// use espalier_models::{model::LanguageModel, pooling::Pooling, source::Seed, spec::ModelSpec};
/// let model = LanguageModel::build(ModelSpec::llama(64, 16, 2, 2, 1, 32, 32), &mut Seed(0), &Device::flex())?;
/// let vectors = embed(&model, &[vec![1, 2, 3], vec![4]], Pooling::Mean, 8)?;
/// assert_eq!((vectors.len(), vectors[0].len()), (2, 16));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// When a text has no tokens, or one that is outside the vocabulary.
pub fn embed(
    model: &LanguageModel,
    texts: &[Vec<u32>],
    pooling: Pooling,
    batch: usize,
) -> Result<Vec<Vec<f32>>> {
    check_tokens(texts)?;
    let mut order: Vec<usize> = (0..texts.len()).collect();
    order.sort_by_key(|i| texts[*i].len());
    let mut vectors = vec![Vec::new(); texts.len()];
    for chunk in order.chunks(batch.max(1)) {
        let rows: Vec<Vec<u32>> = chunk.iter().map(|i| texts[*i].clone()).collect();
        let input = Input::padded(&rows);
        let time = input.time();
        let real: Vec<bool> = rows
            .iter()
            .flat_map(|row| (0..time).map(|t| t < row.len()))
            .collect();
        let pooled = pooling.pool(model.encode(&input)?, &real);
        let values = pooled.floats();
        for (i, vector) in chunk.iter().zip(values.chunks(model.spec().hidden_width())) {
            vectors[*i] = vector.to_vec();
        }
    }
    Ok(vectors)
}

/// Whether every text has tokens.
pub(crate) fn check_tokens(texts: &[Vec<u32>]) -> Result<()> {
    match texts.iter().position(Vec::is_empty) {
        Some(index) => Err(Error::EmptyText { number: index + 1 }),
        None => Ok(()),
    }
}

/// The vector divided by its length.
pub fn normalised(vector: &[f32]) -> Vec<f32> {
    let length = vector
        .iter()
        .map(|x| f64::from(*x).powi(2))
        .sum::<f64>()
        .sqrt()
        .max(1e-12);
    vector
        .iter()
        .map(|x| (f64::from(*x) / length) as f32)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;
    use espalier_models::{source::Seed, spec::ModelSpec};

    #[test]
    fn a_text_s_vector_does_not_depend_on_its_batch() {
        let mut spec = ModelSpec::llama(61, 16, 2, 4, 2, 32, 64);
        (spec.initializer_range, spec.bidirectional) = (0.5, true);
        let model = LanguageModel::build(spec, &mut Seed(3), &Device::flex()).unwrap();
        let texts = [vec![5, 9, 2, 7], vec![3], vec![8, 4, 4]];
        for pooling in [
            Pooling::Mean,
            Pooling::WeightedMean,
            Pooling::First,
            Pooling::Last,
        ] {
            let together = embed(&model, &texts, pooling, 3).unwrap();
            for (text, vector) in texts.iter().zip(&together) {
                let alone = embed(&model, std::slice::from_ref(text), pooling, 1).unwrap();
                let gap = vector
                    .iter()
                    .zip(&alone[0])
                    .map(|(a, b)| (a - b).abs())
                    .fold(0.0, f32::max);
                assert!(gap < 1e-5, "{pooling:?}: {gap}");
            }
        }
        let error = embed(&model, &[vec![1], vec![]], Pooling::Mean, 1).unwrap_err();
        assert!(error.to_string().starts_with("text 2 is empty"));
    }
}
