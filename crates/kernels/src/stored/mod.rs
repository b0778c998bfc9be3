//! Weights as files hold them: rows of numbers in a [`Format`], in memory of our own or in a mapped file.
//!
//! Products expand such rows while they pack panels; with few rows on the left, as in decoding, they read each byte once where it
//! lies. A format is one file beside this one. Nothing here takes a number for a fixed count of bytes: a format has blocks along
//! the input axis, and what is cut out of a weight is whole rows.

mod bf16;
mod blocks;
mod bytes;
mod f16;
mod f32;
mod four_bit;
mod grouped;
mod k_blocks;
mod mxfp4;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;
mod rounded;
pub(crate) mod ternary;

use std::{fmt::Debug, ops::Range, sync::Arc};

pub use self::{
    bf16::Bf16,
    blocks::{Quantise, quantised, quantised_as},
    bytes::StoredBytes,
    f16::F16,
    f32::F32,
    four_bit::{Code, Constants, FourBit},
    grouped::{Grouped, GroupedParts},
    mxfp4::Mxfp4,
    q4_0::Q4_0,
    q4_1::Q4_1,
    q4_k::Q4K,
    q5_0::Q5_0,
    q5_1::Q5_1,
    q5_k::Q5K,
    q6_k::Q6K,
    q8_0::Q8_0,
    rounded::{ROUNDED_BLOCK, Rounded, RoundedDot, RoundedRow},
    ternary::Ternary,
};
use crate::{
    matmul::Matrix,
    parallel::{chunk, fresh},
};

/// How the numbers of a row are written as bytes.
pub trait Format: Debug + Send + Sync + 'static {
    /// Its name, such as `bf16`.
    fn name(&self) -> &'static str;

    /// Numbers of a block, and bytes that it takes. A row is whole blocks.
    fn block(&self) -> [usize; 2];

    /// Writes the numbers of `row` from number `first` on, as many as `out` holds.
    fn expand(&self, row: &[u8], first: usize, out: &mut [f32]);

    /// The dot product of `left` with `row`, of as many numbers: the bits of the sum over the expanded row.
    fn dot(&self, left: &[f32], row: &[u8]) -> f32;

    /// The dot product with a left factor in eight bits, where the format is so coarse that products with few rows on the left round
    /// that too.
    fn rounded_dot(&self) -> Option<RoundedDot> {
        None
    }

    /// The bytes as the f32 numbers that they are, where they are that and lie so that they can be read.
    fn floats<'a>(&self, _bytes: &'a [u8]) -> Option<&'a [f32]> {
        None
    }

    /// Whether the numbers are those of a finer weight, rounded to be read and never changed. Rows then hold constants beside their
    /// numbers, and cannot be cut into others.
    fn is_quantised(&self) -> bool {
        false
    }

    /// Bytes of a row of so many numbers; nothing where these are not whole blocks.
    fn row_bytes(&self, width: usize) -> Option<usize> {
        let [numbers, bytes] = self.block();
        width
            .is_multiple_of(numbers)
            .then(|| (width / numbers).checked_mul(bytes))?
    }
}

/// A weight of any rank whose rows lie along the last axis, in a format. It is read and never changed; clones share its memory.
///
/// ```
/// use espalier_kernels::stored::{Bf16, Stored, StoredBytes};
/// // One row of two numbers, 1 and -2.
/// let bytes = StoredBytes::from(vec![0x80, 0x3f, 0x00, 0xc0]);
/// let weight = Stored::new(&Bf16, vec![1, 2], bytes).ok_or("four bytes are two numbers")?;
/// assert_eq!(weight.expanded(), [1.0, -2.0]);
/// # Ok::<(), &str>(())
/// ```
#[derive(Debug, Clone)]
pub struct Stored {
    format: &'static dyn Format,
    shape: Arc<[usize]>,
    bytes: StoredBytes,
}

impl Stored {
    /// A weight over `bytes`; nothing where these are not as many as the shape needs, or its rows are not whole blocks.
    pub fn new(format: &'static dyn Format, shape: Vec<usize>, bytes: StoredBytes) -> Option<Self> {
        let (width, outer) = shape.split_last()?;
        let rows = outer
            .iter()
            .try_fold(1usize, |rows, axis| rows.checked_mul(*axis))?;
        let expected = format.row_bytes(*width)?.checked_mul(rows)?;
        (bytes.len() == expected).then(|| Self {
            format,
            shape: shape.into(),
            bytes,
        })
    }

    /// How the numbers are written.
    pub fn format(&self) -> &'static dyn Format {
        self.format
    }

    /// The length of each axis.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Where the bytes are.
    pub fn bytes(&self) -> &StoredBytes {
        &self.bytes
    }

    /// Numbers of a row.
    pub fn width(&self) -> usize {
        self.shape.last().copied().unwrap_or(0)
    }

    /// Rows, over all axes but the last.
    pub fn rows(&self) -> usize {
        self.shape.iter().rev().skip(1).product()
    }

    /// The same rows in another shape; nothing where that has another size, or cuts blocks.
    pub fn reshaped(self, shape: Vec<usize>) -> Option<Self> {
        if self.format.is_quantised() && shape.last() != Some(&self.width()) {
            return None;
        }
        Self::new(self.format, shape, self.bytes)
    }

    /// Some rows, `[rows, width]`, in the same memory; nothing where there are no such rows.
    pub fn part(&self, rows: Range<usize>) -> Option<Self> {
        let (width, size) = (self.width(), self.format.row_bytes(self.width())?);
        let place = rows.start.checked_mul(size)?..rows.end.checked_mul(size)?;
        let shape = vec![rows.end.checked_sub(rows.start)?, width];
        Self::new(self.format, shape, self.bytes.part(place)?)
    }

    /// The rows of several weights of one format and width one after another, `[rows, width]`, in memory of their own.
    pub fn joined(parts: &[Self]) -> Option<Self> {
        let (format, width) = parts.first().map(|part| (part.format, part.width()))?;
        let mut bytes = Vec::with_capacity(parts.iter().map(|part| part.bytes.len()).sum());
        for part in parts {
            if part.format.name() != format.name() || part.width() != width {
                return None;
            }
            bytes.extend_from_slice(&part.bytes);
            part.bytes.release();
        }
        let rows = parts.iter().map(Self::rows).sum();
        Self::new(format, vec![rows, width], bytes.into())
    }

    /// Some columns as rows, `[columns, rows]`, in memory of their own; nothing of a format whose blocks hold several numbers.
    pub fn transposed(&self, columns: Range<usize>) -> Option<Self> {
        let ([1, size], rows, width) = (self.format.block(), self.rows(), self.width()) else {
            return None;
        };
        if columns.start > columns.end || columns.end > width {
            return None;
        }
        let chunk = (rows * size).max(1);
        let [bytes] = fresh([(columns.len() * rows * size, chunk)], |i, [out]| {
            for (row, number) in out.chunks_exact_mut(size).enumerate() {
                let start = (row * width + columns.start + i) * size;
                number.copy_from_slice(&self.bytes[start..start + size]);
            }
        });
        self.bytes.release();
        Self::new(self.format, vec![columns.len(), rows], bytes.into())
    }

    /// The same matrix with its rows in another order, in memory of their own: row `i` becomes the one that `order` gives for it. Nothing
    /// where there is no such row.
    pub fn reordered(&self, order: impl Fn(usize) -> usize + Sync) -> Option<Self> {
        let (rows, size) = (self.rows(), self.format.row_bytes(self.width())?);
        if (0..rows).any(|row| order(row) >= rows) {
            return None;
        }
        let [bytes] = fresh([(rows * size, size.max(1))], |row, [out]| {
            let start = order(row) * size;
            out.copy_from_slice(&self.bytes[start..start + size]);
        });
        self.bytes.release();
        Self::new(self.format, self.shape.to_vec(), bytes.into())
    }

    /// All numbers, row by row.
    pub fn expanded(&self) -> Vec<f32> {
        self.expanded_rows(0..self.rows())
    }

    /// The numbers of some rows.
    ///
    /// # Panics
    /// When the weight has no such rows.
    pub fn expanded_rows(&self, rows: Range<usize>) -> Vec<f32> {
        const ROWS: usize = 32;
        let (width, read) = (self.width(), self.read());
        let [numbers] = fresh([(rows.len() * width, ROWS * width)], |i, [out]| {
            for (offset, out) in out.chunks_exact_mut(width.max(1)).enumerate() {
                read.expand(rows.start + i * ROWS + offset, 0, out);
            }
        });
        numbers
    }

    /// The rows that `ids` name, one after another.
    pub(crate) fn gathered(&self, ids: &[u32]) -> Vec<f32> {
        const ROWS: usize = 64;
        let (width, read) = (self.width(), self.read());
        let [numbers] = fresh([(ids.len() * width, ROWS * width)], |i, [out]| {
            let rows = out.chunks_exact_mut(width.max(1));
            rows.zip(chunk(ids, ROWS, i))
                .for_each(|(out, id)| read.expand(*id as usize, 0, out));
        });
        numbers
    }

    /// Some rows, as a matrix for products.
    pub(crate) fn matrix(&self, rows: Range<usize>) -> Matrix<'_> {
        let read = self.read();
        let bytes = &read.bytes[rows.start * read.row_bytes..rows.end * read.row_bytes];
        match self.format.floats(bytes) {
            Some(floats) => Matrix::new(floats, rows.len(), self.width()),
            None => Matrix::stored(StoredRows { bytes, ..read }, rows.len(), self.width()),
        }
    }

    fn read(&self) -> StoredRows<'_> {
        StoredRows {
            format: self.format,
            bytes: &self.bytes,
            row_bytes: self.format.row_bytes(self.width()).unwrap_or(0),
        }
    }
}

/// Rows in a format, as products read them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StoredRows<'a> {
    pub format: &'static dyn Format,
    bytes: &'a [u8],
    row_bytes: usize,
}

impl<'a> StoredRows<'a> {
    /// The bytes of a row.
    pub fn row(&self, row: usize) -> &'a [u8] {
        &self.bytes[row * self.row_bytes..(row + 1) * self.row_bytes]
    }

    /// The bytes of some rows, and of one.
    pub fn some(&self, rows: Range<usize>) -> (&'a [u8], usize) {
        (
            &self.bytes[rows.start * self.row_bytes..rows.end * self.row_bytes],
            self.row_bytes,
        )
    }

    /// Asks for the bytes of a row before they are read: the processor itself looks ahead no further than the end of a page, and a
    /// mapped file has small ones.
    pub fn prefetch(&self, row: usize) {
        #[cfg(target_arch = "x86_64")]
        if let Some(bytes) = self
            .bytes
            .get(row * self.row_bytes..(row + 1) * self.row_bytes)
        {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            const LINE: usize = 64;
            for line in bytes.chunks(LINE) {
                #[allow(unsafe_code)]
                // SAFETY: every x86-64 processor has the instruction, and it reads nothing.
                unsafe {
                    _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast());
                }
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = row;
    }

    /// Writes the numbers of a row from a column on.
    pub fn expand(&self, row: usize, first: usize, out: &mut [f32]) {
        self.format.expand(self.row(row), first, out);
    }
}

/// The dot product of `left` with numbers of two bytes, in the order of [`crate::simd::dot`], so that both give the same bits.
#[inline(always)]
fn dot_of_pairs(left: &[f32], row: &[u8], wide: impl Fn(u16) -> f32) -> f32 {
    use crate::simd::{LANES, fold};
    let mut lanes = [0f32; LANES];
    let ((left, left_rest), (row, row_rest)) =
        (left.as_chunks::<LANES>(), row.as_chunks::<{ 2 * LANES }>());
    for i in 0..left.len().min(row.len()) {
        let (left, row) = (&left[i], &row[i]);
        for l in 0..LANES {
            lanes[l] += left[l] * wide(u16::from_le_bytes([row[2 * l], row[2 * l + 1]]));
        }
    }
    let (mut all, rest) = (lanes, row_rest.as_chunks::<2>().0);
    for i in 0..left_rest.len().min(rest.len()).min(LANES) {
        all[i] += left_rest[i] * wide(u16::from_le_bytes(rest[i]));
    }
    fold(all, |a, b| a + b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        matmul::{How, Precision, multiplied},
        simd::vectorised,
        testing::numbers,
    };

    vectorised! {
        fn expanded_dot(left: &[f32], right: &[f32]) -> f32 {
            crate::simd::dot(left, right)
        }
    }

    /// Every format, with bytes of numbers that it holds exactly.
    fn formats(count: usize, seed: u64) -> [(&'static dyn Format, Vec<u8>); 3] {
        let values = numbers(count, seed);
        let narrow = |value: &f32| (value.to_bits() >> 16) as u16;
        // A sign, an exponent from 2^-8 to 2^7 and ten bits.
        let half = |value: &f32| {
            let bits = value.to_bits();
            (bits >> 16 & 0x8000 | (((bits >> 23 & 15) + 7) << 10) | bits & 0x3ff) as u16
        };
        [
            (&F32, values.iter().flat_map(|v| v.to_le_bytes()).collect()),
            (
                &Bf16,
                values
                    .iter()
                    .flat_map(|v| narrow(v).to_le_bytes())
                    .collect(),
            ),
            (
                &F16,
                values.iter().flat_map(|v| half(v).to_le_bytes()).collect(),
            ),
        ]
    }

    /// The weight behind so many bytes, as a file that aligns nothing has it.
    fn shifted(format: &'static dyn Format, shape: [usize; 2], bytes: &[u8], by: usize) -> Stored {
        let behind = [&vec![7; by], bytes].concat();
        let bytes = StoredBytes::from(behind).part(by..by + bytes.len());
        Stored::new(format, shape.to_vec(), bytes.unwrap()).unwrap()
    }

    #[test]
    fn rows_expand_from_any_column_and_at_any_offset() {
        let [rows, width] = [5, 77];
        for (format, bytes) in formats(rows * width, 1) {
            let whole = shifted(format, [rows, width], &bytes, 0).expanded();
            assert_eq!(whole.len(), rows * width);
            for by in 0..5 {
                let weight = shifted(format, [rows, width], &bytes, by);
                assert_eq!(weight.expanded(), whole);
                assert_eq!(weight.expanded_rows(2..4), whole[2 * width..4 * width]);
                assert_eq!(
                    weight.gathered(&[4, 0]),
                    [&whole[4 * width..], &whole[..width]].concat()
                );
                for [first, count] in [[0, 1], [3, 40], [31, 46], [76, 1], [5, 0]] {
                    let mut out = vec![9.0; count];
                    weight.read().expand(3, first, &mut out);
                    assert_eq!(out, whole[3 * width + first..][..count]);
                }
            }
        }
    }

    #[test]
    fn dot_products_have_the_bits_of_the_expanded_rows() {
        for width in [0, 1, 7, 31, 32, 33, 100, 576] {
            let left = numbers(width, 2);
            for (format, bytes) in formats(width, 3) {
                for by in 0..3 {
                    let weight = shifted(format, [1, width], &bytes, by);
                    let expected = expanded_dot(&left, &weight.expanded());
                    let found = format.dot(&left, weight.bytes());
                    assert_eq!(
                        found.to_bits(),
                        expected.to_bits(),
                        "{} of {width}",
                        format.name()
                    );
                }
            }
        }
    }

    /// Products with a stored right factor have the bits of those with the expanded one: with few rows and with many, as forward
    /// (transposed) and as backward products, in both precisions.
    #[test]
    fn products_have_the_bits_of_the_expanded_weight() {
        for [outputs, inputs] in [[1, 1], [5, 9], [33, 70], [300, 130], [70, 520]] {
            for (format, bytes) in formats(outputs * inputs, 4) {
                for (by, rows) in (0..4).cycle().zip([1, 2, 3, 4, 5, 6, 7, 8, 9, 40, 300]) {
                    let weight = shifted(format, [outputs, inputs], &bytes, by);
                    let expanded = weight.expanded();
                    let expanded = Matrix::new(&expanded, outputs, inputs);
                    let stored = weight.matrix(0..outputs);
                    let (x, gradient) = (numbers(rows * inputs, 5), numbers(rows * outputs, 6));
                    for precision in [Precision::F32, Precision::Bf16] {
                        let products = |weight: Matrix<'_>| {
                            let x = Matrix::new(&x, rows, inputs);
                            let gradient = Matrix::new(&gradient, rows, outputs);
                            [How::all(precision), How::one(precision)].map(|how| {
                                [
                                    multiplied(x, weight.transposed(), how),
                                    multiplied(gradient, weight, how),
                                ]
                            })
                        };
                        assert!(
                            products(stored) == products(expanded),
                            "{} {outputs} x {inputs}, {rows} rows, {precision}",
                            format.name()
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn matrices_of_a_stack_are_runs_of_rows() {
        for (format, bytes) in formats(3 * 4 * 10, 7) {
            let weight = Stored::new(format, vec![3, 4, 10], bytes.into()).unwrap();
            let x = numbers(2 * 10, 8);
            let x = Matrix::new(&x, 2, 10);
            let how = How::all(Precision::F32);
            let expanded = weight.expanded_rows(4..8);
            let expected = multiplied(x, Matrix::new(&expanded, 4, 10).transposed(), how);
            assert_eq!(
                multiplied(x, weight.matrix(4..8).transposed(), how),
                expected
            );
        }
    }

    #[test]
    fn weights_are_cut_joined_and_turned() {
        for (format, bytes) in formats(6 * 5, 9) {
            let weight = shifted(format, [6, 5], &bytes, 1);
            let all = weight.expanded();
            let [first, last] = [weight.part(0..2).unwrap(), weight.part(5..6).unwrap()];
            assert_eq!(first.bytes().as_ptr(), weight.bytes().as_ptr());
            let joined = Stored::joined(&[last, first]).unwrap();
            assert_eq!(joined.expanded(), [&all[25..], &all[..10]].concat());
            let turned = weight.transposed(1..4).unwrap();
            assert_eq!(turned.shape(), [3, 6]);
            let expected = (0..18).map(|i| all[i % 6 * 5 + 1 + i / 6]);
            assert!(turned.expanded().into_iter().eq(expected));
            assert_eq!(weight.clone().reshaped(vec![30]).unwrap().expanded(), all);
            assert!(weight.part(5..7).is_none() && weight.transposed(4..6).is_none());
            assert!(weight.reshaped(vec![29]).is_none());
        }
        let [a, b] = [(&F16 as &'static dyn Format, 4), (&F32, 8)]
            .map(|(format, size)| Stored::new(format, vec![1, 2], vec![0; size].into()).unwrap());
        assert!(Stored::joined(&[a, b]).is_none());
    }

    #[test]
    fn wrong_sizes_are_refused_and_clones_share_memory() {
        let new = |shape: Vec<usize>| Stored::new(&Bf16, shape, vec![0; 12].into());
        assert!(new(vec![3, 3]).is_none() && new(vec![]).is_none());
        assert!(new(vec![usize::MAX, 2, usize::MAX]).is_none());
        let weight = new(vec![3, 2]).unwrap();
        assert_eq!(weight.clone().bytes().as_ptr(), weight.bytes().as_ptr());
    }
}
