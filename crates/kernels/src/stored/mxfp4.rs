//! Numbers of four bits in blocks of 32 with a scale each: MXFP4 of the Open Compute Project's microscaling formats.
//!
//! A block is its scale, a power of two with the exponent's bias of f32, and sixteen bytes of two numbers, the lower half first. A
//! number is a sign, two bits of exponent and one of mantissa.

use super::{Format, StoredBytes};
use crate::{
    matmul::scratch,
    simd::{self, vectorised},
};

/// MXFP4, a block after the other.
#[derive(Debug)]
pub struct Mxfp4;

const NUMBERS: usize = Mxfp4::NUMBERS;
/// Bytes of a block's numbers.
const HALVES: usize = NUMBERS / 2;
/// Bytes of a block.
const BYTES: usize = HALVES + 1;
/// The numbers of four bits.
const VALUES: [f32; 16] = [
    0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0,
];

impl Mxfp4 {
    /// Numbers of a block.
    pub const NUMBERS: usize = 32;

    /// The blocks of numbers and scales that a file keeps apart, `[.., 16]` and `[..]`; nothing where their sizes do not fit.
    ///
    /// ```
    /// use espalier_kernels::stored::{Mxfp4, Stored};
    /// // The numbers 1 and -6, and thirty zeros, all doubled.
    /// let bytes = Mxfp4::joined(&[&[0xf2][..], &[0; 15]].concat(), &[128]).ok_or("one block")?;
    /// let row = Stored::new(&Mxfp4, vec![1, 32], bytes).ok_or("one row")?;
    /// assert_eq!(row.expanded()[..3], [2.0, -12.0, 0.0]);
    /// # Ok::<(), &str>(())
    /// ```
    pub fn joined(numbers: &[u8], scales: &[u8]) -> Option<StoredBytes> {
        if numbers.len() != scales.len().checked_mul(HALVES)? {
            return None;
        }
        let mut bytes = Vec::with_capacity(numbers.len() + scales.len());
        for (block, scale) in numbers.chunks_exact(HALVES).zip(scales) {
            bytes.push(*scale);
            bytes.extend_from_slice(block);
        }
        Some(bytes.into())
    }
}

impl Format for Mxfp4 {
    fn name(&self) -> &'static str {
        "mxfp4"
    }

    fn block(&self) -> [usize; 2] {
        [NUMBERS, BYTES]
    }

    fn expand(&self, row: &[u8], first: usize, out: &mut [f32]) {
        let (mut first, mut rest) = (first, out);
        while !rest.is_empty() {
            let (block, inside) = (first / NUMBERS, first % NUMBERS);
            let count = rest.len().min(NUMBERS - inside);
            let (here, behind) = rest.split_at_mut(count);
            let block = &row[block * BYTES..(block + 1) * BYTES];
            match here.as_chunks_mut::<NUMBERS>().0.first_mut() {
                Some(whole) => expand_block(block, whole),
                None => {
                    let mut whole = [0.0; NUMBERS];
                    expand_block(block, &mut whole);
                    here.copy_from_slice(&whole[inside..inside + count]);
                }
            }
            (first, rest) = (first + count, behind);
        }
    }

    fn dot(&self, left: &[f32], row: &[u8]) -> f32 {
        scratch::with(left.len(), |expanded| {
            self.expand(row, 0, expanded);
            dot(left, expanded)
        })
    }
}

fn expand_block(block: &[u8], out: &mut [f32; NUMBERS]) {
    let scale = power_of_two(block[0]);
    for (pair, byte) in out.as_chunks_mut::<2>().0.iter_mut().zip(&block[1..]) {
        *pair = [byte & 15, byte >> 4].map(|number| VALUES[usize::from(number)] * scale);
    }
}

/// `2^(exponent - 127)`.
fn power_of_two(exponent: u8) -> f32 {
    match exponent {
        // The smallest one has no exponent of its own.
        0 => f32::from_bits(1 << 22),
        255 => f32::NAN,
        _ => f32::from_bits(u32::from(exponent) << 23),
    }
}

vectorised! {
    fn dot(left: &[f32], right: &[f32]) -> f32 {
        simd::dot(left, right)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        matmul::{How, Matrix, Precision, multiplied},
        stored::Stored,
        testing::numbers,
    };

    #[test]
    fn scales_are_powers_of_two() {
        assert_eq!(power_of_two(127), 1.0);
        assert_eq!(power_of_two(120), 0.0078125);
        assert_eq!(power_of_two(0), 2f32.powi(-127));
        assert_eq!(power_of_two(254), 2f32.powi(127));
        assert!(power_of_two(255).is_nan());
    }

    #[test]
    fn all_sixteen_numbers_come_in_the_order_of_their_halves() {
        let numbers: Vec<u8> = (0..8).map(|i| (2 * i) | ((2 * i + 1) << 4)).collect();
        let bytes = Mxfp4::joined(&numbers.repeat(2), &[127]).unwrap();
        let row = Stored::new(&Mxfp4, vec![1, 32], bytes).unwrap();
        assert_eq!(row.expanded(), VALUES.repeat(2));
    }

    #[test]
    fn halves_without_their_scales_are_nothing() {
        assert!(Mxfp4::joined(&[0; 16], &[127, 127]).is_none());
        assert!(Mxfp4::joined(&[0; 15], &[127]).is_none());
    }

    /// The bits of a random weight's blocks, with scales from 1/8 to 4.
    fn weight(rows: usize, width: usize) -> Stored {
        let bits = |count, seed| numbers(count, seed).into_iter().map(f32::to_bits);
        let blocks = rows * width / NUMBERS;
        let halves: Vec<u8> = bits(blocks * HALVES, 1)
            .map(|bits| (bits >> 9) as u8)
            .collect();
        let scales: Vec<u8> = bits(blocks, 2)
            .map(|bits| 124 + (bits >> 9 & 5) as u8)
            .collect();
        let bytes = Mxfp4::joined(&halves, &scales).unwrap();
        Stored::new(&Mxfp4, vec![rows, width], bytes).unwrap()
    }

    #[test]
    fn products_have_the_bits_of_the_expanded_weight() {
        for [outputs, inputs] in [[3, 32], [40, 96], [300, 544]] {
            let weight = weight(outputs, inputs);
            let expanded = weight.expanded();
            assert!(
                expanded.iter().filter(|number| **number != 0.0).count() > outputs * inputs / 2
            );
            for rows in [1, 4, 9, 70] {
                let (x, gradient) = (numbers(rows * inputs, 5), numbers(rows * outputs, 6));
                for precision in [Precision::F32, Precision::Bf16] {
                    let products = |weight: Matrix<'_>| {
                        let x = Matrix::new(&x, rows, inputs);
                        let gradient = Matrix::new(&gradient, rows, outputs);
                        let how = How::all(precision);
                        [
                            multiplied(x, weight.transposed(), how),
                            multiplied(gradient, weight, how),
                        ]
                    };
                    let dense = Matrix::new(&expanded, outputs, inputs);
                    assert!(products(weight.matrix(0..outputs)) == products(dense));
                }
            }
        }
    }

    #[test]
    fn rows_expand_from_any_column() {
        let weight = weight(2, 96);
        let whole = weight.expanded();
        for [first, count] in [[0, 1], [3, 40], [31, 65], [95, 1], [5, 0], [32, 32]] {
            let mut out = vec![9.0; count];
            Mxfp4.expand(&weight.bytes()[3 * BYTES..], first, &mut out);
            assert_eq!(out, whole[96 + first..][..count]);
        }
    }
}
