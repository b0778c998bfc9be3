//! Q5_K of GGUF: 256 numbers of five bits in eight parts, `x = d s q - m z`.
//!
//! A block is that of Q4_K with 32 bytes before its halves, of which bit `j` of byte `i` is the fifth bit of number `i` of part `j`.

use super::{
    Format, Quantise, RoundedDot, RoundedRow, blocks,
    k_blocks::{self, NUMBERS, PART, PARTS, SCALES, Search},
    q4_k::{head, write_head},
    rounded::{block_dot, rounded_dot},
};
use crate::{
    matmul::scratch,
    simd::{self, vectorised},
};

/// Q5_K, a block after the other.
#[derive(Debug)]
pub struct Q5K;

/// Where the fifth bits begin.
const BITS: usize = 4 + SCALES;
/// Where the halves begin.
const HALVES: usize = BITS + PART;
const BYTES: usize = HALVES + NUMBERS / 2;

const SEARCH: Search = Search {
    most: 31,
    first: -0.5,
    steps: 15,
};

impl Format for Q5K {
    fn name(&self) -> &'static str {
        "q5_k"
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

impl Quantise for Q5K {
    fn quantise_row(&self, values: &[f32], importance: Option<&[f32]>, row: &mut [u8]) {
        blocks::quantise_row::<NUMBERS, BYTES>(
            values,
            importance,
            row,
            |values, importance, block| {
                let rounded = k_blocks::round(values, importance, SEARCH);
                write_head(&rounded, block);
                block[BITS..].fill(0);
                for (i, quant) in rounded.quants.iter().enumerate() {
                    let (part, place) = (i / PART, i % PART);
                    block[BITS + place] |= (quant >> 4) << part;
                    block[HALVES + part / 2 * PART + place] |= (quant & 15) << (4 * (part % 2));
                }
            },
        );
    }
}

/// Number `i` of a part.
#[inline(always)]
fn quant(block: &[u8; BYTES], part: usize, i: usize) -> u8 {
    let half = block[HALVES + part / 2 * PART + i] >> (4 * (part % 2)) & 15;
    half | (block[BITS + i] >> part & 1) << 4
}

#[inline(always)]
fn block(bytes: &[u8; BYTES], out: &mut [f32; NUMBERS]) {
    let [scales, offsets] = head(bytes);
    let parts = out.as_chunks_mut::<PART>().0;
    for part in 0..PARTS {
        let (scale, offset) = (scales[part], offsets[part]);
        for (i, out) in parts[part].iter_mut().enumerate() {
            *out = scale * f32::from(quant(bytes, part, i)) - offset;
        }
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
    let blocks = row.as_chunks::<BYTES>().0;
    let lefts = left.quants.as_chunks::<PART>().0;
    let mut total = 0.0;
    for (number, block) in blocks.iter().enumerate() {
        let [scales, offsets] = head(block);
        for part in 0..PARTS {
            let place = number * PARTS + part;
            let sum = block_dot(&lefts[place], |i| i32::from(quant(block, part, i)));
            total +=
                scales[part] * left.scales[place] * sum as f32 - offsets[part] * left.totals[place];
        }
    }
    total
}

rounded_dot! {
    /// As of Q4_K.
    fn products(left, rows: [_; ROWS]) = portable;
    with sums {
        use std::arch::x86_64::*;
        let (blocks, count) = x86::blocks::<ROWS, BYTES>(rows);
        let quants = left.quants.as_chunks::<NUMBERS>().0;
        let scales_of = left.scales.as_chunks::<PARTS>().0;
        let totals_of = left.totals.as_chunks::<PARTS>().0;
        let count = count.min(quants.len()).min(scales_of.len()).min(totals_of.len());
        let (low, fifth) = (_mm256_set1_epi8(15), _mm256_set1_epi8(16));
        let mut total = [_mm256_setzero_ps(); ROWS];
        for i in 0..count {
            let (own, sums_of) = (x86::eight(&scales_of[i]), x86::eight(&totals_of[i]));
            let parts = quants[i].as_chunks::<PART>().0;
            for row in 0..ROWS {
                let block = &blocks[row][i];
                x86::ask_ahead(block);
                let [scales, offsets] = super::q4_k::x86_head(block);
                total[row] = _mm256_fnmadd_ps(offsets, sums_of, total[row]);
                let factors = x86::array(_mm256_mul_ps(scales, own));
                let Some(bits) = block[BITS..].first_chunk::<PART>() else { break };
                let bits = x86::bytes(bits);
                let halves = block[HALVES..].as_chunks::<PART>().0;
                for group in 0..PARTS / 2 {
                    let packed = x86::bytes(&halves[group]);
                    let numbers = [_mm256_and_si256(packed, low), _mm256_and_si256(_mm256_srli_epi16::<4>(packed), low)];
                    for half in 0..2 {
                        let part = 2 * group + half;
                        let bit = _mm256_set1_epi8((1u8 << part) as i8);
                        let is_set = _mm256_cmpeq_epi8(_mm256_and_si256(bits, bit), bit);
                        let number = _mm256_or_si256(numbers[half], _mm256_and_si256(is_set, fifth));
                        let products = sums(_mm256_setzero_si256(), number, x86::signed_bytes(&parts[part]));
                        let factor = _mm256_set1_ps(factors[part]);
                        total[row] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(products), factor, total[row]);
                    }
                }
            }
        }
        x86::totals(total)
    }
}
