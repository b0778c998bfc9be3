//! Q4_1 of GGUF: 32 numbers of four bits with a scale and an offset in f16.
//!
//! A block is its scale `d`, its offset `m` and sixteen bytes as those of Q4_0; a number is `d q + m`, where `m` is the least
//! number of the block. Older files have it, and llama.cpp takes its kin Q5_1 for rows that are too short for Q5_K.

use half::f16;

use super::{
    Format, Quantise,
    blocks::{self, inverse},
    f16::wide,
};
use crate::{
    matmul::scratch,
    simd::{self, vectorised},
};

/// Q4_1, a block after the other.
#[derive(Debug)]
pub struct Q4_1;

const NUMBERS: usize = 32;
const HALF: usize = NUMBERS / 2;
/// Where the halves begin.
const HALVES: usize = 4;
const BYTES: usize = HALVES + HALF;

impl Format for Q4_1 {
    fn name(&self) -> &'static str {
        "q4_1"
    }

    fn block(&self) -> [usize; 2] {
        [NUMBERS, BYTES]
    }

    fn is_quantised(&self) -> bool {
        true
    }

    fn expand(&self, row: &[u8], first: usize, out: &mut [f32]) {
        expand(row, first, out);
    }

    fn dot(&self, left: &[f32], row: &[u8]) -> f32 {
        scratch::with(left.len(), |expanded| {
            expand(row, 0, expanded);
            dot(left, expanded)
        })
    }
}

impl Quantise for Q4_1 {
    fn quantise_row(&self, values: &[f32], importance: Option<&[f32]>, row: &mut [u8]) {
        blocks::quantise_row::<NUMBERS, BYTES>(values, importance, row, |values, _, block| {
            let least = values.iter().fold(f32::MAX, |least, x| least.min(*x));
            let most = values.iter().fold(f32::MIN, |most, x| most.max(*x));
            let scale = (most - least) / 15.0;
            let factor = inverse(scale);
            block.fill(0);
            block[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
            block[2..4].copy_from_slice(&f16::from_f32(least).to_le_bytes());
            for (i, value) in values.iter().enumerate() {
                let quant = (((value - least) * factor + 0.5) as u8).min(15);
                block[HALVES + i % HALF] |= quant << (4 * (i / HALF));
            }
        });
    }
}

#[inline(always)]
fn block(bytes: &[u8; BYTES], out: &mut [f32; NUMBERS]) {
    let constant = |i: usize| wide(u16::from_le_bytes([bytes[i], bytes[i + 1]]));
    let (scale, offset) = (constant(0), constant(2));
    for i in 0..NUMBERS {
        let quant = bytes[HALVES + i % HALF] >> (4 * (i / HALF)) & 15;
        out[i] = scale * f32::from(quant) + offset;
    }
}

vectorised! {
    fn expand(row: &[u8], first: usize, out: &mut [f32]) {
        blocks::expand::<NUMBERS, BYTES>(row, first, out, block);
    }
}

vectorised! {
    fn dot(left: &[f32], right: &[f32]) -> f32 {
        simd::dot(left, right)
    }
}
