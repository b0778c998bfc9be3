//! The backward, chunk by chunk from the last to the first.
//!
//! In the forward's names, with `dS` the gradient of the state after the chunk and `e = exp(cs_last - cs)`:
//! `dM = dY X^T`, `dG = dM * L`, `dX = M^T dY + diag(e) B dS^T`, `W = diag(exp(cs)) dY S`,
//! `dC = dG B + W`, `dB = dG^T C + diag(e) X dS`, and before the chunk `dS <- exp(cs_last) dS + (diag(exp(cs)) dY)^T C`.
//!
//! The decay of step `t` acts on every pair of a step from `t` on and one before `t`, so that the gradient of `dt_t A` is
//! `sum_{i >= t > j} (dM * M)_ij + sum_{i >= t} (W * C)_i + sum_{j < t} (diag(e) X * B dS^T)_j + exp(cs_last) sum(dS * S)`:
//! sums alone, without the differences of the published form, whose terms cancel.

use super::{
    super::{channel_block::summed, sequence::Sequence},
    cpu::{Chunk, HOW, Inputs, Place, scale, scores},
};
use crate::{
    matmul::{Matrix, product},
    parallel::{DisjointRows, for_each, zeros},
    simd::{dot, exp, sum, vectorised},
};
use burn_flex::FlexTensor;

struct Outputs<'a> {
    x: DisjointRows<'a>,
    step: DisjointRows<'a>,
    /// One row for each sequence.
    transition: DisjointRows<'a>,
    skip: DisjointRows<'a>,
    /// One part for each task of a group.
    input: DisjointRows<'a>,
    output: DisjointRows<'a>,
    state: DisjointRows<'a>,
}

struct Task<'a> {
    inputs: &'a Inputs<'a>,
    kept: &'a [f32],
    gradient: Sequence<'a>,
    of_last: Option<&'a [f32]>,
    out: Outputs<'a>,
}

/// Gradients of x, step, transition, input, output, skip and state.
pub(super) fn run(
    inputs: &Inputs<'_>,
    kept: &[f32],
    gradient: &FlexTensor,
    of_last: Option<&[f32]>,
) -> [Vec<f32>; 7] {
    let (batch, heads, rows) = (inputs.x.batch, inputs.heads, inputs.x.batch * inputs.x.time);
    let tables = inputs.parts() * inputs.input.len();
    let (mut x, mut step) = (zeros(inputs.x.len()), zeros(rows * heads));
    let (mut transition, mut skip) = (zeros(batch * heads), zeros(batch * heads));
    let (mut input, mut output) = (zeros(tables), zeros(tables));
    let mut state = zeros(inputs.state.len());
    {
        let out = Outputs {
            x: DisjointRows::new(&mut x, inputs.x.width),
            step: DisjointRows::new(&mut step, heads),
            transition: DisjointRows::new(&mut transition, heads),
            skip: DisjointRows::new(&mut skip, heads),
            input: DisjointRows::new(&mut input, inputs.input.width),
            output: DisjointRows::new(&mut output, inputs.input.width),
            state: DisjointRows::new(&mut state, inputs.size()),
        };
        let task = Task {
            inputs,
            kept,
            gradient: Sequence::new(gradient),
            of_last,
            out,
        };
        for_each(inputs.tasks(), |number| task.run(number));
    }
    let [input, output] = [input, output].map(|parts| summed(&parts, inputs.input.len()));
    [
        x,
        step,
        summed(&transition, heads),
        input,
        output,
        summed(&skip, heads),
        state,
    ]
}

/// Working memory of a task.
struct Memory {
    chunk: Chunk,
    /// `[steps, steps]`: `C B^T`, the gradient of the mixing, and that of `C B^T` over all heads.
    scores: Vec<f32>,
    of_mixing: Vec<f32>,
    of_scores: Vec<f32>,
    /// `[steps, width]`: the gradient of `x`, the last state's contribution to it, and the output's gradient times `exp(cs)`.
    of_x: Vec<f32>,
    from_last: Vec<f32>,
    dy_kept: Vec<f32>,
    /// `[steps, states]`: `W`, and the gradients of the tables over all heads.
    through: Vec<f32>,
    of_input: Vec<f32>,
    of_output: Vec<f32>,
}

impl Memory {
    fn new() -> Self {
        let [
            scores,
            of_mixing,
            of_scores,
            of_x,
            from_last,
            dy_kept,
            through,
            of_input,
            of_output,
        ] = [const { Vec::new() }; 9];
        let chunk = Chunk::new();
        Self {
            chunk,
            scores,
            of_mixing,
            of_scores,
            of_x,
            from_last,
            dy_kept,
            through,
            of_input,
            of_output,
        }
    }

    fn resize(&mut self, steps: usize, width: usize, states: usize) {
        for matrix in [&mut self.scores, &mut self.of_mixing, &mut self.of_scores] {
            matrix.resize(steps * steps, 0.0);
        }
        for matrix in [&mut self.of_x, &mut self.from_last, &mut self.dy_kept] {
            matrix.resize(steps * width, 0.0);
        }
        for matrix in [&mut self.through, &mut self.of_input, &mut self.of_output] {
            matrix.resize(steps * states, 0.0);
        }
        for matrix in [&mut self.of_scores, &mut self.of_input, &mut self.of_output] {
            matrix.fill(0.0);
        }
    }
}

#[allow(unsafe_code)]
impl Task<'_> {
    /// Some heads of one sequence.
    fn run(&self, number: usize) {
        let (inputs, size, place) = (self.inputs, self.inputs.size(), self.inputs.place(number));
        let first = place.batch * inputs.heads + place.heads.start;
        let mut of_states = match self.of_last {
            Some(of_last) => of_last[first * size..(first + place.heads.len()) * size].to_vec(),
            None => vec![0.0; place.heads.len() * size],
        };
        let mut sums = vec![[0.0; 2]; place.heads.len()];
        let mut memory = Memory::new();
        for chunk in (0..inputs.chunks()).rev() {
            let steps = inputs.chunk(chunk);
            memory.resize(steps.len(), inputs.width, inputs.states);
            let tables = inputs.tables(&place, steps);
            scores(&mut memory.scores, tables);
            for ((head, of_state), sums) in place
                .heads
                .clone()
                .zip(of_states.chunks_exact_mut(size))
                .zip(&mut sums)
            {
                self.head(
                    &mut memory,
                    of_state,
                    sums,
                    place.batch,
                    head,
                    chunk,
                    tables,
                );
            }
            self.tables(&mut memory, &place, number % inputs.parts(), chunk, tables);
        }
        for ((head, of_state), sums) in place
            .heads
            .clone()
            .zip(of_states.chunks_exact(size))
            .zip(&sums)
        {
            // SAFETY: each head of a sequence comes once.
            unsafe {
                self.out
                    .state
                    .row(place.batch * inputs.heads + head)
                    .copy_from_slice(of_state);
                self.out.transition.part(place.batch, head..head + 1)[0] = sums[0];
                self.out.skip.part(place.batch, head..head + 1)[0] = sums[1];
            }
        }
    }

    /// One chunk of one head; `sums` are the gradients of transition and skip.
    #[allow(clippy::too_many_arguments)]
    fn head(
        &self,
        memory: &mut Memory,
        of_state: &mut [f32],
        sums: &mut [f32; 2],
        batch: usize,
        head: usize,
        chunk: usize,
        [input, output]: [Matrix<'_>; 2],
    ) {
        let (inputs, steps) = (self.inputs, self.inputs.chunk(chunk));
        let (count, width, states, columns) = (
            steps.len(),
            inputs.width,
            inputs.states,
            inputs.columns(head),
        );
        memory
            .chunk
            .fill(inputs, batch, head, steps.clone(), &memory.scores);
        let kept = ((batch * inputs.heads + head) * inputs.chunks() + chunk) * inputs.size();
        let state = &self.kept[kept..kept + inputs.size()];
        let dy = self.gradient.matrix(batch, steps.clone(), columns.clone());
        let (x, own) = (Matrix::new(&memory.chunk.x, count, width), &memory.chunk);
        // The steps among themselves.
        product(&mut memory.of_mixing, dy, x.transposed(), false, HOW);
        product(
            &mut memory.of_x,
            Matrix::new(&own.mixing, count, count).transposed(),
            dy,
            false,
            HOW,
        );
        add_decayed(&mut memory.of_scores, &memory.of_mixing, &own.sums);
        // To the state after the chunk.
        let of_last = Matrix::new(of_state, width, states);
        product(
            &mut memory.from_last,
            input,
            of_last.transposed(),
            false,
            HOW,
        );
        product(
            &mut memory.of_input,
            Matrix::new(&own.x_left, count, width),
            of_last,
            true,
            HOW,
        );
        // From the state before it.
        for (row, t) in memory.dy_kept.chunks_exact_mut(width).zip(steps.clone()) {
            row.copy_from_slice(&self.gradient.row(batch, t)[columns.clone()]);
        }
        scale(&mut memory.dy_kept, &own.kept, width);
        let dy_kept = Matrix::new(&memory.dy_kept, count, width);
        product(
            &mut memory.through,
            dy_kept,
            Matrix::new(state, width, states),
            false,
            HOW,
        );
        memory
            .of_output
            .iter_mut()
            .zip(&memory.through)
            .for_each(|(sum, value)| *sum += value);
        let remains = own.whole() * dot(of_state, state);
        scale(of_state, &[own.whole()], inputs.size());
        product(of_state, dy_kept.transposed(), output, true, HOW);
        let of_decay = self.decays(memory, batch, head, chunk, remains);
        self.finish(memory, &of_decay, sums, batch, head, chunk);
    }

    /// The gradients of `dt A` for the steps of a chunk; `remains` is `exp(cs_last) sum(dS * S)`.
    fn decays(
        &self,
        memory: &mut Memory,
        batch: usize,
        head: usize,
        chunk: usize,
        remains: f32,
    ) -> Vec<f32> {
        let (inputs, steps) = (self.inputs, self.inputs.chunk(chunk));
        let (count, width, states) = (steps.len(), inputs.width, inputs.states);
        let group = head / (inputs.heads / inputs.groups());
        let mut of_decay = vec![0.0; count];
        let mut pairs = vec![0.0; count];
        let mut before = 0.0;
        for (i, t) in steps.enumerate().rev() {
            let row = i * count..(i + 1) * count;
            add_products(
                &mut pairs,
                &memory.of_mixing[row.clone()],
                &memory.chunk.mixing[row],
            );
            let c = &inputs.output.row(batch, t)[group * states..(group + 1) * states];
            before += dot_of(&memory.through[i * states..(i + 1) * states], c);
            of_decay[i] = sum_of(&pairs[..i]) + before + remains;
        }
        let mut after = 0.0;
        for (i, of_decay) in of_decay.iter_mut().enumerate() {
            *of_decay += after;
            let row = i * width..(i + 1) * width;
            after += dot_of(&memory.chunk.x_left[row.clone()], &memory.from_last[row]);
        }
        of_decay
    }

    /// Writes the gradients of x and step and adds to those of transition and skip.
    fn finish(
        &self,
        memory: &Memory,
        of_decay: &[f32],
        sums: &mut [f32; 2],
        batch: usize,
        head: usize,
        chunk: usize,
    ) {
        let (inputs, width) = (self.inputs, self.inputs.width);
        for (i, t) in inputs.chunk(chunk).enumerate() {
            let (row, columns) = (batch * inputs.x.time + t, inputs.columns(head));
            // SAFETY: each step of a head comes once.
            let (of_x, of_step) = unsafe {
                (
                    self.out.x.part(row, columns.clone()),
                    self.out.step.part(row, head..head + 1),
                )
            };
            let x = &inputs.x.row(batch, t)[columns.clone()];
            let dy = &self.gradient.row(batch, t)[columns];
            let rows =
                [&memory.of_x, &memory.from_last].map(|rows| &rows[i * width..(i + 1) * width]);
            let dt = inputs.step.row(batch, t)[head];
            let along = write(
                of_x,
                rows,
                memory.chunk.left[i],
                dt,
                dy,
                inputs.skip[head],
                x,
            );
            of_step[0] = of_decay[i] * inputs.transition[head] + along;
            sums[0] += of_decay[i] * dt;
            sums[1] += dot_of(dy, x);
        }
    }

    /// The gradients of the tables over the heads of a task.
    fn tables(
        &self,
        memory: &mut Memory,
        place: &Place,
        part: usize,
        chunk: usize,
        [input, output]: [Matrix<'_>; 2],
    ) {
        let (inputs, steps) = (self.inputs, self.inputs.chunk(chunk));
        let (count, states) = (steps.len(), inputs.states);
        let of_scores = Matrix::new(&memory.of_scores, count, count);
        product(&mut memory.of_output, of_scores, input, true, HOW);
        product(
            &mut memory.of_input,
            of_scores.transposed(),
            output,
            true,
            HOW,
        );
        for (i, t) in steps.enumerate() {
            let row = (part * inputs.x.batch + place.batch) * inputs.x.time + t;
            let columns = place.group * states..(place.group + 1) * states;
            for (out, values) in [
                (&self.out.input, &memory.of_input),
                (&self.out.output, &memory.of_output),
            ] {
                // SAFETY: each step of a group comes once in a part.
                let out = unsafe { out.part(row, columns.clone()) };
                out.copy_from_slice(&values[i * states..(i + 1) * states]);
            }
        }
    }
}

vectorised! {
    /// Adds `of_mixing * L` on and below the diagonal.
    fn add_decayed<const FUSED: bool>(of_scores: &mut [f32], of_mixing: &[f32], sums: &[f32]) {
        let count = sums.len();
        for (i, (out, row)) in of_scores.chunks_exact_mut(count).zip(of_mixing.chunks_exact(count)).enumerate() {
            for ((out, value), sum) in out[..i + 1].iter_mut().zip(row).zip(sums) {
                *out += value * exp::<FUSED>(sums[i] - sum);
            }
        }
    }
}

vectorised! {
    fn add_products(out: &mut [f32], a: &[f32], b: &[f32]) {
        for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
            *out += a * b;
        }
    }
}

vectorised! {
    fn dot_of(a: &[f32], b: &[f32]) -> f32 {
        dot(a, b)
    }
}

vectorised! {
    fn sum_of(x: &[f32]) -> f32 {
        sum(x)
    }
}

vectorised! {
    /// Writes the gradient of x; returns that of the step size through `dt x`.
    fn write(of_x: &mut [f32], rows: [&[f32]; 2], left: f32, dt: f32, dy: &[f32], skip: f32, x: &[f32]) -> f32 {
        for ((of_x, inside), after) in of_x.iter_mut().zip(rows[0]).zip(rows[1]) {
            *of_x = inside + left * after;
        }
        let along = dot(of_x, x);
        for (of_x, dy) in of_x.iter_mut().zip(dy) {
            *of_x = dt * *of_x + skip * dy;
        }
        along
    }
}
