//! Q4_0 of GGUF: 32 numbers of four bits with a scale in f16.
//!
//! A block is its scale `d` and sixteen bytes, of which byte `i` has number `i` in its lower and number `i + 16` in its upper half; a
//! number is `d (q - 8)`. The entry of the largest size, with its sign, is `-8 d`.

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

/// Q4_0, a block after the other.
#[derive(Debug)]
pub struct Q4_0;

const NUMBERS: usize = 32;
const HALF: usize = NUMBERS / 2;
const BYTES: usize = 2 + HALF;

impl Format for Q4_0 {
    fn name(&self) -> &'static str {
        "q4_0"
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

impl Quantise for Q4_0 {
    fn quantise_row(&self, values: &[f32], importance: Option<&[f32]>, row: &mut [u8]) {
        blocks::quantise_row::<NUMBERS, BYTES>(values, importance, row, |values, _, block| {
            let scale = signed_largest(values) / -8.0;
            let factor = f64::from(inverse(scale));
            block[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
            // The sum is rounded to f32 before it is cut off, as in the format's reference.
            let number = |i: usize| {
                let shifted = (f64::from(values[i]) * factor + 8.5) as f32;
                (shifted as u8).min(15)
            };
            for i in 0..HALF {
                block[2 + i] = number(i) | number(i + HALF) << 4;
            }
        });
    }
}

#[inline(always)]
fn block(bytes: &[u8; BYTES], out: &mut [f32; NUMBERS]) {
    let scale = wide(u16::from_le_bytes([bytes[0], bytes[1]]));
    for i in 0..HALF {
        out[i] = scale * (i32::from(bytes[2 + i] & 15) - 8) as f32;
        out[i + HALF] = scale * (i32::from(bytes[2 + i] >> 4) - 8) as f32;
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
            let number = |i: usize| match i < HALF {
                true => block[2 + i] & 15,
                false => block[2 + i - HALF] >> 4,
            };
            let sum = block_dot(left, |i| i32::from(number(i)) - 8);
            sum as f32 * (wide(u16::from_le_bytes([block[0], block[1]])) * scale)
        })
        .sum()
}

rounded_dot! {
    /// Products of rows: each of eight sums begins with minus the sum of the left factor, which makes `q - 8` of `q`.
    fn products(left, rows: [_; ROWS]) = portable;
    with sums {
        use std::arch::x86_64::*;
        let (blocks, count) = x86::blocks::<ROWS, BYTES>(rows);
        let quants = left.quants.as_chunks::<NUMBERS>().0;
        let low = _mm256_set1_epi8(15);
        let mut total = [_mm256_setzero_ps(); ROWS];
        for i in 0..count.min(quants.len()).min(left.scales.len()).min(left.sums.len()) {
            let (x, begin) = (x86::signed_bytes(&quants[i]), _mm256_set1_epi32(-left.sums[i]));
            for row in 0..ROWS {
                let block = &blocks[row][i];
                x86::ask_ahead(block);
                #[allow(unsafe_code)]
                // SAFETY: sixteen bytes stand behind the scale.
                let packed = unsafe { _mm_loadu_si128(block.as_ptr().add(2).cast()) };
                let halves = _mm256_set_m128i(_mm_srli_epi16::<4>(packed), packed);
                let products = sums(begin, _mm256_and_si256(halves, low), x);
                let scale = x86::wide([block[0], block[1]]) * left.scales[i];
                total[row] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(products), _mm256_set1_ps(scale), total[row]);
            }
        }
        x86::totals(total)
    }
}
