//! Q5_0 of GGUF: 32 numbers of five bits with a scale in f16.
//!
//! A block is its scale `d`, four bytes with the fifth bit of every number, the first in the lowest bit, and sixteen bytes as those of
//! Q4_0; a number is `d (q - 16)`. llama.cpp takes it for rows that are too short for Q4_K.

use half::f16;

use super::{
    Format, Quantise, RoundedDot, RoundedRow,
    blocks::{self, inverse, signed_largest},
    f16::wide,
    rounded::{block_dot, rounded_dot},
};
use crate::{
    matmul::scratch,
    simd::{self, vectorised},
};

/// Q5_0, a block after the other.
#[derive(Debug)]
pub struct Q5_0;

const NUMBERS: usize = 32;
const HALF: usize = NUMBERS / 2;
/// Where the halves begin.
const HALVES: usize = 6;
const BYTES: usize = HALVES + HALF;

impl Format for Q5_0 {
    fn name(&self) -> &'static str {
        "q5_0"
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

impl Quantise for Q5_0 {
    fn quantise_row(&self, values: &[f32], importance: Option<&[f32]>, row: &mut [u8]) {
        blocks::quantise_row::<NUMBERS, BYTES>(values, importance, row, |values, _, block| {
            let scale = signed_largest(values) / -16.0;
            let factor = f64::from(inverse(scale));
            block.fill(0);
            block[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
            for (i, value) in values.iter().enumerate() {
                // The sum is rounded to f32 before it is cut off, as in the format's reference.
                let quant = ((f64::from(*value) * factor + 16.5) as f32 as u8).min(31);
                block[2 + i / 8] |= (quant >> 4) << (i % 8);
                block[HALVES + i % HALF] |= (quant & 15) << (4 * (i / HALF));
            }
        });
    }
}

/// Number `i`.
#[inline(always)]
fn quant(block: &[u8; BYTES], i: usize) -> i32 {
    let half = block[HALVES + i % HALF] >> (4 * (i / HALF)) & 15;
    i32::from(half | (block[2 + i / 8] >> (i % 8) & 1) << 4) - 16
}

#[inline(always)]
fn block(bytes: &[u8; BYTES], out: &mut [f32; NUMBERS]) {
    let scale = wide(u16::from_le_bytes([bytes[0], bytes[1]]));
    for (i, out) in out.iter_mut().enumerate() {
        *out = scale * quant(bytes, i) as f32;
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
            let sum = block_dot(left, |i| quant(block, i));
            sum as f32 * (wide(u16::from_le_bytes([block[0], block[1]])) * scale)
        })
        .sum()
}

rounded_dot! {
    /// Products of rows: each of eight sums begins with minus twice the sum of the left factor, which makes `q - 16` of `q`.
    fn products(left, rows: [_; ROWS]) = portable;
    with sums {
        use std::arch::x86_64::*;
        let (blocks, count) = x86::blocks::<ROWS, BYTES>(rows);
        let quants = left.quants.as_chunks::<NUMBERS>().0;
        let (low, fifth) = (_mm256_set1_epi8(15), _mm256_set1_epi8(16));
        // Byte `i` of the spread bits is the one that has the bit of number `i`.
        let spread = _mm256_set_epi64x(0x0303_0303_0303_0303, 0x0202_0202_0202_0202, 0x0101_0101_0101_0101, 0);
        let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201u64 as i64);
        let mut total = [_mm256_setzero_ps(); ROWS];
        for i in 0..count.min(quants.len()).min(left.scales.len()).min(left.sums.len()) {
            let (x, begin) = (x86::signed_bytes(&quants[i]), _mm256_set1_epi32(-2 * left.sums[i]));
            for row in 0..ROWS {
                let block = &blocks[row][i];
                x86::ask_ahead(block);
                #[allow(unsafe_code)]
                // SAFETY: sixteen bytes stand behind the bits.
                let packed = unsafe { _mm_loadu_si128(block.as_ptr().add(HALVES).cast()) };
                let halves = _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16::<4>(packed), packed), low);
                let bits = i32::from_le_bytes([block[2], block[3], block[4], block[5]]);
                let bits = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(bits), spread), bit);
                let number = _mm256_or_si256(halves, _mm256_and_si256(_mm256_cmpeq_epi8(bits, bit), fifth));
                let products = sums(begin, number, x);
                let scale = x86::wide([block[0], block[1]]) * left.scales[i];
                total[row] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(products), _mm256_set1_ps(scale), total[row]);
            }
        }
        x86::totals(total)
    }
}
