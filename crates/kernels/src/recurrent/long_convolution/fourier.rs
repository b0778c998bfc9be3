//! Fourier transforms over a power of two steps, of several complex numbers side by side: in natural order forward, back from
//! the order of reversed bits, so that nothing is ever reordered.

use std::f64::consts::TAU;

use crate::simd::vectorised;

/// Complex numbers that are transformed side by side. A row holds their real parts, then their imaginary ones.
pub(super) const LANES: usize = 16;

/// The transforms of one size.
pub(super) struct Transform {
    /// `exp(-2 pi i j / size)` for the first half of all `j`.
    turns: Vec<[f32; 2]>,
    size: usize,
}

impl Transform {
    /// Of at least `steps` steps.
    pub fn new(steps: usize) -> Self {
        let size = steps.next_power_of_two();
        let turn = |j: usize| {
            let angle = TAU * j as f64 / size as f64;
            [angle.cos() as f32, -angle.sin() as f32]
        };
        Self {
            turns: (0..size / 2).map(turn).collect(),
            size,
        }
    }

    /// Zeros for all steps.
    pub fn rows(&self) -> Vec<f32> {
        vec![0.0; self.size * 2 * LANES]
    }

    /// Transforms all rows.
    pub fn forward(&self, rows: &mut [f32]) {
        forward(rows, &self.turns);
    }

    /// The inverse of [`Self::forward`].
    pub fn backward(&self, rows: &mut [f32]) {
        backward(rows, &self.turns);
        let share = 1.0 / self.size as f32;
        rows.iter_mut().for_each(|value| *value *= share);
    }
}

vectorised! {
    /// Natural order to the order of reversed bits.
    fn forward(rows: &mut [f32], turns: &[[f32; 2]]) {
        let mut half = turns.len();
        while half > 0 {
            let stride = turns.len() / half;
            for block in rows.chunks_exact_mut(2 * half * 2 * LANES) {
                let (upper, lower) = block.split_at_mut(half * 2 * LANES);
                for (i, (a, b)) in upper.chunks_exact_mut(2 * LANES).zip(lower.chunks_exact_mut(2 * LANES)).enumerate() {
                    let [cosine, sine] = turns[i * stride];
                    for lane in 0..LANES {
                        let (real, imaginary) = (a[lane] - b[lane], a[lane + LANES] - b[lane + LANES]);
                        (a[lane], a[lane + LANES]) = (a[lane] + b[lane], a[lane + LANES] + b[lane + LANES]);
                        b[lane] = real * cosine - imaginary * sine;
                        b[lane + LANES] = real * sine + imaginary * cosine;
                    }
                }
            }
            half /= 2;
        }
    }
}

vectorised! {
    /// And back, times the number of rows.
    fn backward(rows: &mut [f32], turns: &[[f32; 2]]) {
        let mut half = 1;
        while half <= turns.len() {
            let stride = turns.len() / half;
            for block in rows.chunks_exact_mut(2 * half * 2 * LANES) {
                let (upper, lower) = block.split_at_mut(half * 2 * LANES);
                for (i, (a, b)) in upper.chunks_exact_mut(2 * LANES).zip(lower.chunks_exact_mut(2 * LANES)).enumerate() {
                    let [cosine, sine] = turns[i * stride];
                    for lane in 0..LANES {
                        let real = b[lane] * cosine + b[lane + LANES] * sine;
                        let imaginary = b[lane + LANES] * cosine - b[lane] * sine;
                        (b[lane], b[lane + LANES]) = (a[lane] - real, a[lane + LANES] - imaginary);
                        (a[lane], a[lane + LANES]) = (a[lane] + real, a[lane + LANES] + imaginary);
                    }
                }
            }
            half *= 2;
        }
    }
}

vectorised! {
    /// Row by row, times numbers whose imaginary parts are taken times `sign`.
    pub(super) fn multiply(rows: &mut [f32], by: &[f32], sign: f32) {
        for (row, by) in rows.chunks_exact_mut(2 * LANES).zip(by.chunks_exact(2 * LANES)) {
            for lane in 0..LANES {
                let (real, imaginary) = (row[lane], row[lane + LANES]);
                let turned = sign * by[lane + LANES];
                row[lane] = real * by[lane] - imaginary * turned;
                row[lane + LANES] = real * turned + imaginary * by[lane];
            }
        }
    }
}
