//! The second step of a product through panels: its tiles, in groups that threads take one after another.

use std::ops::Range;

use super::{
    Matrix, Threads,
    kernel::{Kernel, Segment, Side},
    scratch,
};
use crate::parallel::for_each;

/// Panels of the left and the right factor in a group of tiles: what they hold stays in the second cache.
pub(super) const GROUP: [usize; 2] = [12, 8];

/// Where the tiles go.
#[derive(Clone, Copy)]
pub(super) struct Output {
    pub start: *mut f32,
    pub stride: usize,
    pub size: [usize; 2],
}

/// A block of depth, whose products a tile sums in registers.
pub(super) struct Block<'a> {
    /// The panels of all its pieces; without those of the left factor where the tasks pack it.
    pub segments: Vec<Segment<'a>>,
    /// The left factors of the pieces, where the tasks pack them; else none.
    pub lefts: Vec<Matrix<'a>>,
}

/// The tiles of some blocks, which are added one after another.
pub(super) struct Tiles<'a> {
    pub kernel: &'static Kernel,
    pub blocks: Vec<Block<'a>>,
    /// Panels of the left and the right factor in a group.
    pub group: [usize; 2],
    pub output: Output,
    /// Whether they are added to what is there.
    pub add: bool,
}

#[allow(unsafe_code)]
// SAFETY: each group of tiles writes to its own part of the output; everything else is only read.
unsafe impl Sync for Tiles<'_> {}

/// All tiles of several outputs, and behind them `others` other tasks, which threads take that find no tiles left.
///
/// # Safety
/// The outputs have room for their sizes, and none overlaps another.
#[allow(unsafe_code)]
pub(super) unsafe fn run_tiles(all: &[Tiles<'_>], others: usize, other: &(dyn Fn(usize) + Sync), threads: Threads) {
    let mut groups = Vec::new();
    for (i, tiles) in all.iter().enumerate() {
        groups.extend((0..tiles.groups()).map(|group| (i, group)));
    }
    let run = |task: usize| match groups.get(task) {
        // SAFETY: by the caller's promise; every group comes once.
        Some((tiles, group)) => unsafe { all[*tiles].run_group(*group) },
        None => other(task - groups.len()),
    };
    let count = groups.len() + others;
    match threads {
        Threads::One => (0..count).for_each(run),
        Threads::All => for_each(count, run),
    }
}

impl Tiles<'_> {
    /// Groups of tiles.
    pub fn groups(&self) -> usize {
        let [rows, columns] = self.panels();
        rows.div_ceil(self.group[0]) * columns.div_ceil(self.group[1])
    }

    /// One group of tiles; no two have a tile in common.
    ///
    /// # Safety
    /// The output has room for its size.
    #[allow(unsafe_code)]
    pub unsafe fn run_group(&self, group: usize) {
        let [rows, columns] = self.panels();
        let down = rows.div_ceil(self.group[0]);
        let (i, j) = (group % down * self.group[0], group / down * self.group[1]);
        let (rows, columns) = (i..(i + self.group[0]).min(rows), j..(j + self.group[1]).min(columns));
        for (number, block) in self.blocks.iter().enumerate() {
            let add = self.add || number > 0;
            // SAFETY: by the caller's promise.
            unsafe {
                match block.lefts.is_empty() {
                    true => self.tiles(&block.segments, 0, [rows.clone(), columns.clone()], add),
                    false => self.packed_here(block, [rows.clone(), columns.clone()], add),
                }
            }
        }
    }

    /// The tiles of a block whose left factor is packed first: only this task reads it.
    #[allow(unsafe_code)]
    unsafe fn packed_here(&self, block: &Block<'_>, [rows, columns]: [Range<usize>; 2], add: bool) {
        let high = self.kernel.rows;
        let lanes = rows.start * high..(rows.end * high).min(self.output.size[0]);
        let lengths: Vec<usize> = block.segments.iter().map(|segment| rows.len() * high * segment.units).collect();
        scratch::with(lengths.iter().sum(), |mut free| {
            let mut segments = block.segments.clone();
            for ((segment, left), length) in segments.iter_mut().zip(&block.lefts).zip(lengths) {
                let (here, rest) = std::mem::take(&mut free).split_at_mut(length);
                self.kernel.pack(here, Side::Left, left.part(lanes.start, lanes.len(), 0, left.columns()));
                (segment.left, free) = (here, rest);
            }
            // SAFETY: by the caller's promise.
            unsafe { self.tiles(&segments, rows.start, [rows, columns], add) };
        });
    }

    /// Panels of both factors.
    fn panels(&self) -> [usize; 2] {
        let [rows, columns] = self.output.size;
        [rows.div_ceil(self.kernel.rows), columns.div_ceil(self.kernel.columns)]
    }

    /// The tiles of some rows and columns of panels, with the left factor's panels from `first` on.
    #[allow(unsafe_code)]
    unsafe fn tiles(&self, all: &[Segment<'_>], first: usize, [rows, columns]: [Range<usize>; 2], add: bool) {
        let Kernel { rows: high, columns: wide, .. } = *self.kernel;
        let mut segments = all.to_vec();
        for start in columns.clone().step_by(GROUP[1]) {
            for i in rows.clone() {
                for j in start..(start + GROUP[1]).min(columns.end) {
                    for (segment, panels) in segments.iter_mut().zip(all) {
                        segment.left = &panels.left[(i - first) * high * panels.units..];
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
}
