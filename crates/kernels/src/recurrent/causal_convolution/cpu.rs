//! The convolution row by row: neighbouring channels side by side, blocks of time on different threads.
//!
//! With `g` the gradient before the activation, `dx_t = sum_j weight_j g_{t + (taps - 1) - j}`,
//! `dweight_j = sum_t g_t x_{t - (taps - 1) + j}` and `dbias = sum_t g_t`.

use super::super::{
    channel_block::summed,
    sequence::{Sequence, readable},
};
use crate::{
    fused::{FusedOperator, Given, Saved, contiguous, dimensions, slice, tensor},
    matmul::{scratch, transpose},
    parallel::{FreshRows, for_each, fresh},
    simd::{sigmoid, vectorised},
};
use burn_flex::FlexTensor;
use std::ops::Range;

/// The operator over x, weight, bias and state.
#[derive(Debug)]
pub(super) struct Convolution {
    pub silu: bool,
}

/// Steps that one task takes. Fixed, so that sums over time do not depend on the number of threads.
const STEPS: usize = 64;

/// The convolution's inputs.
struct Inputs<'a> {
    x: Sequence<'a>,
    state: Sequence<'a>,
    /// `[taps, width]`.
    weight: Vec<f32>,
    bias: &'a [f32],
    silu: bool,
}

/// `[rows, columns]` with rows and columns exchanged.
fn transposed(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut out = vec![0.0; rows * columns];
    transpose(values, rows, columns, &mut out);
    out
}

impl<'a> Inputs<'a> {
    fn new([x, weight, bias, state]: &'a [FlexTensor; 4], silu: bool) -> Self {
        let (x, state) = (Sequence::new(x), Sequence::new(state));
        Self {
            x,
            state,
            weight: transposed(slice(weight), x.width, state.time + 1),
            bias: slice(bias),
            silu,
        }
    }

    /// The input `back` steps before `time`.
    #[inline(always)]
    fn input(&self, batch: usize, time: usize, back: usize) -> &'a [f32] {
        match time >= back {
            true => self.x.row(batch, time - back),
            false => self.state.row(batch, self.state.time + time - back),
        }
    }

    /// The number of tasks, and the sequence and the steps of each.
    fn tasks(&self) -> usize {
        self.x.batch * self.x.time.div_ceil(STEPS)
    }

    fn task(&self, task: usize) -> (usize, Range<usize>) {
        let parts = self.x.time.div_ceil(STEPS);
        let first = task % parts * STEPS;
        (task / parts, first..(first + STEPS).min(self.x.time))
    }
}

vectorised! {
    /// One step before the activation.
    fn convolve(y: &mut [f32], inputs: &Inputs<'_>, batch: usize, time: usize) {
        y.copy_from_slice(inputs.bias);
        for (j, weight) in inputs.weight.chunks_exact(inputs.x.width).enumerate() {
            let x = inputs.input(batch, time, inputs.state.time - j);
            for ((y, x), weight) in y.iter_mut().zip(x).zip(weight) {
                *y += x * weight;
            }
        }
    }
}

vectorised! {
    fn activate<const FUSED: bool>(y: &mut [f32]) {
        y.iter_mut().for_each(|y| *y *= sigmoid::<FUSED>(*y));
    }
}

vectorised! {
    /// From the values before the activation to the gradients there.
    fn before_activation<const FUSED: bool>(values: &mut [f32], gradient: &[f32]) {
        for (value, gradient) in values.iter_mut().zip(gradient) {
            let gate = sigmoid::<FUSED>(*value);
            *value = gradient * gate * (1.0 + *value * (1.0 - gate));
        }
    }
}

vectorised! {
    /// Adds the step's part of the gradients of weight, `[taps, width]`, and bias.
    fn add_to_weight(of_weight: &mut [f32], of_bias: &mut [f32], gradient: &[f32], inputs: &Inputs<'_>, batch: usize, time: usize) {
        for (j, of_weight) in of_weight.chunks_exact_mut(inputs.x.width).enumerate() {
            let x = inputs.input(batch, time, inputs.state.time - j);
            for ((sum, x), gradient) in of_weight.iter_mut().zip(x).zip(gradient) {
                *sum += x * gradient;
            }
        }
        of_bias.iter_mut().zip(gradient).for_each(|(sum, gradient)| *sum += gradient);
    }
}

vectorised! {
    fn add_scaled(out: &mut [f32], values: &[f32], factors: &[f32]) {
        for ((out, value), factor) in out.iter_mut().zip(values).zip(factors) {
            *out += value * factor;
        }
    }
}

impl Inputs<'_> {
    #[allow(unsafe_code)]
    fn forward(&self) -> Vec<f32> {
        let y = FreshRows::new(self.x.len(), self.x.width);
        for_each(self.tasks(), |task| {
            let (batch, steps) = self.task(task);
            for time in steps {
                // SAFETY: each step belongs to one task.
                let y = unsafe { y.row(batch * self.x.time + time) };
                convolve(y, self, batch, time);
                if self.silu {
                    activate(y);
                }
            }
        });
        // SAFETY: the tasks took every step.
        unsafe { y.whole() }
    }

    /// Gradients before the activation of some steps, `[steps, width]`.
    fn inner(&self, inner: &mut [f32], gradient: &[f32], batch: usize, steps: Range<usize>) {
        let width = self.x.width;
        for (inner, time) in inner.chunks_exact_mut(width).zip(steps) {
            let row = batch * self.x.time + time;
            let gradient = &gradient[row * width..(row + 1) * width];
            if self.silu {
                convolve(inner, self, batch, time);
                before_activation(inner, gradient);
            } else {
                inner.copy_from_slice(gradient);
            }
        }
    }

    /// Adds to the gradient of the input at `time`, which may lie before the first step by up to `taps - 1`, what those of the
    /// steps of `inner`, the first of which is `first`, ask of it.
    fn of_input(&self, out: &mut [f32], inner: &[f32], first: usize, time: isize) {
        let width = self.x.width;
        for (j, weight) in self.weight.chunks_exact(width).enumerate() {
            let row = time + (self.state.time - j) as isize - first as isize;
            if let Some(inner) = usize::try_from(row)
                .ok()
                .and_then(|row| inner.chunks_exact(width).nth(row))
            {
                add_scaled(out, inner, weight);
            }
        }
    }

    /// Each task computes the gradients before the activation for its own steps, and a second time for the few later steps that its
    /// inputs reach: less work than a pass over memory to hand them over.
    #[allow(unsafe_code)]
    fn backward(&self, gradient: &[f32], wanted: [bool; 4]) -> [Option<Vec<f32>>; 4] {
        let (width, time, before) = (self.x.width, self.x.time, self.state.time);
        let of_x = FreshRows::new(if wanted[0] { self.x.len() } else { 0 }, width);
        let of_state = FreshRows::new(if wanted[3] { self.state.len() } else { 0 }, width);
        let size = (before + 2) * width;
        let [partial] = fresh([(self.tasks() * size, size)], |task, [partial]| {
            let (of_weight, of_bias) = partial.split_at_mut((before + 1) * width);
            let (batch, steps) = self.task(task);
            let reached = steps.start..(steps.end + before).min(time);
            scratch::with(reached.len() * width, |inner| {
                self.inner(inner, gradient, batch, reached);
                for (inner, step) in inner.chunks_exact(width).zip(steps.clone()) {
                    add_to_weight(of_weight, of_bias, inner, self, batch, step);
                }
                if wanted[0] {
                    for step in steps.clone() {
                        // SAFETY: each step belongs to one task.
                        let out = unsafe { of_x.row(batch * time + step) };
                        self.of_input(out, inner, steps.start, step as isize);
                    }
                }
                if wanted[3] && steps.start == 0 {
                    for i in 0..before {
                        // SAFETY: each sequence has one first task.
                        let out = unsafe { of_state.row(batch * before + i) };
                        self.of_input(out, inner, 0, i as isize - before as isize);
                    }
                }
            });
        });
        let mut sums = summed(&partial, size);
        let of_bias = sums.split_off((before + 1) * width);
        // SAFETY: the tasks took every step, and the first of a sequence its state.
        let [of_x, of_state] = unsafe { [of_x.whole(), of_state.whole()] };
        let of_weight = transposed(&sums, before + 1, width);
        [
            wanted[0].then_some(of_x),
            Some(of_weight),
            Some(of_bias),
            wanted[3].then_some(of_state),
        ]
    }
}

/// The inputs as they are read.
fn prepared([x, weight, bias, state]: &[FlexTensor; 4]) -> [FlexTensor; 4] {
    [
        readable(x),
        contiguous(weight),
        contiguous(bias),
        readable(state),
    ]
}

impl FusedOperator<4> for Convolution {
    fn forward(&self, inputs: &[FlexTensor; 4], _: [bool; 4]) -> (FlexTensor, Saved) {
        let inputs = prepared(inputs);
        let y = Inputs::new(&inputs, self.silu).forward();
        (tensor(y, &dimensions(&inputs[0])), Vec::new())
    }

    fn backward(&self, given: Given<4>, wanted: [bool; 4]) -> [Option<FlexTensor>; 4] {
        let inputs = prepared(&given.inputs);
        let found = Inputs::new(&inputs, self.silu).backward(slice(&given.gradient), wanted);
        let mut shapes = inputs.iter().map(dimensions);
        found.map(|values| {
            shapes
                .next()
                .and_then(|shape| values.map(|values| tensor(values, &shape)))
        })
    }
}
