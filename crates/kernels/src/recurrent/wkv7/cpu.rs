//! The recurrence, one task for each head of each sequence: every row of the state is on its own, with its keys side by
//! side.
//!
//! With `D` the gradient of the state, backwards in time: `D += dy_t r_t^T`, `dr_t = S_t^T dy_t`,
//! `dw_t = colsum(D S_{t-1})`, `e = D b_t`, `da_t = S_{t-1}^T e`, `db_t = D^T (S_{t-1} a_t)`, `dv_t = D k_t`,
//! `dk_t = D^T v_t`, `D <- D diag(w_t) + e a_t^T`. The states of a chunk of time are computed again.

use super::super::{
    channel_block::{self, ChannelBlock, LANES, blocks_of, channels},
    sequence::{Sequence, readable},
};
use crate::{
    fused::{FusedOperator, Given, Saved, Side, contiguous, dimensions, slice, tensor},
    matmul::scratch,
    parallel::{DisjointRows, for_each, zeros},
    simd::{exp, vectorised},
};
use burn_flex::FlexTensor;

/// The operator over receptance, logarithm of the decay, key, value, removal, replacement and state; the last state leaves
/// by the side.
#[derive(Debug)]
pub(super) struct Wkv {
    pub last: Side,
}

/// Steps between two kept states.
const CHUNK: usize = 32;

/// The vectors of a step that have a number for each key, by their place in a step's table, `[TABLE][blocks]`.
const RECEPTANCE: usize = 0;
const DECAY: usize = 1;
const KEY: usize = 2;
const REMOVAL: usize = 3;
const REPLACEMENT: usize = 4;
const TABLE: usize = 5;

/// The recurrence's inputs.
struct Inputs<'a> {
    /// In the order of the table.
    by_key: [Sequence<'a>; TABLE],
    value: Sequence<'a>,
    state: &'a [f32],
    heads: usize,
    values: usize,
    keys: usize,
    blocks: usize,
}

/// The vectors of one step.
struct Step<'a> {
    table: &'a [ChannelBlock],
    value: &'a [f32],
    blocks: usize,
}

impl Step<'_> {
    #[inline(always)]
    fn vector(&self, place: usize, block: usize) -> ChannelBlock {
        self.table[place * self.blocks + block]
    }
}

vectorised! {
    fn fill<const FUSED: bool>(table: &mut [ChannelBlock], rows: [&[f32]; TABLE], blocks: usize) {
        for (place, row) in rows.into_iter().enumerate() {
            for block in 0..blocks {
                let values = channel_block::block(row, block);
                table[place * blocks + block] = if place == DECAY { channels!(l => exp::<FUSED>(values[l])) } else { values };
            }
        }
    }
}

vectorised! {
    /// One step: from the state `before` to the one `after`, `[values][blocks]`, and the output.
    fn advance(y: &mut [f32], before: &[ChannelBlock], after: &mut [ChannelBlock], step: &Step<'_>) {
        let rows = before.chunks_exact(step.blocks).zip(after.chunks_exact_mut(step.blocks));
        for (((before, after), y), &v) in rows.zip(y).zip(step.value) {
            let mut removed = [0.0; LANES];
            for (block, &s) in before.iter().enumerate() {
                let a = step.vector(REMOVAL, block);
                removed = channels!(l => removed[l] + s[l] * a[l]);
            }
            let removed = channel_block::total(&removed);
            let mut sum = [0.0; LANES];
            for (block, (&s, out)) in before.iter().zip(after).enumerate() {
                let (w, b, k) = (step.vector(DECAY, block), step.vector(REPLACEMENT, block), step.vector(KEY, block));
                let r = step.vector(RECEPTANCE, block);
                let next = channels!(l => s[l] * w[l] + removed * b[l] + v * k[l]);
                sum = channels!(l => sum[l] + next[l] * r[l]);
                *out = next;
            }
            *y = channel_block::total(&sum);
        }
    }
}

/// Adds the product of a vector and a number to a gradient.
#[inline(always)]
fn add(out: &mut ChannelBlock, values: &ChannelBlock, factor: f32) {
    let before = *out;
    *out = channels!(l => before[l] + values[l] * factor);
}

vectorised! {
    /// One step backwards between two states: adds to the gradients of the table's vectors and writes the value's.
    fn retreat(d: &mut [ChannelBlock], of_table: &mut [ChannelBlock], of_value: &mut [f32], states: [&[ChannelBlock]; 2], step: &Step<'_>, gradient: &[f32]) {
        let blocks = step.blocks;
        let rows = d.chunks_exact_mut(blocks).zip(states[0].chunks_exact(blocks)).zip(states[1].chunks_exact(blocks));
        for ((((d, before), after), (&v, &dy)), of_value) in rows.zip(step.value.iter().zip(gradient)).zip(of_value) {
            let (mut removed, mut of_removed, mut of_v) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
            for (block, (d, s)) in d.iter_mut().zip(before).enumerate() {
                let (r, a) = (step.vector(RECEPTANCE, block), step.vector(REMOVAL, block));
                let (b, k) = (step.vector(REPLACEMENT, block), step.vector(KEY, block));
                let old = *d;
                let now = channels!(l => old[l] + dy * r[l]);
                removed = channels!(l => removed[l] + s[l] * a[l]);
                of_removed = channels!(l => of_removed[l] + now[l] * b[l]);
                of_v = channels!(l => of_v[l] + now[l] * k[l]);
                *d = now;
            }
            let (removed, of_removed) = (channel_block::total(&removed), channel_block::total(&of_removed));
            *of_value = channel_block::total(&of_v);
            for (block, (d, (s, after))) in d.iter_mut().zip(before.iter().zip(after)).enumerate() {
                let (w, a, now) = (step.vector(DECAY, block), step.vector(REMOVAL, block), *d);
                add(&mut of_table[RECEPTANCE * blocks + block], after, dy);
                let of_decay = of_table[DECAY * blocks + block];
                of_table[DECAY * blocks + block] = channels!(l => of_decay[l] + now[l] * s[l]);
                add(&mut of_table[REMOVAL * blocks + block], s, of_removed);
                add(&mut of_table[REPLACEMENT * blocks + block], &now, removed);
                add(&mut of_table[KEY * blocks + block], &now, v);
                *d = channels!(l => now[l] * w[l] + of_removed * a[l]);
            }
        }
        for block in 0..blocks {
            // The decay is an exponential.
            let (w, of_decay) = (step.vector(DECAY, block), of_table[DECAY * blocks + block]);
            of_table[DECAY * blocks + block] = channels!(l => of_decay[l] * w[l]);
        }
    }
}

impl<'a> Inputs<'a> {
    fn prepared(
        [receptance, decay, key, value, removal, replacement, state]: &[FlexTensor; 7],
    ) -> [FlexTensor; 7] {
        let [receptance, decay, key, value, removal, replacement] =
            [receptance, decay, key, value, removal, replacement].map(readable);
        [
            receptance,
            decay,
            key,
            value,
            removal,
            replacement,
            contiguous(state),
        ]
    }

    fn new(
        [receptance, decay, key, value, removal, replacement, state]: &'a [FlexTensor; 7],
    ) -> Self {
        let by_key = [receptance, decay, key, removal, replacement].map(Sequence::new);
        let shape = dimensions(state);
        let [heads, values, keys] = [shape[1], shape[2], shape[3]];
        let (value, blocks) = (Sequence::new(value), keys.div_ceil(LANES));
        Self {
            by_key,
            value,
            state: slice(state),
            heads,
            values,
            keys,
            blocks,
        }
    }

    /// The vectors of a step, in memory for its table.
    fn step<'b>(
        &self,
        table: &'b mut [ChannelBlock],
        batch: usize,
        head: usize,
        time: usize,
    ) -> Step<'b>
    where
        'a: 'b,
    {
        let columns = head * self.keys..(head + 1) * self.keys;
        fill(
            table,
            self.by_key
                .map(|sequence| &sequence.row(batch, time)[columns.clone()]),
            self.blocks,
        );
        Step {
            table,
            value: &self.value.row(batch, time)[self.columns(head)],
            blocks: self.blocks,
        }
    }

    /// Where a head's values lie in a row.
    fn columns(&self, head: usize) -> std::ops::Range<usize> {
        head * self.values..(head + 1) * self.values
    }

    fn chunks(&self) -> usize {
        self.value.time.div_ceil(CHUNK)
    }

    /// Numbers of one state.
    fn size(&self) -> usize {
        self.values * self.keys
    }

    /// A state in vectors, `[values][blocks]`.
    fn gather(&self, s: &mut [ChannelBlock], table: &[f32]) {
        for (s, row) in s
            .chunks_exact_mut(self.blocks)
            .zip(table.chunks_exact(self.keys))
        {
            s.iter_mut()
                .enumerate()
                .for_each(|(block, s)| *s = channel_block::block(row, block));
        }
    }

    /// The way back.
    fn scatter(&self, table: &mut [f32], s: &[ChannelBlock]) {
        for (s, row) in s
            .chunks_exact(self.blocks)
            .zip(table.chunks_exact_mut(self.keys))
        {
            for (s, out) in s.iter().zip(row.chunks_mut(LANES)) {
                channel_block::store(out, s);
            }
        }
    }

    /// Outputs, last states, and where asked the states before every chunk.
    #[allow(unsafe_code)]
    fn forward(&self, keep: bool) -> [Vec<f32>; 3] {
        let (heads, time, tasks) = (self.heads, self.value.time, self.value.batch * self.heads);
        let mut y = zeros(self.value.len());
        let mut last = zeros(tasks * self.size());
        let mut kept = zeros(if keep {
            tasks * self.chunks() * self.size()
        } else {
            0
        });
        let y_rows = DisjointRows::new(&mut y, self.value.width);
        let (last_rows, kept_rows) = (
            DisjointRows::new(&mut last, self.size()),
            DisjointRows::new(&mut kept, self.size()),
        );
        let length = self.values * self.blocks * LANES;
        for_each(tasks, |task| {
            let (batch, head) = (task / heads, task % heads);
            scratch::parts(
                [length, length, TABLE * self.blocks * LANES],
                |[s, next, table]| {
                    let (mut s, mut next, table) =
                        (blocks_of(s), blocks_of(next), blocks_of(table));
                    self.gather(s, &self.state[task * self.size()..(task + 1) * self.size()]);
                    for t in 0..time {
                        if keep && t.is_multiple_of(CHUNK) {
                            // SAFETY: each chunk comes once in a task.
                            self.scatter(
                                unsafe { kept_rows.row(task * self.chunks() + t / CHUNK) },
                                s,
                            );
                        }
                        // SAFETY: each step of a head comes once.
                        let y = unsafe { y_rows.part(batch * time + t, self.columns(head)) };
                        advance(y, s, next, &self.step(table, batch, head, t));
                        std::mem::swap(&mut s, &mut next);
                    }
                    // SAFETY: each task has a row of its own.
                    self.scatter(unsafe { last_rows.row(task) }, s);
                },
            );
        });
        [y, last, kept]
    }

    /// Gradients of all inputs, in their order.
    fn backward(&self, kept: &[f32], gradient: &[f32], of_last: Option<&[f32]>) -> [Vec<f32>; 7] {
        let mut of_table = [0; TABLE].map(|_| zeros(self.by_key[0].len()));
        let (mut of_value, mut of_state) = (zeros(gradient.len()), zeros(self.state.len()));
        {
            let width = self.heads * self.keys;
            let task = Task {
                inputs: self,
                kept,
                gradient,
                of_last,
                of_table: of_table
                    .each_mut()
                    .map(|values| DisjointRows::new(values, width)),
                of_value: DisjointRows::new(&mut of_value, self.value.width),
                of_state: DisjointRows::new(&mut of_state, self.size()),
            };
            for_each(self.value.batch * self.heads, |number| task.run(number));
        }
        let [receptance, decay, key, removal, replacement] = of_table;
        [
            receptance,
            decay,
            key,
            of_value,
            removal,
            replacement,
            of_state,
        ]
    }
}

struct Task<'a> {
    inputs: &'a Inputs<'a>,
    kept: &'a [f32],
    gradient: &'a [f32],
    of_last: Option<&'a [f32]>,
    of_table: [DisjointRows<'a>; TABLE],
    of_value: DisjointRows<'a>,
    of_state: DisjointRows<'a>,
}

#[allow(unsafe_code)]
impl Task<'_> {
    /// One head of one sequence.
    fn run(&self, number: usize) {
        let (inputs, size) = (self.inputs, self.inputs.size());
        let length = inputs.values * inputs.blocks * LANES;
        let table = TABLE * inputs.blocks * LANES;
        scratch::parts(
            [length, (CHUNK + 1) * length, table, table, inputs.values],
            |[d, s, table, of_table, unused]| {
                let (d, s, table, of_table) = (
                    blocks_of(d),
                    blocks_of(s),
                    blocks_of(table),
                    blocks_of(of_table),
                );
                d.fill([0.0; LANES]);
                if let Some(of_last) = self.of_last {
                    inputs.gather(d, &of_last[number * size..(number + 1) * size]);
                }
                for chunk in (0..inputs.chunks()).rev() {
                    let kept = (number * inputs.chunks() + chunk) * size;
                    inputs.gather(&mut s[..d.len()], &self.kept[kept..kept + size]);
                    self.chunk(d, s, [table, of_table], unused, number, chunk);
                }
                // SAFETY: each task has a row of its own.
                inputs.scatter(unsafe { self.of_state.row(number) }, d);
            },
        );
    }

    /// One chunk, from the state before it at the start of `s`.
    fn chunk(
        &self,
        d: &mut [ChannelBlock],
        s: &mut [ChannelBlock],
        [table, of_table]: [&mut [ChannelBlock]; 2],
        outputs: &mut [f32],
        number: usize,
        chunk: usize,
    ) {
        let (inputs, length) = (self.inputs, d.len());
        let (batch, head, time) = (
            number / inputs.heads,
            number % inputs.heads,
            inputs.value.time,
        );
        let steps = chunk * CHUNK..((chunk + 1) * CHUNK).min(time);
        for (i, t) in steps.clone().enumerate() {
            let (before, after) = s[i * length..(i + 2) * length].split_at_mut(length);
            advance(outputs, before, after, &inputs.step(table, batch, head, t));
        }
        for (i, t) in steps.enumerate().rev() {
            let (before, after) = s[i * length..(i + 2) * length].split_at(length);
            let (row, columns) = (batch * time + t, inputs.columns(head));
            of_table.fill([0.0; LANES]);
            // SAFETY: each step of a head comes once.
            let of_value = unsafe { self.of_value.part(row, columns.clone()) };
            let gradient = &self.gradient[row * inputs.value.width..][columns];
            retreat(
                d,
                of_table,
                of_value,
                [before, after],
                &inputs.step(table, batch, head, t),
                gradient,
            );
            for (rows, of_vector) in self
                .of_table
                .iter()
                .zip(of_table.chunks_exact(inputs.blocks))
            {
                // SAFETY: as above.
                let out = unsafe { rows.part(row, head * inputs.keys..(head + 1) * inputs.keys) };
                out.chunks_mut(LANES)
                    .zip(of_vector)
                    .for_each(|(out, lane)| channel_block::store(out, lane));
            }
        }
    }
}

impl FusedOperator<7> for Wkv {
    fn forward(&self, inputs: &[FlexTensor; 7], wanted: [bool; 7]) -> (FlexTensor, Saved) {
        let tensors = Inputs::prepared(inputs);
        let inputs = Inputs::new(&tensors);
        let [y, last, kept] = inputs.forward(wanted.contains(&true));
        self.last.put(tensor(last, &dimensions(&tensors[6])));
        (tensor(y, &inputs.value.shape()), vec![kept])
    }

    fn backward(&self, given: Given<7>, _: [bool; 7]) -> [Option<FlexTensor>; 7] {
        let tensors = Inputs::prepared(&given.inputs);
        let of_last = self.last.gradient().map(|gradient| contiguous(&gradient));
        let found = Inputs::new(&tensors).backward(
            &given.saved[0],
            slice(&given.gradient),
            of_last.as_ref().map(slice),
        );
        let mut shapes = tensors.iter().map(dimensions);
        found.map(|values| shapes.next().map(|shape| tensor(values, &shape)))
    }
}
