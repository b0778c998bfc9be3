//! The forward, one task for each head of each sequence, chunk by chunk.

use super::{
    super::{
        channel_block::{self, ChannelBlock, LANES, blocks_of},
        sequence::{Sequence, readable},
        tables::{Factor, ROWS, add_product, scale_rows},
    },
    chunk::{Chunk, STEPS, load},
};
use crate::{
    fused::{FusedOperator, Given, Saved, Side, contiguous, dimensions, slice, tensor},
    matmul::scratch,
    parallel::{FreshRows, for_each, threads},
    simd::vectorised,
};
use burn_flex::FlexTensor;
use std::ops::Range;

/// The operator over receptance, key, value, decay, bonus and state; the last state leaves by the side.
#[derive(Debug)]
pub(super) struct Wkv {
    pub last: Side,
}

/// Chunks between two kept states.
pub(super) const KEPT: usize = 4;
/// Heads of a task at most.
const MOST: usize = 4;

/// The recurrence's inputs.
pub(super) struct Inputs<'a> {
    receptance: Sequence<'a>,
    key: Sequence<'a>,
    value: Sequence<'a>,
    decay: Sequence<'a>,
    /// Whether one row of decays stands for all steps.
    pub constant: bool,
    bonus: &'a [f32],
    pub batch: usize,
    pub time: usize,
    pub heads: usize,
    pub keys: usize,
    pub values: usize,
}

/// One step of one head.
pub(super) struct Step<'a> {
    pub receptance: &'a [f32],
    pub key: &'a [f32],
    pub value: &'a [f32],
    pub decay: &'a [f32],
}

impl<'a> Inputs<'a> {
    pub fn prepared(
        [receptance, key, value, decay, bonus, state]: &[FlexTensor; 6],
    ) -> [FlexTensor; 6] {
        let [receptance, key, value, decay] = [receptance, key, value, decay].map(readable);
        [
            receptance,
            key,
            value,
            decay,
            contiguous(bonus),
            contiguous(state),
        ]
    }

    pub fn new([receptance, key, value, decay, bonus, state]: &'a [FlexTensor; 6]) -> Self {
        let [receptance, key, value] = [receptance, key, value].map(Sequence::new);
        let (batch, time, shape) = (value.batch, value.time, dimensions(state));
        let constant = dimensions(decay)[..2] != [batch, time];
        let decay = Sequence::repeated(decay, batch, time);
        let [heads, keys, values] = [shape[1], shape[2], shape[3]];
        Self {
            receptance,
            key,
            value,
            decay,
            constant,
            bonus: slice(bonus),
            batch,
            time,
            heads,
            keys,
            values,
        }
    }

    pub fn step(&self, batch: usize, head: usize, time: usize) -> Step<'a> {
        let of = |sequence: &Sequence<'a>, width: usize| {
            &sequence.row(batch, time)[head * width..(head + 1) * width]
        };
        Step {
            receptance: of(&self.receptance, self.keys),
            key: of(&self.key, self.keys),
            value: of(&self.value, self.values),
            decay: of(&self.decay, self.keys),
        }
    }

    pub fn bonus(&self, head: usize) -> &'a [f32] {
        &self.bonus[head * self.keys..(head + 1) * self.keys]
    }

    /// Chunks of a sequence.
    pub fn chunks(&self) -> usize {
        self.time.div_ceil(STEPS)
    }

    /// The steps of a chunk.
    pub fn chunk(&self, chunk: usize) -> Range<usize> {
        chunk * STEPS..((chunk + 1) * STEPS).min(self.time)
    }

    /// States of a sequence that are kept.
    pub fn kept(&self) -> usize {
        self.chunks().div_ceil(KEPT)
    }

    /// The chunks from a kept state on.
    pub fn chunks_of(&self, kept: usize) -> Range<usize> {
        kept * KEPT..((kept + 1) * KEPT).min(self.chunks())
    }

    /// Numbers of one state.
    pub fn size(&self) -> usize {
        self.keys * self.values
    }

    /// Vectors of a row of keys and of a row of values.
    pub fn blocks(&self) -> [usize; 2] {
        [self.keys, self.values].map(|channels| channels.div_ceil(LANES))
    }

    /// Outputs, last states, and where asked the states before every [`KEPT`] chunks.
    fn forward(&self, state: &[f32], keep: bool) -> [Vec<f32>; 3] {
        let states = self.batch * self.heads;
        let kept = if keep {
            states * self.kept() * self.size()
        } else {
            0
        };
        let task = Task {
            inputs: self,
            state,
            keep,
            y: FreshRows::new(self.value.len(), self.heads * self.values),
            last: FreshRows::new(states * self.size(), self.size()),
            kept: FreshRows::new(kept, self.size()),
        };
        for_each(self.batch * self.groups(), |number| task.run(number));
        #[allow(unsafe_code)]
        // SAFETY: the tasks wrote every step of every head.
        unsafe {
            [task.y.whole(), task.last.whole(), task.kept.whole()]
        }
    }

    /// Heads of a task. Those of one step lie side by side, and memory is read in long pieces; but every thread wants work.
    fn together(&self) -> usize {
        (self.batch * self.heads / (2 * threads())).clamp(1, MOST)
    }

    pub fn groups(&self) -> usize {
        self.heads.div_ceil(self.together())
    }

    /// The sequence of a task and its heads.
    pub fn place(&self, task: usize) -> (usize, Range<usize>) {
        let (batch, first) = (task / self.groups(), task % self.groups() * self.together());
        (batch, first..(first + self.together()).min(self.heads))
    }
}

/// The forward of some heads.
struct Task<'a> {
    inputs: &'a Inputs<'a>,
    state: &'a [f32],
    keep: bool,
    y: FreshRows,
    last: FreshRows,
    kept: FreshRows,
}

#[allow(unsafe_code)]
impl Task<'_> {
    fn run(&self, number: usize) {
        let (inputs, (batch, heads)) = (self.inputs, self.inputs.place(number));
        let ([keys, values], size) = (inputs.blocks(), inputs.size());
        let table = keys * LANES * values;
        let tables = [heads.len() * table * LANES, STEPS * values * LANES];
        scratch::parts(Chunk::lengths(inputs), |buffers| {
            scratch::parts(tables, |[states, y]| {
                let (mut chunk, states, y) =
                    (Chunk::new(inputs, buffers), blocks_of(states), blocks_of(y));
                let first = batch * inputs.heads + heads.start;
                for (i, s) in states.chunks_exact_mut(table).enumerate() {
                    gather(
                        s,
                        &self.state[(first + i) * size..(first + i + 1) * size],
                        inputs.values,
                    );
                }
                for kept in 0..inputs.kept() {
                    for (head, s) in heads.clone().zip(states.chunks_exact_mut(table)) {
                        self.head(&mut chunk, s, y, [batch, head, kept]);
                    }
                }
                for (i, s) in states.chunks_exact(table).enumerate() {
                    // SAFETY: each head of a sequence comes once.
                    scatter(unsafe { self.last.row(first + i) }, s, inputs.values);
                }
            });
        });
    }

    /// The chunks of a head from a kept state on.
    fn head(
        &self,
        chunk: &mut Chunk<'_>,
        s: &mut [ChannelBlock],
        y: &mut [ChannelBlock],
        [batch, head, kept]: [usize; 3],
    ) {
        let inputs = self.inputs;
        if self.keep {
            let row = (batch * inputs.heads + head) * inputs.kept() + kept;
            // SAFETY: each kept state of a head comes once.
            scatter(unsafe { self.kept.row(row) }, s, inputs.values);
        }
        for number in inputs.chunks_of(kept) {
            chunk.read(inputs, batch, head, number);
            chunk.mix(inputs.bonus(head));
            advance(s, y, chunk);
            for (y, t) in y.chunks_exact(chunk.values).zip(inputs.chunk(number)) {
                let columns = head * inputs.values..(head + 1) * inputs.values;
                // SAFETY: each step of a head comes once.
                store(unsafe { self.y.part(batch * inputs.time + t, columns) }, y);
            }
        }
    }
}

/// The outputs of a chunk from the state before it, which becomes the state behind it.
fn advance(s: &mut [ChannelBlock], y: &mut [ChannelBlock], chunk: &Chunk<'_>) {
    let y = &mut y[..chunk.steps.next_multiple_of(ROWS) * chunk.values];
    y.fill([0.0; LANES]);
    add_product(
        y,
        Factor::new(chunk.mixing, STEPS),
        chunk.value,
        chunk.steps,
        chunk.values,
    );
    let (from_start, width) = (chunk.from_start.as_flattened(), chunk.keys * LANES);
    add_product(y, Factor::new(from_start, width), s, width, chunk.values);
    scale_rows(s, chunk.whole.as_flattened(), chunk.values);
    let to_end = Factor::transposed(chunk.to_end.as_flattened(), width);
    add_product(s, to_end, chunk.value, chunk.steps, chunk.values);
}

/// A state `[keys, values]` as rows of vectors.
pub(super) fn gather(s: &mut [ChannelBlock], state: &[f32], values: usize) {
    let blocks = values.div_ceil(LANES);
    s.fill([0.0; LANES]);
    s.chunks_exact_mut(blocks)
        .zip(state.chunks_exact(values))
        .for_each(|(s, row)| load(s, row));
}

/// The way back of [`gather`].
pub(super) fn scatter(state: &mut [f32], s: &[ChannelBlock], values: usize) {
    let blocks = values.div_ceil(LANES);
    s.chunks_exact(blocks)
        .zip(state.chunks_exact_mut(values))
        .for_each(|(s, row)| store(row, s));
}

vectorised! {
    /// Writes a row of vectors, as much as `out` takes.
    pub(super) fn store(out: &mut [f32], row: &[ChannelBlock]) {
        for (block, lane) in row.iter().enumerate() {
            let columns = channel_block::columns(out.len(), block);
            channel_block::store(&mut out[columns], lane);
        }
    }
}

impl FusedOperator<6> for Wkv {
    fn forward(&self, inputs: &[FlexTensor; 6], wanted: [bool; 6]) -> (FlexTensor, Saved) {
        let tensors = Inputs::prepared(inputs);
        let inputs = Inputs::new(&tensors);
        let [y, last, kept] = inputs.forward(slice(&tensors[5]), wanted.contains(&true));
        self.last.put(tensor(last, &dimensions(&tensors[5])));
        (tensor(y, &inputs.value.shape()), vec![kept])
    }

    fn backward(&self, given: Given<6>, _: [bool; 6]) -> [Option<FlexTensor>; 6] {
        let tensors = Inputs::prepared(&given.inputs);
        let of_last = self.last.gradient().map(|gradient| contiguous(&gradient));
        let of_last = of_last.as_ref().map(slice);
        let found = super::backward::run(
            &Inputs::new(&tensors),
            &given.saved[0],
            slice(&given.gradient),
            of_last,
        );
        let mut shapes = tensors.iter().map(dimensions);
        found.map(|values| shapes.next().map(|shape| tensor(values, &shape)))
    }
}
