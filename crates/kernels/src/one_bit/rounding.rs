//! Weights to three or two values, inputs to eight bits.

use super::WeightBits;
use crate::{
    parallel::{chunk, fresh},
    simd::{LANES, fold, vectorised},
};

/// Numbers of a task.
const PIECE: usize = 1 << 14;

/// The smallest mean magnitude of a weight, and the smallest largest magnitude of a row of inputs.
pub(super) const SMALLEST: f32 = 1e-5;

/// The largest eight-bit number.
pub(super) const LARGEST: f32 = 127.0;

/// A weight as -1, 0 and 1, and the scale that they stand for.
pub(super) fn weight(bits: WeightBits, weight: &[f32]) -> (Vec<f32>, f32) {
    let magnitude = mean(weight, sum_of_magnitudes);
    match bits {
        WeightBits::Ternary => {
            let scale = at_least(magnitude, SMALLEST);
            let units = each(weight, |w, out| ternary(w, 1.0 / scale, out));
            (units, scale)
        }
        WeightBits::Binary => {
            let middle = mean(weight, sum);
            (each(weight, |w, out| signs(w, middle, out)), magnitude)
        }
    }
}

/// The larger of the two, or no number where the first is none.
fn at_least(x: f32, least: f32) -> f32 {
    if x < least { least } else { x }
}

/// The mean of what `sum` adds up, in pieces of fixed size, so that threads change no bit.
fn mean(weight: &[f32], sum: fn(&[f32]) -> f32) -> f32 {
    let pieces = weight.len().div_ceil(PIECE);
    let [sums] = fresh([(pieces, 1)], |i, [out]| {
        out[0] = sum(chunk(weight, PIECE, i));
    });
    let total: f64 = sums.iter().map(|sum: &f32| f64::from(*sum)).sum();
    (total / weight.len().max(1) as f64) as f32
}

fn each(weight: &[f32], round: impl Fn(&[f32], &mut [f32]) + Sync) -> Vec<f32> {
    let [units] = fresh([(weight.len(), PIECE)], |i, [out]| {
        round(chunk(weight, PIECE, i), out);
    });
    units
}

/// Rows of inputs as whole numbers.
pub(super) struct RoundedRows {
    /// `[rows, width]`, from -128 to 127.
    pub values: Vec<f32>,
    /// What each row was multiplied by.
    pub scales: Vec<f32>,
}

/// Rounds rows of `width` numbers.
pub(super) fn rows(x: &[f32], width: usize) -> RoundedRows {
    const ROWS: usize = 16;
    let (width, count) = (width.max(1), x.len() / width.max(1));
    let sizes = [(count * width, ROWS * width), (count, ROWS)];
    let [values, scales] = fresh(sizes, |i, [values, scales]| {
        let x = chunk(x, ROWS * width, i).chunks_exact(width);
        for ((x, values), scale) in x.zip(values.chunks_exact_mut(width)).zip(scales) {
            *scale = LARGEST / at_least(largest(x), SMALLEST);
            whole(x, *scale, values);
        }
    });
    RoundedRows { values, scales }
}

vectorised! {
    fn sum(x: &[f32]) -> f32 {
        crate::simd::sum(x)
    }
}

vectorised! {
    fn sum_of_magnitudes(x: &[f32]) -> f32 {
        let mut lanes = [0f32; LANES];
        let (chunks, rest) = x.as_chunks::<LANES>();
        for chunk in chunks {
            for l in 0..LANES {
                lanes[l] += chunk[l].abs();
            }
        }
        for l in 0..rest.len() {
            lanes[l] += rest[l].abs();
        }
        fold(lanes, |a, b| a + b)
    }
}

vectorised! {
    fn ternary(weight: &[f32], inverse: f32, out: &mut [f32]) {
        for i in 0..out.len().min(weight.len()) {
            out[i] = (weight[i] * inverse).round_ties_even().clamp(-1.0, 1.0);
        }
    }
}

vectorised! {
    fn signs(weight: &[f32], middle: f32, out: &mut [f32]) {
        for i in 0..out.len().min(weight.len()) {
            out[i] = if weight[i] > middle { 1.0 } else { -1.0 };
        }
    }
}

vectorised! {
    /// The largest magnitude; no number where there is one that is none: without their signs, floats are in the order of their bits.
    fn largest(x: &[f32]) -> f32 {
        let mut most = 0u32;
        for value in x {
            most = most.max(value.to_bits() & 0x7fff_ffff);
        }
        f32::from_bits(most)
    }
}

vectorised! {
    fn whole(x: &[f32], scale: f32, out: &mut [f32]) {
        for i in 0..out.len().min(x.len()) {
            out[i] = (x[i] * scale).round_ties_even().clamp(-128.0, 127.0);
        }
    }
}
