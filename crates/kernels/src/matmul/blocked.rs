//! Products through packed panels (Goto and van de Geijn, "Anatomy of high-performance matrix multiplication", 2008).
//!
//! For each block of columns and of the depth, both factors are packed, then tiles are computed, grouped so that what a
//! group reads stays in the second cache. Both steps run on all threads, for several products at once where they are small.
//! Where the left factor has many rows that lie in one piece, the tasks that compute tiles pack it themselves, each for its own
//! rows, through several blocks of depth: neither its panels nor the sums between two blocks leave the second cache.

use std::ops::Range;

use super::{
    How, Matrix, Precision, Threads, few_rows,
    kernel::{Kernel, Segment, Side, kernel, kernel_for},
    scratch,
    tiles::{Block, GROUP, Output, Tiles, run_tiles},
};
use crate::parallel::{fresh, threads};

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
/// Panels of a task that packs its left factor itself: enough to read the right factor for, and so few that they, a group of the
/// right factor's and their tiles stay in the second cache.
const OWN: [usize; 2] = [2, 6];
/// Panels for which half as many tasks will do: with fewer, a task would read the whole right factor for too little.
const ENOUGH: usize = 4;
/// Tasks for every thread that are enough to keep all of them busy.
const TASKS: usize = 8;
/// Panels of the left factor in a group, at least.
const FEW: usize = 3;
/// Packed elements of the right factor up to which a round takes further blocks of depth.
const ROUND: usize = 1 << 20;
/// Packed elements up to which sums are computed together: with more, tiles find them further away.
const TOGETHER: usize = 1 << 19;
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
                kernel.pack(panels, Side::Left, matrix.part(i * lanes, lanes_here, start, steps));
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

    fn is_for(&self, precision: Precision) -> bool {
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

/// A sum of products of one size, and where it goes.
pub(super) struct Sum<'a> {
    /// Rows of as many elements as the right factors have columns.
    pub out: *mut f32,
    pub terms: &'a [Term<'a>],
    /// Whether it is added to what is there.
    pub add: bool,
}

/// How a sum is computed: in rounds, each of which packs some blocks of depth for a block of columns, and computes its tiles.
struct Plan<'a> {
    sum: &'a Sum<'a>,
    kernel: &'static Kernel,
    size: [usize; 2],
    blocks: Vec<Vec<Piece>>,
    /// Blocks of a round.
    together: usize,
    /// Whether tasks pack their panels of the left factor themselves.
    own: bool,
    /// Panels of the left and the right factor in a group of tiles.
    group: [usize; 2],
    /// Packed elements of the right and the left factor in any round.
    room: [usize; 2],
}

/// The places of a piece's panels in the room of its factor; none of a left factor that is packed already or by the tasks.
type Places = (Option<Range<usize>>, Range<usize>);

impl<'a> Plan<'a> {
    fn new(sum: &'a Sum<'a>, how: How) -> Option<Self> {
        let terms = sum.terms;
        let (left, right) = terms.first()?;
        let kernel = kernel_for(how.precision, right.columns);
        let size @ [rows, columns] = [left.rows(), right.columns];
        let blocks = blocks(kernel, terms);
        let most = |length: &dyn Fn(&Piece) -> usize| {
            let blocks = blocks.iter().map(|block| block.iter().map(length).sum::<usize>());
            blocks.max().unwrap_or(0).next_multiple_of(LINE)
        };
        let of_right = most(&|piece| kernel.packed_len(Side::Right, columns.min(COLUMNS), piece.steps));
        let in_rows = terms.iter().all(|(left, _)| left.plain().is_some_and(|left| !left.is_transposed()));
        let workers = if how.threads == Threads::All { threads() } else { 1 };
        let panels = [rows.div_ceil(kernel.rows), columns.min(COLUMNS).div_ceil(kernel.columns)];
        let own = (panels[0] / (TASKS * workers)).max(ENOUGH.min(2 * panels[0] / (TASKS * workers)));
        if in_rows && own >= OWN[0] {
            let together = (ROUND / of_right.max(1)).clamp(1, blocks.len());
            let (room, group) = ([together * of_right, 0], [own.min(OWN[1]), usize::MAX]);
            return Some(Self { sum, kernel, size, blocks, together, own: true, group, room });
        }
        let across = panels[1].div_ceil(GROUP[1]);
        let down = panels[0].div_ceil(GROUP[0]).max((TASKS * workers).div_ceil(across));
        let group = [panels[0].div_ceil(down).max(FEW), GROUP[1]];
        let of_left = most(&|piece| match terms[piece.term].0 {
            Left::Plain(_) => kernel.packed_len(Side::Left, rows, piece.steps),
            Left::Packed(_) => 0,
        });
        let together = (ROUND / (of_right + of_left).max(1)).clamp(1, blocks.len());
        let room = [of_right, of_left].map(|room| together * room);
        Some(Self { sum, kernel, size, blocks, together, own: false, group, room })
    }

    fn rounds(&self) -> usize {
        self.size[1].div_ceil(COLUMNS) * self.blocks.len().div_ceil(self.together)
    }

    /// The blocks of a round, and its columns.
    fn round(&self, round: usize) -> (&[Vec<Piece>], Range<usize>) {
        let rounds = self.blocks.len().div_ceil(self.together);
        let (first, column) = (round % rounds * self.together, round / rounds * COLUMNS);
        let end = (first + self.together).min(self.blocks.len());
        (&self.blocks[first..end], column..(column + COLUMNS).min(self.size[1]))
    }

    /// The left factor of a piece.
    fn left(&self, piece: &Piece) -> Option<Matrix<'a>> {
        let left = self.sum.terms[piece.term].0.plain()?;
        Some(left.part(0, self.size[0], piece.start, piece.steps))
    }

    /// Plans what a round packs.
    fn pack<'b>(&self, round: usize, room: &'b mut [f32], tasks: &mut Vec<PackTask<'b>>) -> Vec<Vec<Places>>
    where
        'a: 'b,
    {
        let (blocks, columns) = self.round(round);
        let (mut free_right, mut free_left) = room.split_at_mut(self.room[0]);
        let mut used = [0, self.room[0]];
        let mut take = |side: usize, length: usize| {
            used[side] += length;
            used[side] - length..used[side]
        };
        let mut place = |piece: &Piece| {
            let Piece { term, start, steps } = *piece;
            let right = self.sum.terms[term].1.transposed().part(columns.start, columns.len(), start, steps);
            pack_later(self.kernel, &mut free_right, Side::Right, right, tasks);
            let right = take(0, self.kernel.packed_len(Side::Right, columns.len(), steps));
            let left = self.left(piece).filter(|_| !self.own).map(|left| {
                pack_later(self.kernel, &mut free_left, Side::Left, left, tasks);
                take(1, self.kernel.packed_len(Side::Left, self.size[0], steps))
            });
            (left, right)
        };
        blocks.iter().map(|pieces| pieces.iter().map(&mut place).collect()).collect()
    }

    /// The tiles of a round, once it is packed.
    fn tiles<'b>(&'b self, round: usize, room: &'b [f32], places: &[Vec<Places>]) -> Tiles<'b> {
        let (blocks, columns) = self.round(round);
        let block = |(pieces, places): (&'b Vec<Piece>, &Vec<Places>)| {
            let segment = |(piece, (left, right)): (&Piece, &Places)| {
                let left = match (left, &self.sum.terms[piece.term].0) {
                    (None, Left::Packed(packed)) => packed.block(self.kernel, piece.start),
                    (place, _) => &room[place.clone().unwrap_or(0..0)],
                };
                Segment { units: self.kernel.units(piece.steps), left, right: &room[right.clone()] }
            };
            let lefts = match self.own {
                true => pieces.iter().filter_map(|piece| self.left(piece)).collect(),
                false => Vec::new(),
            };
            Block { segments: pieces.iter().zip(places).map(segment).collect(), lefts }
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
            group: self.group,
            output,
            add: self.sum.add || !round.is_multiple_of(rounds),
        }
    }
}

/// Sums of products, several at a time where they are small: then no thread waits for the last tiles of each.
///
/// # Safety
/// Every output has room for all of its rows and columns, initialised where something is added, and none overlaps another; no
/// size is zero.
#[allow(unsafe_code)]
pub(super) unsafe fn sums_of_products(sums: &[Sum<'_>], how: How) {
    let packed = |sum: &Sum<'_>| sum.terms.iter().all(|(left, _)| left.is_for(how.precision));
    assert!(sums.iter().all(packed), "factors packed for another precision");
    let plans: Vec<Plan<'_>> = sums.iter().filter_map(|sum| Plan::new(sum, how)).collect();
    let mut stages = Vec::new();
    let mut rest = &plans[..];
    while !rest.is_empty() {
        let ends = rest.iter().scan(0, |room, plan| {
            *room += plan.room.iter().sum::<usize>();
            Some(*room)
        });
        let together = ends.take_while(|room| *room <= TOGETHER).count().max(1);
        let rounds = rest[..together].iter().map(Plan::rounds).max().unwrap_or(0);
        stages.extend((0..rounds).map(|round| Stage { plans: &rest[..together], round }));
        rest = &rest[together..];
    }
    // SAFETY: by the caller's promise.
    unsafe { run_stages(&stages, how.threads) };
}

/// One round of plans that are computed together.
struct Stage<'a> {
    plans: &'a [Plan<'a>],
    round: usize,
}

impl<'a> Stage<'a> {
    /// The plans that have such a round.
    fn running(&self) -> impl Iterator<Item = &'a Plan<'a>> + use<'a> {
        let round = self.round;
        self.plans.iter().filter(move |plan| round < plan.rounds())
    }

    /// Packed elements.
    fn room(&self) -> usize {
        self.running().flat_map(|plan| plan.room).sum()
    }

    /// Plans what is packed, and where for each running plan.
    fn pack<'b>(&self, mut free: &'b mut [f32]) -> (Vec<PackTask<'b>>, Vec<Vec<Vec<Places>>>)
    where
        'a: 'b,
    {
        let mut tasks = Vec::new();
        let one = |plan: &Plan<'a>| {
            let (room, behind) = std::mem::take(&mut free).split_at_mut(plan.room.iter().sum());
            free = behind;
            plan.pack(self.round, room, &mut tasks)
        };
        let places = self.running().map(one).collect();
        (tasks, places)
    }

    /// The tiles, once all is packed.
    fn tiles<'b>(&self, mut rest: &'b [f32], places: &[Vec<Vec<Places>>]) -> Vec<Tiles<'b>>
    where
        'a: 'b,
    {
        let one = |(plan, places): (&'a Plan<'a>, &Vec<Vec<Places>>)| {
            let (room, behind) = rest.split_at(plan.room.iter().sum());
            rest = behind;
            plan.tiles(self.round, room, places)
        };
        self.running().zip(places).map(one).collect()
    }
}

/// All stages in order. While the last tiles of one are computed, the next one is packed, so that no thread waits.
///
/// # Safety
/// As for [`sums_of_products`].
#[allow(unsafe_code)]
unsafe fn run_stages(stages: &[Stage<'_>], threads: Threads) {
    let most = stages.iter().map(Stage::room).max().unwrap_or(0).next_multiple_of(LINE);
    scratch::with(most * stages.len().min(2), |room| {
        let (mut here, mut next) = room.split_at_mut(most);
        let mut places = Vec::new();
        if let Some(first) = stages.first() {
            let (tasks, first_places) = first.pack(here);
            // SAFETY: there are no tiles.
            unsafe { run_tiles(&[], tasks.len(), &|i| tasks[i].run(), threads) };
            places = first_places;
        }
        for (i, stage) in stages.iter().enumerate() {
            let tiles = stage.tiles(here, &places);
            let (tasks, next_places) = stages.get(i + 1).map(|stage| stage.pack(next)).unwrap_or_default();
            // SAFETY: the outputs have room for all rows and columns by the caller's promise.
            unsafe { run_tiles(&tiles, tasks.len(), &|i| tasks[i].run(), threads) };
            drop((tiles, tasks));
            places = next_places;
            std::mem::swap(&mut here, &mut next);
        }
    });
}

/// Panels, or steps of them, to be packed: where, of which width, from which lanes.
struct PackTask<'a> {
    kernel: &'static Kernel,
    out: *mut f32,
    panel: usize,
    side: Side,
    lanes: Matrix<'a>,
}

#[allow(unsafe_code)]
// SAFETY: each task writes to its own part of memory that is borrowed for as long as the tasks live, and runs once.
unsafe impl Sync for PackTask<'_> {}

/// Plans to pack the rows of `matrix` as lanes, in tasks of a few panels or steps, at the start of `free`, which loses that
/// part.
fn pack_later<'a>(
    kernel: &'static Kernel,
    free: &mut &'a mut [f32],
    side: Side,
    matrix: Matrix<'a>,
    tasks: &mut Vec<PackTask<'a>>,
) {
    let width = kernel.width(side);
    let length = kernel.packed_len(side, matrix.rows, matrix.columns);
    let (here, rest) = std::mem::take(free).split_at_mut(length);
    *free = rest;
    let (rows, columns) = (matrix.rows, matrix.columns);
    let (start, panel) = (here.as_mut_ptr(), kernel.units(columns));
    if matrix.row_stride == 1 {
        tasks.extend((0..columns).step_by(STEPS).map(|first| {
            let out = start.wrapping_add(first / kernel.pair * width);
            PackTask { kernel, out, panel, side, lanes: matrix.part(0, rows, first, STEPS.min(columns - first)) }
        }));
        return;
    }
    let lanes = PACKED * width;
    tasks.extend((0..rows).step_by(lanes).map(|first| {
        let out = start.wrapping_add(first * panel);
        PackTask { kernel, out, panel, side, lanes: matrix.part(first, lanes.min(rows - first), 0, columns) }
    }));
}

impl PackTask<'_> {
    fn run(&self) {
        let PackTask { kernel, out, panel, side, lanes } = *self;
        #[allow(unsafe_code)]
        // SAFETY: tasks are planned in memory that holds all panels, each unit of them in one task.
        unsafe {
            kernel.pack_steps(out, side, lanes, panel);
        }
    }
}
