//! Attention of few queries, as in decoding: the cached keys and values are read once, where they lie, and not packed.

use super::Inputs;
use crate::{
    matmul::{How, Matrix, product},
    parallel::DisjointRows,
    simd::{exp, maximum, sum, tanh, vectorised},
};

/// Queries up to which packing the keys costs more than it saves.
pub(super) const LIMIT: usize = 6;

/// Mixes the values for all queries of one head, and writes them and the logs of their denominators.
pub(super) fn run(
    inputs: &Inputs<'_>,
    batch: usize,
    head: usize,
    (outputs, log_sums): &(DisjointRows<'_>, DisjointRows<'_>),
) {
    let (query, options) = (&inputs.query, &inputs.flash.options);
    let (count, kv_head, how) = (
        query.time,
        inputs.kv_head(head),
        How::one(options.precision),
    );
    let keys = inputs.flash.mask.span(batch, 0..count);
    // Nothing is seen: the outputs stay zero, and their gradient reaches nobody.
    if keys.is_empty() {
        return;
    }
    let mut scores = vec![0.0; count * keys.len()];
    let key = inputs.key.matrix(batch, kv_head, keys.clone());
    product(
        &mut scores,
        query.matrix(batch, head, 0..count),
        key.transposed(),
        false,
        how,
    );
    let intervals = inputs.flash.mask.intervals(batch, 0..count);
    for (i, (row, interval)) in scores
        .chunks_exact_mut(keys.len())
        .zip(intervals)
        .enumerate()
    {
        let softcap = options.softcap.unwrap_or(0.0) as f32;
        finish(row, options.scale as f32, softcap);
        if let Some(bias) = inputs.bias(head) {
            let origin = i + inputs.key.time - 1;
            row.iter_mut()
                .zip(keys.clone())
                .for_each(|(score, key)| *score += bias[origin - key]);
        }
        let seen = interval.0 as usize..interval.1 as usize;
        for (score, key) in row.iter_mut().zip(keys.clone()) {
            if !seen.contains(&key) {
                *score = f32::NEG_INFINITY;
            }
        }
        #[allow(unsafe_code)]
        // SAFETY: each task has its own batch row and its own head.
        let log_sum = unsafe { log_sums.row(query.index(batch, i, head)) };
        log_sum[0] = softmax(row, inputs.sink(head).unwrap_or(f32::NEG_INFINITY));
    }
    let value = inputs.value.matrix(batch, kv_head, keys.clone());
    let value_width = inputs.value.width;
    let mut mixed = vec![0.0; count * value_width];
    product(
        &mut mixed,
        Matrix::new(&scores, count, keys.len()),
        value,
        false,
        how,
    );
    for (i, mixed) in mixed.chunks_exact(value_width).enumerate() {
        #[allow(unsafe_code)]
        // SAFETY: as above.
        unsafe { outputs.row(query.index(batch, i, head)) }.copy_from_slice(mixed);
    }
}

vectorised! {
    fn finish<const FUSED: bool>(scores: &mut [f32], scale: f32, softcap: f32) {
        scores.iter_mut().for_each(|score| *score *= scale);
        if softcap > 0.0 {
            scores.iter_mut().for_each(|score| *score = tanh::<FUSED>(*score / softcap) * softcap);
        }
    }
}

vectorised! {
    /// Scores become weights beside a score `sink`; returns the log of their denominator. Where nothing is seen, nothing weighs.
    fn softmax<const FUSED: bool>(scores: &mut [f32], sink: f32) -> f32 {
        let seen = maximum(scores);
        let largest = if sink > seen { sink } else { seen };
        if largest == f32::NEG_INFINITY && !scores.iter().any(|score| score.is_nan()) {
            scores.fill(0.0);
            return f32::NEG_INFINITY;
        }
        scores.iter_mut().for_each(|score| *score = exp::<FUSED>(*score - largest));
        let total = sum(scores) + exp::<FUSED>(sink - largest);
        let inverse = total.recip();
        scores.iter_mut().for_each(|score| *score *= inverse);
        largest + total.ln()
    }
}
