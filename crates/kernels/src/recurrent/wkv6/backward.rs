//! The backward: chunks of time from the last to the first, each in two sweeps with neighbouring keys side by side.
//!
//! The sweep forwards computes the states again and `dr_t = S_{t-1} dy_t`; the sweep backwards carries `D`, the gradient of
//! the state: `dk_t = D v_t`, `dv_t = D^T k_t`, `d(ln w_t) = w_t sum_v D S_{t-1}`, `D <- diag(w_t) D + r_t dy_t^T`. The
//! bonus adds its part to each. (`d(ln w_t)` also follows from the other gradients without the states, but as a difference
//! of large numbers.)

use super::{
    super::lanes::{self, LANES, Lane, lane, lanes_of, summed},
    cpu::{CHUNK, Inputs, Step},
};
use crate::{
    matmul::scratch,
    parallel::{DisjointRows, for_each, zeros},
    simd::{dot, exp, vectorised},
};

struct Outputs<'a> {
    receptance: DisjointRows<'a>,
    key: DisjointRows<'a>,
    value: DisjointRows<'a>,
    decay: DisjointRows<'a>,
    bonus: DisjointRows<'a>,
    state: DisjointRows<'a>,
}

struct Task<'a> {
    inputs: &'a Inputs<'a>,
    kept: &'a [f32],
    gradient: &'a [f32],
    of_last: Option<&'a [f32]>,
    out: Outputs<'a>,
}

/// Gradients of receptance, key, value, decay, bonus and state.
pub(super) fn run(inputs: &Inputs<'_>, kept: &[f32], gradient: &[f32], of_last: Option<&[f32]>) -> [Vec<f32>; 6] {
    let (rows, by_key) = (inputs.batch * inputs.time, inputs.heads * inputs.keys);
    // One row of decays gathers its gradient over the steps of each sequence.
    let decay_rows = if inputs.constant { inputs.batch } else { rows };
    let (mut receptance, mut key) = (zeros(rows * by_key), zeros(rows * by_key));
    let (mut value, mut decay) = (zeros(gradient.len()), zeros(decay_rows * by_key));
    let mut bonus = zeros(inputs.batch * by_key);
    let mut state = zeros(inputs.batch * inputs.heads * inputs.size());
    {
        let out = Outputs {
            receptance: DisjointRows::new(&mut receptance, by_key),
            key: DisjointRows::new(&mut key, by_key),
            value: DisjointRows::new(&mut value, inputs.heads * inputs.values),
            decay: DisjointRows::new(&mut decay, by_key),
            bonus: DisjointRows::new(&mut bonus, by_key),
            state: DisjointRows::new(&mut state, inputs.size()),
        };
        let task = Task { inputs, kept, gradient, of_last, out };
        for_each(inputs.batch * inputs.heads, |number| task.run(number / inputs.heads, number % inputs.heads));
    }
    let decay = if inputs.constant { summed(&decay, by_key) } else { decay };
    [receptance, key, value, decay, summed(&bonus, by_key), state]
}

/// What one vector of keys carries through a chunk.
struct Sweep<'a> {
    /// The states before every step and after the last, `[steps + 1][values]`.
    s: &'a mut [Lane],
    /// Its gradient, `[values]`.
    d: &'a mut [Lane],
    /// Decays, and gradients of receptance without the bonus, `[steps]`.
    decays: &'a mut [Lane],
    of_receptance: &'a mut [Lane],
    /// Gradients of values, `[steps][values]`, summed over vectors of keys.
    of_value: &'a mut [f32],
}

#[allow(unsafe_code)]
impl Task<'_> {
    /// One head of one sequence.
    fn run(&self, batch: usize, head: usize) {
        let (inputs, values) = (self.inputs, self.inputs.values);
        let (blocks, number) = (inputs.keys.div_ceil(LANES), batch * inputs.heads + head);
        let (size, steps) = (values * LANES, CHUNK * LANES);
        let lengths = [blocks * size, (CHUNK + 1) * size, steps, steps, CHUNK * values, blocks * LANES, blocks * LANES];
        scratch::parts(lengths, |[d, s, decays, of_receptance, of_value, of_bonus, of_decay]| {
            let (d, s) = (lanes_of(d), lanes_of(s));
            let (decays, of_receptance) = (lanes_of(decays), lanes_of(of_receptance));
            let (of_bonus, of_decay) = (lanes_of(of_bonus), lanes_of(of_decay));
            of_bonus.fill([0.0; LANES]);
            of_decay.fill([0.0; LANES]);
            match self.of_last {
                Some(of_last) => {
                    let table = &of_last[number * inputs.size()..(number + 1) * inputs.size()];
                    for (block, d) in d.chunks_exact_mut(values).enumerate() {
                        transpose(d, table, block);
                    }
                }
                None => d.fill([0.0; LANES]),
            }
            for chunk in (0..inputs.chunks()).rev() {
                let kept = (number * inputs.chunks() + chunk) * inputs.size();
                of_value.fill(0.0);
                for (block, d) in d.chunks_exact_mut(values).enumerate() {
                    transpose(&mut s[..values], &self.kept[kept..kept + inputs.size()], block);
                    let mut sweep = Sweep { s, d, decays, of_receptance, of_value };
                    let sums = [&mut of_bonus[block], &mut of_decay[block]];
                    self.chunk(&mut sweep, [batch, head, chunk, block], sums);
                }
                self.values(of_value, batch, head, chunk);
            }
            // SAFETY: each head of a sequence comes once.
            let state = unsafe { self.out.state.row(number) };
            for (i, out) in state.chunks_exact_mut(values).enumerate() {
                out.iter_mut().zip(&d[i / LANES * values..]).for_each(|(out, d)| *out = d[i % LANES]);
            }
            for block in 0..blocks {
                let columns = self.columns(head, block);
                // SAFETY: as above.
                unsafe {
                    lanes::store(self.out.bonus.part(batch, columns.clone()), &of_bonus[block]);
                    if inputs.constant {
                        lanes::store(self.out.decay.part(batch, columns), &of_decay[block]);
                    }
                }
            }
        });
    }

    /// Where a vector of a head's keys lies in a row.
    fn columns(&self, head: usize, block: usize) -> std::ops::Range<usize> {
        let columns = lanes::columns(self.inputs.keys, block);
        head * self.inputs.keys + columns.start..head * self.inputs.keys + columns.end
    }

    fn gradient(&self, batch: usize, head: usize, time: usize) -> &[f32] {
        let values = self.inputs.values;
        &self.gradient[((batch * self.inputs.time + time) * self.inputs.heads + head) * values..][..values]
    }

    /// Both sweeps over one chunk for one vector of keys.
    fn chunk(&self, sweep: &mut Sweep<'_>, place: [usize; 4], [of_bonus, of_decay]: [&mut Lane; 2]) {
        let [batch, head, chunk, block] = place;
        let (inputs, steps) = (self.inputs, self.inputs.chunk(chunk));
        for (i, t) in steps.clone().enumerate() {
            forwards(sweep, &inputs.step(batch, head, t), self.gradient(batch, head, t), i, block);
        }
        for (i, t) in steps.enumerate().rev() {
            let (step, dy) = (inputs.step(batch, head, t), self.gradient(batch, head, t));
            let found = backwards(sweep, &step, dy, inputs.bonus(head), [i, block]);
            let (row, columns) = (batch * inputs.time + t, self.columns(head, block));
            // SAFETY: each step of a vector of keys comes once.
            unsafe {
                lanes::store(self.out.receptance.part(row, columns.clone()), &found[0]);
                lanes::store(self.out.key.part(row, columns.clone()), &found[1]);
                if !inputs.constant {
                    lanes::store(self.out.decay.part(row, columns), &found[2]);
                }
            }
            for l in 0..LANES {
                of_decay[l] += found[2][l];
                of_bonus[l] += found[3][l];
            }
        }
    }

    /// Gradients of the values of a chunk, with the bonus.
    fn values(&self, of_value: &[f32], batch: usize, head: usize, chunk: usize) {
        let (inputs, values) = (self.inputs, self.inputs.values);
        for (t, of_value) in inputs.chunk(chunk).zip(of_value.chunks_exact(values)) {
            let step = inputs.step(batch, head, t);
            let factors = step.receptance.iter().zip(step.key).zip(inputs.bonus(head));
            let along: f32 = factors.map(|((r, k), u)| r * u * k).sum();
            // SAFETY: each step of a head comes once.
            let out = unsafe { self.out.value.part(batch * inputs.time + t, head * values..(head + 1) * values) };
            for ((out, sum), dy) in out.iter_mut().zip(of_value).zip(self.gradient(batch, head, t)) {
                *out = sum + along * dy;
            }
        }
    }
}

/// One vector of keys of a table `[keys, values]`, as `[values]` vectors.
fn transpose(s: &mut [Lane], table: &[f32], block: usize) {
    let values = s.len();
    s.fill([0.0; LANES]);
    let rows = table[block * LANES * values..].chunks_exact(values).take(LANES);
    for (l, row) in rows.enumerate() {
        s.iter_mut().zip(row).for_each(|(s, value)| s[l] = *value);
    }
}

vectorised! {
    fn forwards(sweep: &mut Sweep<'_>, step: &Step<'_>, dy: &[f32], i: usize, block: usize) {
        let (k, x) = (lanes::block(step.key, block), lanes::block(step.decay, block));
        let w = lane!(l => exp(-exp(x[l])));
        sweep.decays[i] = w;
        let mut sum = [0.0; LANES];
        let (before, after) = sweep.s[i * dy.len()..(i + 2) * dy.len()].split_at_mut(dy.len());
        for ((&before, after), (&v, &dy)) in before.iter().zip(after).zip(step.value.iter().zip(dy)) {
            sum = lane!(l => sum[l] + before[l] * dy);
            *after = lane!(l => w[l] * before[l] + k[l] * v);
        }
        sweep.of_receptance[i] = sum;
    }
}

vectorised! {
    /// Step `i` of the chunk backwards; returns gradients of receptance, key, decay and the step's part of the bonus.
    fn backwards(sweep: &mut Sweep<'_>, step: &Step<'_>, dy: &[f32], bonus: &[f32], place: [usize; 2]) -> [Lane; 4] {
        let ([i, block], values) = (place, dy.len());
        let (k, r, w) = (lanes::block(step.key, block), lanes::block(step.receptance, block), sweep.decays[i]);
        let of_value = &mut sweep.of_value[i * values..(i + 1) * values];
        let states = &sweep.s[i * values..(i + 1) * values];
        let (mut of_key, mut of_decay) = ([0.0; LANES], [0.0; LANES]);
        let rows = sweep.d.iter_mut().zip(states).zip(of_value).zip(step.value.iter().zip(dy));
        for (((d, &s), of_value), (&v, &dy)) in rows {
            let before = *d;
            of_key = lane!(l => of_key[l] + before[l] * v);
            of_decay = lane!(l => of_decay[l] + before[l] * s[l]);
            *d = lane!(l => w[l] * before[l] + r[l] * dy);
            *of_value += lanes::total(&lane!(l => before[l] * k[l]));
        }
        let (u, x, of_receptance) = (lanes::block(bonus, block), lanes::block(step.decay, block), sweep.of_receptance[i]);
        let along = dot(step.value, dy);
        [
            lane!(l => of_receptance[l] + u[l] * k[l] * along),
            lane!(l => of_key[l] + u[l] * r[l] * along),
            lane!(l => of_decay[l] * w[l] * -exp(x[l])),
            lane!(l => r[l] * k[l] * along),
        ]
    }
}
