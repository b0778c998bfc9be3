//! How far apart two forms of one model are: the largest gap of their logits, the divergence of their distributions (Kullback and Leibler), how
//! often their likeliest tokens agree, their perplexities, and where their greedy continuations part.
//!
//! Texts are read in windows, each from nothing; the distributions after every token but the last are compared, and the perplexities are over
//! the tokens that follow.

use espalier_engine::{
    decode::{DecodeOptions, decode},
    sampler::SamplerOptions,
};
use espalier_kernels::readback::ReadFloats;
use espalier_models::model::{Input, LanguageModel};

use crate::Result;

/// Numbers of logits that are held at once.
const MOST_LOGITS: usize = 1 << 26;

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Default, serde::Serialize)]
pub struct Divergence {
    /// Distributions that were compared.
    pub tokens: usize,
    /// The largest gap of two logits.
    pub largest_gap: f32,
    /// The mean of `sum(p ln(p / q))`, `p` the first model's distribution, in nats.
    pub mean_kl: f64,
    /// The share of tokens after which both find the same token the likeliest.
    pub agreement: f64,
    /// The first model's perplexity.
    pub first_perplexity: f64,
    /// The second model's.
    pub second_perplexity: f64,
}

/// Compares two models on texts, in windows of at most `window` tokens.
///
/// # Errors
/// When a token is outside a vocabulary, or the vocabularies differ in size.
pub fn divergence(
    first: &LanguageModel,
    second: &LanguageModel,
    texts: &[Vec<u32>],
    window: usize,
) -> Result<Divergence> {
    let vocabulary = first.spec().vocabulary.min(second.spec().vocabulary);
    let rows = window.min(MOST_LOGITS / vocabulary.max(1)).max(2);
    let (mut sums, mut found) = (Sums::default(), Divergence::default());
    for window in texts
        .iter()
        .flat_map(|text| text.chunks(rows))
        .filter(|window| window.len() > 1)
    {
        let input = Input::rows(&[window.to_vec()])?;
        let [first, second] =
            [first, second].map(|model| model.logits(&input).map(|logits| logits.inner().floats()));
        let (first, second) = (first?, second?);
        let widths = [&first, &second].map(|logits| logits.len() / window.len());
        for (place, target) in window.iter().skip(1).enumerate() {
            let row = |logits: &[f32], width: usize| {
                logits[place * width..place * width + vocabulary].to_vec()
            };
            let rows = [row(&first, widths[0]), row(&second, widths[1])];
            sums.add(&rows, *target as usize, &mut found);
        }
    }
    let count = found.tokens.max(1) as f64;
    Ok(Divergence {
        mean_kl: sums.kl / count,
        agreement: sums.agreed as f64 / count,
        first_perplexity: (-sums.likelihood[0] / count).exp(),
        second_perplexity: (-sums.likelihood[1] / count).exp(),
        ..found
    })
}

#[derive(Debug, Default)]
struct Sums {
    kl: f64,
    agreed: usize,
    likelihood: [f64; 2],
}

impl Sums {
    fn add(&mut self, rows: &[Vec<f32>; 2], target: usize, found: &mut Divergence) {
        found.tokens += 1;
        let gaps = rows[0].iter().zip(&rows[1]).map(|(a, b)| (a - b).abs());
        found.largest_gap = gaps.fold(found.largest_gap, f32::max);
        let best = |row: &[f32]| {
            let larger = |best: usize, i: usize| if row[i] > row[best] { i } else { best };
            (0..row.len()).fold(0, larger)
        };
        self.agreed += usize::from(best(&rows[0]) == best(&rows[1]));
        let [first, second] = [&rows[0], &rows[1]].map(|row| log_probabilities(row));
        let terms = first.iter().zip(&second).filter(|(p, _)| p.is_finite());
        self.kl += terms.map(|(p, q)| p.exp() * (p - q)).sum::<f64>().max(0.0);
        for (sum, row) in self.likelihood.iter_mut().zip([&first, &second]) {
            *sum += row.get(target).copied().unwrap_or(f64::NEG_INFINITY);
        }
    }
}

fn log_probabilities(logits: &[f32]) -> Vec<f64> {
    let largest = logits.iter().fold(f32::NEG_INFINITY, |all, x| all.max(*x));
    let shifted = |x: &f32| f64::from(*x) - f64::from(largest);
    let sum: f64 = logits.iter().map(|x| shifted(x).exp()).sum();
    logits.iter().map(|x| shifted(x) - sum.ln()).collect()
}

/// Where the greedy continuations of `prompt` part: the number of tokens that are the same; nothing where all of `tokens` are.
///
/// # Errors
/// When a model does not generate, or the prompt does not fit it.
pub fn first_difference(
    first: &LanguageModel,
    second: &LanguageModel,
    prompt: &[u32],
    tokens: usize,
) -> Result<Option<usize>> {
    let options = DecodeOptions {
        max_new_tokens: tokens,
        sampler: SamplerOptions {
            temperature: 0.0,
            ..SamplerOptions::default()
        },
        end: first.spec().eos.clone(),
    };
    let ids = |model| -> Result<Vec<u32>> {
        let generated = decode(model, &[prompt.to_vec()], &options, &mut |_, _| true)?;
        Ok(generated
            .into_iter()
            .next()
            .map(|row| row.ids)
            .unwrap_or_default())
    };
    let (first, second) = (ids(first)?, ids(second)?);
    let same = first
        .iter()
        .zip(&second)
        .take_while(|(a, b)| a == b)
        .count();
    Ok((same < first.len().max(second.len())).then_some(same))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worked_example() {
        let (mut sums, mut found) = (Sums::default(), Divergence::default());
        // Probabilities 3/4 and 1/4, and the other way round.
        let rows = [vec![3f32.ln(), 0.0], vec![0.0, 3f32.ln()]];
        sums.add(&rows, 0, &mut found);
        let expected = 0.75 * 3f64.ln() - 0.25 * 3f64.ln();
        assert!((sums.kl - expected).abs() < 1e-6);
        assert_eq!((sums.agreed, found.tokens), (0, 1));
        assert!((found.largest_gap - 3f32.ln()).abs() < 1e-6);
        assert!((sums.likelihood[0] - 0.75f64.ln()).abs() < 1e-6);
        sums.add(&[vec![1.0, 0.0], vec![1.0, 0.0]], 0, &mut found);
        assert_eq!(sums.agreed, 1);
        assert!((sums.kl - expected).abs() < 1e-6);
    }
}
