//! Numbers of two bytes with ten bits after the point (IEEE 754 binary16).
//!
//! Processors with F16C turn eight at once into f32; elsewhere the bits are moved and a multiplication corrects the exponent, which
//! makes subnormal numbers right as well.

use super::{Format, Quantise, dot_of_pairs};
use crate::simd::vectorised;

/// f16, little-endian.
#[derive(Debug)]
pub struct F16;

impl Format for F16 {
    fn name(&self) -> &'static str {
        "f16"
    }

    fn block(&self) -> [usize; 2] {
        [1, 2]
    }

    fn expand(&self, row: &[u8], first: usize, out: &mut [f32]) {
        let halves = &row.as_chunks::<2>().0[first..first + out.len()];
        #[cfg(target_arch = "x86_64")]
        if f16c::is_there() {
            #[allow(unsafe_code)]
            // SAFETY: the processor has the instructions.
            unsafe {
                f16c::expand(halves, out);
            }
            return;
        }
        expand(halves, out);
    }

    fn dot(&self, left: &[f32], row: &[u8]) -> f32 {
        #[cfg(target_arch = "x86_64")]
        if f16c::is_there() {
            #[allow(unsafe_code)]
            // SAFETY: the processor has the instructions.
            return unsafe { f16c::dot(left, row) };
        }
        dot(left, row)
    }
}

impl Quantise for F16 {
    fn quantise_row(&self, values: &[f32], _: Option<&[f32]>, row: &mut [u8]) {
        for (bytes, value) in row.as_chunks_mut::<2>().0.iter_mut().zip(values) {
            *bytes = half::f16::from_f32(*value).to_le_bytes();
        }
    }
}

/// The number in f32.
#[inline(always)]
pub(super) fn wide(half: u16) -> f32 {
    /// The distance of the two formats' exponents.
    const EXPONENT: f32 = f32::from_bits((127 + 112) << 23);
    let half = u32::from(half);
    let size = f32::from_bits((half & 0x7fff) << 13) * EXPONENT;
    // The largest exponent means infinity or no number in both formats.
    let is_finite = half & 0x7c00 != 0x7c00;
    let size = if is_finite {
        size.to_bits()
    } else {
        size.to_bits() | 0x7f80_0000
    };
    f32::from_bits(size | (half & 0x8000) << 16)
}

vectorised! {
    fn expand(halves: &[[u8; 2]], out: &mut [f32]) {
        out.iter_mut().zip(halves).for_each(|(out, half)| *out = wide(u16::from_le_bytes(*half)));
    }
}

vectorised! {
    fn dot(left: &[f32], row: &[u8]) -> f32 {
        dot_of_pairs(left, row, wide)
    }
}

/// The loops with F16C.
#[cfg(target_arch = "x86_64")]
mod f16c {
    use std::{arch::x86_64::*, sync::OnceLock};

    use super::wide;
    use crate::simd::{LANES, Level, fold, level};

    /// Whether they may run: the instruction set in use has AVX2, and the processor F16C.
    pub fn is_there() -> bool {
        static THERE: OnceLock<bool> = OnceLock::new();
        *THERE.get_or_init(|| level() >= Level::Avx2 && is_x86_feature_detected!("f16c"))
    }

    /// Eight numbers from here on.
    #[allow(unsafe_code)]
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn eight(halves: *const u8) -> __m256 {
        // SAFETY: the caller has sixteen bytes there.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(halves.cast())) }
    }

    #[allow(unsafe_code)]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub unsafe fn expand(halves: &[[u8; 2]], out: &mut [f32]) {
        let (chunks, rest) = out.as_chunks_mut::<8>();
        let (halves, halves_rest) = halves.as_chunks::<8>();
        for (out, halves) in chunks.iter_mut().zip(halves) {
            // SAFETY: both are eight numbers.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr(), eight(halves.as_ptr().cast())) };
        }
        rest.iter_mut()
            .zip(halves_rest)
            .for_each(|(out, half)| *out = wide(u16::from_le_bytes(*half)));
    }

    /// In the order of [`crate::simd::dot`].
    #[allow(unsafe_code)]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub unsafe fn dot(left: &[f32], row: &[u8]) -> f32 {
        let mut sums = [_mm256_setzero_ps(); LANES / 8];
        let ((left, left_rest), (row, row_rest)) =
            (left.as_chunks::<LANES>(), row.as_chunks::<{ 2 * LANES }>());
        for (left, row) in left.iter().zip(row) {
            for (i, sum) in sums.iter_mut().enumerate() {
                // SAFETY: both have eight numbers from here on.
                let product = unsafe {
                    let left = _mm256_loadu_ps(left.as_ptr().add(8 * i));
                    _mm256_mul_ps(left, eight(row.as_ptr().add(16 * i)))
                };
                *sum = _mm256_add_ps(*sum, product);
            }
        }
        let mut lanes = [0f32; LANES];
        for (lanes, sum) in lanes.as_chunks_mut::<8>().0.iter_mut().zip(sums) {
            // SAFETY: the lanes have room for eight numbers.
            unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), sum) };
        }
        let rest = left_rest.iter().zip(row_rest.as_chunks::<2>().0);
        for (lane, (left, half)) in lanes.iter_mut().zip(rest) {
            *lane += left * wide(u16::from_le_bytes(*half));
        }
        fold(lanes, |a, b| a + b)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_by_their_bits() {
        for (bits, value) in [
            (0x0000, 0.0),
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x7bff, 65504.0),
            (0x0001, 5.960_464_5e-8),
            (0x83ff, -6.097_555e-5),
            (0x0400, 6.103_515_6e-5),
            (0x3555, 0.333_251_95),
            (0x7c00, f32::INFINITY),
            (0xfc00, f32::NEG_INFINITY),
        ] {
            assert_eq!(wide(bits), value, "{bits:x}");
        }
        assert!(wide(0x7e00).is_nan() && wide(0xfc01).is_nan());
        assert_eq!(wide(0x8000).to_bits(), 0x8000_0000);
    }

    #[test]
    fn all_numbers_are_the_same_in_every_loop() {
        let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let mut found = vec![0.0; 1 << 16];
        F16.expand(&bytes, 0, &mut found);
        for (half, found) in (0..=u16::MAX).zip(found) {
            let expected = wide(half);
            assert!(found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan());
        }
    }
}
