//! Q4_K of GGUF: 256 numbers of four bits in eight parts, `x = d s q - m z`.
//!
//! A block is `d` and `m` in f16, the parts' `s` and `z` in twelve bytes (see [`k_blocks`]), and 128 bytes, of which the `g`-th 32 have
//! part `2 g` in their lower and part `2 g + 1` in their upper halves.

use super::{
    Format, Quantise, RoundedDot, RoundedRow, blocks,
    f16::wide,
    k_blocks::{self, NUMBERS, PART, PARTS, SCALES, Search},
    rounded::{block_dot, rounded_dot},
};
use crate::{
    matmul::scratch,
    simd::{self, vectorised},
};

/// Q4_K, a block after the other.
#[derive(Debug)]
pub struct Q4K;

/// Bytes before the numbers.
const HEAD: usize = 4 + SCALES;
const BYTES: usize = HEAD + NUMBERS / 2;

const SEARCH: Search = Search {
    most: 15,
    first: -1.0,
    steps: 20,
};

impl Format for Q4K {
    fn name(&self) -> &'static str {
        "q4_k"
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

impl Quantise for Q4K {
    fn quantise_row(&self, values: &[f32], importance: Option<&[f32]>, row: &mut [u8]) {
        blocks::quantise_row::<NUMBERS, BYTES>(
            values,
            importance,
            row,
            |values, importance, block| {
                let rounded = k_blocks::round(values, importance, SEARCH);
                write_head(&rounded, block);
                for (group, bytes) in block[HEAD..]
                    .as_chunks_mut::<PART>()
                    .0
                    .iter_mut()
                    .enumerate()
                {
                    let quants = &rounded.quants[2 * group * PART..];
                    for i in 0..PART {
                        bytes[i] = quants[i] | quants[PART + i] << 4;
                    }
                }
            },
        );
    }
}

/// Constants and scales.
pub(super) fn write_head(rounded: &k_blocks::Rounded, block: &mut [u8]) {
    let [scale, offset] = rounded.constants;
    block[..2].copy_from_slice(&scale.to_le_bytes());
    block[2..4].copy_from_slice(&offset.to_le_bytes());
    block[4..HEAD].copy_from_slice(&k_blocks::packed(rounded.parts));
}

/// The parts' scales and offsets in f32.
#[inline(always)]
pub(super) fn head(block: &[u8]) -> [[f32; PARTS]; 2] {
    let constant = |i: usize| wide(u16::from_le_bytes([block[i], block[i + 1]]));
    let parts = block[4..].first_chunk::<SCALES>().map(k_blocks::unpacked);
    let [scales, offsets] = parts.unwrap_or_default();
    let (scale, offset) = (constant(0), constant(2));
    [
        scales.map(|s| scale * f32::from(s)),
        offsets.map(|z| offset * f32::from(z)),
    ]
}

#[inline(always)]
fn block(bytes: &[u8; BYTES], out: &mut [f32; NUMBERS]) {
    let [scales, offsets] = head(bytes);
    let halves = bytes[HEAD..].as_chunks::<PART>().0;
    let parts = out.as_chunks_mut::<PART>().0;
    for part in 0..PARTS {
        let (scale, offset) = (scales[part], offsets[part]);
        let (bytes, out) = (&halves[part / 2], &mut parts[part]);
        let shift = 4 * (part % 2);
        for i in 0..PART {
            out[i] = scale * f32::from(bytes[i] >> shift & 15) - offset;
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
        let halves = block[HEAD..].as_chunks::<PART>().0;
        for part in 0..PARTS {
            let place = number * PARTS + part;
            let shift = 4 * (part % 2);
            let sum = block_dot(&lefts[place], |i| {
                i32::from(halves[part / 2][i] >> shift & 15)
            });
            total +=
                scales[part] * left.scales[place] * sum as f32 - offsets[part] * left.totals[place];
        }
    }
    total
}

rounded_dot! {
    /// Products of rows; the offsets are multiplied by the sums of the left factor.
    fn products(left, rows: [_; ROWS]) = portable;
    with sums {
        use std::arch::x86_64::*;
        let (blocks, count) = x86::blocks::<ROWS, BYTES>(rows);
        let quants = left.quants.as_chunks::<NUMBERS>().0;
        let scales_of = left.scales.as_chunks::<PARTS>().0;
        let totals_of = left.totals.as_chunks::<PARTS>().0;
        let count = count.min(quants.len()).min(scales_of.len()).min(totals_of.len());
        let low = _mm256_set1_epi8(15);
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
                let halves = block[HEAD..].as_chunks::<PART>().0;
                for group in 0..PARTS / 2 {
                    let packed = x86::bytes(&halves[group]);
                    let numbers = [_mm256_and_si256(packed, low), _mm256_and_si256(_mm256_srli_epi16::<4>(packed), low)];
                    for half in 0..2 {
                        let part = 2 * group + half;
                        let number = numbers[half];
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

/// As [`head`], in registers.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn x86_head(block: &[u8]) -> [std::arch::x86_64::__m256; 2] {
    use std::arch::x86_64::*;

    use super::rounded::x86;
    let parts = block[4..].first_chunk::<SCALES>().map(k_blocks::unpacked);
    let wide = |bytes: [u8; PARTS], constant: f32| {
        let bytes = _mm_cvtsi64_si128(i64::from_le_bytes(bytes));
        _mm256_mul_ps(
            _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)),
            _mm256_set1_ps(constant),
        )
    };
    let [scales, offsets] = parts.unwrap_or_default();
    [
        wide(scales, x86::wide([block[0], block[1]])),
        wide(offsets, x86::wide([block[2], block[3]])),
    ]
}
