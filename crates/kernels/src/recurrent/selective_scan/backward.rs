//! The backward: chunks of time from the last to the first, each computed again from its kept state.
//!
//! With `q` the gradient of the state, from that of the last state on, for every step backwards: `q += dy C_t`,
//! `dC_t = sum_d dy h_t`, `e = q exp(dt A) h_{t-1}`, `s = sum_n q B_t`, `dx = D dy + dt s`, `d(dt) = sum_n e A + x s`,
//! `dA += e dt`, `dB_t = sum_d q dt x`, `q <- exp(dt A) q`; the step size is a softplus, whose slope is the logistic
//! function.

use std::ops::Range;

use super::{
    super::lanes::{self, LANES, Lane, lane, lanes_of, summed},
    cpu::{CHUNK, Inputs, Rows},
};
use crate::{
    matmul::scratch,
    parallel::{DisjointRows, for_each, zeros},
    simd::{exp2, sigmoid, vectorised},
};

/// Channels whose sums over a group are gathered side by side before they are added up.
const FOLDED: usize = 16;

/// Gradients that last through all chunks: of state and transition, `[blocks][states]`, and of the skip, `[blocks]`.
struct Carried<'a> {
    state: &'a mut [Lane],
    transition: &'a mut [Lane],
    skip: &'a mut [Lane],
}

/// What is known of a chunk, and what is found: rows of `[steps][blocks]`.
struct Chunk<'a> {
    dt: &'a mut [Lane],
    driven: &'a mut [Lane],
    /// The gradient of the output.
    dy: &'a mut [Lane],
    /// `sum_n q B` and `sum_n e A`.
    along_input: &'a mut [Lane],
    along_transition: &'a mut [Lane],
}

/// One vector of channels in a chunk: its states, `[steps + 1][states]` after the one before it, and the decays that led
/// to them.
struct States<'a> {
    h: &'a mut [Lane],
    decay: &'a mut [Lane],
}

/// Sums over the channels of a group for every step of a chunk, `[steps][states]`.
struct Gathered<'a> {
    input: &'a mut [[f32; FOLDED]],
    output: &'a mut [[f32; FOLDED]],
}

/// Gradients of x, step, transition, input, output, skip and state.
pub(super) fn run(inputs: &Inputs<'_>, kept: &[f32], gradient: &[f32], of_last: Option<&[f32]>) -> [Vec<f32>; 7] {
    let (batch, time, width, states) = (inputs.x.batch, inputs.x.time, inputs.x.width, inputs.states);
    let (groups, length) = (inputs.groups(), batch * time * states);
    let mut of_x = zeros(inputs.x.len());
    let mut of_step = zeros(inputs.x.len());
    let mut of_state = zeros(inputs.state.len());
    // Sums over channels, one part a group, and over the batch, one part a sequence.
    let (mut of_input, mut of_output) = (zeros(groups * length), zeros(groups * length));
    let (mut of_transition, mut of_skip) = (zeros(batch * width * states), zeros(batch * width));
    {
        let out = Outputs {
            x: DisjointRows::new(&mut of_x, width),
            step: DisjointRows::new(&mut of_step, width),
            state: DisjointRows::new(&mut of_state, width),
            input: DisjointRows::new(&mut of_input, states),
            output: DisjointRows::new(&mut of_output, states),
            transition: DisjointRows::new(&mut of_transition, width),
            skip: DisjointRows::new(&mut of_skip, width),
        };
        let task = Task { inputs, kept, gradient, of_last, out };
        for_each(batch * groups, |number| task.run(number / groups, number % groups));
    }
    let of_transition = summed(&of_transition, width * states);
    let transposed = (0..width * states).map(|i| of_transition[i % states * width + i / states]).collect();
    let (of_input, of_output) = (summed(&of_input, length), summed(&of_output, length));
    [of_x, of_step, transposed, of_input, of_output, summed(&of_skip, width), of_state]
}

struct Outputs<'a> {
    x: DisjointRows<'a>,
    step: DisjointRows<'a>,
    state: DisjointRows<'a>,
    input: DisjointRows<'a>,
    output: DisjointRows<'a>,
    transition: DisjointRows<'a>,
    skip: DisjointRows<'a>,
}

struct Task<'a> {
    inputs: &'a Inputs<'a>,
    kept: &'a [f32],
    gradient: &'a [f32],
    of_last: Option<&'a [f32]>,
    out: Outputs<'a>,
}

#[allow(unsafe_code)]
impl Task<'_> {
    /// One group of channels of one sequence.
    fn run(&self, batch: usize, group: usize) {
        let (inputs, states, blocks) = (self.inputs, self.inputs.states, self.inputs.group(group));
        let (each, rows) = (blocks.len() * states * LANES, CHUNK * blocks.len() * LANES);
        let (chunk, folded) = (CHUNK * states * LANES, CHUNK * states * FOLDED);
        let lasting = [each, each, each, blocks.len() * LANES];
        scratch::parts(lasting, |lasting| {
            let [state, of_transition, transition, skip] = lasting.map(lanes_of);
            of_transition.fill([0.0; LANES]);
            skip.fill([0.0; LANES]);
            state.fill([0.0; LANES]);
            for (i, block) in blocks.clone().enumerate() {
                let own = i * states..(i + 1) * states;
                inputs.columns(&mut transition[own.clone()], &inputs.transition, block);
                if let Some(of_last) = self.of_last {
                    inputs.columns(&mut state[own], inputs.of_batch(of_last, batch), block);
                }
            }
            let mut carried = Carried { state, transition: of_transition, skip };
            let lengths = [rows, rows, rows, rows, rows, chunk + states * LANES, chunk, folded, folded];
            scratch::parts(lengths, |[dt, driven, dy, along_input, along_transition, h, decay, input, output]| {
                let [dt, driven, dy, along_input, along_transition] =
                    [dt, driven, dy, along_input, along_transition].map(lanes_of);
                let mut rows = Chunk { dt, driven, dy, along_input, along_transition };
                let mut own = States { h: lanes_of(h), decay: lanes_of(decay) };
                let mut gathered = Gathered { input: input.as_chunks_mut().0, output: output.as_chunks_mut().0 };
                for chunk in (0..inputs.chunks()).rev() {
                    self.chunk(&mut carried, &mut rows, &mut own, &mut gathered, transition, [batch, group, chunk]);
                }
            });
            self.write(&carried, batch, &blocks);
        });
    }

    /// One chunk of a group.
    fn chunk(
        &self,
        carried: &mut Carried<'_>,
        rows: &mut Chunk<'_>,
        own: &mut States<'_>,
        gathered: &mut Gathered<'_>,
        transition: &[Lane],
        [batch, group, chunk]: [usize; 3],
    ) {
        let (inputs, states) = (self.inputs, self.inputs.states);
        let (blocks, steps) = (inputs.group(group), inputs.chunk(chunk));
        gathered.input.fill([0.0; FOLDED]);
        gathered.output.fill([0.0; FOLDED]);
        inputs.prepare(rows.dt, rows.driven, batch, &blocks, steps.clone());
        for (t, dy) in steps.clone().zip(rows.dy.chunks_exact_mut(blocks.len())) {
            let row = batch * inputs.x.time + t;
            let gradient = &self.gradient[row * inputs.x.width..(row + 1) * inputs.x.width];
            dy.iter_mut().zip(blocks.clone()).for_each(|(dy, block)| *dy = lanes::block(gradient, block));
        }
        for (i, block) in blocks.clone().enumerate() {
            let kept = inputs.kept(batch, block, chunk) * states * LANES;
            own.h[..states].as_flattened_mut().copy_from_slice(&self.kept[kept..kept + states * LANES]);
            let transition = &transition[i * states..(i + 1) * states];
            let prepared = Rows { dt: rows.dt, driven: rows.driven, blocks: blocks.len(), block: i };
            recompute(own, transition, &prepared, inputs, batch, steps.clone());
            retreat(carried, rows, own, gathered, transition, inputs, batch, steps.clone(), [i, blocks.len()]);
        }
        for (i, t) in steps.enumerate() {
            for (j, block) in blocks.clone().enumerate() {
                let (row, columns) = (batch * inputs.x.time + t, lanes::columns(inputs.x.width, block));
                // SAFETY: each step of a vector of channels comes once.
                let out = unsafe { [self.out.x.part(row, columns.clone()), self.out.step.part(row, columns)] };
                finish(out, &mut carried.skip[j], rows, i * blocks.len() + j, inputs, [batch, t, block]);
            }
            self.coefficients(gathered, i, (group * inputs.x.batch + batch) * inputs.x.time + t);
        }
    }

    /// Adds up what the channels of a group gave to the coefficients of step `i` of a chunk.
    fn coefficients(&self, gathered: &Gathered<'_>, i: usize, row: usize) {
        for (out, sums) in [(&self.out.input, &*gathered.input), (&self.out.output, &*gathered.output)] {
            // SAFETY: each step comes once in a group.
            let out = unsafe { out.row(row) };
            out.iter_mut().zip(&sums[i * self.inputs.states..]).for_each(|(out, sums)| *out = sums.iter().sum());
        }
    }

    /// Writes what lasted through all chunks.
    fn write(&self, carried: &Carried<'_>, batch: usize, blocks: &Range<usize>) {
        let states = self.inputs.states;
        for (i, block) in blocks.clone().enumerate() {
            let columns = lanes::columns(self.inputs.x.width, block);
            for n in 0..states {
                let row = batch * states + n;
                // SAFETY: each vector of channels comes once in a sequence.
                unsafe {
                    lanes::store(self.out.state.part(row, columns.clone()), &carried.state[i * states + n]);
                    lanes::store(self.out.transition.part(row, columns.clone()), &carried.transition[i * states + n]);
                }
            }
            // SAFETY: as above.
            lanes::store(unsafe { self.out.skip.part(batch, columns) }, &carried.skip[i]);
        }
    }
}

vectorised! {
    /// The states of a chunk and the decays that lead to them.
    fn recompute(own: &mut States<'_>, transition: &[Lane], rows: &Rows<'_>, inputs: &Inputs<'_>, batch: usize, steps: Range<usize>) {
        let states = transition.len();
        for (i, t) in steps.enumerate() {
            let (dt, driven) = rows.step(i);
            let (before, after) = own.h[i * states..(i + 2) * states].split_at_mut(states);
            let decays = &mut own.decay[i * states..(i + 1) * states];
            let tables = transition.iter().zip(inputs.input.row(batch, t));
            for (((&before, after), out), (&a, &b)) in before.iter().zip(after).zip(decays).zip(tables) {
                let decay = lane!(l => exp2(dt[l] * a[l]));
                *after = lane!(l => decay[l] * before[l] + driven[l] * b);
                *out = decay;
            }
        }
    }
}

vectorised! {
    /// A chunk of one vector of channels backwards; `place` is its number in the group, and how many these are.
    fn retreat(carried: &mut Carried<'_>, rows: &mut Chunk<'_>, own: &States<'_>, gathered: &mut Gathered<'_>, transition: &[Lane], inputs: &Inputs<'_>, batch: usize, steps: Range<usize>, place: [usize; 2]) {
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
                let q = lane!(l => later[l] + dy[l] * c);
                let e = lane!(l => q[l] * (decay[l] * before[l]));
                along_input = lane!(l => along_input[l] + q[l] * b);
                along_transition = lane!(l => along_transition[l] + e[l] * a[l]);
                *of_state = lane!(l => decay[l] * q[l]);
                *of_a = lane!(l => of_a_later[l] + e[l] * dt[l]);
                let (q_driven, dy_h) = (lane!(l => q[l] * driven[l]), lane!(l => dy[l] * after[l]));
                for l in 0..FOLDED {
                    of_b[l] += q_driven[l] + q_driven[l + FOLDED];
                }
                for l in 0..FOLDED {
                    of_c[l] += dy_h[l] + dy_h[l + FOLDED];
                }
            }
            rows.along_input[row] = along_input;
            rows.along_transition[row] = along_transition;
        }
    }
}

vectorised! {
    /// Writes the gradients of x and step of one step and adds to that of the skip; `row` is its place in the chunk.
    fn finish(out: [&mut [f32]; 2], of_skip: &mut Lane, rows: &Chunk<'_>, row: usize, inputs: &Inputs<'_>, place: [usize; 3]) {
        let [batch, t, block] = place;
        let (x, raw) = (lanes::block(inputs.x.row(batch, t), block), lanes::block(inputs.step.row(batch, t), block));
        let (skip, dt, dy) = (lanes::block(inputs.skip, block), rows.dt[row], rows.dy[row]);
        let (along_input, along_transition) = (rows.along_input[row], rows.along_transition[row]);
        let [of_x, of_step] = out;
        lanes::store(of_x, &lane!(l => skip[l] * dy[l] + dt[l] * along_input[l]));
        // The transition was multiplied by log2(e).
        let of_dt = lane!(l => along_transition[l] * std::f32::consts::LN_2 + x[l] * along_input[l]);
        lanes::store(of_step, &lane!(l => of_dt[l] * sigmoid(raw[l])));
        let sum = *of_skip;
        *of_skip = lane!(l => sum[l] + dy[l] * x[l]);
    }
}
