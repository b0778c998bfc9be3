//! Numbers of two bytes with the range of f32: its upper half.

use super::{Format, Quantise, dot_of_pairs};
use crate::{bf16::wide, simd::vectorised};

/// bf16, little-endian.
#[derive(Debug)]
pub struct Bf16;

impl Format for Bf16 {
    fn name(&self) -> &'static str {
        "bf16"
    }

    fn block(&self) -> [usize; 2] {
        [1, 2]
    }

    fn expand(&self, row: &[u8], first: usize, out: &mut [f32]) {
        expand(&row.as_chunks::<2>().0[first..first + out.len()], out);
    }

    fn dot(&self, left: &[f32], row: &[u8]) -> f32 {
        dot(left, row)
    }
}

impl Quantise for Bf16 {
    fn quantise_row(&self, values: &[f32], _: Option<&[f32]>, row: &mut [u8]) {
        for (bytes, value) in row.as_chunks_mut::<2>().0.iter_mut().zip(values) {
            *bytes = half::bf16::from_f32(*value).to_le_bytes();
        }
    }
}

vectorised! {
    fn expand(halves: &[[u8; 2]], out: &mut [f32]) {
        out.iter_mut().zip(halves).for_each(|(out, half)| *out = wide(u16::from_le_bytes(*half)));
    }
}

vectorised! {
    fn dot(left: &[f32], row: &[u8]) -> f32 {
        dot_of_pairs(left, row, wide)
    }
}
