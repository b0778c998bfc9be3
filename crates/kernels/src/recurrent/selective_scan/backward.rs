//! The backward: chunks of time from the last to the first, each computed again from its kept state.
//!
//! With `q` the gradient of the state, from that of the last state on, for every step backwards: `q += dy C_t`,
//! `dC_t = sum_d dy h_t`, `e = q exp(dt A) h_{t-1}`, `s = sum_n q B_t`, `dx = D dy + dt s`, `d(dt) = sum_n e A + x s`,
//! `dA += e dt`, `dB_t = sum_d q dt x`, `q <- exp(dt A) q`; the step size is a softplus, whose slope is the logistic
//! function.

use super::{
    super::lanes::{self, LANES, Lane, lane, lanes_of, summed},
    cpu::{CHUNK, Inputs},
};
use crate::{
    matmul::scratch,
    parallel::{DisjointRows, for_each},
    simd::{exp2, sigmoid, softplus, vectorised},
};

/// Channels whose sums over a group are gathered side by side before they are added up.
const FOLDED: usize = 16;

/// Gradients of one vector of channels that last through all chunks.
struct Carried<'a> {
    /// Of the state.
    state: &'a mut [Lane],
    /// Of the transition.
    transition: &'a mut [Lane],
    /// Of the skip.
    skip: &'a mut Lane,
}

/// The states of a chunk and the decays that led to them, `[steps][states]`, after the state before it in the first.
struct Chunk<'a> {
    /// One more than steps.
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
    let mut of_x = vec![0.0; inputs.x.len()];
    let mut of_step = vec![0.0; inputs.x.len()];
    let mut of_state = vec![0.0; inputs.state.len()];
    // Sums over channels, one part a group, and over the batch, one part a sequence.
    let (mut of_input, mut of_output) = (vec![0.0; groups * length], vec![0.0; groups * length]);
    let (mut of_transition, mut of_skip) = (vec![0.0; batch * width * states], vec![0.0; batch * width]);
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
        let (inputs, states) = (self.inputs, self.inputs.states);
        let (blocks, size) = (inputs.group(group), states * LANES);
        let folded = CHUNK * states * FOLDED;
        let lengths = [
            blocks.len() * size,
            blocks.len() * size,
            blocks.len() * LANES,
            size,
            (CHUNK + 1) * size,
            CHUNK * size,
            folded,
            folded,
        ];
        scratch::parts(lengths, |[state, of_transition, skip, transition, h, decay, of_input, of_output]| {
            of_transition.fill(0.0);
            skip.fill(0.0);
            state.fill(0.0);
            let (state, of_transition, skip) = (lanes_of(state), lanes_of(of_transition), lanes_of(skip));
            let carried = state.chunks_exact_mut(states).zip(of_transition.chunks_exact_mut(states)).zip(skip);
            let mut carried: Vec<Carried<'_>> =
                carried.map(|((state, transition), skip)| Carried { state, transition, skip }).collect();
            for (carried, block) in carried.iter_mut().zip(blocks.clone()) {
                if let Some(of_last) = self.of_last {
                    inputs.columns(carried.state, inputs.of_batch(of_last, batch), block);
                }
            }
            let mut chunk_states = Chunk { h: lanes_of(h), decay: lanes_of(decay) };
            let mut gathered = Gathered { input: of_input.as_chunks_mut().0, output: of_output.as_chunks_mut().0 };
            for chunk in (0..inputs.chunks()).rev() {
                gathered.input.fill([0.0; FOLDED]);
                gathered.output.fill([0.0; FOLDED]);
                for (carried, block) in carried.iter_mut().zip(blocks.clone()) {
                    inputs.columns(lanes_of(transition), &inputs.transition, block);
                    let place = [batch, chunk, block];
                    self.chunk(carried, &mut chunk_states, &mut gathered, lanes_of(transition), place);
                }
                self.finish(&gathered, group, batch, chunk);
            }
            for (carried, block) in carried.iter().zip(blocks) {
                self.write(carried, batch, block);
            }
        });
    }

    /// One chunk of one vector of channels.
    fn chunk(
        &self,
        carried: &mut Carried<'_>,
        states: &mut Chunk<'_>,
        gathered: &mut Gathered<'_>,
        transition: &mut [Lane],
        [batch, chunk, block]: [usize; 3],
    ) {
        let (inputs, width) = (self.inputs, self.inputs.x.width);
        let (steps, size) = (inputs.chunk(chunk), transition.len() * LANES);
        let kept = inputs.kept(batch, block, chunk) * size;
        states.h[..transition.len()].as_flattened_mut().copy_from_slice(&self.kept[kept..kept + size]);
        for (i, step) in steps.clone().enumerate() {
            let from = i * transition.len();
            recompute(&mut states.h[from..], &mut states.decay[from..], transition, inputs, [batch, step, block]);
        }
        for (i, step) in steps.enumerate().rev() {
            let (row, columns) = (batch * inputs.x.time + step, lanes::columns(width, block));
            // SAFETY: each step of a vector of channels comes once.
            let (of_x, of_step) =
                unsafe { (self.out.x.part(row, columns.clone()), self.out.step.part(row, columns.clone())) };
            let gradient = lanes::load(&self.gradient[row * width..][columns]);
            retreat(of_x, of_step, carried, states, gathered, transition, inputs, [batch, step, block, i], gradient);
        }
    }

    /// Adds up what the channels of a group gave to the coefficients of a chunk.
    fn finish(&self, gathered: &Gathered<'_>, group: usize, batch: usize, chunk: usize) {
        let inputs = self.inputs;
        for (i, step) in inputs.chunk(chunk).enumerate() {
            let row = (group * inputs.x.batch + batch) * inputs.x.time + step;
            for (out, sums) in [(&self.out.input, &*gathered.input), (&self.out.output, &*gathered.output)] {
                // SAFETY: each step comes once in a group.
                let out = unsafe { out.row(row) };
                out.iter_mut().zip(&sums[i * inputs.states..]).for_each(|(out, sums)| *out = sums.iter().sum());
            }
        }
    }

    /// Writes what lasted through all chunks.
    fn write(&self, carried: &Carried<'_>, batch: usize, block: usize) {
        let columns = lanes::columns(self.inputs.x.width, block);
        for (n, (state, transition)) in carried.state.iter().zip(&*carried.transition).enumerate() {
            let row = batch * self.inputs.states + n;
            // SAFETY: each vector of channels comes once in a sequence.
            unsafe {
                lanes::store(self.out.state.part(row, columns.clone()), state);
                lanes::store(self.out.transition.part(row, columns.clone()), transition);
            }
        }
        // SAFETY: as above.
        lanes::store(unsafe { self.out.skip.part(batch, columns) }, carried.skip);
    }
}

vectorised! {
    /// One step: reads the state before at the start of `h` and writes the one after behind it.
    fn recompute(h: &mut [Lane], decays: &mut [Lane], transition: &[Lane], inputs: &Inputs<'_>, place: [usize; 3]) {
        let [batch, step, block] = place;
        let x = lanes::block(inputs.x.row(batch, step), block);
        let raw = lanes::block(inputs.step.row(batch, step), block);
        let dt = lane!(l => softplus(raw[l]));
        let driven = lane!(l => dt[l] * x[l]);
        let (before, after) = h.split_at_mut(transition.len());
        let states = before.iter().zip(after).zip(decays).zip(transition.iter().zip(inputs.input.row(batch, step)));
        for (((&before, after), out), (&a, &b)) in states {
            let decay = lane!(l => exp2(dt[l] * a[l]));
            *after = lane!(l => decay[l] * before[l] + driven[l] * b);
            *out = decay;
        }
    }
}

vectorised! {
    /// One step backwards, the `i`th of its chunk.
    fn retreat(of_x: &mut [f32], of_step: &mut [f32], carried: &mut Carried<'_>, chunk: &Chunk<'_>, gathered: &mut Gathered<'_>, transition: &[Lane], inputs: &Inputs<'_>, place: [usize; 4], dy: Lane) {
        let [batch, step, block, i] = place;
        let states = transition.len();
        let x = lanes::block(inputs.x.row(batch, step), block);
        let raw = lanes::block(inputs.step.row(batch, step), block);
        let skip = lanes::block(inputs.skip, block);
        let dt = lane!(l => softplus(raw[l]));
        let driven = lane!(l => dt[l] * x[l]);
        // The sums over n of q B and of e A.
        let (mut along_input, mut along_transition) = ([0.0; LANES], [0.0; LANES]);
        let (before, after) = chunk.h[i * states..(i + 2) * states].split_at(states);
        let decays = &chunk.decay[i * states..(i + 1) * states];
        let of_input = &mut gathered.input[i * states..(i + 1) * states];
        let of_output = &mut gathered.output[i * states..(i + 1) * states];
        let (b, c) = (inputs.input.row(batch, step), inputs.output.row(batch, step));
        for n in 0..states {
            let (of_h, b, c, a, decay) = (carried.state[n], b[n], c[n], transition[n], decays[n]);
            let (before, after) = (before[n], after[n]);
            let q = lane!(l => of_h[l] + dy[l] * c);
            let e = lane!(l => q[l] * (decay[l] * before[l]));
            along_input = lane!(l => along_input[l] + q[l] * b);
            along_transition = lane!(l => along_transition[l] + e[l] * a[l]);
            carried.state[n] = lane!(l => decay[l] * q[l]);
            let of_a = carried.transition[n];
            carried.transition[n] = lane!(l => of_a[l] + e[l] * dt[l]);
            let (q_driven, dy_h) = (lane!(l => q[l] * driven[l]), lane!(l => dy[l] * after[l]));
            for l in 0..FOLDED {
                of_input[n][l] += q_driven[l] + q_driven[l + FOLDED];
            }
            for l in 0..FOLDED {
                of_output[n][l] += dy_h[l] + dy_h[l + FOLDED];
            }
        }
        for l in 0..LANES {
            carried.skip[l] += dy[l] * x[l];
        }
        lanes::store(of_x, &lane!(l => skip[l] * dy[l] + dt[l] * along_input[l]));
        // The transition was multiplied by log2(e).
        let of_dt = lane!(l => along_transition[l] * std::f32::consts::LN_2 + x[l] * along_input[l]);
        lanes::store(of_step, &lane!(l => of_dt[l] * sigmoid(raw[l])));
    }
}
