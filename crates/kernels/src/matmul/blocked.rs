//! Products through packed panels (Goto and van de Geijn, "Anatomy of high-performance matrix multiplication", 2008).
//!
//! For each block of columns and of the depth, both factors are packed, then tiles are computed, grouped so that what a
//! group reads stays in the second cache. Both steps run on all threads.

use rayon::prelude::*;

use super::{
    How, Matrix, Threads,
    kernel::{Kernel, kernel},
    scratch,
};

/// Units of depth that are packed at once: a panel of the left factor then stays in the first cache.
const UNITS: usize = 256;
/// Columns that are packed at once.
const COLUMNS: usize = 2048;
/// Panels of a task: of packing, and of the left and the right factor in a group of tiles.
const PACKED: usize = 8;
const GROUP: [usize; 2] = [12, 8];

/// See [`super::run`].
///
/// # Safety
/// As there; no size is zero.
#[allow(unsafe_code)]
pub(super) unsafe fn product(out: *mut f32, left: Matrix<'_>, right: Matrix<'_>, add: bool, how: How) {
    let kernel = kernel(how.precision);
    let lanes = right.transposed();
    let depth_block = UNITS * kernel.pair;
    let (rows, columns, depth) = (left.rows, right.columns, left.columns);
    let most = |width, lanes| kernel.packed_len(width, lanes, depth.min(depth_block));
    let (for_left, for_right) = (most(kernel.rows, rows), most(kernel.columns, columns.min(COLUMNS)));
    // The panels of the right factor come first: they are read as whole aligned vectors.
    scratch::with(for_right + for_left, |panels| {
        let (of_right, of_left) = panels.split_at_mut(for_right);
        for first in (0..columns).step_by(COLUMNS) {
            let columns_here = COLUMNS.min(columns - first);
            for step in (0..depth).step_by(depth_block) {
                let steps = depth_block.min(depth - step);
                let left = left.part(0, rows, step, steps);
                let lanes = lanes.part(first, columns_here, step, steps);
                pack(kernel, of_left, left, of_right, lanes, how.threads);
                let output = Output { start: out.wrapping_add(first), stride: columns, size: [rows, columns_here] };
                let tiles = Tiles { kernel, units: kernel.units(steps), left: of_left, right: of_right, output };
                // SAFETY: the output has room for all rows and columns by the caller's promise.
                unsafe { tiles.run(add || step > 0, how.threads) };
            }
        }
    });
}

/// Packs both factors in tasks of a few panels.
fn pack(
    kernel: &Kernel,
    of_left: &mut [f32],
    left: Matrix<'_>,
    of_right: &mut [f32],
    right: Matrix<'_>,
    threads: Threads,
) {
    if threads == Threads::One {
        kernel.pack(of_left, kernel.rows, left);
        kernel.pack(of_right, kernel.columns, right);
        return;
    }
    let side = |width: usize, matrix: Matrix<'_>| {
        let lanes = PACKED * width;
        (lanes, lanes * kernel.units(matrix.columns), matrix.rows.div_ceil(lanes))
    };
    let pack_side = |out: &mut [f32], width: usize, matrix: Matrix<'_>| {
        let (lanes, length, count) = side(width, matrix);
        out.par_chunks_mut(length).take(count).enumerate().for_each(|(task, out)| {
            let lanes_here = lanes.min(matrix.rows - task * lanes);
            kernel.pack(out, width, matrix.part(task * lanes, lanes_here, 0, matrix.columns));
        });
    };
    rayon::join(|| pack_side(of_left, kernel.rows, left), || pack_side(of_right, kernel.columns, right));
}

/// Where the tiles go.
struct Output {
    start: *mut f32,
    stride: usize,
    size: [usize; 2],
}

/// The tiles of a block.
struct Tiles<'a> {
    kernel: &'static Kernel,
    units: usize,
    left: &'a [f32],
    right: &'a [f32],
    output: Output,
}

#[allow(unsafe_code)]
// SAFETY: each group of tiles writes to its own part of the output; everything else is only read.
unsafe impl Sync for Tiles<'_> {}

impl Tiles<'_> {
    /// All tiles.
    ///
    /// # Safety
    /// The output has room for its size.
    #[allow(unsafe_code)]
    unsafe fn run(&self, add: bool, threads: Threads) {
        let [rows, columns] = self.panels();
        let (down, across) = (rows.div_ceil(GROUP[0]), columns.div_ceil(GROUP[1]));
        let group = |task: usize| {
            let (i, j) = (task % down * GROUP[0], task / down * GROUP[1]);
            // SAFETY: by the caller's promise; no two groups have a tile in common.
            unsafe { self.group(i..(i + GROUP[0]).min(rows), j..(j + GROUP[1]).min(columns), add) };
        };
        match threads {
            Threads::One => (0..down * across).for_each(group),
            Threads::All => (0..down * across).into_par_iter().for_each(group),
        }
    }

    /// Panels of both factors.
    fn panels(&self) -> [usize; 2] {
        let [rows, columns] = self.output.size;
        [rows.div_ceil(self.kernel.rows), columns.div_ceil(self.kernel.columns)]
    }

    #[allow(unsafe_code)]
    unsafe fn group(&self, rows: std::ops::Range<usize>, columns: std::ops::Range<usize>, add: bool) {
        let Kernel { rows: high, columns: wide, .. } = *self.kernel;
        for i in rows {
            let left = &self.left[i * high * self.units..(i + 1) * high * self.units];
            for j in columns.clone() {
                let right = &self.right[j * wide * self.units..(j + 1) * wide * self.units];
                let (row, column) = (i * high, j * wide);
                let size = [high.min(self.output.size[0] - row), wide.min(self.output.size[1] - column)];
                let out = self.output.start.wrapping_add(row * self.output.stride + column);
                // SAFETY: by the caller's promise, `size` rows and columns from here lie inside the output.
                unsafe { self.kernel.tile(self.units, left, right, out, self.output.stride, size, add) };
            }
        }
    }
}

impl<'a> Matrix<'a> {
    /// Some rows from `row` and some columns from `column`.
    pub(crate) fn part(self, row: usize, rows: usize, column: usize, columns: usize) -> Self {
        assert!(row + rows <= self.rows && column + columns <= self.columns, "part of a matrix");
        let start = row * self.row_stride + column * self.column_stride;
        Self { values: &self.values[start.min(self.values.len())..], rows, columns, ..self }
    }
}
