//! Numbers of four bits with a scale and a zero for each group of a row, as GPTQ (arXiv 2210.17323) and AWQ (arXiv 2306.00978) leave them.
//!
//! A number is `s (q - z)`. Their files pack along other axes; a row here has all that its numbers need:
//!
//! ```text
//! numbers of a group (4), numbers of the row (4), scales of the groups in f16 (2 each), their zeros (1 each),
//! blocks of 32 numbers in sixteen bytes: number i in the lower and number i + 16 in the upper half of byte i
//! ```

use std::{
    collections::BTreeMap,
    sync::{Mutex, OnceLock, PoisonError},
};

use super::{
    Format, RoundedDot, RoundedRow, Stored,
    f16::wide,
    rounded::{block_dot, rounded_dot},
};
use crate::{
    matmul::scratch,
    simd::{self, vectorised},
};

/// Four bits a number, with groups of one size.
#[derive(Debug)]
pub struct Grouped {
    group: usize,
}

const BLOCK: usize = 32;
const HALF: usize = BLOCK / 2;
/// Bytes before a row's scales.
const HEAD: usize = 8;

/// Numbers, scales and zeros of a weight `[rows, width]`, each row by row: a byte a number, f16 by its bits, and a byte a group.
#[derive(Debug)]
pub struct GroupedParts<'a> {
    /// `[rows, width]`, each below sixteen.
    pub numbers: &'a [u8],
    /// `[rows, groups]`.
    pub scales: &'a [u16],
    /// `[rows, groups]`.
    pub zeros: &'a [u8],
}

impl Grouped {
    /// The format with groups of so many numbers, a multiple of 32; nothing of others.
    ///
    /// ```
    /// use espalier_kernels::stored::{Grouped, GroupedParts};
    /// let parts = GroupedParts { numbers: &[9; 64], scales: &[0x3c00, 0x4000], zeros: &[8, 7] };
    /// let format = Grouped::of(32).ok_or("32 is a multiple of 32")?;
    /// let stored = format.packed([1, 64], &parts).ok_or("two groups")?;
    /// assert_eq!([stored.expanded()[0], stored.expanded()[63]], [1.0, 4.0]);
    /// # Ok::<(), &str>(())
    /// ```
    pub fn of(group: usize) -> Option<&'static Self> {
        static MADE: OnceLock<Mutex<BTreeMap<usize, &'static Grouped>>> = OnceLock::new();
        if group == 0 || !group.is_multiple_of(BLOCK) || u32::try_from(group).is_err() {
            return None;
        }
        let made = MADE.get_or_init(Mutex::default);
        let mut made = made.lock().unwrap_or_else(PoisonError::into_inner);
        // Few sizes are in use, and formats live as long as the program.
        Some(
            made.entry(group)
                .or_insert_with(|| Box::leak(Box::new(Self { group }))),
        )
    }

    fn groups(&self, width: usize) -> usize {
        width.div_ceil(self.group)
    }

    /// The weight of these parts; nothing where they are not as many as the shape needs.
    pub fn packed(
        &'static self,
        [rows, width]: [usize; 2],
        parts: &GroupedParts<'_>,
    ) -> Option<Stored> {
        let (groups, size) = (self.groups(width), self.row_bytes(width)?);
        let fits = Some(parts.numbers.len()) == rows.checked_mul(width)
            && parts.scales.len() == rows * groups
            && parts.zeros.len() == rows * groups;
        if !fits {
            return None;
        }
        let mut bytes = Vec::with_capacity(rows.checked_mul(size)?);
        for row in 0..rows {
            bytes.extend((self.group as u32).to_le_bytes());
            bytes.extend((width as u32).to_le_bytes());
            let own = row * groups..(row + 1) * groups;
            bytes.extend(
                parts.scales[own.clone()]
                    .iter()
                    .flat_map(|scale| scale.to_le_bytes()),
            );
            bytes.extend(&parts.zeros[own]);
            for block in parts.numbers[row * width..(row + 1) * width]
                .as_chunks::<BLOCK>()
                .0
            {
                bytes.extend((0..HALF).map(|i| block[i] & 15 | block[i + HALF] << 4));
            }
        }
        Stored::new(self, vec![rows, width], bytes.into())
    }
}

/// The parts of a row.
struct Row<'a> {
    group: usize,
    scales: &'a [[u8; 2]],
    zeros: &'a [u8],
    blocks: &'a [[u8; HALF]],
}

#[inline(always)]
fn parts(row: &[u8]) -> Row<'_> {
    let (head, rest) = row.split_at(HEAD);
    let number =
        |i: usize| u32::from_le_bytes([head[i], head[i + 1], head[i + 2], head[i + 3]]) as usize;
    let (group, width) = (number(0), number(4));
    let groups = width.div_ceil(group.max(BLOCK));
    let (scales, rest) = rest.split_at(2 * groups);
    let (zeros, blocks) = rest.split_at(groups);
    Row {
        group,
        scales: scales.as_chunks().0,
        zeros,
        blocks: blocks.as_chunks().0,
    }
}

impl Format for Grouped {
    fn name(&self) -> &'static str {
        "int4"
    }

    /// Of the numbers alone, for rows have constants besides.
    fn block(&self) -> [usize; 2] {
        [BLOCK, HALF]
    }

    fn row_bytes(&self, width: usize) -> Option<usize> {
        u32::try_from(width).ok()?;
        let blocks = width.is_multiple_of(BLOCK).then_some(width / BLOCK)?;
        Some(HEAD + 3 * self.groups(width) + HALF * blocks)
    }

    fn is_quantised(&self) -> bool {
        true
    }

    fn expand(&self, row: &[u8], first: usize, out: &mut [f32]) {
        let row = parts(row);
        let (mut first, mut rest) = (first, out);
        while !rest.is_empty() {
            let (block, inside) = (first / BLOCK, first % BLOCK);
            let count = rest.len().min(BLOCK - inside);
            let (here, behind) = rest.split_at_mut(count);
            let mut whole = [0.0; BLOCK];
            expand_block(&row, block, &mut whole);
            here.copy_from_slice(&whole[inside..inside + count]);
            (first, rest) = (first + count, behind);
        }
    }

    fn dot(&self, left: &[f32], row: &[u8]) -> f32 {
        scratch::with(left.len(), |expanded| {
            self.expand(row, 0, expanded);
            dot(left, expanded)
        })
    }

    fn rounded_dot(&self) -> Option<RoundedDot> {
        Some(products)
    }
}

#[inline(always)]
fn expand_block(row: &Row<'_>, block: usize, out: &mut [f32; BLOCK]) {
    let group = block * BLOCK / row.group;
    let scale = wide(u16::from_le_bytes(row.scales[group]));
    let zero = f32::from(row.zeros[group]);
    let bytes = &row.blocks[block];
    for i in 0..HALF {
        out[i] = scale * (f32::from(bytes[i] & 15) - zero);
        out[i + HALF] = scale * (f32::from(bytes[i] >> 4) - zero);
    }
}

vectorised! {
    fn dot(left: &[f32], right: &[f32]) -> f32 {
        simd::dot(left, right)
    }
}

fn portable(left: RoundedRow<'_>, row: &[u8]) -> f32 {
    let row = parts(row);
    let lefts = left.quants.as_chunks::<BLOCK>().0;
    let product = |block: usize| {
        let (bytes, group) = (&row.blocks[block], block * BLOCK / row.group);
        let number = |i: usize| match i < HALF {
            true => bytes[i] & 15,
            false => bytes[i - HALF] >> 4,
        };
        let zero = i32::from(row.zeros[group]);
        let sum = block_dot(&lefts[block], |i| i32::from(number(i)) - zero);
        sum as f32 * (wide(u16::from_le_bytes(row.scales[group])) * left.scales[block])
    };
    (0..lefts.len().min(row.blocks.len())).map(product).sum()
}

rounded_dot! {
    /// Products of rows: one of eight sums begins with minus the zero times the sum of the left factor.
    fn products(left, rows: [_; ROWS]) = portable;
    with sums {
        use std::arch::x86_64::*;
        let quants = left.quants.as_chunks::<BLOCK>().0;
        let low = _mm256_set1_epi8(15);
        let mut total = [_mm256_setzero_ps(); ROWS];
        for number in 0..ROWS {
            let row = parts(rows[number]);
            for i in 0..row.blocks.len().min(quants.len()).min(left.scales.len()).min(left.sums.len()) {
                let group = i * BLOCK / row.group;
                x86::ask_ahead(&row.blocks[i]);
                #[allow(unsafe_code)]
                // SAFETY: a block is sixteen bytes.
                let packed = unsafe { _mm_loadu_si128(row.blocks[i].as_ptr().cast()) };
                let halves = _mm256_set_m128i(_mm_srli_epi16::<4>(packed), packed);
                let begin = _mm256_set_epi32(0, 0, 0, 0, 0, 0, 0, -i32::from(row.zeros[group]) * left.sums[i]);
                let products = sums(begin, _mm256_and_si256(halves, low), x86::signed_bytes(&quants[i]));
                let scale = x86::wide(row.scales[group]) * left.scales[i];
                total[number] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(products), _mm256_set1_ps(scale), total[number]);
            }
        }
        x86::totals(total)
    }
}
