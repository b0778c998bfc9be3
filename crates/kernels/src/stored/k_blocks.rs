//! What GGUF's formats with blocks of 256 numbers (the "K" formats) have in common: scales of parts that are quantised in their turn, and
//! the search for them.
//!
//! Q4_K and Q5_K divide a block into eight parts of 32 numbers, `x = d s q - m z`, with scales `s` and `z` of six bits. Rounding looks for
//! the scale and the offset of a part that leave the least weighted square error: for each of some steps near `(max - min) / most` numbers
//! are rounded, the best scale and offset for them follow from two linear equations, and the best of all steps is kept.

use super::blocks::nearest;
use crate::simd::vectorised;

/// Numbers of a block.
pub(super) const NUMBERS: usize = 256;
/// Parts of a block with a scale and an offset each.
pub(super) const PARTS: usize = 8;
/// Numbers of such a part.
pub(super) const PART: usize = NUMBERS / PARTS;
/// Bytes of the scales and offsets of eight parts.
pub(super) const SCALES: usize = 12;

/// Scales and offsets of six bits: of the first four parts in the lower bits of eight bytes, of the others in the four bytes behind them
/// and the upper bits of the eight.
#[inline(always)]
pub(super) fn unpacked(bytes: &[u8; SCALES]) -> [[u8; PARTS]; 2] {
    let word = |i: usize| u32::from_le_bytes([bytes[i], bytes[i + 1], bytes[i + 2], bytes[i + 3]]);
    let [first, second, third] = [word(0), word(4), word(8)];
    let joined = |low: u32, high: u32| (u64::from(low) | u64::from(high) << 32).to_le_bytes();
    [
        joined(
            first & 0x3f3f_3f3f,
            third & 0x0f0f_0f0f | first >> 2 & 0x3030_3030,
        ),
        joined(
            second & 0x3f3f_3f3f,
            third >> 4 & 0x0f0f_0f0f | second >> 2 & 0x3030_3030,
        ),
    ]
}

/// The bytes of which [`unpacked`] makes these.
pub(super) fn packed([scales, offsets]: [[u8; PARTS]; 2]) -> [u8; SCALES] {
    let mut bytes = [0; SCALES];
    for i in 0..4 {
        bytes[i] = scales[i] & 63 | (scales[i + 4] >> 4) << 6;
        bytes[i + 4] = offsets[i] & 63 | (offsets[i + 4] >> 4) << 6;
        bytes[i + 8] = scales[i + 4] & 15 | offsets[i + 4] << 4;
    }
    bytes
}

/// How the scale of a part is looked for: the largest quant, and so many steps of a tenth from the first on, which are added to it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Search {
    pub most: i32,
    pub first: f32,
    pub steps: i32,
}

/// How much the squares of errors count: by the size of the numbers, and their importance where it is known.
#[inline(always)]
fn weights(values: &[f32; PART], importance: Option<&[f32]>, square: f32) -> [f32; PART] {
    match importance {
        Some(importance) => {
            std::array::from_fn(|i| importance[i] * (2.0 * square + values[i] * values[i]).sqrt())
        }
        None => {
            let own = values.iter().map(|x| x * x).sum::<f32>() / PART as f32;
            std::array::from_fn(|i| own.sqrt() + values[i].abs())
        }
    }
}

/// Scale and offset (at most zero) of a part, so that `x` is near `scale q + offset`.
#[inline(always)]
pub(super) fn scale_and_offset(
    values: &[f32; PART],
    weights: &[f32; PART],
    search: Search,
) -> [f32; 2] {
    let least = values.iter().fold(0f32, |least, x| least.min(*x));
    let largest = values.iter().fold(f32::MIN, |largest, x| largest.max(*x));
    let range = largest - least;
    if !(range > 0.0 && range.is_finite()) {
        return [0.0, least];
    }
    let rounded = |scale: f32, offset: f32| -> [f32; PART] {
        std::array::from_fn(|i| nearest((values[i] - offset) * scale, 0, search.most) as f32)
    };
    let error = |quants: &[f32; PART], [scale, offset]: [f32; 2]| -> f32 {
        let one = |i: usize| {
            let gap = scale * quants[i] + offset - values[i];
            weights[i] * gap * gap
        };
        (0..PART).map(one).sum()
    };
    let most = search.most as f32;
    let mut best = [range / most, least];
    let mut least_error = error(&rounded(most / range, least), best);
    for step in 0..=search.steps {
        let quants = rounded((most + search.first + 0.1 * step as f32) / range, least);
        if let Some(fitted) = fitted(values, weights, &quants) {
            let error = error(&quants, fitted);
            if error < least_error {
                (best, least_error) = (fitted, error);
            }
        }
    }
    best
}

/// The scale and the offset of the least weighted square error; an offset above zero becomes zero.
#[inline(always)]
fn fitted(values: &[f32; PART], weights: &[f32; PART], quants: &[f32; PART]) -> Option<[f32; 2]> {
    let [mut all, mut q, mut qq, mut x, mut qx] = [0f32; 5];
    for i in 0..PART {
        let (w, quant) = (weights[i], quants[i]);
        all += w;
        q += w * quant;
        qq += w * quant * quant;
        x += w * values[i];
        qx += w * quant * values[i];
    }
    let determinant = all * qq - q * q;
    if determinant <= 0.0 {
        return None;
    }
    let (scale, offset) = (
        (all * qx - x * q) / determinant,
        (qq * x - q * qx) / determinant,
    );
    Some(match offset > 0.0 {
        true => [qx / qq, 0.0],
        false => [scale, offset],
    })
}

/// The constants of a block, rounded, and its quants.
pub(super) struct Rounded {
    /// The scale of scales, and of offsets.
    pub constants: [half::f16; 2],
    /// Those of the parts, six bits each.
    pub parts: [[u8; PARTS]; 2],
    /// The quant of every number.
    pub quants: [u8; NUMBERS],
}

vectorised! {
    /// Rounds a block of Q4_K or Q5_K.
    pub(super) fn round(values: &[f32; NUMBERS], importance: Option<&[f32; NUMBERS]>, search: Search) -> Rounded {
        rounded(values, importance, search)
    }
}

#[inline(always)]
fn rounded(
    values: &[f32; NUMBERS],
    importance: Option<&[f32; NUMBERS]>,
    search: Search,
) -> Rounded {
    const LARGEST: f32 = 63.0;
    let square = values.iter().map(|x| x * x).sum::<f32>() / NUMBERS as f32;
    let parts = values.as_chunks::<PART>().0;
    let mut found = [[0f32; 2]; PARTS];
    for (i, (part, found)) in parts.iter().zip(&mut found).enumerate() {
        let importance = importance.map(|all| &all[i * PART..(i + 1) * PART]);
        *found = scale_and_offset(part, &weights(part, importance, square), search);
    }
    let largest = |of: usize, sign: f32| found.iter().fold(0f32, |all, x| all.max(sign * x[of]));
    let constants = [largest(0, 1.0) / LARGEST, largest(1, -1.0) / LARGEST];
    let six_bits = |value: f32, constant: f32| match constant > 0.0 {
        true => nearest(value / constant, 0, LARGEST as i32) as u8,
        false => 0,
    };
    let scales = std::array::from_fn(|i| six_bits(found[i][0], constants[0]));
    let offsets = std::array::from_fn(|i| six_bits(-found[i][1], constants[1]));
    let constants = constants.map(half::f16::from_f32);
    let [scale_of, offset_of] = constants.map(half::f16::to_f32);
    let mut quants = [0; NUMBERS];
    for (i, quant) in quants.iter_mut().enumerate() {
        let part = i / PART;
        let scale = scale_of * f32::from(scales[part]);
        let offset = offset_of * f32::from(offsets[part]);
        if scale > 0.0 {
            *quant = nearest((values[i] + offset) / scale, 0, search.most) as u8;
        }
    }
    Rounded {
        constants,
        parts: [scales, offsets],
        quants,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_of_six_bits_lie_in_twelve_bytes() {
        let parts = [[1, 18, 35, 52, 7, 24, 41, 63], [2, 3, 5, 7, 11, 13, 40, 50]];
        let bytes = [
            0x01, 0x52, 0xa3, 0xf4, 0x02, 0x03, 0x85, 0xc7, 0xb7, 0xd8, 0x89, 0x2f,
        ];
        assert_eq!(packed(parts), bytes);
        assert_eq!(unpacked(&bytes), parts);
    }

    #[test]
    fn numbers_on_a_grid_are_found_exactly() {
        let values: [f32; PART] = std::array::from_fn(|i| (i % 16) as f32 * 0.5 - 3.0);
        let search = Search {
            most: 15,
            first: -1.0,
            steps: 20,
        };
        let [scale, offset] = scale_and_offset(&values, &[1.0; PART], search);
        assert!((scale - 0.5).abs() < 1e-5 && (offset + 3.0).abs() < 1e-5);
        assert_eq!(
            scale_and_offset(&[0.0; PART], &[1.0; PART], search),
            [0.0; 2]
        );
    }
}
