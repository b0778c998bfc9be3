//! Products with few rows on the left, as in decoding: the right factor is read once, where it lies, in f32 throughout. Rows in a
//! format of their own are read as bytes and never leave the first cache as numbers. Where the format is a coarse one, the rows on the left
//! are rounded to eight bits and multiplied in integers ([`Rounded`]).

use super::{How, Matrix, Source, Threads, scratch};
use crate::{
    parallel::for_each,
    simd::{dot, vectorised},
    stored::{ROUNDED_BLOCK, Rounded, RoundedDot, StoredRows},
};

/// Rows up to which packing the right factor costs more than it saves.
pub(super) const LIMIT: usize = 6;

/// Columns of a task.
const COLUMNS: usize = 64;

/// Rows of bytes that are asked for before they are read.
const AHEAD: usize = 3;

/// Rows of a coarse format that are multiplied in one call.
const TOGETHER: usize = 8;

/// Where the result goes.
#[derive(Clone, Copy)]
struct Output {
    start: *mut f32,
    stride: usize,
}

#[allow(unsafe_code)]
// SAFETY: each task writes to columns of its own.
unsafe impl Sync for Output {}

impl Output {
    /// Some columns of one row.
    ///
    /// # Safety
    /// They lie inside the output, are initialised, and nobody else uses them.
    #[allow(unsafe_code, clippy::mut_from_ref)]
    unsafe fn row(&self, row: usize, columns: std::ops::Range<usize>) -> &mut [f32] {
        // SAFETY: by the caller's promise.
        unsafe {
            std::slice::from_raw_parts_mut(
                self.start.add(row * self.stride + columns.start),
                columns.len(),
            )
        }
    }
}

/// See [`super::run`].
///
/// # Safety
/// As there; no size is zero.
#[allow(unsafe_code)]
pub(super) unsafe fn product(
    out: *mut f32,
    left: Matrix<'_>,
    right: Matrix<'_>,
    add: bool,
    how: How,
) {
    let output = Output {
        start: out,
        stride: right.columns,
    };
    let size = [left.rows, left.columns];
    let left = left.in_memory(gathered);
    match right.source {
        Source::Stored(stored, start) => {
            let transposed = right.is_transposed();
            let rounded = rounded_dot(stored, start, transposed, size[1])
                .map(|dot| (Rounded::of(&left, size[1]), dot));
            let task = |first: usize, left: &[f32], out: &mut [&mut [f32]]| match &rounded {
                Some((left, dot)) => rounded_columns(stored, start[0] + first, left, *dot, out),
                None => stored_columns(stored, start, transposed, first, left, out),
            };
            // SAFETY: by the caller's promise.
            unsafe { each_task(output, (size, &left), right.columns, add, how, task) };
        }
        _ => right.in_memory(|right, right_values| {
            let task = |first: usize, left: &[f32], out: &mut [&mut [f32]]| {
                columns(right, right_values, first, left, out);
            };
            // SAFETY: by the caller's promise.
            unsafe { each_task(output, (size, &left), right.columns, add, how, task) };
        }),
    }
}

/// The elements, row by row.
fn gathered(matrix: Matrix<'_>, values: &[f32]) -> Vec<f32> {
    let at = |i: usize, k: usize| values[i * matrix.row_stride + k * matrix.column_stride];
    (0..matrix.rows)
        .flat_map(|i| (0..matrix.columns).map(move |k| at(i, k)))
        .collect()
}

/// How columns that are whole rows of a coarse format are multiplied; nothing where they are others.
fn rounded_dot(
    stored: StoredRows<'_>,
    [_, column]: [usize; 2],
    transposed: bool,
    depth: usize,
) -> Option<RoundedDot> {
    let is_whole = column == 0 && stored.format.row_bytes(depth) == Some(stored.row(0).len());
    let rounds = transposed && is_whole && depth.is_multiple_of(ROUNDED_BLOCK);
    stored.format.rounded_dot().filter(|_| rounds)
}

/// Adds the products of rounded rows with some rows of a right factor in a coarse format.
fn rounded_columns(
    stored: StoredRows<'_>,
    first: usize,
    left: &Rounded,
    dot: RoundedDot,
    out: &mut [&mut [f32]],
) {
    let columns = out[0].len();
    for start in (0..columns).step_by(TOGETHER) {
        let part = start..(start + TOGETHER).min(columns);
        let (rows, size) = stored.some(first + part.start..first + part.end);
        for (number, out) in out.iter_mut().enumerate() {
            dot(left.row(number), rows, size, &mut out[part.clone()]);
        }
    }
}

/// Calls `task` with every range of columns: its first column, the depth and elements of the left factor's rows, and the range in
/// every row of the output, to which it adds.
///
/// # Safety
/// As for [`product`].
#[allow(unsafe_code)]
unsafe fn each_task(
    output: Output,
    ([rows, _], gathered): ([usize; 2], &[f32]),
    columns: usize,
    add: bool,
    how: How,
    task: impl Fn(usize, &[f32], &mut [&mut [f32]]) + Sync,
) {
    if !add {
        // SAFETY: `out` has room for this many elements, and zero is a valid one.
        unsafe { output.start.write_bytes(0, rows * columns) };
    }
    let task = |first: usize| {
        let part = first..(first + COLUMNS).min(columns);
        let out = |row| {
            #[allow(unsafe_code)]
            // SAFETY: rows and columns lie inside the output, and each task has its own columns.
            unsafe {
                output.row(row, part.clone())
            }
        };
        let mut out: Vec<&mut [f32]> = (0..rows).map(out).collect();
        task(first, gathered, &mut out);
    };
    match how.threads {
        Threads::One => (0..columns).step_by(COLUMNS).for_each(task),
        Threads::All => for_each(columns.div_ceil(COLUMNS), |i| task(i * COLUMNS)),
    }
}

/// Adds the products of the rows of `left` with some columns of a right factor in memory.
fn columns(right: Matrix<'_>, values: &[f32], first: usize, left: &[f32], out: &mut [&mut [f32]]) {
    let depth = right.rows;
    let strides = [right.row_stride, right.column_stride];
    for (out, left) in out.iter_mut().zip(left.chunks_exact(depth)) {
        match strides[0] == 1 && strides[1] >= depth {
            true => dots(out, left, &values[first * strides[1]..], strides[1]),
            false => scaled_rows(out, left, values, strides, first),
        }
    }
}

/// As [`columns`] for a right factor in a format of its own, which begins at `start`: the columns are its rows, or, where it is not
/// transposed, its columns.
fn stored_columns(
    stored: StoredRows<'_>,
    [row, column]: [usize; 2],
    transposed: bool,
    first: usize,
    left: &[f32],
    out: &mut [&mut [f32]],
) {
    let (width, depth) = (out[0].len(), left.len() / out.len());
    let is_whole = column == 0 && stored.format.row_bytes(depth) == Some(stored.row(0).len());
    if let ([out], true, true) = (&mut *out, transposed, is_whole) {
        for (out, row) in out.iter_mut().zip(row + first..) {
            stored.prefetch(row + AHEAD);
            *out += stored.format.dot(left, stored.row(row));
        }
        return;
    }
    scratch::with(if transposed { depth } else { width }, |numbers| {
        for i in 0..if transposed { width } else { depth } {
            match transposed {
                true => stored.expand(row + first + i, column, numbers),
                false => stored.expand(row + i, column + first, numbers),
            }
            for (out, left) in out.iter_mut().zip(left.chunks_exact(depth)) {
                match transposed {
                    true => dots(&mut out[i..=i], left, numbers, depth),
                    false => scaled_rows(out, &left[i..=i], numbers, [0, 1], 0),
                }
            }
        }
    });
}

vectorised! {
    /// Adds to each element the dot product of `left` with its column, which lies in one piece.
    fn dots(out: &mut [f32], left: &[f32], columns: &[f32], stride: usize) {
        for (out, column) in out.iter_mut().zip(columns.chunks(stride)) {
            *out += dot(left, &column[..left.len()]);
        }
    }
}

vectorised! {
    /// Adds `left[k]` times row `k` of the right factor, from its column `first`.
    fn scaled_rows(out: &mut [f32], left: &[f32], right: &[f32], strides: [usize; 2], first: usize) {
        let [row, column] = strides;
        for (k, factor) in left.iter().enumerate() {
            let right = &right[k * row + first * column..];
            if column == 1 {
                for (out, value) in out.iter_mut().zip(right) {
                    *out += factor * value;
                }
            } else {
                for (out, value) in out.iter_mut().zip(right.iter().step_by(column)) {
                    *out += factor * value;
                }
            }
        }
    }
}
