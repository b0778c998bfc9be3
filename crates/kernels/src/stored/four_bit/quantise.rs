//! Rounding to four bits, and constants to bytes.

use super::{
    BLOCK, GROUP,
    codes::{Code, dynamic_map, nearest_in_map},
};
use crate::parallel::fresh;

/// Blocks that a task rounds at once.
const AT_ONCE: usize = 256;

/// The largest magnitude of every block of a weight.
#[derive(Debug, Clone, PartialEq)]
pub enum Constants {
    /// As they are.
    Single(Vec<f32>),
    /// Rounded in their turn.
    Double {
        /// Of every block, the byte of what it has more than the mean, as a share of its group's constant.
        codes: Vec<u8>,
        /// The largest deviation from the mean in every group of 256.
        constants: Vec<f32>,
        /// The mean of all.
        mean: f32,
    },
}

impl Constants {
    /// Whether they are of so many blocks.
    pub(super) fn fit(&self, blocks: usize) -> bool {
        match self {
            Self::Single(constants) => constants.len() == blocks,
            Self::Double {
                codes, constants, ..
            } => codes.len() == blocks && constants.len() == blocks.div_ceil(GROUP),
        }
    }

    /// Whether they are rounded themselves.
    pub fn are_double(&self) -> bool {
        matches!(self, Self::Double { .. })
    }

    /// What the bytes of [`Constants::Double`] stand for.
    pub fn map() -> &'static [f32; 256] {
        dynamic_map()
    }

    /// Rounds constants to bytes.
    ///
    /// ```
    /// use espalier_kernels::stored::Constants;
    /// let rounded = Constants::rounded(&[0.05, 0.08, 0.11, 0.20]);
    /// assert!(matches!(rounded, Constants::Double { codes, .. } if codes == [23, 47, 127, 255]));
    /// ```
    pub fn rounded(all: &[f32]) -> Self {
        let sum: f64 = all.iter().map(|constant| f64::from(*constant)).sum();
        let mean = (sum / all.len().max(1) as f64) as f32;
        let (mut codes, mut constants) = (Vec::with_capacity(all.len()), Vec::new());
        for group in all.chunks(GROUP) {
            let deviations = group.iter().map(|constant| constant - mean);
            let largest = deviations.clone().fold(0f32, |most, x| most.max(x.abs()));
            codes.extend(deviations.map(|x| nearest_in_map(share(x, largest))));
            constants.push(largest);
        }
        Self::Double {
            codes,
            constants,
            mean,
        }
    }
}

/// `x` as a share of the largest magnitude around it.
#[inline(always)]
fn share(x: f32, largest: f32) -> f32 {
    (x / largest.max(1e-38)).clamp(-1.0, 1.0)
}

/// The numbers of four bits, two a byte, the first in the upper half, with the constants of their blocks; an odd count is filled up
/// with a zero.
pub(super) fn quantise(code: Code, double: bool, values: &[f32]) -> (Vec<u8>, Constants) {
    let part = |i: usize, size: usize| {
        let start = i * size;
        &values[start..values.len().min(start + size)]
    };
    let blocks = values.len().div_ceil(BLOCK);
    let [largest] = fresh([(blocks, AT_ONCE)], |i, [out]: [&mut [f32]; 1]| {
        let values = part(i, AT_ONCE * BLOCK).chunks(BLOCK);
        for (out, block) in out.iter_mut().zip(values) {
            *out = block.iter().fold(0f32, |most, x| most.max(x.abs()));
        }
    });
    let bytes = values.len().div_ceil(2);
    let [numbers] = fresh(
        [(bytes, AT_ONCE * BLOCK / 2)],
        |i, [out]: [&mut [u8]; 1]| {
            let values = part(i, AT_ONCE * BLOCK).chunks(BLOCK);
            let blocks = out.chunks_mut(BLOCK / 2).zip(values);
            for ((out, block), largest) in blocks.zip(&largest[i * AT_ONCE..]) {
                let bits = |x: &f32| code.nearest(share(*x, *largest));
                for (out, pair) in out.iter_mut().zip(block.chunks(2)) {
                    *out = bits(&pair[0]) << 4 | bits(pair.get(1).unwrap_or(&0.0));
                }
            }
        },
    );
    let constants = match double {
        true => Constants::rounded(&largest),
        false => Constants::Single(largest),
    };
    (numbers, constants)
}
