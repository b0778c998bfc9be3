//! Q6_K of GGUF: 256 numbers of six bits in sixteen parts, `x = d s (q - 32)`.
//!
//! A block is 128 bytes of lower halves, 64 of upper pairs of bits, sixteen scales `s` of eight bits with a sign, and `d` in f16 at the
//! end. Of the half `h` of a block, with `a`, `b` the bytes `64 h + l` and `64 h + 32 + l` of the first and `c` the byte `32 h + l` of the
//! second, numbers `l`, `32 + l`, `64 + l` and `96 + l` have the lower halves of `a` and `b`, then their upper ones, and the pairs of bits of
//! `c` from the lowest on.

use half::f16;

use super::{
    Format, Quantise, RoundedDot, RoundedRow,
    blocks::{self, inverse, nearest, signed_largest},
    f16::wide,
    k_blocks::NUMBERS,
    rounded::{ROUNDED_BLOCK, block_dot, rounded_dot},
};
use crate::{
    matmul::scratch,
    simd::{self, vectorised},
};

/// Q6_K, a block after the other.
#[derive(Debug)]
pub struct Q6K;

/// Numbers with a scale in common.
const PART: usize = 16;
const PARTS: usize = NUMBERS / PART;
/// Where the pairs of bits begin.
const PAIRS: usize = NUMBERS / 2;
/// Where the scales begin.
const SCALES: usize = PAIRS + NUMBERS / 4;
/// Where the constant is.
const CONSTANT: usize = SCALES + PARTS;
const BYTES: usize = CONSTANT + 2;

impl Format for Q6K {
    fn name(&self) -> &'static str {
        "q6_k"
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

impl Quantise for Q6K {
    fn quantise_row(&self, values: &[f32], importance: Option<&[f32]>, row: &mut [u8]) {
        blocks::quantise_row::<NUMBERS, BYTES>(values, importance, row, round);
    }
}

vectorised! {
    fn round(values: &[f32; NUMBERS], importance: Option<&[f32; NUMBERS]>, block: &mut [u8; BYTES]) {
        rounded(values, importance, block)
    }
}

#[inline(always)]
fn rounded(values: &[f32; NUMBERS], importance: Option<&[f32; NUMBERS]>, block: &mut [u8; BYTES]) {
    let parts = values.as_chunks::<PART>().0;
    let weight = |part: usize, i: usize| match importance {
        Some(importance) => importance[part * PART + i],
        None => parts[part][i] * parts[part][i],
    };
    let found: Vec<f32> = (0..PARTS)
        .map(|part| scale(&parts[part], &std::array::from_fn(|i| weight(part, i))))
        .collect();
    block.fill(0);
    let constant = signed_largest(&found) / -128.0;
    if constant == 0.0 || !constant.is_finite() {
        // The quant that means zero.
        return write(block, &[32; NUMBERS]);
    }
    let factor = inverse(constant);
    let constant = f16::from_f32(constant);
    block[CONSTANT..].copy_from_slice(&constant.to_le_bytes());
    let mut quants = [0; NUMBERS];
    for part in 0..PARTS {
        let scale = nearest(found[part] * factor, -128, 127);
        block[SCALES + part] = scale as i8 as u8;
        let step = constant.to_f32() * scale as f32;
        for i in 0..PART {
            let quant = match step == 0.0 {
                true => 0,
                false => nearest(parts[part][i] / step, -32, 31),
            };
            quants[part * PART + i] = (quant + 32) as u8;
        }
    }
    write(block, &quants);
}

fn write(block: &mut [u8; BYTES], quants: &[u8; NUMBERS]) {
    for (i, quant) in quants.iter().enumerate() {
        let [half, quarter, l] = [i / 128, i % 128 / 32, i % 32];
        block[64 * half + 32 * (quarter % 2) + l] |= (quant & 15) << (4 * (quarter / 2));
        block[PAIRS + 32 * half + l] |= (quant >> 4) << (2 * quarter);
    }
}

/// The scale of a part of the least weighted square error: numbers are rounded by `-32 / max` and by steps of a tenth around it, and the
/// best scale for them is `sum(w x q) / sum(w q^2)`, which leaves the less the larger `sum(w x q)^2 / sum(w q^2)` is.
#[inline(always)]
fn scale(values: &[f32; PART], weights: &[f32; PART]) -> f32 {
    const MOST: f32 = 32.0;
    const STEPS: i32 = 9;
    let largest = signed_largest(values);
    if largest.abs() < 1e-15 {
        return 0.0;
    }
    let (mut best, mut gain) = (0.0, -1.0);
    for step in -STEPS..=STEPS {
        let factor = -(MOST + 0.1 * step as f32) / largest;
        let (mut product, mut square) = (0f32, 0f32);
        for (x, w) in values.iter().zip(weights) {
            let quant = nearest(x * factor, -32, 31) as f32;
            product += w * x * quant;
            square += w * quant * quant;
        }
        if square > 0.0 && product * product > gain * square {
            (best, gain) = (product / square, product * product / square);
        }
    }
    best
}

/// The quants of 32 numbers: `quarter` of a half.
#[inline(always)]
fn quant(block: &[u8; BYTES], half: usize, quarter: usize, l: usize) -> i32 {
    let low = block[64 * half + 32 * (quarter % 2) + l] >> (4 * (quarter / 2)) & 15;
    let pair = block[PAIRS + 32 * half + l] >> (2 * quarter) & 3;
    i32::from(low | pair << 4) - 32
}

#[inline(always)]
fn scales(block: &[u8; BYTES]) -> [f32; PARTS] {
    let constant = wide(u16::from_le_bytes([block[CONSTANT], block[CONSTANT + 1]]));
    std::array::from_fn(|part| constant * f32::from(block[SCALES + part] as i8))
}

#[inline(always)]
fn block(bytes: &[u8; BYTES], out: &mut [f32; NUMBERS]) {
    let scales = scales(bytes);
    for eighth in 0..8 {
        let (half, quarter) = (eighth / 4, eighth % 4);
        for part in 0..2 {
            let scale = scales[2 * eighth + part];
            for i in 0..PART {
                let l = PART * part + i;
                out[32 * eighth + l] = scale * quant(bytes, half, quarter, l) as f32;
            }
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
    let lefts = left.quants.as_chunks::<ROUNDED_BLOCK>().0;
    let mut total = 0.0;
    for (number, block) in row.as_chunks::<BYTES>().0.iter().enumerate() {
        let scales = scales(block);
        for eighth in 0..8 {
            let place = number * 8 + eighth;
            let (first, second) = lefts[place].split_at(PART);
            for (part, left_part) in [first, second].into_iter().enumerate() {
                let sum = block_dot(left_part, |i| {
                    quant(block, eighth / 4, eighth % 4, PART * part + i)
                });
                total += scales[2 * eighth + part] * left.scales[place] * sum as f32;
            }
        }
    }
    total
}

rounded_dot! {
    /// Products of rows. Of eight sums the first four have one scale and the others the next.
    fn products(left, rows: [_; ROWS]) = portable;
    with sums {
        use std::arch::x86_64::*;
        let (blocks, count) = x86::blocks::<ROWS, BYTES>(rows);
        let quants = left.quants.as_chunks::<NUMBERS>().0;
        let scales_of = left.scales.as_chunks::<8>().0;
        let count = count.min(quants.len()).min(scales_of.len());
        let (low, pair, middle) = (_mm256_set1_epi8(15), _mm256_set1_epi8(0x30), _mm256_set1_epi8(32));
        let mut total = [_mm256_setzero_ps(); ROWS];
        for i in 0..count {
            let lefts = quants[i].as_chunks::<ROUNDED_BLOCK>().0;
            for row in 0..ROWS {
                let block = &blocks[row][i];
                x86::ask_ahead(block);
                let constant = x86::wide([block[CONSTANT], block[CONSTANT + 1]]);
                let halves = block[..PAIRS].as_chunks::<32>().0;
                let pairs = block[PAIRS..SCALES].as_chunks::<32>().0;
                for half in 0..2 {
                    let (a, b, c) = (x86::bytes(&halves[2 * half]), x86::bytes(&halves[2 * half + 1]), x86::bytes(&pairs[half]));
                    let numbers = [
                        _mm256_or_si256(_mm256_and_si256(a, low), _mm256_and_si256(_mm256_slli_epi16::<4>(c), pair)),
                        _mm256_or_si256(_mm256_and_si256(b, low), _mm256_and_si256(_mm256_slli_epi16::<2>(c), pair)),
                        _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16::<4>(a), low), _mm256_and_si256(c, pair)),
                        _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16::<4>(b), low), _mm256_and_si256(_mm256_srli_epi16::<2>(c), pair)),
                    ];
                    for quarter in 0..4 {
                        let eighth = 4 * half + quarter;
                        let right = _mm256_sub_epi8(numbers[quarter], middle);
                        let x = x86::signed_bytes(&lefts[eighth]);
                        let products = sums(_mm256_setzero_si256(), _mm256_abs_epi8(right), _mm256_sign_epi8(x, right));
                        let factor = constant * scales_of[i][eighth];
                        let first = factor * f32::from(block[SCALES + 2 * eighth] as i8);
                        let second = factor * f32::from(block[SCALES + 2 * eighth + 1] as i8);
                        let factor = _mm256_set_m128(_mm_set1_ps(second), _mm_set1_ps(first));
                        total[row] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(products), factor, total[row]);
                    }
                }
            }
        }
        x86::totals(total)
    }
}
