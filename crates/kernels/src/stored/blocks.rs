//! What the formats whose rows are blocks of a fixed size have in common (GGUF's).

use std::fmt::Debug;

use super::{Format, Stored};
use crate::parallel::fresh;

/// The rounding of a row: its numbers, how much an error of each counts where that is known, and its bytes.
type Rounding<'a> = dyn Fn(&[f32], Option<&[f32]>, &mut [u8]) + Sync + 'a;

/// A format into which weights are rounded row by row.
pub trait Quantise: Format + Debug {
    /// Writes the bytes of a row of whole blocks; `importance` says for each number how much the square of its error counts.
    fn quantise_row(&self, values: &[f32], importance: Option<&[f32]>, row: &mut [u8]);
}

/// The weight of this shape with `values` rounded; nothing where these are not as many, or a row is not whole blocks. `importance` has
/// a number for each column, which counts in every row.
///
/// ```
/// use espalier_kernels::stored::{Q8_0, quantised};
/// let stored = quantised(&Q8_0, &[1, 32], &[127.0; 32], None).ok_or("one block")?;
/// assert_eq!((stored.bytes().len(), stored.expanded()[31]), (34, 127.0));
/// # Ok::<(), &str>(())
/// ```
pub fn quantised<F: Quantise>(
    format: &'static F,
    shape: &[usize],
    values: &[f32],
    importance: Option<&[f32]>,
) -> Option<Stored> {
    let rounding = |values: &[f32], importance: Option<&[f32]>, row: &mut [u8]| {
        format.quantise_row(values, importance, row)
    };
    rounded_rows(format, shape, values, importance, &rounding)
}

/// As [`quantised`], of a format that is known at run time alone.
pub fn quantised_as(
    format: &'static dyn Quantise,
    shape: &[usize],
    values: &[f32],
    importance: Option<&[f32]>,
) -> Option<Stored> {
    let rounding = |values: &[f32], importance: Option<&[f32]>, row: &mut [u8]| {
        format.quantise_row(values, importance, row)
    };
    rounded_rows(format, shape, values, importance, &rounding)
}

fn rounded_rows(
    format: &'static dyn Format,
    shape: &[usize],
    values: &[f32],
    importance: Option<&[f32]>,
    rounding: &Rounding<'_>,
) -> Option<Stored> {
    let width = *shape.last()?;
    let count = shape
        .iter()
        .try_fold(1usize, |all, axis| all.checked_mul(*axis))?;
    let fits = importance.is_none_or(|importance| importance.len() == width);
    if count != values.len() || !fits {
        return None;
    }
    let size = format.row_bytes(width)?;
    let rows = count.checked_div(width).unwrap_or(0);
    let [bytes] = fresh([(rows * size, size.max(1))], |row, [out]| {
        rounding(&values[row * width..(row + 1) * width], importance, out);
    });
    Stored::new(format, shape.to_vec(), bytes.into())
}

/// Writes the numbers of a row of blocks from number `first` on; `block` expands one.
#[inline(always)]
pub(super) fn expand<const NUMBERS: usize, const BYTES: usize>(
    row: &[u8],
    first: usize,
    out: &mut [f32],
    block: impl Fn(&[u8; BYTES], &mut [f32; NUMBERS]),
) {
    let blocks = row.as_chunks::<BYTES>().0;
    let (mut first, mut rest) = (first, out);
    while !rest.is_empty() {
        let (number, inside) = (first / NUMBERS, first % NUMBERS);
        let count = rest.len().min(NUMBERS - inside);
        let (here, behind) = rest.split_at_mut(count);
        match here.as_chunks_mut::<NUMBERS>().0.first_mut() {
            Some(whole) => block(&blocks[number], whole),
            None => {
                let mut whole = [0.0; NUMBERS];
                block(&blocks[number], &mut whole);
                here.copy_from_slice(&whole[inside..inside + count]);
            }
        }
        (first, rest) = (first + count, behind);
    }
}

/// Rounds a row block by block; `block` is given its numbers and their importance.
pub(super) fn quantise_row<const NUMBERS: usize, const BYTES: usize>(
    values: &[f32],
    importance: Option<&[f32]>,
    row: &mut [u8],
    block: impl Fn(&[f32; NUMBERS], Option<&[f32; NUMBERS]>, &mut [u8; BYTES]),
) {
    let importance = importance.map(|importance| importance.as_chunks::<NUMBERS>().0);
    let blocks = values.as_chunks::<NUMBERS>().0;
    for (number, (values, bytes)) in blocks
        .iter()
        .zip(row.as_chunks_mut::<BYTES>().0)
        .enumerate()
    {
        block(values, importance.and_then(|all| all.get(number)), bytes);
    }
}

/// The entry of the largest size, the first of equals, with its sign.
#[inline(always)]
pub(super) fn signed_largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0f32, |largest, value| {
        if value.abs() > largest.abs() {
            *value
        } else {
            largest
        }
    })
}

/// `1 / x`, and zero of zero.
#[inline(always)]
pub(super) fn inverse(x: f32) -> f32 {
    if x == 0.0 { 0.0 } else { 1.0 / x }
}

/// The nearest integer within bounds, halves to even.
#[inline(always)]
pub(super) fn nearest(x: f32, least: i32, most: i32) -> i32 {
    (x.round_ties_even() as i32).clamp(least, most)
}
