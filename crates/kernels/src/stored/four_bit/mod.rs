//! Numbers of four bits with a constant for every 64, the base of QLoRA (arXiv 2305.14314): NF4 and FP4 as bitsandbytes has them.
//!
//! Blocks lie over all numbers of a weight, row after row, and so may begin in one row and end in the next. Constants are f32, or
//! bytes with a constant of their own for every 256 of them, around the weight's mean constant. A row holds a copy of whatever
//! constants its numbers need, so that it can be cut out, and read, alone:
//!
//! ```text
//! place of its first number in a block (1), place of its first block among 256 (1), blocks (2),
//!   the mean (4), constants of constants (4 each), constants of blocks (1 each)       where doubly quantised,
//!   constants of blocks (4 each)                                                      elsewhere,
//! numbers (a byte for two, the first in the upper half)
//! ```

mod codes;
mod quantise;

pub use self::{codes::Code, quantise::Constants};
use super::{Format, Stored};
use crate::{
    matmul::scratch,
    simd::{self, vectorised},
};

/// Numbers of a block.
pub const BLOCK: usize = 64;
/// Blocks whose constants have a constant in common.
const GROUP: usize = 256;
/// Bytes before a row's constants.
const HEAD: usize = 4;

/// Four bits a number.
#[derive(Debug, PartialEq, Eq)]
pub struct FourBit {
    code: Code,
    double: bool,
}

static FORMATS: [FourBit; 4] = [
    FourBit {
        code: Code::Nf4,
        double: false,
    },
    FourBit {
        code: Code::Nf4,
        double: true,
    },
    FourBit {
        code: Code::Fp4,
        double: false,
    },
    FourBit {
        code: Code::Fp4,
        double: true,
    },
];

impl FourBit {
    /// The format of these numbers, with constants in f32 or quantised in their turn.
    ///
    /// ```
    /// use espalier_kernels::stored::{Code, FourBit};
    /// let weight: Vec<f32> = (0..64).map(|i| i as f32).collect();
    /// let stored = FourBit::of(Code::Nf4, false).quantised(&[1, 64], &weight).ok_or("one row")?;
    /// assert_eq!(stored.expanded()[63], 63.0);
    /// # Ok::<(), &str>(())
    /// ```
    pub fn of(code: Code, double: bool) -> &'static Self {
        &FORMATS[2 * usize::from(code == Code::Fp4) + usize::from(double)]
    }

    /// The weight of this shape with `values` rounded; nothing where these are not as many, or a row is too wide.
    pub fn quantised(&'static self, shape: &[usize], values: &[f32]) -> Option<Stored> {
        let count = shape
            .iter()
            .try_fold(1usize, |all, axis| all.checked_mul(*axis))?;
        if count != values.len() {
            return None;
        }
        let (numbers, constants) = quantise::quantise(self.code, self.double, values);
        self.packed(shape, &numbers, &constants)
    }

    /// The weight of this shape from blocks over all its numbers, as files hold them; nothing where there are not as many as the shape
    /// needs, the constants are of the other kind, or a row is too wide.
    pub fn packed(
        &'static self,
        shape: &[usize],
        numbers: &[u8],
        constants: &Constants,
    ) -> Option<Stored> {
        let width = *shape.last()?;
        let count = shape
            .iter()
            .try_fold(1usize, |all, axis| all.checked_mul(*axis))?;
        let fits = numbers.len() == count.div_ceil(2)
            && constants.fit(count.div_ceil(BLOCK))
            && constants.are_double() == self.double;
        if !fits {
            return None;
        }
        let row_bytes = self.row_bytes(width)?;
        let rows = count.checked_div(width).unwrap_or(0);
        let mut bytes = Vec::with_capacity(rows.checked_mul(row_bytes)?);
        for row in 0..rows {
            self.write_row(&mut bytes, row * width, width, numbers, constants);
        }
        Stored::new(self, shape.to_vec(), bytes.into())
    }

    /// Adds the row that begins at number `first` of the weight.
    fn write_row(
        &self,
        bytes: &mut Vec<u8>,
        first: usize,
        width: usize,
        numbers: &[u8],
        constants: &Constants,
    ) {
        let (block, blocks) = (first / BLOCK, blocks_of(width));
        bytes.extend([(first % BLOCK) as u8, (block % GROUP) as u8]);
        bytes.extend((blocks as u16).to_le_bytes());
        let from = |constants: &[f32], start: usize, count: usize| -> Vec<u8> {
            let all = (start..start + count).map(|i| constants.get(i).copied().unwrap_or(0.0));
            all.flat_map(f32::to_le_bytes).collect()
        };
        match constants {
            Constants::Single(constants) => bytes.extend(from(constants, block, blocks)),
            Constants::Double {
                codes,
                constants,
                mean,
            } => {
                bytes.extend(mean.to_le_bytes());
                bytes.extend(from(constants, block / GROUP, groups_of(blocks)));
                bytes.extend((block..block + blocks).map(|i| codes.get(i).copied().unwrap_or(0)));
            }
        }
        let half = |place: usize| numbers[place / 2] >> (4 * (1 - place % 2)) & 15;
        if first.is_multiple_of(2) && width.is_multiple_of(2) {
            bytes.extend_from_slice(&numbers[first / 2..(first + width) / 2]);
            return;
        }
        bytes.extend((0..width).step_by(2).map(|i| {
            let second = if i + 1 < width {
                half(first + i + 1)
            } else {
                0
            };
            half(first + i) << 4 | second
        }));
    }

    fn row<'a>(&self, row: &'a [u8]) -> Row<'a> {
        let (head, rest) = row.split_at(HEAD);
        let blocks = usize::from(u16::from_le_bytes([head[2], head[3]]));
        let (mean, rest) = rest.split_at(if self.double { 4 } else { 0 });
        let constants = if self.double {
            groups_of(blocks)
        } else {
            blocks
        };
        let (constants, rest) = rest.split_at(4 * constants);
        let (codes, numbers) = rest.split_at(if self.double { blocks } else { 0 });
        Row {
            phase: usize::from(head[0]),
            group_phase: usize::from(head[1]),
            mean: mean.first_chunk().map(|mean| f32::from_le_bytes(*mean)),
            constants: constants.as_chunks().0,
            codes,
            numbers,
        }
    }
}

/// Blocks that a row of so many numbers may touch.
fn blocks_of(width: usize) -> usize {
    match width {
        0 => 0,
        _ if width.is_multiple_of(BLOCK) => width / BLOCK,
        _ => (width + BLOCK - 2) / BLOCK + 1,
    }
}

/// Groups that so many blocks may touch.
fn groups_of(blocks: usize) -> usize {
    (blocks + GROUP - 2) / GROUP + 1
}

/// The parts of a row.
struct Row<'a> {
    phase: usize,
    group_phase: usize,
    mean: Option<f32>,
    constants: &'a [[u8; 4]],
    codes: &'a [u8],
    numbers: &'a [u8],
}

impl Row<'_> {
    /// The constant of the row's block.
    fn constant(&self, block: usize) -> f32 {
        let constant = |i: usize| f32::from_le_bytes(self.constants[i]);
        match self.mean {
            None => constant(block),
            Some(mean) => {
                let share = codes::dynamic_map()[usize::from(self.codes[block])];
                share * constant((self.group_phase + block) / GROUP) + mean
            }
        }
    }
}

impl Format for FourBit {
    fn name(&self) -> &'static str {
        match (self.code, self.double) {
            (Code::Nf4, false) => "nf4",
            (Code::Nf4, true) => "nf4, double",
            (Code::Fp4, false) => "fp4",
            (Code::Fp4, true) => "fp4, double",
        }
    }

    /// Of the numbers alone, for rows have constants besides.
    fn block(&self) -> [usize; 2] {
        [BLOCK, BLOCK / 2]
    }

    fn row_bytes(&self, width: usize) -> Option<usize> {
        let blocks = blocks_of(width);
        u16::try_from(blocks).ok()?;
        let constants = match self.double {
            true => 4 + 4 * groups_of(blocks) + blocks,
            false => 4 * blocks,
        };
        Some(HEAD + constants + width.div_ceil(2))
    }

    fn is_quantised(&self) -> bool {
        true
    }

    fn expand(&self, row: &[u8], first: usize, out: &mut [f32]) {
        let (row, pairs) = (self.row(row), self.code.pairs());
        let (mut first, mut rest) = (first, out);
        while !rest.is_empty() {
            let place = row.phase + first;
            let count = rest.len().min(BLOCK - place % BLOCK);
            let (here, behind) = rest.split_at_mut(count);
            let constant = row.constant(place / BLOCK);
            let (odd, even) = here.split_at_mut(first % 2);
            if let [number] = odd {
                *number = pairs[usize::from(row.numbers[first / 2])][1] * constant;
            }
            let start = first.div_ceil(2);
            let bytes = &row.numbers[start..start + even.len().div_ceil(2)];
            scaled(bytes, pairs, constant, even);
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

vectorised! {
    /// The numbers of the bytes, times their block's constant.
    fn scaled(bytes: &[u8], pairs: &[[f32; 2]; 256], constant: f32, out: &mut [f32]) {
        let (whole, last) = out.as_chunks_mut::<2>();
        for (pair, byte) in whole.iter_mut().zip(bytes) {
            let [first, second] = pairs[usize::from(*byte)];
            *pair = [first * constant, second * constant];
        }
        if let ([number], Some(byte)) = (last, bytes.last()) {
            *number = pairs[usize::from(*byte)][0] * constant;
        }
    }
}

vectorised! {
    fn dot(left: &[f32], right: &[f32]) -> f32 {
        simd::dot(left, right)
    }
}

#[cfg(test)]
mod tests;
