//! Products through packed panels (Goto and van de Geijn, "Anatomy of high-performance matrix multiplication", 2008).
//!
//! For each block of columns and of the depth, both factors are packed, then tiles are computed, grouped so that what a
//! group reads stays in the second cache. Both steps run on all threads.

use super::{
    How, Matrix, Precision, Threads, few_rows,
    kernel::{Kernel, Segment, kernel, kernel_for},
    scratch,
};
use crate::parallel::{for_each, for_items, fresh};

/// Units of depth that are packed at once: a panel of the left factor then stays in the first cache.
const UNITS: usize = 256;
/// Units that are too few for a block of their own: tiles would spend their time on the output.
const FEW_UNITS: usize = 32;
/// Columns that are packed at once.
const COLUMNS: usize = 2048;
/// Panels of a task of packing, where lanes are rows of memory; steps, where they lie side by side. Either way a task reads
/// whole rows.
const PACKED: usize = 8;
const STEPS: usize = 32;
/// Panels of the left and the right factor in a group of tiles.
const GROUP: [usize; 2] = [12, 8];

/// The left factor of a product.
#[derive(Clone, Copy)]
pub(crate) enum Left<'a> {
    /// As it lies in memory.
    Plain(Matrix<'a>),
    /// Packed before, for several products.
    Packed(&'a Packed),
}

/// A left factor in panels, by blocks of depth.
pub(crate) struct Packed {
    blocks: Vec<Vec<f32>>,
    rows: usize,
    depth: usize,
    precision: Precision,
}

impl Packed {
    /// Packs a matrix; nothing where it has so few rows that products read it where it lies.
    pub fn new(matrix: Matrix<'_>, precision: Precision) -> Option<Self> {
        if matrix.rows <= few_rows::LIMIT {
            return None;
        }
        let kernel = kernel(precision);
        let (rows, depth) = (matrix.rows, matrix.columns);
        let lanes = PACKED * kernel.rows;
        let blocks = depth_blocks(kernel, depth).map(|(start, steps)| {
            let length = kernel.packed_len(kernel.rows, rows, steps);
            let [panels] = fresh([(length, lanes * kernel.units(steps))], |i, [panels]| {
                let lanes_here = lanes.min(rows - i * lanes);
                kernel.pack(panels, kernel.rows, matrix.part(i * lanes, lanes_here, start, steps));
            });
            panels
        });
        Some(Self { blocks: blocks.collect(), rows, depth, precision })
    }

    /// The panels of the block of depth that starts at `start`.
    fn block(&self, kernel: &Kernel, start: usize) -> &[f32] {
        &self.blocks[start / (UNITS * kernel.pair)]
    }
}

impl<'a> Left<'a> {
    /// The matrix, where it is not packed.
    pub fn plain(&self) -> Option<Matrix<'a>> {
        match self {
            Self::Plain(matrix) => Some(*matrix),
            Self::Packed(_) => None,
        }
    }

    pub fn rows(&self) -> usize {
        match self {
            Self::Plain(matrix) => matrix.rows,
            Self::Packed(packed) => packed.rows,
        }
    }

    pub fn depth(&self) -> usize {
        match self {
            Self::Plain(matrix) => matrix.columns,
            Self::Packed(packed) => packed.depth,
        }
    }
}

/// One product of a sum.
pub(crate) type Term<'a> = (Left<'a>, Matrix<'a>);

/// A range of one term's depth.
#[derive(Clone, Copy)]
struct Piece {
    term: usize,
    start: usize,
    steps: usize,
}

/// The blocks of a depth, all but the last of whole units: `(start, steps)`.
fn depth_blocks(kernel: &Kernel, depth: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
    let most = UNITS * kernel.pair;
    (0..depth).step_by(most).map(move |start| (start, most.min(depth - start)))
}

/// What tiles sum at once: a piece of a term, and with it small pieces that follow.
fn blocks(kernel: &Kernel, terms: &[Term<'_>]) -> Vec<Vec<Piece>> {
    let mut blocks: Vec<Vec<Piece>> = Vec::new();
    for (term, (left, _)) in terms.iter().enumerate() {
        for (start, steps) in depth_blocks(kernel, left.depth()) {
            let piece = Piece { term, start, steps };
            match blocks.last_mut() {
                Some(last) if kernel.units(steps) <= FEW_UNITS => last.push(piece),
                _ => blocks.push(vec![piece]),
            }
        }
    }
    blocks
}

/// `out = sum` or `out += sum` of products of the same size.
///
/// # Safety
/// `out` has room for all rows and columns, initialised where `add` is set; no size is zero.
#[allow(unsafe_code)]
pub(super) unsafe fn sum_of_products(out: *mut f32, terms: &[Term<'_>], add: bool, how: How) {
    let Some((left, right)) = terms.first() else { return };
    let kernel = kernel_for(how.precision, right.columns);
    let (rows, columns) = (left.rows(), right.columns);
    let blocks = blocks(kernel, terms);
    let most = |length: &dyn Fn(&Piece) -> usize| {
        blocks.iter().map(|block| block.iter().map(length).sum::<usize>()).max().unwrap_or(0)
    };
    let for_right = most(&|piece| kernel.packed_len(kernel.columns, columns.min(COLUMNS), piece.steps));
    let for_left = most(&|piece| match terms[piece.term].0 {
        Left::Plain(_) => kernel.packed_len(kernel.rows, rows, piece.steps),
        Left::Packed(_) => 0,
    });
    scratch::parts([for_right, for_left], |[of_right, of_left]| {
        for first in (0..columns).step_by(COLUMNS) {
            let columns_here = COLUMNS.min(columns - first);
            let output = Output { start: out.wrapping_add(first), stride: columns, size: [rows, columns_here] };
            for (i, block) in blocks.iter().enumerate() {
                let (mut free_left, mut free_right) = (&mut *of_left, &mut *of_right);
                let (mut tasks, mut used) = (Vec::new(), [0, 0]);
                let mut places = Vec::with_capacity(block.len());
                for piece in block {
                    let (left, right) = terms[piece.term];
                    let (start, steps) = (piece.start, piece.steps);
                    let right = right.transposed().part(first, columns_here, start, steps);
                    let right_place = used[1]..used[1] + kernel.packed_len(kernel.columns, columns_here, steps);
                    pack_later(kernel, &mut free_right, kernel.columns, right, &mut tasks);
                    let left_place = left.plain().map(|left| {
                        let left = left.part(0, rows, start, steps);
                        pack_later(kernel, &mut free_left, kernel.rows, left, &mut tasks);
                        used[0]..used[0] + kernel.packed_len(kernel.rows, rows, steps)
                    });
                    used = [left_place.as_ref().map_or(used[0], |place| place.end), right_place.end];
                    places.push((left_place, right_place));
                }
                run_packs(kernel, tasks, how.threads);
                let panels: Vec<Segment<'_>> = block
                    .iter()
                    .zip(places)
                    .map(|(piece, (left, right))| {
                        let left = match (left, terms[piece.term].0) {
                            (None, Left::Packed(packed)) => {
                                assert!(packed.precision == how.precision, "packed for another precision");
                                packed.block(kernel, piece.start)
                            }
                            (place, _) => &of_left[place.unwrap_or(0..0)],
                        };
                        Segment { units: kernel.units(piece.steps), left, right: &of_right[right] }
                    })
                    .collect();
                let tiles = Tiles { kernel, panels: &panels, output };
                // SAFETY: the output has room for all rows and columns by the caller's promise.
                unsafe { tiles.run(add || i > 0, how.threads) };
            }
        }
    });
}

/// Panels, or steps of them, to be packed: where, of which width, from which lanes.
struct PackTask<'a> {
    out: *mut f32,
    panel: usize,
    width: usize,
    lanes: Matrix<'a>,
}

#[allow(unsafe_code)]
// SAFETY: each task writes to its own part of memory that is borrowed for as long as the tasks live.
unsafe impl Send for PackTask<'_> {}

/// Plans to pack the rows of `matrix` as lanes, in tasks of a few panels or steps, at the start of `free`, which loses that
/// part.
fn pack_later<'a>(
    kernel: &Kernel,
    free: &mut &'a mut [f32],
    width: usize,
    matrix: Matrix<'a>,
    tasks: &mut Vec<PackTask<'a>>,
) {
    let length = kernel.packed_len(width, matrix.rows, matrix.columns);
    let (here, rest) = std::mem::take(free).split_at_mut(length);
    *free = rest;
    let (rows, columns) = (matrix.rows, matrix.columns);
    let (start, panel) = (here.as_mut_ptr(), kernel.units(columns));
    if matrix.row_stride == 1 {
        tasks.extend((0..columns).step_by(STEPS).map(|first| {
            let out = start.wrapping_add(first / kernel.pair * width);
            PackTask { out, panel, width, lanes: matrix.part(0, rows, first, STEPS.min(columns - first)) }
        }));
        return;
    }
    let lanes = PACKED * width;
    tasks.extend((0..rows).step_by(lanes).map(|first| {
        let out = start.wrapping_add(first * panel);
        PackTask { out, panel, width, lanes: matrix.part(first, lanes.min(rows - first), 0, columns) }
    }));
}

/// Packs everything.
fn run_packs(kernel: &Kernel, tasks: Vec<PackTask<'_>>, threads: Threads) {
    let run = |task: PackTask<'_>| {
        let PackTask { out, panel, width, lanes } = task;
        #[allow(unsafe_code)]
        // SAFETY: tasks are planned in memory that holds all panels, each unit of them in one task.
        unsafe {
            kernel.pack_steps(out, width, lanes, panel);
        }
    };
    match threads {
        Threads::One => tasks.into_iter().for_each(run),
        Threads::All => for_items(tasks, run),
    }
}

/// Where the tiles go.
#[derive(Clone, Copy)]
pub(super) struct Output {
    pub start: *mut f32,
    pub stride: usize,
    pub size: [usize; 2],
}

/// The tiles of a block.
pub(super) struct Tiles<'a> {
    pub kernel: &'static Kernel,
    /// All panels of the pieces that are summed.
    pub panels: &'a [Segment<'a>],
    pub output: Output,
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
    pub unsafe fn run(&self, add: bool, threads: Threads) {
        let [rows, columns] = self.panels();
        let (down, across) = (rows.div_ceil(GROUP[0]), columns.div_ceil(GROUP[1]));
        let group = |task: usize| {
            let (i, j) = (task % down * GROUP[0], task / down * GROUP[1]);
            // SAFETY: by the caller's promise; no two groups have a tile in common.
            unsafe { self.group(i..(i + GROUP[0]).min(rows), j..(j + GROUP[1]).min(columns), add) };
        };
        match threads {
            Threads::One => (0..down * across).for_each(group),
            Threads::All => for_each(down * across, group),
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
        let mut segments = self.panels.to_vec();
        for i in rows {
            for j in columns.clone() {
                for (segment, panels) in segments.iter_mut().zip(self.panels) {
                    segment.left = &panels.left[i * high * panels.units..];
                    segment.right = &panels.right[j * wide * panels.units..];
                }
                let (row, column) = (i * high, j * wide);
                let size = [high.min(self.output.size[0] - row), wide.min(self.output.size[1] - column)];
                let out = self.output.start.wrapping_add(row * self.output.stride + column);
                // SAFETY: by the caller's promise, `size` rows and columns from here lie inside the output.
                unsafe { self.kernel.tile(&segments, out, self.output.stride, size, add) };
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
