//! The scan by chunks of time (arXiv 2405.21060, Listing 1). With `cs` the running sum of `dt A` in the chunk, `X = dt x`,
//! `L_ij = exp(cs_i - cs_j)` for `j <= i` and `S` the state before: `Y = (C B^T * L) X + diag(exp(cs)) C S^T`, and the next
//! state is `exp(cs_last) S + (diag(exp(cs_last - cs)) X)^T B`. No exponent is positive.

use std::ops::Range;

use super::super::sequence::{Sequence, readable};
use crate::{
    fused::{FusedOperator, Given, Saved, Side, contiguous, dimensions, slice, tensor},
    linear::Precision,
    matmul::{How, Matrix, product},
    parallel::{DisjointRows, for_each, zeros},
    simd::{FUSED, exp, vectorised},
};
use burn_flex::FlexTensor;

/// The operator over x, step, transition, input, output, skip and state; the last state leaves by the side.
#[derive(Debug)]
pub(super) struct Scan {
    pub last: Side,
}

/// Steps of a chunk.
const CHUNK: usize = 64;
/// Heads of a group in one task, which share `C B^T`. Fixed, so that sums over heads do not depend on the number of
/// threads.
const HEADS: usize = 4;
/// All products here: small, inside tasks.
pub(super) const HOW: How = How {
    precision: Precision::F32,
    threads: crate::matmul::Threads::One,
};

/// The scan's inputs.
pub(super) struct Inputs<'a> {
    pub x: Sequence<'a>,
    pub step: Sequence<'a>,
    pub input: Sequence<'a>,
    pub output: Sequence<'a>,
    pub transition: &'a [f32],
    pub skip: &'a [f32],
    pub state: &'a [f32],
    pub heads: usize,
    pub width: usize,
    pub states: usize,
}

/// The heads of one task: a sequence, and some heads of one group.
#[derive(Clone)]
pub(super) struct Place {
    pub batch: usize,
    pub group: usize,
    pub heads: Range<usize>,
}

impl<'a> Inputs<'a> {
    pub fn prepared(
        [x, step, transition, input, output, skip, state]: &[FlexTensor; 7],
    ) -> [FlexTensor; 7] {
        let [x, step, input, output] = [x, step, input, output].map(readable);
        let [transition, skip, state] = [transition, skip, state].map(contiguous);
        [x, step, transition, input, output, skip, state]
    }

    pub fn new([x, step, transition, input, output, skip, state]: &'a [FlexTensor; 7]) -> Self {
        let shape = dimensions(state);
        let [x, step, input, output] = [x, step, input, output].map(Sequence::new);
        let [transition, skip, state] = [transition, skip, state].map(slice);
        Self {
            x,
            step,
            input,
            output,
            transition,
            skip,
            state,
            heads: shape[1],
            width: shape[2],
            states: shape[3],
        }
    }

    pub fn groups(&self) -> usize {
        self.input.width / self.states
    }

    /// Tasks of one group.
    pub fn parts(&self) -> usize {
        (self.heads / self.groups()).div_ceil(HEADS)
    }

    pub fn tasks(&self) -> usize {
        self.x.batch * self.groups() * self.parts()
    }

    pub fn place(&self, task: usize) -> Place {
        let (groups, parts) = (self.groups(), self.parts());
        let (batch, group, part) = (task / (groups * parts), task / parts % groups, task % parts);
        let each = self.heads / groups;
        let first = group * each + part * HEADS;
        Place {
            batch,
            group,
            heads: first..(first + HEADS).min((group + 1) * each),
        }
    }

    pub fn chunks(&self) -> usize {
        self.x.time.div_ceil(CHUNK)
    }

    /// The steps of a chunk.
    pub fn chunk(&self, chunk: usize) -> Range<usize> {
        chunk * CHUNK..((chunk + 1) * CHUNK).min(self.x.time)
    }

    /// Where a head's channels lie in a row.
    pub fn columns(&self, head: usize) -> Range<usize> {
        head * self.width..(head + 1) * self.width
    }

    /// Numbers of one state.
    pub fn size(&self) -> usize {
        self.width * self.states
    }

    /// `B` and `C` of some steps, `[steps, states]`.
    pub fn tables(&self, place: &Place, steps: Range<usize>) -> [Matrix<'a>; 2] {
        let columns = place.group * self.states..(place.group + 1) * self.states;
        [self.input, self.output]
            .map(|table| table.matrix(place.batch, steps.clone(), columns.clone()))
    }
}

/// One head's chunk, before any product.
pub(super) struct Chunk {
    /// The running sums of `dt A`.
    pub sums: Vec<f32>,
    /// `exp(cs)`: the decay of the state before the chunk, by step.
    pub kept: Vec<f32>,
    /// `exp(cs_last - cs)`: the decay of a step until the end of the chunk.
    pub left: Vec<f32>,
    /// `dt x`, `[steps, width]`.
    pub x: Vec<f32>,
    /// As `x`, times `left`.
    pub x_left: Vec<f32>,
    /// `C B^T * L`, `[steps, steps]`.
    pub mixing: Vec<f32>,
}

impl Chunk {
    pub fn new() -> Self {
        let [sums, kept, left, x, x_left, mixing] = [const { Vec::new() }; 6];
        Self {
            sums,
            kept,
            left,
            x,
            x_left,
            mixing,
        }
    }

    /// Fills it for some steps of a head; `scores` is `C B^T`.
    pub fn fill(
        &mut self,
        inputs: &Inputs<'_>,
        batch: usize,
        head: usize,
        steps: Range<usize>,
        scores: &[f32],
    ) {
        let (count, columns, a) = (steps.len(), inputs.columns(head), inputs.transition[head]);
        let dt = |t: usize| inputs.step.row(batch, t)[head];
        self.sums.clear();
        self.sums.extend(steps.clone().scan(0.0, |sum, t| {
            *sum += dt(t) * a;
            Some(*sum)
        }));
        let last = self.sums.last().copied().unwrap_or_default();
        self.kept.clear();
        self.kept
            .extend(self.sums.iter().map(|cs| exp::<FUSED>(*cs)));
        self.left.clear();
        self.left
            .extend(self.sums.iter().map(|cs| exp::<FUSED>(last - cs)));
        self.x.resize(count * inputs.width, 0.0);
        self.x_left.resize(count * inputs.width, 0.0);
        let rows = self
            .x
            .chunks_exact_mut(inputs.width)
            .zip(self.x_left.chunks_exact_mut(inputs.width));
        for ((t, left), (x, x_left)) in steps.zip(&self.left).zip(rows) {
            scale_to(
                [x, x_left],
                &inputs.x.row(batch, t)[columns.clone()],
                [dt(t), dt(t) * left],
            );
        }
        self.mixing.clear();
        self.mixing.extend_from_slice(scores);
        decay(&mut self.mixing, &self.sums, count);
    }

    /// The decay of the state over the whole chunk.
    pub fn whole(&self) -> f32 {
        self.kept.last().copied().unwrap_or(1.0)
    }
}

vectorised! {
    /// A row times each of two factors.
    fn scale_to(out: [&mut [f32]; 2], row: &[f32], factors: [f32; 2]) {
        let ([a, b], [by_a, by_b]) = (out, factors);
        for ((a, b), value) in a.iter_mut().zip(b).zip(row) {
            *a = by_a * value;
            *b = by_b * value;
        }
    }
}

vectorised! {
    /// Multiplies by `exp(cs_i - cs_j)`, and by zero above the diagonal.
    fn decay<const FUSED: bool>(scores: &mut [f32], sums: &[f32], count: usize) {
        for (i, row) in scores.chunks_exact_mut(count.max(1)).enumerate() {
            let (seen, unseen) = row.split_at_mut(i + 1);
            for (score, sum) in seen.iter_mut().zip(sums) {
                *score *= exp::<FUSED>(sums[i] - sum);
            }
            unseen.fill(0.0);
        }
    }
}

vectorised! {
    /// `rows * factors` row by row.
    pub(super) fn scale(out: &mut [f32], factors: &[f32], width: usize) {
        for (row, factor) in out.chunks_exact_mut(width).zip(factors) {
            row.iter_mut().for_each(|value| *value *= factor);
        }
    }
}

vectorised! {
    fn write(y: &mut [f32], inside: &[f32], before: &[f32], kept: f32, x: &[f32], skip: f32) {
        for (((y, inside), before), x) in y.iter_mut().zip(inside).zip(before).zip(x) {
            *y = inside + kept * before + skip * x;
        }
    }
}

/// `C B^T` of a chunk.
pub(super) fn scores(out: &mut [f32], [input, output]: [Matrix<'_>; 2]) {
    product(out, output, input.transposed(), false, HOW);
}

impl Inputs<'_> {
    /// Outputs, last states, and where asked the states before every chunk.
    #[allow(unsafe_code)]
    fn forward(&self, keep: bool) -> [Vec<f32>; 3] {
        let (size, time) = (self.size(), self.x.time);
        let mut y = zeros(self.x.len());
        let mut last = zeros(self.state.len());
        let mut kept = zeros(if keep {
            self.chunks() * self.state.len()
        } else {
            0
        });
        let y_rows = DisjointRows::new(&mut y, self.x.width);
        let (last_rows, kept_rows) = (
            DisjointRows::new(&mut last, size),
            DisjointRows::new(&mut kept, size),
        );
        for_each(self.tasks(), |task| {
            let place = self.place(task);
            let first = place.batch * self.heads + place.heads.start;
            let mut states = self.state[first * size..(first + place.heads.len()) * size].to_vec();
            let longest = CHUNK.min(time);
            let mut matrix = vec![0.0; longest * longest];
            let (mut inside, mut before) = (
                vec![0.0; longest * self.width],
                vec![0.0; longest * self.width],
            );
            let mut chunk = Chunk::new();
            for number in 0..self.chunks() {
                let steps = self.chunk(number);
                let (count, tables) = (steps.len(), self.tables(&place, steps.clone()));
                let matrix = &mut matrix[..count * count];
                scores(matrix, tables);
                for (head, state) in place.heads.clone().zip(states.chunks_exact_mut(size)) {
                    if keep {
                        let row = (place.batch * self.heads + head) * self.chunks() + number;
                        // SAFETY: each chunk of a head comes once.
                        unsafe { kept_rows.row(row) }.copy_from_slice(state);
                    }
                    chunk.fill(self, place.batch, head, steps.clone(), matrix);
                    let (inside, before) = (
                        &mut inside[..count * self.width],
                        &mut before[..count * self.width],
                    );
                    self.advance(state, &chunk, tables, inside, before);
                    for (i, t) in steps.clone().enumerate() {
                        let columns = self.columns(head);
                        // SAFETY: each step of a head comes once.
                        let y = unsafe { y_rows.part(place.batch * time + t, columns.clone()) };
                        let x = &self.x.row(place.batch, t)[columns];
                        let rows = [&*inside, &*before]
                            .map(|rows| &rows[i * self.width..(i + 1) * self.width]);
                        write(y, rows[0], rows[1], chunk.kept[i], x, self.skip[head]);
                    }
                }
            }
            for (i, state) in states.chunks_exact(size).enumerate() {
                // SAFETY: each head of a sequence comes once.
                unsafe { last_rows.row(first + i) }.copy_from_slice(state);
            }
        });
        [y, last, kept]
    }

    /// One head's chunk: the mix of its steps, the contribution of the state before, and the next state.
    fn advance(
        &self,
        state: &mut [f32],
        chunk: &Chunk,
        tables: [Matrix<'_>; 2],
        inside: &mut [f32],
        before: &mut [f32],
    ) {
        let (count, [input, output]) = (chunk.sums.len(), tables);
        product(
            inside,
            Matrix::new(&chunk.mixing, count, count),
            Matrix::new(&chunk.x, count, self.width),
            false,
            HOW,
        );
        product(
            before,
            output,
            Matrix::new(state, self.width, self.states).transposed(),
            false,
            HOW,
        );
        scale(state, &[chunk.whole()], self.size());
        product(
            state,
            Matrix::new(&chunk.x_left, count, self.width).transposed(),
            input,
            true,
            HOW,
        );
    }
}

impl FusedOperator<7> for Scan {
    fn forward(&self, inputs: &[FlexTensor; 7], wanted: [bool; 7]) -> (FlexTensor, Saved) {
        let tensors = Inputs::prepared(inputs);
        let inputs = Inputs::new(&tensors);
        let [y, last, kept] = inputs.forward(wanted.contains(&true));
        self.last.put(tensor(last, &dimensions(&tensors[6])));
        (tensor(y, &inputs.x.shape()), vec![kept])
    }

    fn backward(&self, given: Given<7>, _: [bool; 7]) -> [Option<FlexTensor>; 7] {
        let tensors = Inputs::prepared(&given.inputs);
        let of_last = self.last.gradient().map(|gradient| contiguous(&gradient));
        let of_last = of_last.as_ref().map(slice);
        let found = super::backward::run(
            &Inputs::new(&tensors),
            &given.saved[0],
            &given.gradient,
            of_last,
        );
        let mut shapes = tensors.iter().map(dimensions);
        found.map(|values| shapes.next().map(|shape| tensor(values, &shape)))
    }
}
