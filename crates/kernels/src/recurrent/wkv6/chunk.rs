//! Some steps of one head, taken together. With `w` the decays, `W_t` their product over the steps of the chunk before `t` and
//! `E_t` over those behind it, `A_ts = sum_i r_ti k_si w_{s+1,i} .. w_{t-1,i}` for `s < t` and `A_tt = sum_i r_ti u_i k_ti`:
//! `Y = A V + (W r) S`, and the next state is `diag(w_1 .. w_last) S + (E k)^T V`. Decays are multiplied up step by step, never
//! divided: nothing grows, however fast they forget.

use super::super::channel_block::{self, ChannelBlock, LANES, blocks_of, channels};
use super::cpu::{Inputs, Step};
use crate::simd::{exp, vectorised};

/// Steps of a chunk: few, because pairs of steps take time with each other.
pub(super) const STEPS: usize = 16;

/// The inputs of a chunk's steps and their products, as vectors of channels with zeros behind the last: rows of `keys` or
/// `values` vectors.
pub(super) struct Chunk<'a> {
    pub receptance: &'a mut [ChannelBlock],
    pub key: &'a mut [ChannelBlock],
    pub value: &'a mut [ChannelBlock],
    pub decay: &'a mut [ChannelBlock],
    /// `-exp(x)`, by which the decay's logarithm follows `x`.
    pub slope: &'a mut [ChannelBlock],
    /// `W r` and `E k`.
    pub from_start: &'a mut [ChannelBlock],
    pub to_end: &'a mut [ChannelBlock],
    /// The decays of all steps, `[keys]`.
    pub whole: &'a mut [ChannelBlock],
    /// `A`, `[STEPS, STEPS]`, zero above the diagonal.
    pub mixing: &'a mut [f32],
    /// Steps, at most [`STEPS`].
    pub steps: usize,
    /// Vectors of a row of keys.
    pub keys: usize,
    /// Vectors of a row of values.
    pub values: usize,
}

/// Buffers of a chunk.
const BUFFERS: usize = 9;

impl<'a> Chunk<'a> {
    /// Elements of each buffer.
    pub fn lengths(inputs: &Inputs<'_>) -> [usize; BUFFERS] {
        let [keys, values] = inputs.blocks();
        let [by_key, by_value] = [keys, values].map(|blocks| STEPS * blocks * LANES);
        [
            by_key,
            by_key,
            by_value,
            by_key,
            by_key,
            by_key,
            by_key,
            keys * LANES,
            STEPS * STEPS,
        ]
    }

    /// In memory of [`Self::lengths`].
    pub fn new(inputs: &Inputs<'_>, buffers: [&'a mut [f32]; BUFFERS]) -> Self {
        let [
            receptance,
            key,
            value,
            decay,
            slope,
            from_start,
            to_end,
            whole,
            mixing,
        ] = buffers;
        let [receptance, key, value, decay] = [receptance, key, value, decay].map(blocks_of);
        let [slope, from_start, to_end, whole] = [slope, from_start, to_end, whole].map(blocks_of);
        let [keys, values] = inputs.blocks();
        Self {
            receptance,
            key,
            value,
            decay,
            slope,
            from_start,
            to_end,
            whole,
            mixing,
            steps: 0,
            keys,
            values,
        }
    }

    /// Reads the steps of chunk `number`, and follows their decays from the last to the first.
    pub fn read(&mut self, inputs: &Inputs<'_>, batch: usize, head: usize, number: usize) {
        let range = inputs.chunk(number);
        self.steps = range.len();
        for (i, t) in range.enumerate() {
            let step = inputs.step(batch, head, t);
            let (of_key, of_value) = (
                i * self.keys..(i + 1) * self.keys,
                i * self.values..(i + 1) * self.values,
            );
            let by_key = [&mut *self.receptance, &mut *self.key, &mut *self.slope]
                .map(|rows| &mut rows[of_key.clone()]);
            load_step(by_key, &mut self.value[of_value], &step);
        }
        decays(self);
    }

    /// Computes `A` and `W r`.
    pub fn mix(&mut self, bonus: &[f32]) {
        self.mixing.fill(0.0);
        mix(self, bonus);
    }
}

/// A row as vectors.
#[inline(always)]
fn load_row(out: &mut [ChannelBlock], row: &[f32]) {
    for (block, out) in out.iter_mut().enumerate() {
        *out = channel_block::block(row, block);
    }
}

vectorised! {
    /// A row as vectors.
    pub(super) fn load(out: &mut [ChannelBlock], row: &[f32]) {
        load_row(out, row);
    }
}

vectorised! {
    fn load_step(by_key: [&mut [ChannelBlock]; 3], value: &mut [ChannelBlock], step: &Step<'_>) {
        let [receptance, key, decay] = by_key;
        load_row(receptance, step.receptance);
        load_row(key, step.key);
        load_row(decay, step.decay);
        load_row(value, step.value);
    }
}

vectorised! {
    /// From `x` the slopes and decays, and what of the keys is left at the end.
    fn decays<const FUSED: bool>(chunk: &mut Chunk<'_>) {
        let count = chunk.steps * chunk.keys;
        for (slope, decay) in chunk.slope[..count].iter_mut().zip(&mut chunk.decay[..count]) {
            let x = *slope;
            *slope = channels!(l => -exp::<FUSED>(x[l]));
            let slope = *slope;
            *decay = channels!(l => exp::<FUSED>(slope[l]));
        }
        for block in 0..chunk.keys {
            let mut left = [1.0; LANES];
            for i in (block..count).step_by(chunk.keys).rev() {
                let (k, w) = (chunk.key[i], chunk.decay[i]);
                chunk.to_end[i] = channels!(l => k[l] * left[l]);
                left = channels!(l => left[l] * w[l]);
            }
            chunk.whole[block] = left;
        }
    }
}

vectorised! {
    fn mix(chunk: &mut Chunk<'_>, bonus: &[f32]) {
        let keys = chunk.keys;
        for t in 0..chunk.steps {
            let row = &mut chunk.mixing[t * STEPS..(t + 1) * STEPS];
            let own = t * keys..(t + 1) * keys;
            let (receptance, decayed) = (&chunk.receptance[own.clone()], &mut chunk.from_start[own.clone()]);
            decayed.copy_from_slice(receptance);
            let mut sum = [0.0; LANES];
            for (block, (r, k)) in receptance.iter().zip(&chunk.key[own]).enumerate() {
                let u = channel_block::block(bonus, block);
                sum = channels!(l => sum[l] + r[l] * u[l] * k[l]);
            }
            row[t] = channel_block::total(&sum);
            for s in (0..t).rev() {
                let own = s * keys..(s + 1) * keys;
                let mut sum = [0.0; LANES];
                for (decayed, (k, w)) in decayed.iter_mut().zip(chunk.key[own.clone()].iter().zip(&chunk.decay[own])) {
                    let before = *decayed;
                    sum = channels!(l => sum[l] + before[l] * k[l]);
                    *decayed = channels!(l => before[l] * w[l]);
                }
                row[s] = channel_block::total(&sum);
            }
        }
    }
}
