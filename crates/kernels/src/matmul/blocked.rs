//! Products through packed panels (Goto and van de Geijn, "Anatomy of high-performance matrix multiplication", 2008).
//!
//! For each block of columns and of the depth, both factors are packed, then tiles are computed, grouped so that what a
//! group reads stays in the second cache. Both steps run on all threads, for several products at once where they are small.
//! Where the left factor has many rows that lie in one piece, the tasks that compute tiles pack it themselves, each for its own
//! rows, through several blocks of depth: neither its panels nor the sums between two blocks leave the second cache. Where it has
//! so few rows that it stays in the second cache as a whole, they pack the right one, each for its own columns: weights are then
//! read once. Of more products than threads, as of many experts, most are computed by one thread each, and what it packs never
//! leaves its cache.

use std::{cmp::Reverse, ops::Range};

use super::{
    How, Matrix, Precision, few_rows,
    kernel::{Kernel, Segment, Side, kernel, kernel_for},
    stages::{self, PackTask, pack_later},
    tiles::{self, Block, GROUP, Output, Tiles},
};
use crate::parallel::fresh;

/// About as many units of depth are packed at once, from three quarters of them to half as many again: a panel of the left factor
/// then stays in the first cache.
const UNITS: usize = 256;
/// Units that are too few for a block of their own: tiles would spend their time on the output.
const FEW_UNITS: usize = 32;
/// Columns of the right factor that are packed at once.
const COLUMNS: usize = 2048;
/// Panels of a task of packing.
pub(super) const PACKED: usize = 8;
/// Panels of a task that packs its left factor itself: enough to read the right factor for, and so few that they, a group of the
/// right factor's and their tiles stay in the second cache.
const OWN: [usize; 2] = [2, 6];
/// Rows of a left factor of which a block of depth stays in the second cache beside a group of the right factor.
const SHORT: usize = 1024;
/// Panels of a task that packs its right factor itself.
const OWN_RIGHT: usize = 6;
/// Panels for which half as many tasks will do: with fewer, a task would read the whole right factor for too little.
const ENOUGH: usize = 4;
/// Tasks for every thread, of all sums that are computed together, that are enough to keep all of them busy.
const TASKS: usize = 8;
/// Panels of the left factor in a group, at least.
const FEW: usize = 3;
/// Packed elements of the right factor up to which a round takes further blocks of depth.
const ROUND: usize = 1 << 20;
/// Elements of a cache line, with which panels start.
const LINE: usize = 16;

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
            let length = kernel.packed_len(Side::Left, rows, steps);
            let [panels] = fresh([(length, lanes * kernel.units(steps))], |i, [panels]| {
                let lanes_here = lanes.min(rows - i * lanes);
                kernel.pack(
                    panels,
                    Side::Left,
                    matrix.part(i * lanes, lanes_here, start, steps),
                );
            });
            panels
        });
        Some(Self {
            blocks: blocks.collect(),
            rows,
            depth,
            precision,
        })
    }

    /// The panels of the block of depth that starts at `start`.
    fn block(&self, kernel: &Kernel, start: usize) -> &[f32] {
        &self.blocks[start / block_steps(kernel, self.depth)]
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

    /// Whether products in this arithmetic can read it.
    pub fn is_for(&self, precision: Precision) -> bool {
        match self {
            Self::Plain(_) => true,
            Self::Packed(packed) => packed.precision == precision,
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

/// Steps of a block of depth: blocks are alike, since every one of them visits the whole output.
fn block_steps(kernel: &Kernel, depth: usize) -> usize {
    let units = kernel.units(depth);
    let blocks = ((units + UNITS / 2) / UNITS).max(1);
    kernel.units(units.div_ceil(blocks) * kernel.pair) * kernel.pair
}

/// The blocks of a depth, all but the last of whole units: `(start, steps)`.
fn depth_blocks(kernel: &Kernel, depth: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
    let most = block_steps(kernel, depth).max(1);
    (0..depth)
        .step_by(most)
        .map(move |start| (start, most.min(depth - start)))
}

/// The pieces of depth that tiles sum at once: a block of a term, with the small blocks after it.
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

/// A sum of products of one size, and where it goes.
pub(super) struct Sum<'a> {
    /// Rows of as many elements as the right factors have columns.
    pub out: *mut f32,
    pub terms: &'a [Term<'a>],
    /// Whether it is added to what is there.
    pub add: bool,
}

impl Sum<'_> {
    /// Multiplications.
    fn work(&self) -> usize {
        self.terms
            .iter()
            .map(|(left, right)| left.rows() * left.depth() * right.columns)
            .sum()
    }
}

/// How a sum is computed: in rounds, each of which packs some blocks of depth for a block of columns, and computes its tiles.
pub(super) struct Plan<'a> {
    sum: &'a Sum<'a>,
    kernel: &'static Kernel,
    size: [usize; 2],
    blocks: Vec<Vec<Piece>>,
    /// Blocks of a round, and its columns at most.
    together: usize,
    wide: usize,
    /// The factor of which tasks pack their panels themselves.
    own: Option<Side>,
    /// Panels of the left and the right factor in a group of tiles.
    group: [usize; 2],
    /// Packed elements of the left and the right factor in any round.
    pub room: [usize; 2],
}

/// The factor that tasks pack themselves, and the panels of both in a group, for at least so many tasks.
fn groups(
    kernel: &Kernel,
    terms: &[Term<'_>],
    [rows, columns]: [usize; 2],
    tasks: usize,
) -> (Option<Side>, [usize; 2]) {
    let right = columns.div_ceil(kernel.columns);
    let is_short = rows <= SHORT && 4 * columns >= 3 * rows && right >= OWN_RIGHT * tasks;
    if is_short && !terms.iter().any(|(_, right)| right.is_made()) {
        return (Some(Side::Right), [usize::MAX, OWN_RIGHT]);
    }
    let panels = [
        rows.div_ceil(kernel.rows),
        right.min(COLUMNS / kernel.columns),
    ];
    let in_rows = terms
        .iter()
        .all(|(left, _)| left.plain().is_some_and(|left| !left.is_transposed()));
    let own = (panels[0] / tasks).max(ENOUGH.min(2 * panels[0] / tasks));
    if in_rows && own >= OWN[0] {
        return (Some(Side::Left), [own.min(OWN[1]), usize::MAX]);
    }
    let across = panels[1].div_ceil(GROUP[1]);
    let down = panels[0].div_ceil(GROUP[0]).max(tasks.div_ceil(across));
    (None, [panels[0].div_ceil(down).max(FEW), GROUP[1]])
}

/// The places of a piece's panels in the room of the left and the right factor; none of a factor that is packed already or by the
/// tasks.
pub(super) type Places = [Option<Range<usize>>; 2];

impl<'a> Plan<'a> {
    /// Plans one of `sums` that are computed together.
    fn new(sum: &'a Sum<'a>, sums: usize, how: How) -> Option<Self> {
        let terms = sum.terms;
        let (left, right) = terms.first()?;
        let kernel = kernel_for(how.precision, right.columns);
        let size @ [rows, columns] = [left.rows(), right.columns];
        let blocks = blocks(kernel, terms);
        let tasks = (TASKS * how.threads.count()).div_ceil(sums);
        let (own, group) = groups(kernel, terms, size, tasks);
        let wide = if own == Some(Side::Right) {
            columns
        } else {
            columns.min(COLUMNS)
        };
        let most = |side: Side, length: &dyn Fn(&Piece) -> usize| {
            let blocks = blocks
                .iter()
                .map(|block| block.iter().map(length).sum::<usize>());
            if own == Some(side) {
                0
            } else {
                blocks.max().unwrap_or(0).next_multiple_of(LINE)
            }
        };
        let of_right = most(Side::Right, &|piece| {
            kernel.packed_len(Side::Right, wide, piece.steps)
        });
        let of_left = most(Side::Left, &|piece| match terms[piece.term].0 {
            Left::Plain(_) => kernel.packed_len(Side::Left, rows, piece.steps),
            Left::Packed(_) => 0,
        });
        let together = (ROUND / (of_left + of_right).max(1)).clamp(1, blocks.len());
        let room = [of_left, of_right].map(|room| together * room);
        Some(Self {
            sum,
            kernel,
            size,
            blocks,
            together,
            wide,
            own,
            group,
            room,
        })
    }

    pub fn rounds(&self) -> usize {
        self.size[1].div_ceil(self.wide) * self.blocks.len().div_ceil(self.together)
    }

    /// Groups of tiles of a round.
    pub fn groups(&self, round: usize) -> usize {
        let (_, columns) = self.round(round);
        tiles::parts(self.kernel, [self.size[0], columns.len()], self.group)
            .iter()
            .product()
    }

    /// The blocks of a round, and its columns.
    fn round(&self, round: usize) -> (&[Vec<Piece>], Range<usize>) {
        let rounds = self.blocks.len().div_ceil(self.together);
        let (first, column) = (round % rounds * self.together, round / rounds * self.wide);
        let end = (first + self.together).min(self.blocks.len());
        (
            &self.blocks[first..end],
            column..(column + self.wide).min(self.size[1]),
        )
    }

    /// The lanes of a piece of the left factor, unless that was packed before.
    fn left(&self, piece: &Piece) -> Option<Matrix<'a>> {
        let left = self.sum.terms[piece.term].0.plain()?;
        Some(left.part(0, self.size[0], piece.start, piece.steps))
    }

    /// The lanes of a piece of the right factor, some of its columns.
    fn right(&self, piece: &Piece, columns: &Range<usize>) -> Matrix<'a> {
        let right = self.sum.terms[piece.term].1.transposed();
        right.part(columns.start, columns.len(), piece.start, piece.steps)
    }

    /// Plans what a round packs, into memory from `room` on.
    pub fn pack(
        &self,
        round: usize,
        room: *mut f32,
        tasks: &mut Vec<PackTask<'a>>,
    ) -> Vec<Vec<Places>> {
        let (blocks, columns) = self.round(round);
        let mut used = [0, self.room[0]];
        let mut place = |piece: &Piece| {
            [Side::Left, Side::Right].map(|side| {
                let lanes = if side == Side::Left {
                    self.left(piece)
                } else {
                    Some(self.right(piece, &columns))
                };
                let lanes = lanes.filter(|_| self.own != Some(side))?;
                let start = used[side as usize];
                used[side as usize] += self.kernel.packed_len(side, lanes.rows, lanes.columns);
                pack_later(self.kernel, room.wrapping_add(start), side, lanes, tasks);
                Some(start..used[side as usize])
            })
        };
        blocks
            .iter()
            .map(|pieces| pieces.iter().map(&mut place).collect())
            .collect()
    }

    /// The tiles of a round, once it is packed.
    pub fn tiles<'b>(&'b self, round: usize, room: &'b [f32], places: &[Vec<Places>]) -> Tiles<'b> {
        let (blocks, columns) = self.round(round);
        let block = |(pieces, places): (&'b Vec<Piece>, &Vec<Places>)| {
            let segment = |(piece, [left, right]): (&Piece, &Places)| {
                let panels = |place: &Option<Range<usize>>| &room[place.clone().unwrap_or(0..0)];
                let left = match (left, &self.sum.terms[piece.term].0) {
                    (None, Left::Packed(packed)) => packed.block(self.kernel, piece.start),
                    (place, _) => panels(place),
                };
                Segment {
                    units: self.kernel.units(piece.steps),
                    left,
                    right: panels(right),
                }
            };
            let lanes = match self.own {
                None => Vec::new(),
                Some(Side::Left) => pieces.iter().filter_map(|piece| self.left(piece)).collect(),
                Some(Side::Right) => pieces
                    .iter()
                    .map(|piece| self.right(piece, &columns))
                    .collect(),
            };
            Block {
                segments: pieces.iter().zip(places).map(segment).collect(),
                lanes,
            }
        };
        let output = Output {
            start: self.sum.out.wrapping_add(columns.start),
            stride: self.size[1],
            size: [self.size[0], columns.len()],
        };
        let rounds = self.blocks.len().div_ceil(self.together);
        Tiles {
            kernel: self.kernel,
            blocks: blocks.iter().zip(places).map(block).collect(),
            own: self.own,
            parts: tiles::parts(self.kernel, output.size, self.group),
            output,
            add: self.sum.add || !round.is_multiple_of(rounds),
        }
    }
}

/// Sums of products. Where there are more than threads, the largest ones, one for each thread, are shared by all threads and come
/// last: they are enough to keep every thread busy until the end. Each of the others has a thread of its own.
///
/// # Safety
/// Every output has room for all of its rows and columns, initialised where something is added, and none overlaps another; no
/// size is zero.
#[allow(unsafe_code)]
pub(super) unsafe fn sums_of_products(sums: &[Sum<'_>], how: How) {
    let packed = |sum: &Sum<'_>| sum.terms.iter().all(|(left, _)| left.is_for(how.precision));
    assert!(
        sums.iter().all(packed),
        "factors packed for another precision"
    );
    let mut sums: Vec<&Sum<'_>> = sums.iter().collect();
    sums.sort_by_key(|sum| Reverse(sum.work()));
    let (shared, alone) = sums.split_at(how.threads.count().min(sums.len()));
    let together = shared.len();
    let shared: Vec<_> = shared
        .iter()
        .filter_map(|sum| Plan::new(sum, together, how))
        .collect();
    let alone: Vec<_> = alone
        .iter()
        .filter_map(|sum| Plan::new(sum, 1, How::one(how.precision)))
        .collect();
    // SAFETY: by the caller's promise.
    unsafe { stages::run(&alone, &shared, how.threads) };
}
