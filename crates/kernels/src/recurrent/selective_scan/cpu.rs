//! The scan with neighbouring channels side by side; groups of channels run on different threads.

use std::ops::Range;

use super::super::{
    channel_block::{self, ChannelBlock, LANES, Tasks, blocks_of, channels},
    sequence::{Sequence, readable},
};
use crate::{
    fused::{FusedOperator, Given, Saved, Side, contiguous, slice, tensor},
    linear::Group,
    matmul::{scratch, transpose},
    parallel::{FreshRows, for_each},
    simd::{exp2, multiply_add, softplus, vectorised},
};
use burn_flex::FlexTensor;

/// The operator over x, step, its bias, transition, input, output, skip and state; the last state leaves by the side.
#[derive(Debug)]
pub(super) struct Scan {
    pub last: Side,
    /// Other readers of x.
    pub readers: Option<Group>,
}

/// Steps between two kept states.
pub(super) const CHUNK: usize = 32;

/// The scan's inputs.
pub(super) struct Inputs<'a> {
    pub x: Sequence<'a>,
    pub step: Sequence<'a>,
    pub bias: &'a [f32],
    pub input: Sequence<'a>,
    pub output: Sequence<'a>,
    /// `A log2(e)`, `[states, width]`.
    pub transition: Vec<f32>,
    pub skip: &'a [f32],
    /// `[batch, states, width]`.
    pub state: &'a [f32],
    pub states: usize,
}

impl<'a> Inputs<'a> {
    pub fn new(
        [x, step, bias, transition, input, output, skip, state]: &'a [FlexTensor; 8],
    ) -> Self {
        let (x, input) = (Sequence::new(x), Sequence::new(input));
        let (states, mut by_state) = (input.width, vec![0.0; slice(transition).len()]);
        transpose(slice(transition), x.width, states, &mut by_state);
        by_state
            .iter_mut()
            .for_each(|a| *a *= std::f32::consts::LOG2_E);
        Self {
            x,
            step: Sequence::new(step),
            bias: slice(bias),
            input,
            output: Sequence::new(output),
            transition: by_state,
            skip: slice(skip),
            state: slice(state),
            states,
        }
    }

    /// The inputs as they are read.
    pub fn prepared(
        [x, step, bias, transition, input, output, skip, state]: &[FlexTensor; 8],
    ) -> [FlexTensor; 8] {
        let [x, step, input, output] = [x, step, input, output].map(readable);
        let [bias, transition, skip, state] = [bias, transition, skip, state].map(contiguous);
        [x, step, bias, transition, input, output, skip, state]
    }

    /// Vectors that the channels fill.
    pub fn blocks(&self) -> usize {
        self.x.width.div_ceil(LANES)
    }

    /// Groups of a sequence.
    pub fn groups(&self) -> usize {
        channel_block::groups(self.x.width)
    }

    /// The tasks among which its channels are shared.
    pub fn tasks(&self) -> Tasks {
        Tasks::new(self.x.batch, self.x.width)
    }

    pub fn chunks(&self) -> usize {
        self.x.time.div_ceil(CHUNK)
    }

    /// The steps of a chunk.
    pub fn chunk(&self, chunk: usize) -> Range<usize> {
        chunk * CHUNK..((chunk + 1) * CHUNK).min(self.x.time)
    }

    /// Where a kept state lies among all.
    pub fn kept(&self, batch: usize, block: usize, chunk: usize) -> usize {
        (batch * self.blocks() + block) * self.chunks() + chunk
    }

    /// The rows of one vector of channels in a table `[states, width]`.
    pub fn columns(&self, out: &mut [ChannelBlock], table: &[f32], block: usize) {
        for (out, row) in out.iter_mut().zip(table.chunks_exact(self.x.width)) {
            *out = channel_block::block(row, block);
        }
    }

    /// Its table of states in `[batch, states, width]`.
    pub fn of_batch<'b>(&self, states: &'b [f32], batch: usize) -> &'b [f32] {
        &states[batch * self.states * self.x.width..(batch + 1) * self.states * self.x.width]
    }

    /// Outputs, last states, and where asked the states before every chunk.
    #[allow(unsafe_code)]
    fn forward(&self, keep: bool) -> [Vec<f32>; 3] {
        let (width, states) = (self.x.width, self.states);
        let size = states * LANES;
        let kept = if keep {
            self.kept(self.x.batch, 0, 0) * size
        } else {
            0
        };
        let out = Outputs {
            y: FreshRows::new(self.x.len(), width),
            last: FreshRows::new(self.state.len(), width),
            kept: FreshRows::new(kept, size),
        };
        let tasks = self.tasks();
        for_each(tasks.count(), |task| {
            let (batch, group) = tasks.place(task);
            let (each, rows) = (group.len() * size, CHUNK * group.len() * LANES);
            scratch::parts(
                [each, each, rows, rows, rows],
                |[h, transition, dt, driven, sums]| {
                    let [h, transition, dt, driven, sums] =
                        [h, transition, dt, driven, sums].map(blocks_of);
                    self.run(&out, batch, group, keep, [h, transition, dt, driven, sums]);
                },
            );
        });
        let Outputs { y, last, kept } = out;
        // SAFETY: the tasks wrote every step of every vector of channels.
        unsafe { [y.whole(), last.whole(), kept.whole()] }
    }

    /// One group of channels of one sequence.
    #[allow(unsafe_code)]
    fn run(
        &self,
        out: &Outputs,
        batch: usize,
        group: Range<usize>,
        keep: bool,
        memory: [&mut [ChannelBlock]; 5],
    ) {
        let [h, transition, dt, driven, sums] = memory;
        let states = self.states;
        for (i, block) in group.clone().enumerate() {
            self.columns(
                &mut transition[i * states..(i + 1) * states],
                &self.transition,
                block,
            );
            self.columns(
                &mut h[i * states..(i + 1) * states],
                self.of_batch(self.state, batch),
                block,
            );
        }
        for chunk in 0..self.chunks() {
            let steps = self.chunk(chunk);
            self.prepare(dt, driven, batch, &group, steps.clone());
            for (i, block) in group.clone().enumerate() {
                let own = i * states..(i + 1) * states;
                if keep {
                    // SAFETY: each chunk of a vector of channels comes once.
                    let kept = unsafe { out.kept.row(self.kept(batch, block, chunk)) };
                    kept.copy_from_slice(h[own.clone()].as_flattened());
                }
                let rows = Rows {
                    dt,
                    driven,
                    blocks: group.len(),
                    block: i,
                };
                advance(
                    sums,
                    &mut h[own.clone()],
                    &transition[own],
                    &rows,
                    self,
                    batch,
                    steps.clone(),
                );
            }
            for (t, sums) in steps.zip(sums.chunks_exact(group.len())) {
                let row = batch * self.x.time + t;
                for (block, sum) in group.clone().zip(sums) {
                    let columns = channel_block::columns(self.x.width, block);
                    // SAFETY: each step of a vector of channels comes once.
                    finish(
                        unsafe { out.y.part(row, columns) },
                        sum,
                        self,
                        [batch, t, block],
                    );
                }
            }
        }
        for (i, block) in group.enumerate() {
            for (n, h) in h[i * states..(i + 1) * states].iter().enumerate() {
                // SAFETY: each vector of channels comes once.
                let last = unsafe {
                    out.last.part(
                        batch * states + n,
                        channel_block::columns(self.x.width, block),
                    )
                };
                channel_block::store(last, h);
            }
        }
    }

    /// Step sizes and `dt x` of a group's channels for some steps, `[steps][blocks]`: read row by row, as they lie in
    /// memory, which the recurrence of one vector of channels would not do.
    pub fn prepare(
        &self,
        dt: &mut [ChannelBlock],
        driven: &mut [ChannelBlock],
        batch: usize,
        group: &Range<usize>,
        steps: Range<usize>,
    ) {
        let rows = dt
            .chunks_exact_mut(group.len())
            .zip(driven.chunks_exact_mut(group.len()));
        for (t, (dt, driven)) in steps.zip(rows) {
            prepare_row(
                dt,
                driven,
                self.step.row(batch, t),
                self.bias,
                self.x.row(batch, t),
                group.start,
            );
        }
    }
}

struct Outputs {
    y: FreshRows,
    last: FreshRows,
    kept: FreshRows,
}

/// The rows that [`Inputs::prepare`] filled, and the number of a vector of channels in them.
pub(super) struct Rows<'a> {
    pub dt: &'a [ChannelBlock],
    pub driven: &'a [ChannelBlock],
    pub blocks: usize,
    pub block: usize,
}

impl Rows<'_> {
    /// Step size and `dt x` of step `i`.
    #[inline(always)]
    pub fn step(&self, i: usize) -> (ChannelBlock, ChannelBlock) {
        let place = i * self.blocks + self.block;
        (self.dt[place], self.driven[place])
    }
}

vectorised! {
    fn prepare_row<const FUSED: bool>(dt: &mut [ChannelBlock], driven: &mut [ChannelBlock], step: &[f32], bias: &[f32], x: &[f32], first: usize) {
        for (i, (dt, driven)) in dt.iter_mut().zip(driven).enumerate() {
            // Not by `map`, which would be a call.
            let (raw, bias, x) = (channel_block::block(step, first + i), channel_block::block(bias, first + i), channel_block::block(x, first + i));
            let size = channels!(l => softplus::<FUSED>(raw[l] + bias[l]));
            *driven = channels!(l => size[l] * x[l]);
            *dt = size;
        }
    }
}

vectorised! {
    /// Some steps of one vector of channels: writes `C_t h_t`, `[steps][blocks]`.
    fn advance<const FUSED: bool>(sums: &mut [ChannelBlock], h: &mut [ChannelBlock], transition: &[ChannelBlock], rows: &Rows<'_>, inputs: &Inputs<'_>, batch: usize, steps: Range<usize>) {
        for (i, t) in steps.enumerate() {
            let (dt, driven) = rows.step(i);
            let mut sum = [0.0; LANES];
            let coefficients = inputs.input.row(batch, t).iter().zip(inputs.output.row(batch, t));
            for ((h, a), (&b, &c)) in h.iter_mut().zip(transition).zip(coefficients) {
                let decay = channels!(l => exp2::<FUSED>(dt[l] * a[l]));
                let after = channels!(l => multiply_add::<FUSED>(decay[l], h[l], driven[l] * b));
                sum = channels!(l => multiply_add::<FUSED>(after[l], c, sum[l]));
                *h = after;
            }
            sums[i * rows.blocks + rows.block] = sum;
        }
    }
}

vectorised! {
    fn finish(y: &mut [f32], sum: &ChannelBlock, inputs: &Inputs<'_>, place: [usize; 3]) {
        let [batch, t, block] = place;
        let (x, skip) = (channel_block::block(inputs.x.row(batch, t), block), channel_block::block(inputs.skip, block));
        channel_block::store(y, &channels!(l => sum[l] + skip[l] * x[l]));
    }
}

impl FusedOperator<8> for Scan {
    fn forward(&self, inputs: &[FlexTensor; 8], wanted: [bool; 8]) -> (FlexTensor, Saved) {
        let inputs = Inputs::prepared(inputs);
        let inputs = Inputs::new(&inputs);
        let [y, last, kept] = inputs.forward(wanted.contains(&true));
        self.last.put(tensor(
            last,
            &[inputs.x.batch, inputs.states, inputs.x.width],
        ));
        (tensor(y, &inputs.x.shape()), vec![kept])
    }

    fn backward(&self, given: Given<8>, wanted: [bool; 8]) -> [Option<FlexTensor>; 8] {
        let inputs = Inputs::prepared(&given.inputs);
        let of_last = self.last.gradient().map(|gradient| contiguous(&gradient));
        let found = super::backward::run(
            &Inputs::new(&inputs),
            &given.saved[0],
            slice(&given.gradient),
            of_last.as_ref().map(slice),
        );
        let mut shapes = inputs.iter().map(crate::fused::dimensions);
        let [of_x, rest @ ..] =
            found.map(|values| shapes.next().map(|shape| tensor(values, &shape)));
        let of_x = of_x
            .filter(|_| wanted[0])
            .and_then(|of_x| Group::leave(self.readers.as_ref(), of_x));
        let [step, bias, transition, input, output, skip, state] = rest;
        [of_x, step, bias, transition, input, output, skip, state]
    }
}
