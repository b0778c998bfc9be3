//! The average with neighbouring channels side by side; every vector of channels is a task of its own.
//!
//! With `P` and `Q` the gradients of `alpha` and `beta`, backwards in time: `q = dy / (beta + exp(u + k))`,
//! `s = q exp(u + k)`, `dk = s (v - y) + exp(k) (P v + Q)`, `dv = s + exp(k) P`, `du += s (v - y)`,
//! `dw += exp(w) (P alpha + Q beta)`, `P <- q + exp(w) P`, `Q <- -q y + exp(w) Q`. `P` and `Q` have a common exponent, as
//! `alpha` and `beta` have; every sum of exponents is then at most zero.

use std::ops::Range;

use super::super::{
    channel_block::{self, ChannelBlock, LANES, Tasks, channels, summed},
    sequence::{Sequence, readable},
};
use super::NOTHING;
use crate::{
    fused::{FusedOperator, Given, Saved, Side, contiguous, dimensions, slice, tensor},
    parallel::{FreshRows, for_each},
    simd::{exp, vectorised},
};
use burn_flex::FlexTensor;

/// The operator over key, value, decay, bonus and state; the last state leaves by the side.
#[derive(Debug)]
pub(super) struct Wkv {
    pub last: Side,
}

/// Steps between two kept states.
const CHUNK: usize = 64;

/// `a`, `b` and the exponent, of values or of gradients.
type State = [ChannelBlock; 3];

/// The decay's logarithm and the bonus.
type Constants = [ChannelBlock; 2];

#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// The weights of the past average and of the current token relative to the larger of their exponents, and that exponent.
#[inline(always)]
fn weights<const FUSED: bool>(before: &ChannelBlock, now: &ChannelBlock) -> [ChannelBlock; 3] {
    let largest = channels!(l => larger(before[l], now[l]));
    [
        channels!(l => exp::<FUSED>(before[l] - largest[l])),
        channels!(l => exp::<FUSED>(now[l] - largest[l])),
        largest,
    ]
}

vectorised! {
    /// One step; returns the output.
    fn advance<const FUSED: bool>(state: &mut State, key: &[f32], value: &[f32], constants: &Constants) -> ChannelBlock {
        let ([a, b, p], [w, u]) = (*state, constants);
        let (k, v) = (channel_block::load(key), channel_block::load(value));
        let [before, now, _] = weights::<FUSED>(&p, &channels!(l => u[l] + k[l]));
        let y = channels!(l => (before[l] * a[l] + now[l] * v[l]) / (before[l] * b[l] + now[l]));
        let [before, now, largest] = weights::<FUSED>(&channels!(l => p[l] + w[l]), &k);
        *state = [
            channels!(l => before[l] * a[l] + now[l] * v[l]),
            channels!(l => before[l] * b[l] + now[l]),
            largest,
        ];
        y
    }
}

/// The gradients that a vector of channels carries backwards in time.
struct Vector {
    constants: Constants,
    /// The gradients of `alpha` and `beta`, and their exponent.
    carried: State,
    /// Sums over time for the decay's logarithm and the bonus.
    sums: [ChannelBlock; 2],
    /// The states before every step of the chunk.
    states: Vec<State>,
}

impl Vector {
    fn new(constants: Constants, carried: State) -> Self {
        Self {
            constants,
            carried,
            sums: [[0.0; LANES]; 2],
            states: Vec::with_capacity(CHUNK),
        }
    }
}

vectorised! {
    /// Step `i` of the chunk backwards, from key, value and the output's gradient; returns the gradients of key and value.
    fn retreat<const FUSED: bool>(vector: &mut Vector, i: usize, inputs: [&[f32]; 3]) -> [ChannelBlock; 2] {
        let ([a, b, p], [w, u], [of_a, of_b, exponent]) = (vector.states[i], vector.constants, vector.carried);
        let [k, v, dy] = [channel_block::load(inputs[0]), channel_block::load(inputs[1]), channel_block::load(inputs[2])];
        let [before, now, largest] = weights::<FUSED>(&p, &channels!(l => u[l] + k[l]));
        let total = channels!(l => before[l] * b[l] + now[l]);
        let y = channels!(l => (before[l] * a[l] + now[l] * v[l]) / total[l]);
        let q = channels!(l => dy[l] / total[l]);
        let s = channels!(l => q[l] * now[l]);
        let later = channels!(l => exp::<FUSED>(k[l] + exponent[l]));
        let of_key = channels!(l => s[l] * (v[l] - y[l]) + later[l] * (of_a[l] * v[l] + of_b[l]));
        let of_value = channels!(l => s[l] + later[l] * of_a[l]);
        let kept = channels!(l => exp::<FUSED>(w[l] + exponent[l] + p[l]));
        let [of_w, of_u] = vector.sums;
        vector.sums = [
            channels!(l => of_w[l] + kept[l] * (of_a[l] * a[l] + of_b[l] * b[l])),
            channels!(l => of_u[l] + s[l] * (v[l] - y[l])),
        ];
        let [later, now, exponent] = weights::<FUSED>(&channels!(l => exponent[l] + w[l]), &channels!(l => -largest[l]));
        vector.carried = [
            channels!(l => now[l] * q[l] + later[l] * of_a[l]),
            channels!(l => later[l] * of_b[l] - now[l] * q[l] * y[l]),
            exponent,
        ];
        [of_key, of_value]
    }
}

vectorised! {
    /// From gradients of `alpha` and `beta` to those of a state.
    fn of_state<const FUSED: bool>(carried: &State, state: &State) -> State {
        let ([of_a, of_b, exponent], [a, b, p]) = (carried, state);
        let scale = channels!(l => exp::<FUSED>(exponent[l] + p[l]));
        let (of_a, of_b) = (channels!(l => scale[l] * of_a[l]), channels!(l => scale[l] * of_b[l]));
        [of_a, of_b, channels!(l => of_a[l] * a[l] + of_b[l] * b[l])]
    }
}

/// The average's inputs.
struct Inputs<'a> {
    key: Sequence<'a>,
    value: Sequence<'a>,
    decay: &'a [f32],
    bonus: &'a [f32],
    state: Sequence<'a>,
}

impl<'a> Inputs<'a> {
    fn prepared([key, value, decay, bonus, state]: &[FlexTensor; 5]) -> [FlexTensor; 5] {
        [
            readable(key),
            readable(value),
            contiguous(decay),
            contiguous(bonus),
            readable(state),
        ]
    }

    fn new([key, value, decay, bonus, state]: &'a [FlexTensor; 5]) -> Self {
        let [key, value, state] = [key, value, state].map(Sequence::new);
        Self {
            key,
            value,
            decay: slice(decay),
            bonus: slice(bonus),
            state,
        }
    }

    fn blocks(&self) -> usize {
        self.value.width.div_ceil(LANES)
    }

    fn chunks(&self) -> usize {
        self.value.time.div_ceil(CHUNK)
    }

    /// Where a kept state lies among all.
    fn kept(&self, batch: usize, block: usize, chunk: usize) -> usize {
        (batch * self.blocks() + block) * self.chunks() + chunk
    }

    fn constants(&self, block: usize) -> Constants {
        let (x, u) = (
            channel_block::block(self.decay, block),
            channel_block::block(self.bonus, block),
        );
        [x.map(|x| -x.exp()), u]
    }

    /// Vector `block` of a state, `[3, width]`; channels behind the last have seen nothing.
    fn vector(state: &Sequence<'_>, batch: usize, block: usize) -> State {
        let mut vector = [0, 1, 2].map(|i| channel_block::block(state.row(batch, i), block));
        let inside = channel_block::columns(state.width, block).len();
        vector[2][inside..].fill(NOTHING);
        vector
    }

    /// Outputs, last states, and where asked the states before every chunk.
    #[allow(unsafe_code)]
    fn forward(&self, keep: bool) -> [Vec<f32>; 3] {
        let [batches, time, width] = self.value.shape();
        let [y_rows, last_rows] =
            [self.value.len(), batches * 3 * width].map(|length| FreshRows::new(length, width));
        let kept = if keep {
            self.kept(batches, 0, 0) * 3 * LANES
        } else {
            0
        };
        let kept_rows = FreshRows::new(kept, 3 * LANES);
        let tasks = Tasks::new(batches, width);
        for_each(tasks.count(), |task| {
            let (batch, group) = tasks.place(task);
            let vector = |block| {
                (
                    Self::vector(&self.state, batch, block),
                    self.constants(block),
                )
            };
            let mut vectors: Vec<(State, Constants)> = group.clone().map(vector).collect();
            for t in 0..time {
                let (keys, values) = (self.key.row(batch, t), self.value.row(batch, t));
                for ((state, constants), block) in vectors.iter_mut().zip(group.clone()) {
                    if keep && t.is_multiple_of(CHUNK) {
                        // SAFETY: each chunk of a vector of channels comes once.
                        let kept = unsafe { kept_rows.row(self.kept(batch, block, t / CHUNK)) };
                        kept.copy_from_slice(state.as_flattened());
                    }
                    let columns = channel_block::columns(width, block);
                    let y = advance(
                        state,
                        &keys[columns.clone()],
                        &values[columns.clone()],
                        constants,
                    );
                    // SAFETY: each step of a vector of channels comes once.
                    channel_block::store(unsafe { y_rows.part(batch * time + t, columns) }, &y);
                }
            }
            for ((state, _), block) in vectors.iter().zip(group) {
                for (i, part) in state.iter().enumerate() {
                    // SAFETY: each vector of channels comes once in a sequence.
                    channel_block::store(
                        unsafe {
                            last_rows.part(batch * 3 + i, channel_block::columns(width, block))
                        },
                        part,
                    );
                }
            }
        });
        // SAFETY: the tasks took every step of every vector of channels.
        unsafe { [y_rows, last_rows, kept_rows].map(|rows| rows.whole()) }
    }

    /// The gradients of `alpha` and `beta` behind the last step, from those of the last state, and their exponent.
    fn start(
        &self,
        last: &[f32],
        of_last: Option<&Sequence<'_>>,
        batch: usize,
        block: usize,
    ) -> State {
        let Some(of_last) = of_last else {
            return [[0.0; LANES], [0.0; LANES], [NOTHING; LANES]];
        };
        let [of_a, of_b] = [0, 1].map(|i| channel_block::block(of_last.row(batch, i), block));
        let width = self.value.width;
        let exponent = channel_block::block(&last[(batch * 3 + 2) * width..][..width], block);
        [of_a, of_b, exponent.map(|p| -p)]
    }

    /// The states of a chunk.
    fn recompute(
        &self,
        vectors: &mut [Vector],
        kept: &[f32],
        batch: usize,
        group: &Range<usize>,
        chunk: usize,
    ) {
        let (time, width) = (self.value.time, self.value.width);
        for (vector, block) in vectors.iter_mut().zip(group.clone()) {
            let kept = &kept[self.kept(batch, block, chunk) * 3 * LANES..];
            vector.states.clear();
            vector
                .states
                .push([0, 1, 2].map(|i| channel_block::load(&kept[i * LANES..])));
        }
        for t in chunk * CHUNK..((chunk + 1) * CHUNK).min(time) - 1 {
            let (keys, values) = (self.key.row(batch, t), self.value.row(batch, t));
            for (vector, block) in vectors.iter_mut().zip(group.clone()) {
                let columns = channel_block::columns(width, block);
                let mut state = vector.states[t - chunk * CHUNK];
                advance(
                    &mut state,
                    &keys[columns.clone()],
                    &values[columns],
                    &vector.constants,
                );
                vector.states.push(state);
            }
        }
    }

    /// Gradients of key, value, decay, bonus and state, from those of the output and perhaps of the last state; `last` is
    /// that state itself.
    #[allow(unsafe_code)]
    fn backward(
        &self,
        kept: &[f32],
        last: &[f32],
        gradient: &[f32],
        of_last: Option<&Sequence<'_>>,
    ) -> [Vec<f32>; 5] {
        let [batches, time, width] = self.value.shape();
        let [key_rows, value_rows] = [0; 2].map(|_| FreshRows::new(gradient.len(), width));
        let [decay_rows, bonus_rows] = [0; 2].map(|_| FreshRows::new(batches * width, width));
        let state_rows = FreshRows::new(batches * 3 * width, width);
        let tasks = Tasks::new(batches, width);
        for_each(tasks.count(), |task| {
            let (batch, group) = tasks.place(task);
            let vector = |block| {
                Vector::new(
                    self.constants(block),
                    self.start(last, of_last, batch, block),
                )
            };
            let mut vectors: Vec<Vector> = group.clone().map(vector).collect();
            for chunk in (0..self.chunks()).rev() {
                let steps = chunk * CHUNK..((chunk + 1) * CHUNK).min(time);
                self.recompute(&mut vectors, kept, batch, &group, chunk);
                for t in steps.clone().rev() {
                    let (row, keys, values) = (
                        batch * time + t,
                        self.key.row(batch, t),
                        self.value.row(batch, t),
                    );
                    for (vector, block) in vectors.iter_mut().zip(group.clone()) {
                        let columns = channel_block::columns(width, block);
                        let dy = &gradient[row * width..][columns.clone()];
                        let inputs = [&keys[columns.clone()], &values[columns.clone()], dy];
                        let found = retreat(vector, t - steps.start, inputs);
                        // SAFETY: each step of a vector of channels comes once.
                        unsafe {
                            channel_block::store(key_rows.part(row, columns.clone()), &found[0]);
                            channel_block::store(value_rows.part(row, columns), &found[1]);
                        }
                    }
                }
            }
            for (vector, block) in vectors.iter().zip(group) {
                let columns = channel_block::columns(width, block);
                let found = of_state(&vector.carried, &Self::vector(&self.state, batch, block));
                // The logarithm of the decay is -exp(x), whose slope is itself.
                let of_x = channels!(l => vector.sums[0][l] * vector.constants[0][l]);
                // SAFETY: each vector of channels comes once in a sequence.
                unsafe {
                    for (i, found) in found.iter().enumerate() {
                        channel_block::store(
                            state_rows.part(batch * 3 + i, columns.clone()),
                            found,
                        );
                    }
                    channel_block::store(decay_rows.part(batch, columns.clone()), &of_x);
                    channel_block::store(bonus_rows.part(batch, columns), &vector.sums[1]);
                }
            }
        });
        // SAFETY: the tasks took every step of every vector of channels.
        let [of_key, of_value, of_decay, of_bonus, of_states] = unsafe {
            [key_rows, value_rows, decay_rows, bonus_rows, state_rows].map(|rows| rows.whole())
        };
        [
            of_key,
            of_value,
            summed(&of_decay, width),
            summed(&of_bonus, width),
            of_states,
        ]
    }
}

impl FusedOperator<5> for Wkv {
    fn forward(&self, inputs: &[FlexTensor; 5], wanted: [bool; 5]) -> (FlexTensor, Saved) {
        let tensors = Inputs::prepared(inputs);
        let inputs = Inputs::new(&tensors);
        let keep = wanted.contains(&true);
        let [y, last, kept] = inputs.forward(keep);
        let saved = if keep {
            vec![kept, last.clone()]
        } else {
            Vec::new()
        };
        self.last.put(tensor(last, &dimensions(&tensors[4])));
        (tensor(y, &inputs.value.shape()), saved)
    }

    fn backward(&self, given: Given<5>, _: [bool; 5]) -> [Option<FlexTensor>; 5] {
        let tensors = Inputs::prepared(&given.inputs);
        let of_last = self.last.gradient().map(|gradient| readable(&gradient));
        let of_last = of_last.as_ref().map(Sequence::new);
        let [kept, last] = [0, 1].map(|i| &given.saved[i]);
        let found =
            Inputs::new(&tensors).backward(kept, last, slice(&given.gradient), of_last.as_ref());
        let mut shapes = tensors.iter().map(dimensions);
        found.map(|values| shapes.next().map(|shape| tensor(values, &shape)))
    }
}
