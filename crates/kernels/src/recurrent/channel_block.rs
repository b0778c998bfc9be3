//! Vectors of neighbouring channels, the unit in which the recurrences compute.

use std::ops::Range;

use crate::{parallel::threads, simd::add};

/// Channels of a vector.
pub(super) const LANES: usize = 32;

/// Neighbouring channels.
pub(super) type ChannelBlock = [f32; LANES];

/// The vector of a value for every channel `l`. No function of one, whose argument the compiler might leave as a call.
macro_rules! channels {
    ($l:ident => $value:expr) => {{
        let mut lane = [0.0; $crate::recurrent::channel_block::LANES];
        for $l in 0..$crate::recurrent::channel_block::LANES {
            lane[$l] = $value;
        }
        lane
    }};
}

pub(super) use channels;

/// The channels of vector `block` among `width`.
#[inline(always)]
pub(super) fn columns(width: usize, block: usize) -> Range<usize> {
    (block * LANES).min(width)..((block + 1) * LANES).min(width)
}

/// Vectors of a group.
pub(super) const GROUP: usize = 8;
/// Groups of a task at most: a page of memory holds a step of their channels.
const MOST: usize = 4;

/// Groups of the channels of a sequence.
pub(super) fn groups(width: usize) -> usize {
    width.div_ceil(LANES).div_ceil(GROUP)
}

/// Tasks that share the channels of a batch among threads. The inputs of neighbouring channels at one step lie together, and the
/// processor fetches it ahead; so a task takes as many groups of one sequence as leave enough tasks for all threads.
#[derive(Clone, Copy)]
pub(super) struct Tasks {
    batch: usize,
    /// Vectors of a sequence and of a task.
    blocks: usize,
    together: usize,
}

impl Tasks {
    /// For `batch` sequences of `width` channels.
    pub fn new(batch: usize, width: usize) -> Self {
        let together = (batch * groups(width) / (2 * threads())).clamp(1, MOST);
        Self {
            batch,
            blocks: width.div_ceil(LANES),
            together: together * GROUP,
        }
    }

    /// How many there are.
    pub fn count(self) -> usize {
        self.batch * self.of_sequence()
    }

    /// The sequence of a task, and its vectors of channels.
    pub fn place(self, task: usize) -> (usize, Range<usize>) {
        let first = task % self.of_sequence() * self.together;
        (
            task / self.of_sequence(),
            first..(first + self.together).min(self.blocks),
        )
    }

    fn of_sequence(self) -> usize {
        self.blocks.div_ceil(self.together).max(1)
    }
}

/// The vector at the start of `values`; zeros behind their end.
#[inline(always)]
pub(super) fn load(values: &[f32]) -> ChannelBlock {
    match values.first_chunk::<LANES>() {
        Some(lane) => *lane,
        None => load_part(values),
    }
}

/// Apart from the rest, which the compiler then keeps in registers.
#[cold]
#[inline(never)]
fn load_part(values: &[f32]) -> ChannelBlock {
    let mut lane = [0.0; LANES];
    lane[..values.len()].copy_from_slice(values);
    lane
}

/// Vector `block` of a row; zeros behind its end.
#[inline(always)]
pub(super) fn block(row: &[f32], block: usize) -> ChannelBlock {
    load(&row[columns(row.len(), block)])
}

/// Writes as much of the vector as `out` takes.
#[inline(always)]
pub(super) fn store(out: &mut [f32], lane: &ChannelBlock) {
    match out.first_chunk_mut::<LANES>() {
        Some(out) => *out = *lane,
        None => store_part(out, *lane),
    }
}

/// See [`load_part`].
#[cold]
#[inline(never)]
fn store_part(out: &mut [f32], lane: ChannelBlock) {
    out.copy_from_slice(&lane[..out.len()]);
}

/// The sum over the channels, always in the same order.
#[inline(always)]
pub(super) fn total(lane: &ChannelBlock) -> f32 {
    let mut lane = *lane;
    let mut half = LANES / 2;
    while half > 0 {
        for l in 0..half {
            lane[l] += lane[l + half];
        }
        half /= 2;
    }
    lane[0]
}

/// A buffer as vectors.
pub(super) fn blocks_of(values: &mut [f32]) -> &mut [ChannelBlock] {
    values.as_chunks_mut::<LANES>().0
}

/// Sums of equal parts, in order: `parts` holds them one after another, `length` numbers each.
pub(super) fn summed(parts: &[f32], length: usize) -> Vec<f32> {
    let mut sums = vec![0.0; length];
    for part in parts.chunks_exact(length.max(1)) {
        add(&mut sums, part);
    }
    sums
}
