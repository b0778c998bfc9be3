//! The second step of a product through panels: its register tiles, in groups that threads take one after another.

use std::ops::Range;

use super::{
    Matrix,
    kernel::{Kernel, Segment, Side},
    scratch,
};

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
    /// The panels of all its pieces; without those of the factor that the tasks pack.
    pub segments: Vec<Segment<'a>>,
    /// The lanes of the pieces where the tasks pack them; else none.
    pub lanes: Vec<Matrix<'a>>,
}

/// The tiles of some blocks, which are added one after another.
pub(super) struct Tiles<'a> {
    pub kernel: &'static Kernel,
    pub blocks: Vec<Block<'a>>,
    /// The factor that the tasks pack, each for its own tiles.
    pub own: Option<Side>,
    /// Groups of tiles below each other, and beside each other.
    pub parts: [usize; 2],
    pub output: Output,
    /// Whether they are added to what is there.
    pub add: bool,
}

/// Groups below each other and beside each other in an output of some size, for so many panels in a group. All are alike, so that
/// none reads a factor for too little.
pub(super) fn parts(kernel: &Kernel, [rows, columns]: [usize; 2], group: [usize; 2]) -> [usize; 2] {
    [
        rows.div_ceil(kernel.rows).div_ceil(group[0]),
        columns.div_ceil(kernel.columns).div_ceil(group[1]),
    ]
}

impl Tiles<'_> {
    /// Groups of tiles.
    pub fn groups(&self) -> usize {
        self.parts[0] * self.parts[1]
    }

    /// One group of tiles; no two have a tile in common.
    ///
    /// # Safety
    /// The output has room for its size.
    #[allow(unsafe_code)]
    pub unsafe fn run_group(&self, group: usize) {
        let (panels, parts) = (self.panels(), self.parts);
        let [rows, columns] = [(0, group % parts[0]), (1, group / parts[0])].map(|(side, part)| {
            let start = |part| part * panels[side] / parts[side];
            start(part)..start(part + 1)
        });
        for (number, block) in self.blocks.iter().enumerate() {
            let (add, panels) = (self.add || number > 0, [rows.clone(), columns.clone()]);
            // SAFETY: by the caller's promise.
            unsafe {
                match self.own {
                    None => self.tiles(&block.segments, [0, 0], panels, add),
                    Some(side) => self.packed_here(block, side, panels, add),
                }
            }
        }
    }

    /// The tiles of a block of which one factor is packed first: only this task reads that part of it.
    #[allow(unsafe_code)]
    unsafe fn packed_here(
        &self,
        block: &Block<'_>,
        side: Side,
        panels: [Range<usize>; 2],
        add: bool,
    ) {
        let (mine, width) = (panels[side as usize].clone(), self.kernel.width(side));
        let lanes = mine.start * width..(mine.end * width).min(self.output.size[side as usize]);
        let lengths: Vec<usize> = block
            .segments
            .iter()
            .map(|segment| mine.len() * width * segment.units)
            .collect();
        scratch::with(lengths.iter().sum(), |mut free| {
            let mut segments = block.segments.clone();
            for ((segment, matrix), length) in segments.iter_mut().zip(&block.lanes).zip(lengths) {
                let (here, rest) = std::mem::take(&mut free).split_at_mut(length);
                self.kernel.pack(
                    here,
                    side,
                    matrix.part(lanes.start, lanes.len(), 0, matrix.columns()),
                );
                free = rest;
                match side {
                    Side::Left => segment.left = here,
                    Side::Right => segment.right = here,
                }
            }
            let mut first = [0, 0];
            first[side as usize] = mine.start;
            // SAFETY: by the caller's promise.
            unsafe { self.tiles(&segments, first, panels, add) };
        });
    }

    /// Panels of both factors.
    fn panels(&self) -> [usize; 2] {
        let [rows, columns] = self.output.size;
        [
            rows.div_ceil(self.kernel.rows),
            columns.div_ceil(self.kernel.columns),
        ]
    }

    /// The tiles of some rows and columns of panels; the segments hold both factors' panels from `first` on.
    #[allow(unsafe_code)]
    unsafe fn tiles(
        &self,
        all: &[Segment<'_>],
        first: [usize; 2],
        [rows, columns]: [Range<usize>; 2],
        add: bool,
    ) {
        let Kernel {
            rows: high,
            columns: wide,
            ..
        } = *self.kernel;
        let mut segments = all.to_vec();
        for start in columns.clone().step_by(GROUP[1]) {
            for i in rows.clone() {
                for j in start..(start + GROUP[1]).min(columns.end) {
                    for (segment, panels) in segments.iter_mut().zip(all) {
                        segment.left = &panels.left[(i - first[0]) * high * panels.units..];
                        segment.right = &panels.right[(j - first[1]) * wide * panels.units..];
                    }
                    let (row, column) = (i * high, j * wide);
                    let size = [
                        high.min(self.output.size[0] - row),
                        wide.min(self.output.size[1] - column),
                    ];
                    let out = self
                        .output
                        .start
                        .wrapping_add(row * self.output.stride + column);
                    // SAFETY: by the caller's promise, `size` rows and columns from here lie inside the output.
                    unsafe {
                        self.kernel
                            .tile(&segments, out, self.output.stride, size, add)
                    };
                }
            }
        }
    }
}
