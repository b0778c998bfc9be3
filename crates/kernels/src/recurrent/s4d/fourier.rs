//! The same convolution by Fourier transforms, as S4D's authors compute it: what the chunks of `cpu.rs` are compared with, in
//! values and in speed. They are faster at every length (`docs/log.md`), so that no model runs this.

use std::f64::consts::TAU;

use crate::{parallel::for_chunks, simd::vectorised};

/// Pairs of channels that are transformed side by side; two channels are the parts of one complex number.
const LANES: usize = 16;

/// `y_t = sum_j kernel_j x_{t-j}` for each channel of `x`, `[time, width]`, with a kernel as long as the sequence. The width is a
/// multiple of twice the lanes.
pub(crate) fn convolved(x: &[f32], kernel: &[f32], width: usize) -> Vec<f32> {
    let time = kernel.len();
    let size = (2 * time).next_power_of_two();
    let turns: Vec<[f32; 2]> = (0..size / 2)
        .map(|i| {
            let angle = TAU * i as f64 / size as f64;
            [angle.cos() as f32, -angle.sin() as f32]
        })
        .collect();
    let mut spectrum = vec![0.0; 2 * size * LANES];
    kernel.iter().zip(spectrum.chunks_exact_mut(2 * LANES)).for_each(|(value, row)| row[..LANES].fill(*value));
    forward(&mut spectrum, &turns);
    let groups = width / (2 * LANES);
    let mut columns = vec![0.0; groups * time * 2 * LANES];
    for_chunks([(&mut columns[..], time * 2 * LANES)], |group, [out]| {
        let mut rows = vec![0.0; 2 * size * LANES];
        for (t, row) in rows.chunks_exact_mut(2 * LANES).take(time).enumerate() {
            row.copy_from_slice(&x[t * width + group * 2 * LANES..][..2 * LANES]);
        }
        forward(&mut rows, &turns);
        multiply(&mut rows, &spectrum);
        backward(&mut rows, &turns);
        out.iter_mut().zip(&rows).for_each(|(out, value)| *out = value / size as f32);
    });
    let mut y = vec![0.0; time * width];
    for (group, rows) in columns.chunks_exact(time * 2 * LANES).enumerate() {
        for (t, row) in rows.chunks_exact(2 * LANES).enumerate() {
            y[t * width + group * 2 * LANES..][..2 * LANES].copy_from_slice(row);
        }
    }
    y
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
    fn multiply(rows: &mut [f32], by: &[f32]) {
        for (row, by) in rows.chunks_exact_mut(2 * LANES).zip(by.chunks_exact(2 * LANES)) {
            for lane in 0..LANES {
                let (real, imaginary) = (row[lane], row[lane + LANES]);
                row[lane] = real * by[lane] - imaginary * by[lane + LANES];
                row[lane + LANES] = real * by[lane + LANES] + imaginary * by[lane];
            }
        }
    }
}
