//! The numbers that four bits stand for, and the bytes of constants that are quantised in their turn.

use std::sync::LazyLock;

/// What four bits stand for, as a share of the largest magnitude of their block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// NormalFloat: sixteen quantiles of the normal distribution, zero among them.
    Nf4,
    /// A sign, two bits of exponent and one of mantissa, divided by the largest.
    Fp4,
}

/// The quantiles in ascending order: minus one, zero and one are among them.
const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// Twelve times the magnitudes of FP4 by their three bits.
const TWELFTHS: [f32; 8] = [0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0];

const FP4: [f32; 16] = {
    let mut values = [0.0; 16];
    let mut i = 0;
    while i < 8 {
        values[i] = TWELFTHS[i] / 12.0;
        // There are two zeros, and neither has a sign.
        values[i + 8] = 0.0 - values[i];
        i += 1;
    }
    values
};

/// The midpoints between neighbours of [`NF4`], as bitsandbytes has them.
const NF4_MIDPOINTS: [f32; 15] = [
    -0.848_096_4,
    -0.610_632_93,
    -0.459_995_27,
    -0.339_679_43,
    -0.234_607_4,
    -0.137_911_73,
    -0.045_525_02,
    0.039_790_15,
    0.120_255_25,
    0.203_521_25,
    0.292_013_77,
    0.389_312_55,
    0.501_663_4,
    0.642_786_9,
    0.861_478_4,
];

/// The midpoints between neighbouring magnitudes of FP4.
const FP4_MIDPOINTS: [f32; 7] = [
    0.002_604_17,
    0.085_937_5,
    0.208_333_33,
    0.291_666_67,
    0.416_666_7,
    0.583_333,
    0.833_333_3,
];

/// The bits of FP4's magnitudes, the smallest first.
const FP4_ASCENDING: [u8; 8] = [0, 1, 6, 7, 4, 5, 2, 3];

/// What every byte stands for: the upper half is the first number.
const fn pairs(values: &[f32; 16]) -> [[f32; 2]; 256] {
    let mut pairs = [[0.0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        pairs[byte] = [values[byte >> 4], values[byte & 15]];
        byte += 1;
    }
    pairs
}

static NF4_PAIRS: [[f32; 2]; 256] = pairs(&NF4);
static FP4_PAIRS: [[f32; 2]; 256] = pairs(&FP4);

impl Code {
    /// The numbers by their four bits.
    ///
    /// ```
    /// use espalier_kernels::stored::Code;
    /// assert_eq!(Code::Nf4.values()[7], 0.0);
    /// assert_eq!(Code::Fp4.values()[3], 1.0);
    /// ```
    pub fn values(self) -> &'static [f32; 16] {
        match self {
            Self::Nf4 => &NF4,
            Self::Fp4 => &FP4,
        }
    }

    /// The two numbers of every byte.
    pub(super) fn pairs(self) -> &'static [[f32; 2]; 256] {
        match self {
            Self::Nf4 => &NF4_PAIRS,
            Self::Fp4 => &FP4_PAIRS,
        }
    }

    /// The bits of the number nearest to a share of the largest magnitude, -1 to 1. What lies in the middle between two goes to the
    /// lower one with NF4, to the smaller magnitude with FP4.
    #[inline(always)]
    pub(super) fn nearest(self, share: f32) -> u8 {
        match self {
            Self::Nf4 => NF4_MIDPOINTS
                .iter()
                .map(|middle| u8::from(share > *middle))
                .sum(),
            Self::Fp4 => {
                let above = |middle: &f32| usize::from(share.abs() > *middle);
                let place: usize = FP4_MIDPOINTS.iter().map(above).sum();
                FP4_ASCENDING[place] | (u8::from(share < 0.0) << 3)
            }
        }
    }
}

/// What the bytes of doubly quantised constants stand for: both signs, seven powers of ten, the finer the larger (arXiv 2110.02861).
/// bitsandbytes computes its own in f32, whose last bits depend on the machine.
pub(super) fn dynamic_map() -> &'static [f32; 256] {
    static MAP: LazyLock<[f32; 256]> = LazyLock::new(|| {
        let mut values = vec![0.0, 1.0];
        for exponent in 0..7i32 {
            let intervals = 1usize << exponent;
            let point = |i: usize| 0.1 + 0.9 * i as f64 / intervals as f64;
            for i in 0..intervals {
                let middle = 0.5 * (point(i) + point(i + 1));
                let value = (middle * 10f64.powi(exponent - 6)) as f32;
                values.extend([value, -value]);
            }
        }
        values.sort_by(f32::total_cmp);
        let mut map = [0.0; 256];
        map.iter_mut()
            .zip(values)
            .for_each(|(entry, value)| *entry = value);
        map
    });
    &MAP
}

/// The byte that stands for the number nearest to `share`, -1 to 1; the lower one of two that are equally near.
pub(super) fn nearest_in_map(share: f32) -> u8 {
    let map = dynamic_map();
    let above = map.partition_point(|value| *value < share).min(255);
    let below = above.saturating_sub(1);
    match share - map[below] <= map[above] - share {
        true => below as u8,
        false => above as u8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_nearest_to_itself() {
        for code in [Code::Nf4, Code::Fp4] {
            for (bits, value) in code.values().iter().enumerate() {
                // FP4 has two zeros.
                let expected = if *value == 0.0 {
                    code.nearest(0.0)
                } else {
                    bits as u8
                };
                assert_eq!(code.nearest(*value), expected, "{code:?} {value}");
            }
        }
        for byte in 0..=255u8 {
            assert_eq!(nearest_in_map(dynamic_map()[usize::from(byte)]), byte);
        }
    }

    #[test]
    fn what_lies_in_the_middle_goes_down() {
        for (lower, middle) in NF4_MIDPOINTS.iter().enumerate() {
            assert_eq!(Code::Nf4.nearest(*middle), lower as u8);
            assert_eq!(Code::Nf4.nearest(middle.next_up()), lower as u8 + 1);
            let expected = 0.5 * (f64::from(NF4[lower]) + f64::from(NF4[lower + 1]));
            assert!((f64::from(*middle) - expected).abs() < 1e-7, "{middle}");
        }
        for (place, middle) in FP4_MIDPOINTS.iter().enumerate() {
            let [below, above] = [place, place + 1].map(|place| FP4_ASCENDING[place]);
            assert_eq!(Code::Fp4.nearest(*middle), below);
            assert_eq!(Code::Fp4.nearest(middle.next_up()), above);
            assert_eq!(Code::Fp4.nearest(-middle.next_up()), above | 8);
            let sum: f32 = [below, above]
                .map(|bits| FP4[usize::from(bits)])
                .iter()
                .sum();
            assert!((middle - sum / 2.0).abs() < 1e-6);
        }
    }

    #[test]
    fn the_map_of_constants_has_the_published_ends() {
        let map = dynamic_map();
        assert!((map[0] + 0.992_968_7).abs() < 1e-6, "{}", map[0]);
        assert_eq!([map[127], map[255]], [0.0, 1.0]);
        assert!(map.windows(2).all(|pair| pair[0] < pair[1]));
    }
}
