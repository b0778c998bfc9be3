//! The scan with neighbouring channels side by side; groups of channels run on different threads.

use super::super::{
    lanes::{self, LANES, Lane, lane, lanes_of},
    sequence::{Sequence, readable},
};
use crate::{
    host::{Given, HostOperator, Saved, Side, contiguous, slice, tensor},
    matmul::scratch,
    parallel::{DisjointRows, for_each},
    simd::{exp2, softplus, vectorised},
};
use burn_flex::FlexTensor;

/// The operator over x, step, transition, input, output, skip and state; the last state leaves by the side.
#[derive(Debug)]
pub(super) struct Scan {
    pub last: Side,
}

/// Steps between two kept states.
pub(super) const CHUNK: usize = 32;
/// Vectors of channels in a task. Fixed, so that sums over channels do not depend on the number of threads.
pub(super) const GROUP: usize = 8;

/// What a scan reads.
pub(super) struct Inputs<'a> {
    pub x: Sequence<'a>,
    pub step: Sequence<'a>,
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
    pub fn new([x, step, transition, input, output, skip, state]: &'a [FlexTensor; 7]) -> Self {
        let (x, input) = (Sequence::new(x), Sequence::new(input));
        let (states, transition) = (input.width, slice(transition));
        let at = |i: usize| transition[i % x.width * states + i / x.width] * std::f32::consts::LOG2_E;
        Self {
            x,
            step: Sequence::new(step),
            input,
            output: Sequence::new(output),
            transition: (0..transition.len()).map(at).collect(),
            skip: slice(skip),
            state: slice(state),
            states,
        }
    }

    /// The inputs as they are read.
    pub fn prepared([x, step, transition, input, output, skip, state]: &[FlexTensor; 7]) -> [FlexTensor; 7] {
        let sequences = [x, step, input, output].map(readable);
        let [transition, skip, state] = [transition, skip, state].map(contiguous);
        let [x, step, input, output] = sequences;
        [x, step, transition, input, output, skip, state]
    }

    /// Vectors that the channels fill.
    pub fn blocks(&self) -> usize {
        self.x.width.div_ceil(LANES)
    }

    /// Groups of a sequence.
    pub fn groups(&self) -> usize {
        self.blocks().div_ceil(GROUP)
    }

    /// The vectors of a group.
    pub fn group(&self, group: usize) -> std::ops::Range<usize> {
        group * GROUP..((group + 1) * GROUP).min(self.blocks())
    }

    pub fn chunks(&self) -> usize {
        self.x.time.div_ceil(CHUNK)
    }

    /// The steps of a chunk.
    pub fn chunk(&self, chunk: usize) -> std::ops::Range<usize> {
        chunk * CHUNK..((chunk + 1) * CHUNK).min(self.x.time)
    }

    /// Where a kept state lies among all.
    pub fn kept(&self, batch: usize, block: usize, chunk: usize) -> usize {
        (batch * self.blocks() + block) * self.chunks() + chunk
    }

    /// The rows of one vector of channels in a table `[states, width]`.
    pub fn columns(&self, out: &mut [Lane], table: &[f32], block: usize) {
        for (out, row) in out.iter_mut().zip(table.chunks_exact(self.x.width)) {
            *out = lanes::block(row, block);
        }
    }

    /// Its table of states in `[batch, states, width]`.
    pub fn of_batch<'b>(&self, states: &'b [f32], batch: usize) -> &'b [f32] {
        &states[batch * self.states * self.x.width..(batch + 1) * self.states * self.x.width]
    }

    /// Outputs, last states, and where asked the states before every chunk.
    fn forward(&self, keep: bool) -> [Vec<f32>; 3] {
        let (time, width, states) = (self.x.time, self.x.width, self.states);
        let mut y = vec![0.0; self.x.len()];
        let mut last = vec![0.0; self.state.len()];
        let size = states * LANES;
        let mut kept = vec![0.0; if keep { self.kept(self.x.batch, 0, 0) * size } else { 0 }];
        let (y_rows, last_rows) = (DisjointRows::new(&mut y, width), DisjointRows::new(&mut last, width));
        let kept_rows = DisjointRows::new(&mut kept, size);
        for_each(self.x.batch * self.groups(), |task| {
            let batch = task / self.groups();
            for block in self.group(task % self.groups()) {
                scratch::parts([size, size], |[transition, h]| {
                    let (transition, h) = (lanes_of(transition), lanes_of(h));
                    self.columns(transition, &self.transition, block);
                    self.columns(h, self.of_batch(self.state, batch), block);
                    for chunk in 0..self.chunks() {
                        if keep {
                            #[allow(unsafe_code)]
                            // SAFETY: each chunk of a vector of channels comes once.
                            let kept = unsafe { kept_rows.row(self.kept(batch, block, chunk)) };
                            kept.copy_from_slice(h.as_flattened());
                        }
                        for step in self.chunk(chunk) {
                            #[allow(unsafe_code)]
                            // SAFETY: each step of a vector of channels comes once.
                            let y = unsafe { y_rows.part(batch * time + step, lanes::columns(width, block)) };
                            advance(y, h, transition, self, [batch, step, block]);
                        }
                    }
                    for (n, h) in h.iter().enumerate() {
                        #[allow(unsafe_code)]
                        // SAFETY: each vector of channels comes once.
                        let last = unsafe { last_rows.part(batch * states + n, lanes::columns(width, block)) };
                        lanes::store(last, h);
                    }
                });
            }
        });
        [y, last, kept]
    }
}

vectorised! {
    /// One step of one vector of channels.
    fn advance(y: &mut [f32], h: &mut [Lane], transition: &[Lane], inputs: &Inputs<'_>, place: [usize; 3]) {
        let [batch, step, block] = place;
        let x = lanes::block(inputs.x.row(batch, step), block);
        let raw = lanes::block(inputs.step.row(batch, step), block);
        let skip = lanes::block(inputs.skip, block);
        let dt = lane!(l => softplus(raw[l]));
        let driven = lane!(l => dt[l] * x[l]);
        let mut sum = lane!(l => skip[l] * x[l]);
        let coefficients = inputs.input.row(batch, step).iter().zip(inputs.output.row(batch, step));
        for ((h, a), (&b, &c)) in h.iter_mut().zip(transition).zip(coefficients) {
            let decay = lane!(l => exp2(dt[l] * a[l]));
            let after = lane!(l => decay[l] * h[l] + driven[l] * b);
            sum = lane!(l => sum[l] + after[l] * c);
            *h = after;
        }
        lanes::store(y, &sum);
    }
}

impl HostOperator<7> for Scan {
    fn forward(&self, inputs: &[FlexTensor; 7], wanted: [bool; 7]) -> (FlexTensor, Saved) {
        let inputs = Inputs::prepared(inputs);
        let inputs = Inputs::new(&inputs);
        let [y, last, kept] = inputs.forward(wanted.contains(&true));
        self.last.put(tensor(last, &[inputs.x.batch, inputs.states, inputs.x.width]));
        (tensor(y, &inputs.x.shape()), vec![kept])
    }

    fn backward(&self, given: Given<7>, _: [bool; 7]) -> [Option<FlexTensor>; 7] {
        let inputs = Inputs::prepared(&given.inputs);
        let of_last = self.last.gradient().map(|gradient| contiguous(&gradient));
        let found = super::backward::run(
            &Inputs::new(&inputs),
            &given.saved[0],
            slice(&given.gradient),
            of_last.as_ref().map(slice),
        );
        let mut shapes = inputs.iter().map(crate::host::dimensions);
        found.map(|values| shapes.next().map(|shape| tensor(values, &shape)))
    }
}
