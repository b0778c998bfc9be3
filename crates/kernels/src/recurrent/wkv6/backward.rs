//! The backward: chunks from the last to the first, the states between two kept ones computed again.
//!
//! In the names of [`super::chunk`], with `D` the gradient of the state after the chunk and `dA_ts = dy_t v_s`:
//! `dR = (sum_s dA_ts w_{s+1} .. w_{t-1} k_s) + W (dY S^T)`, `dK` likewise with `r_t` and `E (V D^T)`, `dV = A^T dY + (E k) D`, and
//! before the chunk `D <- diag(w_1 .. w_last) D + (W r)^T dY`. The bonus adds its part to each.
//!
//! The decay of step `j` acts on every pair of a step after `j` and one before it, so that the gradient of `ln w_j` is
//! `sum_{t > j > s} dA_ts r_t w_{s+1} .. w_{t-1} k_s + sum_{t > j} (W r)_t (dY S^T)_t + sum_{s < j} (E k)_s (V D^T)_s
//! + w_1 .. w_last sum_v D S`: sums alone. (It also follows from `dR` and `dK`, but as a difference of large numbers.)

use super::{
    super::{
        channel_block::{self, ChannelBlock, LANES, blocks_of, channels, summed},
        tables::{Factor, ROWS, add_product, scale_columns, scale_rows},
    },
    chunk::{Chunk, STEPS, load},
    cpu::{Inputs, KEPT, gather, scatter, store},
};
use crate::{
    matmul::scratch,
    parallel::{FreshRows, for_each},
    simd::vectorised,
};

struct Outputs {
    receptance: FreshRows,
    key: FreshRows,
    value: FreshRows,
    decay: FreshRows,
    bonus: FreshRows,
    state: FreshRows,
}

struct Task<'a> {
    inputs: &'a Inputs<'a>,
    kept: &'a [f32],
    gradient: &'a [f32],
    of_last: Option<&'a [f32]>,
    out: Outputs,
}

/// Gradients of receptance, key, value, decay, bonus and state.
pub(super) fn run(
    inputs: &Inputs<'_>,
    kept: &[f32],
    gradient: &[f32],
    of_last: Option<&[f32]>,
) -> [Vec<f32>; 6] {
    let (rows, by_key) = (inputs.batch * inputs.time, inputs.heads * inputs.keys);
    // One row of decays gathers its gradient over the steps of each sequence.
    let decay_rows = if inputs.constant { inputs.batch } else { rows };
    let out = Outputs {
        receptance: FreshRows::new(rows * by_key, by_key),
        key: FreshRows::new(rows * by_key, by_key),
        value: FreshRows::new(gradient.len(), inputs.heads * inputs.values),
        decay: FreshRows::new(decay_rows * by_key, by_key),
        bonus: FreshRows::new(inputs.batch * by_key, by_key),
        state: FreshRows::new(inputs.batch * inputs.heads * inputs.size(), inputs.size()),
    };
    let task = Task {
        inputs,
        kept,
        gradient,
        of_last,
        out,
    };
    for_each(inputs.batch * inputs.groups(), |number| task.run(number));
    let Outputs {
        receptance,
        key,
        value,
        decay,
        bonus,
        state,
    } = task.out;
    #[allow(unsafe_code)]
    // SAFETY: the tasks wrote every step of every head.
    let [receptance, key, value, decay, bonus, state] =
        unsafe { [receptance, key, value, decay, bonus, state].map(|rows| rows.whole()) };
    let decay = if inputs.constant {
        summed(&decay, by_key)
    } else {
        decay
    };
    [receptance, key, value, decay, summed(&bonus, by_key), state]
}

/// The gradients of a chunk and their intermediate products; rows of vectors.
struct Gradients<'a> {
    /// Of the outputs.
    output: &'a mut [ChannelBlock],
    /// `dA`, on and below the diagonal.
    mixing: &'a mut [f32],
    receptance: &'a mut [ChannelBlock],
    key: &'a mut [ChannelBlock],
    value: &'a mut [ChannelBlock],
    /// Of the decays' logarithms, in the end of `x`.
    decay: &'a mut [ChannelBlock],
    /// `dY S^T` and `V D^T`.
    from_state: &'a mut [ChannelBlock],
    to_state: &'a mut [ChannelBlock],
}

/// The gradients that a head carries from chunk to chunk.
struct Carried<'a> {
    /// `D`: of the state after the chunk, then of that before it, `[keys][values]`, and turned.
    state: &'a mut [ChannelBlock],
    turned: &'a mut [ChannelBlock],
    /// Of the bonus and of constant decays, `[keys]`.
    bonus: &'a mut [ChannelBlock],
    constant: &'a mut [ChannelBlock],
}

#[allow(unsafe_code)]
impl Task<'_> {
    /// Some heads of one sequence.
    fn run(&self, number: usize) {
        let (inputs, (batch, heads)) = (self.inputs, self.inputs.place(number));
        let [row, by_value] = inputs.blocks().map(|blocks| blocks * LANES);
        let (table, by_key) = (row * by_value, STEPS * row);
        let of_chunk = [
            STEPS * by_value,
            STEPS * STEPS,
            by_key,
            by_key,
            STEPS * by_value,
            by_key,
            by_key,
            by_key,
        ];
        let of_heads = [table, table, row, row].map(|count| heads.len() * count);
        scratch::parts(of_chunk, |[output, mixing, rest @ ..]| {
            let [receptance, key, value, decay, from_state, to_state] = rest.map(blocks_of);
            let output = blocks_of(output);
            let mut of = Gradients {
                output,
                mixing,
                receptance,
                key,
                value,
                decay,
                from_state,
                to_state,
            };
            scratch::parts(of_heads, |carried| {
                let [mut state, mut turned, mut bonus, mut constant] = carried.map(blocks_of);
                let mut of_heads: Vec<Carried<'_>> = Vec::with_capacity(heads.len());
                for head in heads.clone() {
                    let carried = Carried {
                        state: part(&mut state, table / LANES),
                        turned: part(&mut turned, table / LANES),
                        bonus: part(&mut bonus, row / LANES),
                        constant: part(&mut constant, row / LANES),
                    };
                    of_heads.push(self.start(carried, batch * inputs.heads + head));
                }
                self.chunks(&mut of, &mut of_heads, batch, heads.start);
                of_heads
                    .iter()
                    .zip(heads)
                    .for_each(|(of, head)| self.end(of, batch, head));
            });
        });
    }

    /// All chunks of some heads, from the last to the first.
    fn chunks(
        &self,
        of: &mut Gradients<'_>,
        of_heads: &mut [Carried<'_>],
        batch: usize,
        first: usize,
    ) {
        let inputs = self.inputs;
        let table = of_heads.first().map_or(0, |of| of.state.len());
        scratch::with(KEPT * table * LANES, |states| {
            let states = blocks_of(states);
            scratch::parts(Chunk::lengths(inputs), |buffers| {
                let mut chunk = Chunk::new(inputs, buffers);
                for kept in (0..inputs.kept()).rev() {
                    for (i, carried) in of_heads.iter_mut().enumerate() {
                        self.states(states, &mut chunk, [batch, first + i, kept]);
                        for number in inputs.chunks_of(kept).rev() {
                            let before = &states[number % KEPT * table..][..table];
                            self.chunk(of, carried, before, &mut chunk, [batch, first + i, number]);
                        }
                    }
                }
            });
        });
    }

    /// The gradients behind the last step of a head.
    fn start<'a>(&self, of: Carried<'a>, number: usize) -> Carried<'a> {
        let values = self.inputs.values;
        of.bonus.fill([0.0; LANES]);
        of.constant.fill([0.0; LANES]);
        match self.of_last {
            Some(of_last) => {
                let of_last =
                    &of_last[number * self.inputs.size()..(number + 1) * self.inputs.size()];
                gather(of.state, of_last, values);
                turn(of.turned, of_last, values);
            }
            None => {
                of.state.fill([0.0; LANES]);
                of.turned.fill([0.0; LANES]);
            }
        }
        of
    }

    /// The states before the chunks from a kept one on, turned: `[values][keys]`.
    fn states(
        &self,
        states: &mut [ChannelBlock],
        chunk: &mut Chunk<'_>,
        [batch, head, kept]: [usize; 3],
    ) {
        let (inputs, size, numbers) = (
            self.inputs,
            states.len() / KEPT,
            self.inputs.chunks_of(kept),
        );
        let kept = (batch * inputs.heads + head) * inputs.kept() + kept;
        turn(
            &mut states[..size],
            &self.kept[kept * inputs.size()..(kept + 1) * inputs.size()],
            inputs.values,
        );
        for (i, number) in (numbers.start..numbers.end - 1).enumerate() {
            chunk.read(inputs, batch, head, number);
            let (before, after) = states[i * size..(i + 2) * size].split_at_mut(size);
            after.copy_from_slice(before);
            scale_columns(after, chunk.whole);
            let value = Factor::transposed(chunk.value.as_flattened(), chunk.values * LANES);
            add_product(after, value, chunk.to_end, chunk.steps, chunk.keys);
        }
    }

    /// One chunk of one head; `before` is the state before it, turned.
    fn chunk(
        &self,
        of: &mut Gradients<'_>,
        carried: &mut Carried<'_>,
        before: &[ChannelBlock],
        chunk: &mut Chunk<'_>,
        place: [usize; 3],
    ) {
        let ([batch, head, number], inputs) = (place, self.inputs);
        chunk.read(inputs, batch, head, number);
        for (out, t) in of
            .output
            .chunks_exact_mut(chunk.values)
            .zip(inputs.chunk(number))
        {
            let start = ((batch * inputs.time + t) * inputs.heads + head) * inputs.values;
            load(out, &self.gradient[start..start + inputs.values]);
        }
        let (padded, width) = (
            chunk.steps.next_multiple_of(ROWS),
            [chunk.keys * LANES, chunk.values * LANES],
        );
        of_mixing(of.mixing, of.output, chunk);
        for (out, rows, table) in [
            (&mut *of.from_state, &*of.output, before),
            (&mut *of.to_state, &*chunk.value, &*carried.turned),
        ] {
            out.fill([0.0; LANES]);
            let out = &mut out[..padded * chunk.keys];
            add_product(
                out,
                Factor::new(rows.as_flattened(), width[1]),
                table,
                width[1],
                chunk.keys,
            );
        }
        chunk.mixing.fill(0.0);
        pairs(of, carried.bonus, chunk, inputs.bonus(head));
        around(of, carried, before, chunk);
        of.value.fill([0.0; LANES]);
        let of_value = &mut of.value[..padded * chunk.values];
        add_product(
            of_value,
            Factor::transposed(chunk.mixing, STEPS),
            of.output,
            chunk.steps,
            chunk.values,
        );
        let to_end = Factor::new(chunk.to_end.as_flattened(), width[0]);
        add_product(of_value, to_end, carried.state, width[0], chunk.values);
        scale_rows(carried.state, chunk.whole.as_flattened(), chunk.values);
        let from_start = Factor::transposed(chunk.from_start.as_flattened(), width[0]);
        add_product(
            carried.state,
            from_start,
            of.output,
            chunk.steps,
            chunk.values,
        );
        scale_columns(carried.turned, chunk.whole);
        let output = Factor::transposed(of.output.as_flattened(), width[1]);
        add_product(
            carried.turned,
            output,
            chunk.from_start,
            chunk.steps,
            chunk.keys,
        );
        self.write(of, chunk, place);
    }

    /// Writes the gradients of a chunk.
    fn write(&self, of: &Gradients<'_>, chunk: &Chunk<'_>, [batch, head, number]: [usize; 3]) {
        let inputs = self.inputs;
        for (i, t) in inputs.chunk(number).enumerate() {
            let (row, columns) = (
                batch * inputs.time + t,
                head * inputs.keys..(head + 1) * inputs.keys,
            );
            let by_key = i * chunk.keys..(i + 1) * chunk.keys;
            // SAFETY: each step of a head comes once.
            unsafe {
                store(
                    self.out.receptance.part(row, columns.clone()),
                    &of.receptance[by_key.clone()],
                );
                store(
                    self.out.key.part(row, columns.clone()),
                    &of.key[by_key.clone()],
                );
                if !inputs.constant {
                    store(self.out.decay.part(row, columns), &of.decay[by_key]);
                }
                let columns = head * inputs.values..(head + 1) * inputs.values;
                store(
                    self.out.value.part(row, columns),
                    &of.value[i * chunk.values..(i + 1) * chunk.values],
                );
            }
        }
    }

    /// Writes the gradient of the state before a head's first step.
    fn end(&self, of: &Carried<'_>, batch: usize, head: usize) {
        let (inputs, columns) = (
            self.inputs,
            head * self.inputs.keys..(head + 1) * self.inputs.keys,
        );
        // SAFETY: each head of a sequence comes once.
        unsafe {
            scatter(
                self.out.state.row(batch * inputs.heads + head),
                of.state,
                inputs.values,
            );
            store(self.out.bonus.part(batch, columns.clone()), of.bonus);
            if inputs.constant {
                store(self.out.decay.part(batch, columns), of.constant);
            }
        }
    }
}

/// Takes the first vectors of a buffer.
fn part<'a>(buffer: &mut &'a mut [ChannelBlock], count: usize) -> &'a mut [ChannelBlock] {
    let (part, rest) = std::mem::take(buffer).split_at_mut(count);
    *buffer = rest;
    part
}

/// A state `[keys, values]` as rows of vectors of keys.
fn turn(turned: &mut [ChannelBlock], state: &[f32], values: usize) {
    let keys = state.len() / values;
    turned.fill([0.0; LANES]);
    for (i, row) in turned
        .chunks_exact_mut(keys.div_ceil(LANES))
        .take(values)
        .enumerate()
    {
        let column = state[i..].iter().step_by(values);
        row.as_flattened_mut()
            .iter_mut()
            .zip(column)
            .for_each(|(out, value)| *out = *value);
    }
}

vectorised! {
    fn of_mixing(mixing: &mut [f32], output: &[ChannelBlock], chunk: &Chunk<'_>) {
        let blocks = chunk.values;
        for t in 0..chunk.steps {
            for s in 0..=t {
                let mut sum = [0.0; LANES];
                for block in 0..blocks {
                    let (dy, v) = (&output[t * blocks + block], &chunk.value[s * blocks + block]);
                    sum = channels!(l => sum[l] + dy[l] * v[l]);
                }
                mixing[t * STEPS + s] = channel_block::total(&sum);
            }
        }
    }
}

vectorised! {
    /// The part of the gradients that stays within a chunk: `A`, `W r`, and gradients of receptance, key, decay and bonus.
    fn pairs(of: &mut Gradients<'_>, of_bonuses: &mut [ChannelBlock], chunk: &mut Chunk<'_>, bonus: &[f32]) {
        let keys = chunk.keys;
        of.key.fill([0.0; LANES]);
        of.decay.fill([0.0; LANES]);
        let mut acting = [[0.0; LANES]; STEPS];
        for (block, of_bonuses) in of_bonuses.iter_mut().enumerate() {
            let u = channel_block::block(bonus, block);
            let mut of_bonus = *of_bonuses;
            for t in 0..chunk.steps {
                let own = t * keys + block;
                let (r, k, along) = (chunk.receptance[own], chunk.key[own], of.mixing[t * STEPS + t]);
                let row = &mut chunk.mixing[t * STEPS..(t + 1) * STEPS];
                row[t] += channel_block::total(&channels!(l => r[l] * u[l] * k[l]));
                of_bonus = channels!(l => of_bonus[l] + r[l] * k[l] * along);
                let of_key = of.key[own];
                of.key[own] = channels!(l => of_key[l] + u[l] * r[l] * along);
                let mut of_receptance = channels!(l => u[l] * k[l] * along);
                let mut decayed = [1.0; LANES];
                for s in (0..t).rev() {
                    let (k, w, of_key) = (&chunk.key[s * keys + block], &chunk.decay[s * keys + block], &mut of.key[s * keys + block]);
                    let factor = of.mixing[t * STEPS + s];
                    let from = channels!(l => decayed[l] * k[l]);
                    let to = channels!(l => decayed[l] * r[l]);
                    let both = channels!(l => from[l] * r[l]);
                    row[s] += channel_block::total(&both);
                    of_receptance = channels!(l => of_receptance[l] + factor * from[l]);
                    *of_key = channels!(l => of_key[l] + factor * to[l]);
                    acting[s] = channels!(l => factor * both[l]);
                    decayed = channels!(l => decayed[l] * w[l]);
                }
                let from_state = of.from_state[own];
                of.receptance[own] = channels!(l => of_receptance[l] + decayed[l] * from_state[l]);
                chunk.from_start[own] = channels!(l => r[l] * decayed[l]);
                // Pairs around the steps between.
                let mut before = [0.0; LANES];
                for s in 1..t {
                    let (acting, of_decay) = (&acting[s - 1], &mut of.decay[s * keys + block]);
                    before = channels!(l => before[l] + acting[l]);
                    *of_decay = channels!(l => of_decay[l] + before[l]);
                }
            }
            *of_bonuses = of_bonus;
        }
    }
}

vectorised! {
    /// The part that passes through the states before and after: the rest of the gradients of key and decay.
    fn around(of: &mut Gradients<'_>, carried: &mut Carried<'_>, before: &[ChannelBlock], chunk: &Chunk<'_>) {
        let keys = chunk.keys;
        for block in 0..keys {
            let mut acting = [0.0; LANES];
            for (d, s) in carried.turned[block..].iter().step_by(keys).zip(before[block..].iter().step_by(keys)) {
                acting = channels!(l => acting[l] + d[l] * s[l]);
            }
            let whole = &chunk.whole[block];
            acting = channels!(l => acting[l] * whole[l]);
            for t in (0..chunk.steps).rev() {
                let own = t * keys + block;
                let (of_decay, r, from_state) = (&mut of.decay[own], &chunk.from_start[own], &of.from_state[own]);
                *of_decay = channels!(l => of_decay[l] + acting[l]);
                acting = channels!(l => acting[l] + r[l] * from_state[l]);
            }
            let (mut acting, mut left) = ([0.0; LANES], [[1.0; LANES]; STEPS]);
            for t in (1..chunk.steps).rev() {
                let (behind, w) = (left[t], &chunk.decay[t * keys + block]);
                left[t - 1] = channels!(l => behind[l] * w[l]);
            }
            let mut constant = carried.constant[block];
            for t in 0..chunk.steps {
                let own = t * keys + block;
                let (of_key, to_state, k) = (&mut of.key[own], &of.to_state[own], &chunk.to_end[own]);
                let (of_decay, slope, w, left) = (&mut of.decay[own], &chunk.slope[own], &chunk.decay[own], &left[t]);
                *of_key = channels!(l => of_key[l] + left[l] * to_state[l]);
                // Where nothing is left of a state, its slope may be infinite.
                let total = channels!(l => of_decay[l] + acting[l]);
                *of_decay = channels!(l => if w[l] > 0.0 { total[l] * slope[l] } else { 0.0 });
                acting = channels!(l => acting[l] + k[l] * to_state[l]);
                let of_decay = *of_decay;
                constant = channels!(l => constant[l] + of_decay[l]);
            }
            carried.constant[block] = constant;
        }
    }
}
