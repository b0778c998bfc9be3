//! Products with few rows on the left, as in decoding: the right factor is read once, where it lies, in f32 throughout.

use super::{How, Matrix, Threads};
use crate::{
    parallel::for_each,
    simd::{dot, vectorised},
};

/// Rows up to which packing the right factor costs more than it saves.
pub(super) const LIMIT: usize = 6;

/// Columns of a task.
const COLUMNS: usize = 64;

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
    left.in_memory(|left, left_values| {
        right.in_memory(|right, right_values| {
            // SAFETY: by the caller's promise.
            unsafe {
                product_in_memory(output, (left, left_values), (right, right_values), add, how)
            };
        });
    });
}

/// See [`product`]; each matrix with its values.
///
/// # Safety
/// As there.
#[allow(unsafe_code)]
unsafe fn product_in_memory(
    output: Output,
    (left, left_values): (Matrix<'_>, &[f32]),
    (right, right_values): (Matrix<'_>, &[f32]),
    add: bool,
    how: How,
) {
    let (rows, columns, depth) = (left.rows, right.columns, left.columns);
    if !add {
        // SAFETY: `out` has room for this many elements, and zero is a valid one.
        unsafe { output.start.write_bytes(0, rows * columns) };
    }
    let at = |i: usize, k: usize| left_values[i * left.row_stride + k * left.column_stride];
    let gathered: Vec<f32> = (0..rows)
        .flat_map(|i| (0..depth).map(move |k| at(i, k)))
        .collect();
    let task = |first: usize| {
        let part = first..(first + COLUMNS).min(columns);
        for (row, left) in gathered.chunks_exact(depth).enumerate() {
            // SAFETY: rows and columns lie inside the output, and each task has its own columns.
            let out = unsafe { output.row(row, part.clone()) };
            match right.row_stride == 1 && right.column_stride >= depth {
                true => dots(
                    out,
                    left,
                    &right_values[part.start * right.column_stride..],
                    right.column_stride,
                ),
                false => scaled_rows(
                    out,
                    left,
                    right_values,
                    [right.row_stride, right.column_stride],
                    part.start,
                ),
            }
        }
    };
    match how.threads {
        Threads::One => (0..columns).step_by(COLUMNS).for_each(task),
        Threads::All => for_each(columns.div_ceil(COLUMNS), |i| task(i * COLUMNS)),
    }
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
