//! Arcee Fusion: of a second model only the entries that matter: those whose importance, `|x - b|` times the Kullback-Leibler divergence
//! of the rows' softmaxes, reaches the median plus 1.5 interquartile ranges. A method of mergekit without a paper.
//!
//! mergekit estimates the quartiles of more than a million entries from a million at random; here they are exact.

use super::{Base, Method, Operands, for_each};

/// Important entries of a second model.
pub const ARCEE_FUSION: Method = Method {
    name: "arcee_fusion",
    title: "Arcee Fusion",
    source: "https://arcee.ai",
    globals: &[],
    own: &[],
    base: Base::Required,
    models: (1, 1),
    merge,
};

fn merge(operands: Operands) -> Result<Vec<f32>, String> {
    let row = operands.row();
    let (base, others, _) = operands.split_from_base()?;
    let mut merged = base.numbers;
    let other = &others.first().ok_or("there is no second model")?.numbers;
    let importance = importance(other, &merged, row);
    let [first, median, third] = quartiles(&importance);
    let threshold = median + 1.5 * (third - first);
    for_each(&mut merged, |i, number| {
        if importance[i] >= threshold {
            *number += other[i] - *number;
        }
    });
    Ok(merged)
}

fn importance(model: &[f32], base: &[f32], row: usize) -> Vec<f32> {
    use rayon::prelude::*;
    let mut importance = vec![0.0; model.len()];
    let rows = importance
        .par_chunks_mut(row)
        .zip(model.par_chunks(row).zip(base.par_chunks(row)));
    rows.for_each(|(importance, (model, base))| {
        let (p, q) = (softmax(model), softmax(base));
        let divergence: f64 = p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum();
        for (number, (x, b)) in importance.iter_mut().zip(model.iter().zip(base)) {
            *number = (f64::from((x - b).abs()) * divergence) as f32;
        }
    });
    importance
}

/// The softmax of a row, every entry a little above zero.
fn softmax(row: &[f32]) -> Vec<f64> {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exponentials: Vec<f64> = row.iter().map(|x| f64::from(x - largest).exp()).collect();
    let total: f64 = exponentials.iter().sum();
    exponentials.iter().map(|x| x / total + 1e-8).collect()
}

fn quartiles(numbers: &[f32]) -> [f32; 3] {
    let mut sorted = numbers.to_vec();
    [0.25, 0.5, 0.75].map(|share| {
        let place = (share * (sorted.len() - 1) as f64) as usize;
        *sorted.select_nth_unstable_by(place, f32::total_cmp).1
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{merged, near};
    use super::*;

    #[test]
    fn only_what_stands_out_is_taken() {
        let base = [0.0; 8];
        let model = [0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 4.0];
        let found = merged(&ARCEE_FUSION, Some(&base), &[(&model, &[])], &[], None).unwrap();
        // The small ones are all at the median, which is the threshold.
        near(&found, &model.map(f64::from));
        let model = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 4.0];
        let found = merged(&ARCEE_FUSION, Some(&base), &[(&model, &[])], &[], None).unwrap();
        near(&found, &[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 4.0]);
    }
}
