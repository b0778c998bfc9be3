//! Numbers rounded to bf16: the upper half of an f32.

use crate::simd::vectorised;

/// The nearest bf16 as an f32, ties to even; NaN stays NaN.
#[inline(always)]
pub(crate) fn round(x: f32) -> f32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) & 0xffff_0000;
    f32::from_bits(if x.is_nan() {
        (bits | 0x40_0000) & 0xffff_0000
    } else {
        rounded
    })
}

vectorised! {
    /// Stores the nearest bf16 of every number.
    pub(crate) fn narrow(halves: &mut [u16], values: &[f32]) {
        halves.iter_mut().zip(values).for_each(|(half, value)| *half = (round(*value).to_bits() >> 16) as u16)
    }
}

/// The number again, in f32.
#[inline(always)]
pub(crate) fn wide(half: u16) -> f32 {
    f32::from_bits(u32::from(half) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_go_to_even_and_what_is_not_finite_stays() {
        let bits = |bits: u32| f32::from_bits(bits);
        let values = [
            bits(0x3f80_8000),
            bits(0x3f81_8000),
            bits(0x3f80_8001),
            f32::INFINITY,
            f32::NAN,
            -0.0,
        ];
        let mut halves = [0; 6];
        narrow(&mut halves, &values);
        let back = halves.map(wide);
        assert_eq!(halves[..4], [0x3f80, 0x3f82, 0x3f81, 0x7f80]);
        assert!(back[4].is_nan() && back[5].to_bits() == 0x8000_0000);
    }
}
