//! The unit in one pass over time, neighbouring channels side by side.
//!
//! With `m = sqrt(1 - a^2)`, `z = sigmoid(input_gate) x` and `q` the gradient of `h`, backwards in time: `q += dh_t`,
//! `d(ln a) = q (a h_{t-1} - z a^2 / m)`, `dx = q m sigmoid(input_gate)`, `d(input_gate) = q m x s (1 - s)`,
//! `q <- a q`; `ln a` is a product of three factors.

use super::{
    super::{
        channel_block::{self, ChannelBlock, LANES, Tasks, channels, summed},
        sequence::{Sequence, readable},
    },
    SMALLEST, STRENGTH,
};
use crate::{
    fused::{FusedOperator, Given, Saved, contiguous, slice, tensor},
    parallel::{FreshRows, for_each},
    simd::{FUSED, exp, sigmoid, softplus, vectorised},
};
use burn_flex::FlexTensor;

/// The operator over x, recurrence gate, input gate, decay and state.
#[derive(Debug)]
pub(super) struct Unit {
    pub starts: Option<Vec<bool>>,
}

/// One step of one vector of channels.
struct Step<'a> {
    x: &'a [f32],
    recurrence_gate: &'a [f32],
    input_gate: &'a [f32],
    start: bool,
}

/// The coefficients of a step: `a`, `m` and the input gate.
struct Coefficients {
    a: ChannelBlock,
    root: ChannelBlock,
    gate: ChannelBlock,
}

impl Step<'_> {
    /// `decay` holds `-8 softplus(decay)`.
    #[inline(always)]
    fn coefficients<const FUSED: bool>(&self, decay: &ChannelBlock) -> Coefficients {
        let (recurrence, input) = (
            channel_block::load(self.recurrence_gate),
            channel_block::load(self.input_gate),
        );
        let gate = channels!(l => sigmoid::<FUSED>(input[l]));
        if self.start {
            return Coefficients {
                a: [0.0; LANES],
                root: [1.0; LANES],
                gate,
            };
        }
        let a = channels!(l => exp::<FUSED>(sigmoid::<FUSED>(recurrence[l]) * decay[l]));
        let root = channels!(l => (1.0 - a[l] * a[l]).sqrt());
        Coefficients { a, root, gate }
    }
}

vectorised! {
    fn advance<const FUSED: bool>(h: &mut ChannelBlock, out: &mut [f32], step: &Step<'_>, decay: &ChannelBlock) {
        let Coefficients { a, root, gate } = step.coefficients::<FUSED>(decay);
        let x = channel_block::load(step.x);
        let before = *h;
        *h = channels!(l => a[l] * before[l] + root[l] * (gate[l] * x[l]));
        channel_block::store(out, h);
    }
}

/// Where the gradients of a step go.
struct Outputs<'a> {
    x: &'a mut [f32],
    recurrence_gate: &'a mut [f32],
    input_gate: &'a mut [f32],
}

/// Values that last through all steps of a vector of channels: the gradient of `h`, `-8 softplus(decay)`, and the sum over time
/// of the latter's gradient.
struct Carried {
    q: ChannelBlock,
    decay: ChannelBlock,
    of_decay: ChannelBlock,
}

vectorised! {
    fn retreat<const FUSED: bool>(carried: &mut Carried, out: Outputs<'_>, step: &Step<'_>, before: &[f32], gradient: &[f32]) {
        let decay = carried.decay;
        let Coefficients { a, root, gate } = step.coefficients::<FUSED>(&decay);
        let (x, before, gradient) = (channel_block::load(step.x), channel_block::load(before), channel_block::load(gradient));
        let (recurrence, later) = (channel_block::load(step.recurrence_gate), carried.q);
        let q = channels!(l => later[l] + gradient[l]);
        channel_block::store(out.x, &channels!(l => q[l] * root[l] * gate[l]));
        channel_block::store(out.input_gate, &channels!(l => q[l] * root[l] * x[l] * gate[l] * (1.0 - gate[l])));
        let mut of_gate = [0.0; LANES];
        if !step.start {
            let square = channels!(l => a[l] * a[l]);
            let least = channels!(l => 4.0 * (1.0 - square[l]));
            let slope = channels!(l => 2.0 / (if least[l] < SMALLEST { SMALLEST } else { least[l] }).sqrt());
            let of_log = channels!(l => q[l] * (a[l] * before[l] - gate[l] * x[l] * square[l] * slope[l]));
            let openness = channels!(l => sigmoid::<FUSED>(recurrence[l]));
            of_gate = channels!(l => of_log[l] * decay[l] * openness[l] * (1.0 - openness[l]));
            let sum = carried.of_decay;
            carried.of_decay = channels!(l => sum[l] + of_log[l] * openness[l]);
        }
        channel_block::store(out.recurrence_gate, &of_gate);
        carried.q = channels!(l => a[l] * q[l]);
    }
}

/// The operator's inputs.
struct Inputs<'a> {
    x: Sequence<'a>,
    recurrence_gate: Sequence<'a>,
    input_gate: Sequence<'a>,
    decay: &'a [f32],
    state: &'a [f32],
    starts: Option<&'a [bool]>,
}

impl<'a> Inputs<'a> {
    fn prepared(
        [x, recurrence_gate, input_gate, decay, state]: &[FlexTensor; 5],
    ) -> [FlexTensor; 5] {
        let [x, recurrence_gate, input_gate] = [x, recurrence_gate, input_gate].map(readable);
        [
            x,
            recurrence_gate,
            input_gate,
            contiguous(decay),
            contiguous(state),
        ]
    }

    fn new(
        [x, recurrence_gate, input_gate, decay, state]: &'a [FlexTensor; 5],
        starts: Option<&'a [bool]>,
    ) -> Self {
        let [x, recurrence_gate, input_gate] = [x, recurrence_gate, input_gate].map(Sequence::new);
        Self {
            x,
            recurrence_gate,
            input_gate,
            decay: slice(decay),
            state: slice(state),
            starts,
        }
    }

    fn step(&self, batch: usize, time: usize, block: usize) -> Step<'a> {
        let columns = channel_block::columns(self.x.width, block);
        Step {
            x: &self.x.row(batch, time)[columns.clone()],
            recurrence_gate: &self.recurrence_gate.row(batch, time)[columns.clone()],
            input_gate: &self.input_gate.row(batch, time)[columns],
            start: self
                .starts
                .is_some_and(|starts| starts[batch * self.x.time + time]),
        }
    }

    /// `-8 softplus(decay)`.
    fn decay(&self, block: usize) -> ChannelBlock {
        let decay = channel_block::block(self.decay, block);
        channels!(l => -STRENGTH * softplus::<FUSED>(decay[l]))
    }
}

#[allow(unsafe_code)]
impl FusedOperator<5> for Unit {
    fn forward(&self, inputs: &[FlexTensor; 5], _: [bool; 5]) -> (FlexTensor, Saved) {
        let inputs = Inputs::prepared(inputs);
        let inputs = Inputs::new(&inputs, self.starts.as_deref());
        let (time, width) = (inputs.x.time, inputs.x.width);
        let h = FreshRows::new(inputs.x.len(), width);
        let tasks = Tasks::new(inputs.x.batch, width);
        for_each(tasks.count(), |task| {
            let (batch, group) = tasks.place(task);
            let state = &inputs.state[batch * width..(batch + 1) * width];
            let mut carried: Vec<(ChannelBlock, ChannelBlock)> = group
                .clone()
                .map(|block| (channel_block::block(state, block), inputs.decay(block)))
                .collect();
            for t in 0..time {
                for ((carried, decay), block) in carried.iter_mut().zip(group.clone()) {
                    // SAFETY: each step of a vector of channels comes once.
                    let out =
                        unsafe { h.part(batch * time + t, channel_block::columns(width, block)) };
                    advance(carried, out, &inputs.step(batch, t, block), decay);
                }
            }
        });
        // SAFETY: the tasks took every step of every vector of channels.
        (tensor(unsafe { h.whole() }, &inputs.x.shape()), Vec::new())
    }

    fn keeps_output(&self) -> bool {
        true
    }

    fn backward(&self, given: Given<5>, _: [bool; 5]) -> [Option<FlexTensor>; 5] {
        let (inputs, h) = (
            Inputs::prepared(&given.inputs),
            given.output.as_ref().map(contiguous),
        );
        let inputs = Inputs::new(&inputs, self.starts.as_deref());
        let (h, gradient) = (h.as_ref().map_or(&[][..], slice), slice(&given.gradient));
        let (batches, time, width) = (inputs.x.batch, inputs.x.time, inputs.x.width);
        let [x_rows, recurrence_rows, input_rows] =
            [0; 3].map(|_| FreshRows::new(inputs.x.len(), width));
        let [decay_rows, state_rows] = [0; 2].map(|_| FreshRows::new(batches * width, width));
        let tasks = Tasks::new(batches, width);
        for_each(tasks.count(), |task| {
            let (batch, group) = tasks.place(task);
            let mut carried: Vec<Carried> = group
                .clone()
                .map(|block| Carried {
                    q: [0.0; LANES],
                    decay: inputs.decay(block),
                    of_decay: [0.0; LANES],
                })
                .collect();
            for t in (0..time).rev() {
                let row = batch * time + t;
                let before = if t == 0 {
                    &inputs.state[batch * width..]
                } else {
                    &h[(row - 1) * width..]
                };
                for (carried, block) in carried.iter_mut().zip(group.clone()) {
                    let columns = channel_block::columns(width, block);
                    // SAFETY: each step of a vector of channels comes once.
                    let out = unsafe {
                        Outputs {
                            x: x_rows.part(row, columns.clone()),
                            recurrence_gate: recurrence_rows.part(row, columns.clone()),
                            input_gate: input_rows.part(row, columns.clone()),
                        }
                    };
                    let gradient = &gradient[row * width..][columns.clone()];
                    retreat(
                        carried,
                        out,
                        &inputs.step(batch, t, block),
                        &before[columns],
                        gradient,
                    );
                }
            }
            for (carried, block) in carried.iter().zip(group) {
                // The decay acts through -8 softplus.
                let raw = channel_block::block(inputs.decay, block);
                let of_decay =
                    channels!(l => carried.of_decay[l] * -STRENGTH * sigmoid::<FUSED>(raw[l]));
                let columns = channel_block::columns(width, block);
                // SAFETY: each vector of channels comes once in a sequence.
                unsafe {
                    channel_block::store(decay_rows.part(batch, columns.clone()), &of_decay);
                    channel_block::store(state_rows.part(batch, columns), &carried.q);
                }
            }
        });
        // SAFETY: the tasks took every step of every vector of channels.
        let [of_x, of_recurrence, of_input, of_decay, of_state] = unsafe {
            [x_rows, recurrence_rows, input_rows, decay_rows, state_rows].map(|rows| rows.whole())
        };
        let [of_x, of_recurrence, of_input] =
            [of_x, of_recurrence, of_input].map(|values| Some(tensor(values, &inputs.x.shape())));
        let of_decay = tensor(summed(&of_decay, width), &[width]);
        [
            of_x,
            of_recurrence,
            of_input,
            Some(of_decay),
            Some(tensor(of_state, &[batches, width])),
        ]
    }
}
