//! The backward: chunks of time from the last to the first, each computed again from its kept state.
//!
//! With `q` the gradient of the state, from that of the last state on, for every step backwards: `q += dy C_t`,
//! `dC_t = sum_d dy h_t`, `e = q exp(dt A) h_{t-1}`, `s = sum_n q B_t`, `dx = D dy + dt s`, `d(dt) = sum_n e A + x s`,
//! `dA += e dt`, `dB_t = sum_d q dt x`, `q <- exp(dt A) q`; the step size is a softplus, whose slope is the logistic
//! function.

use std::ops::Range;

use super::{
    super::channel_block::{self, ChannelBlock, GROUP, LANES, blocks_of, channels, summed},
    cpu::{CHUNK, Inputs, Rows},
};
use crate::{
    matmul::{scratch, transpose},
    parallel::{FreshRows, for_each},
    simd::{exp2, multiply_add, sigmoid, vectorised},
};

/// Channels whose sums over a group are gathered side by side before they are added up.
const FOLDED: usize = 16;

/// Gradients that last through all chunks: of state and transition, `[blocks][states]`, and of the step's bias and the skip,
/// `[blocks]`.
struct Carried<'a> {
    state: &'a mut [ChannelBlock],
    transition: &'a mut [ChannelBlock],
    bias: &'a mut [ChannelBlock],
    skip: &'a mut [ChannelBlock],
}

/// Inputs and gradients of a chunk: rows of `[steps][blocks]`.
struct Chunk<'a> {
    dt: &'a mut [ChannelBlock],
    driven: &'a mut [ChannelBlock],
    /// The gradient of the output.
    dy: &'a mut [ChannelBlock],
    /// `sum_n q B` and `sum_n e A`.
    along_input: &'a mut [ChannelBlock],
    along_transition: &'a mut [ChannelBlock],
}

/// One vector of channels in a chunk: its states, `[steps + 1][states]` after the one before it, and the decays that led
/// to them.
struct States<'a> {
    h: &'a mut [ChannelBlock],
    decay: &'a mut [ChannelBlock],
}

/// Sums over the channels of a group for every step of a chunk, `[steps][states]`.
struct Gathered<'a> {
    input: &'a mut [[f32; FOLDED]],
    output: &'a mut [[f32; FOLDED]],
}

/// Gradients of x, step, its bias, transition, input, output, skip and state.
pub(super) fn run(
    inputs: &Inputs<'_>,
    kept: &[f32],
    gradient: &[f32],
    of_last: Option<&[f32]>,
) -> [Vec<f32>; 8] {
    let (batch, time, width, states) =
        (inputs.x.batch, inputs.x.time, inputs.x.width, inputs.states);
    let (groups, length) = (inputs.groups(), batch * time * states);
    // Sums over channels have one part a group, and sums over the batch one part a sequence.
    let out = Outputs {
        x: FreshRows::new(inputs.x.len(), width),
        step: FreshRows::new(inputs.x.len(), width),
        state: FreshRows::new(inputs.state.len(), width),
        input: FreshRows::new(groups * length, states),
        output: FreshRows::new(groups * length, states),
        transition: FreshRows::new(batch * width * states, width),
        bias: FreshRows::new(batch * width, width),
        skip: FreshRows::new(batch * width, width),
    };
    let task = Task {
        inputs,
        kept,
        gradient,
        of_last,
        out,
    };
    let tasks = inputs.tasks();
    for_each(tasks.count(), |number| task.run(tasks.place(number)));
    let Outputs {
        x,
        step,
        state,
        input,
        output,
        transition,
        bias,
        skip,
    } = task.out;
    #[allow(unsafe_code)]
    // SAFETY: the tasks wrote every step and every vector of channels.
    let [
        of_x,
        of_step,
        of_state,
        of_input,
        of_output,
        of_transition,
        of_bias,
        of_skip,
    ] = unsafe { [x, step, state, input, output, transition, bias, skip].map(|rows| rows.whole()) };
    let of_transition = summed(&of_transition, width * states);
    let mut by_channel = vec![0.0; width * states];
    transpose(&of_transition, states, width, &mut by_channel);
    let (of_input, of_output) = (summed(&of_input, length), summed(&of_output, length));
    let [of_bias, of_skip] = [of_bias, of_skip].map(|parts| summed(&parts, width));
    [
        of_x, of_step, of_bias, by_channel, of_input, of_output, of_skip, of_state,
    ]
}

struct Outputs {
    x: FreshRows,
    step: FreshRows,
    state: FreshRows,
    input: FreshRows,
    output: FreshRows,
    transition: FreshRows,
    bias: FreshRows,
    skip: FreshRows,
}

struct Task<'a> {
    inputs: &'a Inputs<'a>,
    kept: &'a [f32],
    gradient: &'a [f32],
    of_last: Option<&'a [f32]>,
    out: Outputs,
}

#[allow(unsafe_code)]
impl Task<'_> {
    /// Some vectors of channels of one sequence.
    fn run(&self, (batch, blocks): (usize, Range<usize>)) {
        let (inputs, states) = (self.inputs, self.inputs.states);
        let (each, rows) = (blocks.len() * states * LANES, CHUNK * blocks.len() * LANES);
        let (chunk, folded) = (CHUNK * states * LANES, CHUNK * states * FOLDED);
        let lasting = [each, each, each, blocks.len() * LANES, blocks.len() * LANES];
        scratch::parts(lasting, |lasting| {
            let [transition, mut state, mut of_transition, mut bias, mut skip] =
                lasting.map(blocks_of);
            for sums in [&mut state, &mut of_transition, &mut bias, &mut skip] {
                sums.fill([0.0; LANES]);
            }
            for (i, block) in blocks.clone().enumerate() {
                let own = i * states..(i + 1) * states;
                inputs.columns(&mut transition[own.clone()], &inputs.transition, block);
                if let Some(of_last) = self.of_last {
                    inputs.columns(&mut state[own], inputs.of_batch(of_last, batch), block);
                }
            }
            let mut carried = Carried {
                state,
                transition: of_transition,
                bias,
                skip,
            };
            let lengths = [
                rows,
                rows,
                rows,
                rows,
                rows,
                chunk + states * LANES,
                chunk,
                folded,
                folded,
            ];
            scratch::parts(
                lengths,
                |[
                    dt,
                    driven,
                    dy,
                    along_input,
                    along_transition,
                    h,
                    decay,
                    input,
                    output,
                ]| {
                    let [dt, driven, dy, along_input, along_transition] =
                        [dt, driven, dy, along_input, along_transition].map(blocks_of);
                    let mut rows = Chunk {
                        dt,
                        driven,
                        dy,
                        along_input,
                        along_transition,
                    };
                    let mut own = States {
                        h: blocks_of(h),
                        decay: blocks_of(decay),
                    };
                    let mut gathered = Gathered {
                        input: input.as_chunks_mut().0,
                        output: output.as_chunks_mut().0,
                    };
                    for chunk in (0..inputs.chunks()).rev() {
                        self.chunk(
                            &mut carried,
                            &mut rows,
                            &mut own,
                            &mut gathered,
                            transition,
                            (batch, &blocks, chunk),
                        );
                    }
                },
            );
            self.write(&carried, batch, &blocks);
        });
    }

    /// One chunk.
    fn chunk(
        &self,
        carried: &mut Carried<'_>,
        rows: &mut Chunk<'_>,
        own: &mut States<'_>,
        gathered: &mut Gathered<'_>,
        transition: &[ChannelBlock],
        (batch, blocks, chunk): (usize, &Range<usize>, usize),
    ) {
        let (inputs, states, steps) = (self.inputs, self.inputs.states, self.inputs.chunk(chunk));
        inputs.prepare(rows.dt, rows.driven, batch, blocks, steps.clone());
        for (t, dy) in steps.clone().zip(rows.dy.chunks_exact_mut(blocks.len())) {
            let row = batch * inputs.x.time + t;
            let gradient = &self.gradient[row * inputs.x.width..(row + 1) * inputs.x.width];
            dy.iter_mut()
                .zip(blocks.clone())
                .for_each(|(dy, block)| *dy = channel_block::block(gradient, block));
        }
        for (i, block) in blocks.clone().enumerate() {
            if i.is_multiple_of(GROUP) {
                gathered.input.fill([0.0; FOLDED]);
                gathered.output.fill([0.0; FOLDED]);
            }
            let kept = inputs.kept(batch, block, chunk) * states * LANES;
            own.h[..states]
                .as_flattened_mut()
                .copy_from_slice(&self.kept[kept..kept + states * LANES]);
            let transition = &transition[i * states..(i + 1) * states];
            let prepared = Rows {
                dt: rows.dt,
                driven: rows.driven,
                blocks: blocks.len(),
                block: i,
            };
            recompute(own, transition, &prepared, inputs, batch, steps.clone());
            retreat(
                carried,
                rows,
                own,
                gathered,
                transition,
                inputs,
                batch,
                steps.clone(),
                [i, blocks.len()],
            );
            if (i + 1).is_multiple_of(GROUP) || i + 1 == blocks.len() {
                self.coefficients(gathered, batch, block / GROUP, steps.clone());
            }
        }
        for (i, t) in steps.enumerate() {
            for (j, block) in blocks.clone().enumerate() {
                let (row, columns) = (
                    batch * inputs.x.time + t,
                    channel_block::columns(inputs.x.width, block),
                );
                // SAFETY: each step of a vector of channels comes once.
                let out = unsafe {
                    [
                        self.out.x.part(row, columns.clone()),
                        self.out.step.part(row, columns),
                    ]
                };
                let sums = [&mut carried.bias[j], &mut carried.skip[j]];
                finish(
                    out,
                    sums,
                    rows,
                    i * blocks.len() + j,
                    inputs,
                    [batch, t, block],
                );
            }
        }
    }

    /// Sums the gradient contributions of a group's channels to `B` and `C` over the steps of a chunk.
    fn coefficients(
        &self,
        gathered: &Gathered<'_>,
        batch: usize,
        group: usize,
        steps: Range<usize>,
    ) {
        let (inputs, states) = (self.inputs, self.inputs.states);
        for (i, t) in steps.enumerate() {
            let row = (group * inputs.x.batch + batch) * inputs.x.time + t;
            for (out, sums) in [
                (&self.out.input, &*gathered.input),
                (&self.out.output, &*gathered.output),
            ] {
                // SAFETY: each step comes once in a group.
                totals(unsafe { out.row(row) }, &sums[i * states..]);
            }
        }
    }

    /// Writes what lasted through all chunks.
    fn write(&self, carried: &Carried<'_>, batch: usize, blocks: &Range<usize>) {
        let states = self.inputs.states;
        for (i, block) in blocks.clone().enumerate() {
            let columns = channel_block::columns(self.inputs.x.width, block);
            for n in 0..states {
                let row = batch * states + n;
                // SAFETY: each vector of channels comes once in a sequence.
                unsafe {
                    channel_block::store(
                        self.out.state.part(row, columns.clone()),
                        &carried.state[i * states + n],
                    );
                    channel_block::store(
                        self.out.transition.part(row, columns.clone()),
                        &carried.transition[i * states + n],
                    );
                }
            }
            // SAFETY: as above.
            unsafe {
                channel_block::store(self.out.bias.part(batch, columns.clone()), &carried.bias[i]);
                channel_block::store(self.out.skip.part(batch, columns), &carried.skip[i]);
            }
        }
    }
}

vectorised! {
    /// The sum of each row.
    fn totals(out: &mut [f32], rows: &[[f32; FOLDED]]) {
        for (out, row) in out.iter_mut().zip(rows) {
            let mut half = [0.0; FOLDED / 2];
            for l in 0..FOLDED / 2 {
                half[l] = row[l] + row[l + FOLDED / 2];
            }
            let mut quarter = [0.0; FOLDED / 4];
            for l in 0..FOLDED / 4 {
                quarter[l] = half[l] + half[l + FOLDED / 4];
            }
            *out = (quarter[0] + quarter[2]) + (quarter[1] + quarter[3]);
        }
    }
}

vectorised! {
    /// The states of a chunk and the decays that lead to them.
    fn recompute<const FUSED: bool>(own: &mut States<'_>, transition: &[ChannelBlock], rows: &Rows<'_>, inputs: &Inputs<'_>, batch: usize, steps: Range<usize>) {
        let states = transition.len();
        for (i, t) in steps.enumerate() {
            let (dt, driven) = rows.step(i);
            let (before, after) = own.h[i * states..(i + 2) * states].split_at_mut(states);
            let decays = &mut own.decay[i * states..(i + 1) * states];
            let tables = transition.iter().zip(inputs.input.row(batch, t));
            for (((&before, after), out), (&a, &b)) in before.iter().zip(after).zip(decays).zip(tables) {
                let decay = channels!(l => exp2::<FUSED>(dt[l] * a[l]));
                *after = channels!(l => multiply_add::<FUSED>(decay[l], before[l], driven[l] * b));
                *out = decay;
            }
        }
    }
}

/// `sums + a b`, the second half of the channels after the first.
#[inline(always)]
fn folded<const FUSED: bool>(
    a: &ChannelBlock,
    b: &ChannelBlock,
    sums: &[f32; FOLDED],
) -> [f32; FOLDED] {
    let (mut half, mut whole) = ([0.0; FOLDED], [0.0; FOLDED]);
    for l in 0..FOLDED {
        half[l] = multiply_add::<FUSED>(a[l], b[l], sums[l]);
    }
    for l in 0..FOLDED {
        whole[l] = multiply_add::<FUSED>(a[l + FOLDED], b[l + FOLDED], half[l]);
    }
    whole
}

vectorised! {
    /// A chunk of one vector of channels backwards; `place` is its number in the group, and how many these are.
    fn retreat<const FUSED: bool>(carried: &mut Carried<'_>, rows: &mut Chunk<'_>, own: &States<'_>, gathered: &mut Gathered<'_>, transition: &[ChannelBlock], inputs: &Inputs<'_>, batch: usize, steps: Range<usize>, place: [usize; 2]) {
        let ([number, blocks], states) = (place, transition.len());
        let of_states = &mut carried.state[number * states..(number + 1) * states];
        let of_transitions = &mut carried.transition[number * states..(number + 1) * states];
        for (i, t) in steps.enumerate().rev() {
            let row = i * blocks + number;
            let (dt, driven, dy) = (rows.dt[row], rows.driven[row], rows.dy[row]);
            let (mut along_input, mut along_transition) = ([0.0; LANES], [0.0; LANES]);
            let (before, after) = own.h[i * states..(i + 2) * states].split_at(states);
            let known = before.iter().zip(after).zip(&own.decay[i * states..(i + 1) * states]).zip(transition);
            let coefficients = inputs.input.row(batch, t).iter().zip(inputs.output.row(batch, t));
            let lasting = of_states.iter_mut().zip(of_transitions.iter_mut());
            let sums = gathered.input[i * states..].iter_mut().zip(&mut gathered.output[i * states..]);
            for ((((((before, after), decay), a), (&b, &c)), (of_state, of_a)), (of_b, of_c)) in
                known.zip(coefficients).zip(lasting).zip(sums)
            {
                let (later, of_a_later) = (*of_state, *of_a);
                let q = channels!(l => multiply_add::<FUSED>(dy[l], c, later[l]));
                let decayed = channels!(l => decay[l] * q[l]);
                let e = channels!(l => decayed[l] * before[l]);
                along_input = channels!(l => multiply_add::<FUSED>(q[l], b, along_input[l]));
                along_transition = channels!(l => multiply_add::<FUSED>(e[l], a[l], along_transition[l]));
                *of_state = decayed;
                *of_a = channels!(l => multiply_add::<FUSED>(e[l], dt[l], of_a_later[l]));
                *of_b = folded::<FUSED>(&q, &driven, of_b);
                *of_c = folded::<FUSED>(&dy, after, of_c);
            }
            rows.along_input[row] = along_input;
            rows.along_transition[row] = along_transition;
        }
    }
}

vectorised! {
    /// Writes the gradients of x and step of one step and adds to those of bias and skip; `row` is its place in the chunk.
    fn finish<const FUSED: bool>(out: [&mut [f32]; 2], sums: [&mut ChannelBlock; 2], rows: &Chunk<'_>, row: usize, inputs: &Inputs<'_>, place: [usize; 3]) {
        let [batch, t, block] = place;
        let (x, raw) = (channel_block::block(inputs.x.row(batch, t), block), channel_block::block(inputs.step.row(batch, t), block));
        let (skip, bias) = (channel_block::block(inputs.skip, block), channel_block::block(inputs.bias, block));
        let (dt, dy) = (rows.dt[row], rows.dy[row]);
        let (along_input, along_transition) = (rows.along_input[row], rows.along_transition[row]);
        let [of_x, of_step] = out;
        channel_block::store(of_x, &channels!(l => skip[l] * dy[l] + dt[l] * along_input[l]));
        // The transition was multiplied by log2(e).
        let of_dt = channels!(l => along_transition[l] * std::f32::consts::LN_2 + x[l] * along_input[l]);
        let of_raw = channels!(l => of_dt[l] * sigmoid::<FUSED>(raw[l] + bias[l]));
        channel_block::store(of_step, &of_raw);
        let [of_bias, of_skip] = sums;
        let (of_bias_later, of_skip_later) = (*of_bias, *of_skip);
        *of_bias = channels!(l => of_bias_later[l] + of_raw[l]);
        *of_skip = channels!(l => of_skip_later[l] + dy[l] * x[l]);
    }
}
