//! Weights of three values, two bits each: -g, 0 and g (BitNet b1.58, arXiv 2402.17764), or of two of them (BitNet, arXiv 2310.11453).
//!
//! A row begins with its scale g, so that it can be cut out and read alone; then come blocks of 64 numbers in 16 bytes. Number `j` of a
//! block is in byte `j % 16`, in bits `2 (j / 16)` and the next: one load, a shift for each quarter of a register and a mask give all
//! 64 codes in their order. A code is the number over g, plus one.

use super::{Format, Stored};
use crate::{
    matmul::scratch,
    parallel::fresh,
    simd::{self, vectorised},
};

/// Numbers of a block.
pub(crate) const BLOCK: usize = 64;
/// Bytes of a block.
pub(crate) const BYTES: usize = BLOCK / 4;
/// Bytes before a row's blocks.
pub(crate) const HEAD: usize = 4;
/// The code of zero, which fills the last block.
const ZERO: u8 = 1;

/// Two bits a number, with a scale for each row.
#[derive(Debug, PartialEq, Eq)]
pub struct Ternary {
    /// Whether the scale counts.
    scaled: bool,
}

static FORMATS: [Ternary; 2] = [Ternary { scaled: true }, Ternary { scaled: false }];

impl Ternary {
    /// A weight `[rows, width]` of `codes`, 0, 1 and 2 for `-scale`, 0 and `scale`, row after row; nothing where there are not as many,
    /// or one is larger.
    ///
    /// ```
    /// use espalier_kernels::stored::Ternary;
    /// let weight = Ternary::packed([1, 3], &[0, 1, 2], 0.5).ok_or("three codes")?;
    /// assert_eq!(weight.expanded(), [-0.5, 0.0, 0.5]);
    /// # Ok::<(), &str>(())
    /// ```
    pub fn packed([rows, width]: [usize; 2], codes: &[u8], scale: f32) -> Option<Stored> {
        let fits = rows.checked_mul(width) == Some(codes.len());
        if !fits || codes.iter().any(|code| *code > 2) {
            return None;
        }
        let size = FORMATS[0].row_bytes(width)?;
        let [bytes] = fresh([(rows.checked_mul(size)?, size)], |row, [out]| {
            let (head, blocks) = out.split_at_mut(HEAD);
            head.copy_from_slice(&scale.to_le_bytes());
            let codes = codes[row * width..(row + 1) * width].chunks(BLOCK);
            for (block, codes) in blocks.as_chunks_mut::<BYTES>().0.iter_mut().zip(codes) {
                *block = [0; BYTES];
                for j in 0..BLOCK {
                    let code = codes.get(j).copied().unwrap_or(ZERO);
                    block[j % BYTES] |= code << (2 * (j / BYTES));
                }
            }
        });
        Stored::new(&FORMATS[0], vec![rows, width], bytes.into())
    }

    /// The codes of a weight of this format, row after row, and the scale of its first row; nothing of another format.
    pub fn codes(weight: &Stored) -> Option<(Vec<u8>, f32)> {
        let units = Self::units(weight)?;
        let codes = units.expanded().into_iter().map(|unit| (unit + 1.0) as u8);
        Some((codes.collect(), scale(weight.bytes())))
    }

    /// The same bytes, read as -1, 0 and 1; nothing of another format.
    pub(crate) fn units(weight: &Stored) -> Option<Stored> {
        let (shape, bytes) = (weight.shape().to_vec(), weight.bytes().clone());
        match Self::is_of(weight) {
            true => Stored::new(&FORMATS[1], shape, bytes),
            false => None,
        }
    }

    /// Whether a weight is of this format.
    pub fn is_of(weight: &Stored) -> bool {
        weight.format().name() == FORMATS[0].name()
    }
}

/// The scale at a row's beginning.
pub(crate) fn scale(row: &[u8]) -> f32 {
    row.first_chunk()
        .map_or(0.0, |bytes| f32::from_le_bytes(*bytes))
}

impl Format for Ternary {
    fn name(&self) -> &'static str {
        match self.scaled {
            true => "ternary",
            false => "ternary, unscaled",
        }
    }

    /// Of the numbers alone, for rows have a scale besides.
    fn block(&self) -> [usize; 2] {
        [BLOCK, BYTES]
    }

    fn row_bytes(&self, width: usize) -> Option<usize> {
        width.div_ceil(BLOCK).checked_mul(BYTES)?.checked_add(HEAD)
    }

    fn is_quantised(&self) -> bool {
        true
    }

    fn expand(&self, row: &[u8], first: usize, out: &mut [f32]) {
        let scale = if self.scaled { scale(row) } else { 1.0 };
        let blocks = row[HEAD..].as_chunks::<BYTES>().0;
        let number = |place: usize| {
            let (block, j) = (&blocks[place / BLOCK], place % BLOCK);
            let code = block[j % BYTES] >> (2 * (j / BYTES)) & 3;
            (f32::from(code) - 1.0) * scale
        };
        // To the end of the block that it begins in, whole blocks, and what is left.
        let before = (BLOCK - first % BLOCK) % BLOCK;
        let (before, rest) = out.split_at_mut(before.min(out.len()));
        for (i, out) in before.iter_mut().enumerate() {
            *out = number(first + i);
        }
        let first = first + before.len();
        let (whole, after) = rest.as_chunks_mut::<BLOCK>();
        if !whole.is_empty() {
            expanded(&blocks[first / BLOCK..], scale, whole);
        }
        let first = first + BLOCK * whole.len();
        for (i, out) in after.iter_mut().enumerate() {
            *out = number(first + i);
        }
    }

    fn dot(&self, left: &[f32], row: &[u8]) -> f32 {
        scratch::with(left.len(), |expanded| {
            self.expand(row, 0, expanded);
            dot(left, expanded)
        })
    }
}

vectorised! {
    /// The numbers of whole blocks.
    fn expanded(blocks: &[[u8; BYTES]], scale: f32, out: &mut [[f32; BLOCK]]) {
        for i in 0..out.len().min(blocks.len()) {
            let (block, out) = (&blocks[i], &mut out[i]);
            for quarter in 0..4 {
                for j in 0..BYTES {
                    let code = i32::from(block[j] >> (2 * quarter) & 3);
                    out[quarter * BYTES + j] = (code - 1) as f32 * scale;
                }
            }
        }
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

    #[test]
    fn every_part_of_a_row_expands_to_its_numbers() {
        for width in [1, 3, 63, 64, 65, 200] {
            let codes: Vec<u8> = (0..2 * width).map(|i| (i * i % 3) as u8).collect();
            let weight = Ternary::packed([2, width], &codes, 0.25).unwrap();
            let all: Vec<f32> = codes.iter().map(|c| (f32::from(*c) - 1.0) * 0.25).collect();
            assert_eq!(weight.expanded(), all);
            assert_eq!(Ternary::codes(&weight).unwrap(), (codes.clone(), 0.25));
            let row = weight.part(1..2).unwrap();
            for first in 0..width {
                for count in [0, 1, (width - first) / 2, width - first] {
                    let mut out = vec![9.0; count];
                    row.format().expand(row.bytes(), first, &mut out);
                    assert_eq!(out, all[width + first..][..count]);
                }
            }
        }
    }

    #[test]
    fn odd_codes_and_sizes_are_refused() {
        assert!(Ternary::packed([1, 2], &[0, 3], 1.0).is_none());
        assert!(Ternary::packed([1, 2], &[0, 1, 2], 1.0).is_none());
        assert!(Ternary::packed([usize::MAX, 2], &[0, 1], 1.0).is_none());
    }
}
