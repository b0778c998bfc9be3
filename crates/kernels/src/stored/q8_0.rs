//! Q8_0 of GGUF: 32 numbers of eight bits with a scale in f16.
//!
//! A block is its scale `d` and 32 bytes with a sign; a number is `d q`. With `d = max |x| / 127` an error is at most `d / 2`, and what
//! rounding `d` to f16 adds.

use half::f16;

use super::{
    Format, Quantise, RoundedDot, RoundedRow,
    blocks::{self, inverse},
    f16::wide,
    rounded::{block_dot, rounded_dot},
};
use crate::{
    matmul::scratch,
    simd::{self, vectorised},
};

/// Q8_0, a block after the other.
#[derive(Debug)]
pub struct Q8_0;

const NUMBERS: usize = 32;
const BYTES: usize = 2 + NUMBERS;

impl Format for Q8_0 {
    fn name(&self) -> &'static str {
        "q8_0"
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

    fn rounded_dot(&self) -> Option<RoundedDot> {
        Some(products)
    }
}

impl Quantise for Q8_0 {
    fn quantise_row(&self, values: &[f32], importance: Option<&[f32]>, row: &mut [u8]) {
        blocks::quantise_row::<NUMBERS, BYTES>(values, importance, row, |values, _, block| {
            let largest = values.iter().fold(0f32, |largest, x| largest.max(x.abs()));
            let scale = largest / 127.0;
            let factor = inverse(scale);
            block[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
            for (byte, value) in block[2..].iter_mut().zip(values) {
                // Halves go away from zero.
                *byte = (value * factor).round() as i8 as u8;
            }
        });
    }
}

#[inline(always)]
fn block(bytes: &[u8; BYTES], out: &mut [f32; NUMBERS]) {
    let scale = wide(u16::from_le_bytes([bytes[0], bytes[1]]));
    for i in 0..NUMBERS {
        out[i] = f32::from(bytes[2 + i] as i8) * scale;
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

fn portable(left: RoundedRow<'_>, row: &[u8]) -> f32 {
    let blocks = row.as_chunks::<BYTES>().0.iter();
    let products = blocks
        .zip(left.quants.as_chunks::<NUMBERS>().0)
        .zip(left.scales);
    products
        .map(|((block, left), scale)| {
            let sum = block_dot(left, |i| i32::from(block[2 + i] as i8));
            sum as f32 * (wide(u16::from_le_bytes([block[0], block[1]])) * scale)
        })
        .sum()
}

rounded_dot! {
    /// Products of rows; signs go to the left factor, whose bytes are at least -127.
    fn products(left, rows: [_; ROWS]) = portable;
    with sums {
        use std::arch::x86_64::*;
        let (blocks, count) = x86::blocks::<ROWS, BYTES>(rows);
        let quants = left.quants.as_chunks::<NUMBERS>().0;
        let mut total = [_mm256_setzero_ps(); ROWS];
        for i in 0..count.min(quants.len()).min(left.scales.len()) {
            let x = x86::signed_bytes(&quants[i]);
            for row in 0..ROWS {
                let block = &blocks[row][i];
                x86::ask_ahead(block);
                let Some(numbers) = block[2..].first_chunk::<NUMBERS>() else { break };
                let right = x86::bytes(numbers);
                let products = sums(_mm256_setzero_si256(), _mm256_abs_epi8(right), _mm256_sign_epi8(x, right));
                let scale = x86::wide([block[0], block[1]]) * left.scales[i];
                total[row] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(products), _mm256_set1_ps(scale), total[row]);
            }
        }
        x86::totals(total)
    }
}
