//! SCE: select the entries that differ most between models (the largest `select_topk` by variance), calculate each model's weight as the
//! mean square of its task vector, erase what disagrees with the sum's sign. Wan and others, arXiv 2408.07990.

use super::{Base, Method, Operands, default, for_each, magnitude::keep_ranks, sum};

/// Select, calculate, erase.
pub const SCE: Method = Method {
    name: "sce",
    title: "SCE",
    source: "https://arxiv.org/abs/2408.07990",
    globals: &[default("int8_mask", 0.0), default("select_topk", 1.0)],
    own: &[],
    base: Base::Required,
    models: (1, usize::MAX),
    merge,
};

fn merge(operands: Operands) -> Result<Vec<f32>, String> {
    let (base, mut others, values) = operands.split_from_base()?;
    let mut merged = base.numbers;
    if others.is_empty() {
        return Ok(merged);
    }
    for other in &mut others {
        for_each(&mut other.numbers, |i, number| *number -= merged[i]);
    }
    let mut vectors: Vec<Vec<f32>> = others.into_iter().map(|other| other.numbers).collect();
    let share = values.number("select_topk");
    if share < 1.0 {
        select(&mut vectors, share.max(0.0));
    }
    let squares: Vec<f64> = vectors
        .iter()
        .map(|v| super::dot(v, v) / v.len().max(1) as f64)
        .collect();
    let total: f64 = squares.iter().sum();
    let weights: Vec<f32> = squares
        .iter()
        .map(|square| match total < 1e-6 {
            true => 1.0 / squares.len() as f32,
            false => (square / total) as f32,
        })
        .collect();
    for_each(&mut merged, |i, number| {
        let plus = vectors.iter().map(|vector| vector[i]).sum::<f32>() >= 0.0;
        let (mut mixed, mut divisor) = (0.0, 0.0f32);
        for (vector, weight) in vectors.iter().zip(&weights) {
            if if plus {
                vector[i] > 0.0
            } else {
                vector[i] < 0.0
            } {
                mixed += weight * vector[i];
                divisor += weight;
            }
        }
        *number += mixed / divisor.max(1e-6);
    });
    Ok(merged)
}

/// Keeps the entries of largest variance between the vectors.
fn select(vectors: &mut [Vec<f32>], share: f64) {
    let count = vectors.len() as f64;
    let mut variance = vec![0.0; vectors[0].len()];
    for_each(&mut variance, |i, number| {
        let mean = vectors.iter().map(|v| f64::from(v[i])).sum::<f64>() / count;
        let squares = vectors.iter().map(|v| (f64::from(v[i]) - mean).powi(2));
        *number = (squares.sum::<f64>() / count) as f32;
    });
    let nonzero = sum(variance.len(), |i| f64::from(u8::from(variance[i] != 0.0)));
    let kept = (nonzero * share) as usize;
    let all = variance.len();
    keep_ranks(&mut variance, all - kept..all);
    for vector in vectors {
        for_each(vector, |i, number| {
            if variance[i] == 0.0 {
                *number = 0.0;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Given, merged, near};
    use super::*;

    #[test]
    fn weights_are_mean_squares_and_dissent_is_erased() {
        // Mean squares 4 and 1: weights 0.8 and 0.2.
        let models: [Given<'_>; 2] = [(&[2.0, 2.0, -2.0], &[]), (&[1.0, -1.0, 1.0], &[])];
        let found = merged(&SCE, Some(&[0.0; 3]), &models, &[], None).unwrap();
        near(&found, &[1.8, 2.0, -2.0]);
        // Variances 0.25, 2.25, 2.25: two thirds are the last two.
        let found = merged(
            &SCE,
            Some(&[0.0; 3]),
            &models,
            &[("select_topk", 0.67)],
            None,
        )
        .unwrap();
        near(&found, &[0.0, 2.0, -2.0]);
        near(
            &merged(
                &SCE,
                Some(&[1.0; 3]),
                &models,
                &[("select_topk", 0.0)],
                None,
            )
            .unwrap(),
            &[1.0; 3],
        );
    }
}
