//! How fast this machine reads its memory: the bound of decoding, which reads every weight once for a token.

use std::{hint::black_box, time::Instant};

use crate::{
    parallel::{chunk, fresh},
    simd::{self, vectorised},
};

/// Numbers that are read, more than any cache holds.
const NUMBERS: usize = 1 << 26;
/// Numbers of a task.
const CHUNK: usize = 1 << 16;
/// Passes, of which the fastest counts.
const PASSES: usize = 5;

vectorised! {
    fn sum(x: &[f32]) -> f32 {
        simd::sum(x)
    }
}

/// Bytes a second that all threads read together, the best of some passes over a quarter of a gigabyte.
pub fn memory_bandwidth() -> f64 {
    let [numbers] = fresh([(NUMBERS, CHUNK)], |_, [out]| out.fill(1.0));
    let pass = || {
        let start = Instant::now();
        let [sums] = fresh([(NUMBERS.div_ceil(CHUNK), 1)], |i, [out]| {
            out.fill(sum(chunk(&numbers, CHUNK, i)));
        });
        black_box(sums);
        4.0 * NUMBERS as f64 / start.elapsed().as_secs_f64()
    };
    (0..PASSES).map(|_| pass()).fold(0.0, f64::max)
}
