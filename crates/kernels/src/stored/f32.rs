//! Numbers of four bytes, little-endian.

use super::{Format, Quantise};
use crate::simd::{LANES, fold, vectorised};

/// f32 as it is. Products read it where it lies, unless a file begins it at an odd place.
#[derive(Debug)]
pub struct F32;

impl Format for F32 {
    fn name(&self) -> &'static str {
        "f32"
    }

    fn block(&self) -> [usize; 2] {
        [1, 4]
    }

    fn expand(&self, row: &[u8], first: usize, out: &mut [f32]) {
        let numbers = &row.as_chunks::<4>().0[first..first + out.len()];
        out.iter_mut()
            .zip(numbers)
            .for_each(|(out, bytes)| *out = f32::from_le_bytes(*bytes));
    }

    fn dot(&self, left: &[f32], row: &[u8]) -> f32 {
        dot(left, row)
    }

    fn floats<'a>(&self, bytes: &'a [u8]) -> Option<&'a [f32]> {
        #[allow(unsafe_code)]
        // SAFETY: any four bytes are an f32.
        let (before, floats, after) = unsafe { bytes.align_to::<f32>() };
        let whole = before.is_empty() && after.is_empty();
        (whole && cfg!(target_endian = "little")).then_some(floats)
    }
}

impl Quantise for F32 {
    fn quantise_row(&self, values: &[f32], _: Option<&[f32]>, row: &mut [u8]) {
        for (bytes, value) in row.as_chunks_mut::<4>().0.iter_mut().zip(values) {
            *bytes = value.to_le_bytes();
        }
    }
}

vectorised! {
    /// In the order of [`crate::simd::dot`].
    fn dot(left: &[f32], row: &[u8]) -> f32 {
        let mut lanes = [0f32; LANES];
        let row = row.as_chunks::<4>().0;
        let ((left, left_rest), (row, row_rest)) = (left.as_chunks::<LANES>(), row.as_chunks::<LANES>());
        for i in 0..left.len().min(row.len()) {
            let (left, row) = (&left[i], &row[i]);
            for l in 0..LANES {
                lanes[l] += left[l] * f32::from_le_bytes(row[l]);
            }
        }
        let mut all = lanes;
        for i in 0..left_rest.len().min(row_rest.len()).min(LANES) {
            all[i] += left_rest[i] * f32::from_le_bytes(row_rest[i]);
        }
        fold(all, |a, b| a + b)
    }
}
