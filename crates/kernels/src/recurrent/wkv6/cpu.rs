//! The recurrence, one task for each head of each sequence, with neighbouring columns of the state side by side.

use super::super::{
    lanes::{self, LANES, Lane, lane, lanes_of},
    sequence::{Sequence, readable},
};
use crate::{
    host::{Given, HostOperator, Saved, Side, contiguous, dimensions, slice, tensor},
    matmul::scratch,
    parallel::{DisjointRows, for_each, zeros},
    simd::{exp, vectorised},
};
use burn_flex::FlexTensor;

/// The operator over receptance, key, value, decay, bonus and state; the last state leaves by the side.
#[derive(Debug)]
pub(super) struct Wkv {
    pub last: Side,
}

/// Steps between two kept states.
pub(super) const CHUNK: usize = 64;

/// What the recurrence reads.
pub(super) struct Inputs<'a> {
    receptance: Sequence<'a>,
    key: Sequence<'a>,
    value: Sequence<'a>,
    decay: Sequence<'a>,
    /// Whether one row of decays stands for all steps.
    pub constant: bool,
    bonus: &'a [f32],
    pub batch: usize,
    pub time: usize,
    pub heads: usize,
    pub keys: usize,
    pub values: usize,
}

/// One step of one head.
pub(super) struct Step<'a> {
    pub receptance: &'a [f32],
    pub key: &'a [f32],
    pub value: &'a [f32],
    pub decay: &'a [f32],
}

impl<'a> Inputs<'a> {
    pub fn prepared([receptance, key, value, decay, bonus, state]: &[FlexTensor; 6]) -> [FlexTensor; 6] {
        let [receptance, key, value, decay] = [receptance, key, value, decay].map(readable);
        [receptance, key, value, decay, contiguous(bonus), contiguous(state)]
    }

    pub fn new([receptance, key, value, decay, bonus, state]: &'a [FlexTensor; 6]) -> Self {
        let [receptance, key, value] = [receptance, key, value].map(Sequence::new);
        let (batch, time, shape) = (value.batch, value.time, dimensions(state));
        let constant = dimensions(decay)[..2] != [batch, time];
        let decay = Sequence::repeated(decay, batch, time);
        let [heads, keys, values] = [shape[1], shape[2], shape[3]];
        Self { receptance, key, value, decay, constant, bonus: slice(bonus), batch, time, heads, keys, values }
    }

    pub fn step(&self, batch: usize, head: usize, time: usize) -> Step<'a> {
        let of = |sequence: &Sequence<'a>, width: usize| &sequence.row(batch, time)[head * width..(head + 1) * width];
        Step {
            receptance: of(&self.receptance, self.keys),
            key: of(&self.key, self.keys),
            value: of(&self.value, self.values),
            decay: of(&self.decay, self.keys),
        }
    }

    pub fn bonus(&self, head: usize) -> &'a [f32] {
        &self.bonus[head * self.keys..(head + 1) * self.keys]
    }

    pub fn chunks(&self) -> usize {
        self.time.div_ceil(CHUNK)
    }

    /// The steps of a chunk.
    pub fn chunk(&self, chunk: usize) -> std::ops::Range<usize> {
        chunk * CHUNK..((chunk + 1) * CHUNK).min(self.time)
    }

    /// Numbers of one state.
    pub fn size(&self) -> usize {
        self.keys * self.values
    }

    /// Outputs, last states, and where asked the states before every chunk.
    #[allow(unsafe_code)]
    fn forward(&self, state: &[f32], keep: bool) -> [Vec<f32>; 3] {
        let (heads, keys, values) = (self.heads, self.keys, self.values);
        let tasks = self.batch * heads;
        let mut y = zeros(self.value.len());
        let mut last = zeros(tasks * self.size());
        let mut kept = zeros(if keep { tasks * self.chunks() * self.size() } else { 0 });
        let y_rows = DisjointRows::new(&mut y, heads * values);
        let (last_rows, kept_rows) =
            (DisjointRows::new(&mut last, self.size()), DisjointRows::new(&mut kept, self.size()));
        let blocks = values.div_ceil(LANES);
        for_each(tasks, |task| {
            let (batch, head) = (task / heads, task % heads);
            let state = &state[task * self.size()..(task + 1) * self.size()];
            scratch::parts([blocks * keys * LANES, CHUNK * keys, CHUNK], |[s, decays, along]| {
                let s = lanes_of(s);
                gather(s, state, values);
                for chunk in 0..self.chunks() {
                    if keep {
                        // SAFETY: each chunk comes once in a task.
                        scatter(unsafe { kept_rows.row(task * self.chunks() + chunk) }, s, values);
                    }
                    self.prepare(decays, along, batch, head, chunk);
                    for (i, t) in self.chunk(chunk).enumerate() {
                        let step = Step { decay: &decays[i * keys..(i + 1) * keys], ..self.step(batch, head, t) };
                        // SAFETY: each step of a head comes once.
                        let y = unsafe { y_rows.part(batch * self.time + t, head * values..(head + 1) * values) };
                        advance(y, s, &step, along[i]);
                    }
                }
                // SAFETY: each task has a row of its own.
                scatter(unsafe { last_rows.row(task) }, s, values);
            });
        });
        [y, last, kept]
    }

    /// The decays of a chunk, and for each step `sum r u k`.
    fn prepare(&self, decays: &mut [f32], along: &mut [f32], batch: usize, head: usize, chunk: usize) {
        let steps = self.chunk(chunk).map(|t| self.step(batch, head, t));
        for ((step, decays), along) in steps.zip(decays.chunks_exact_mut(self.keys)).zip(along) {
            *along = bonus_and_decays(decays, &step, self.bonus(head));
        }
    }
}

/// From `[keys, columns]` to vectors of columns, `[blocks][keys]`.
pub(super) fn gather(s: &mut [Lane], table: &[f32], columns: usize) {
    let keys = table.len() / columns;
    for (i, s) in s.iter_mut().enumerate() {
        *s = lanes::block(&table[i % keys * columns..(i % keys + 1) * columns], i / keys);
    }
}

/// The way back of [`gather`].
pub(super) fn scatter(table: &mut [f32], s: &[Lane], columns: usize) {
    let keys = table.len() / columns;
    for (i, s) in s.iter().enumerate() {
        let row = &mut table[i % keys * columns..(i % keys + 1) * columns];
        lanes::store(&mut row[lanes::columns(columns, i / keys)], s);
    }
}

vectorised! {
    /// Writes `exp(-exp(x))`; returns `sum r u k`.
    fn bonus_and_decays(decays: &mut [f32], step: &Step<'_>, bonus: &[f32]) -> f32 {
        for (decay, x) in decays.iter_mut().zip(step.decay) {
            *decay = exp(-exp(*x));
        }
        step.receptance.iter().zip(step.key).zip(bonus).map(|((r, k), u)| r * u * k).sum()
    }
}

vectorised! {
    /// One step of one head.
    fn advance(y: &mut [f32], s: &mut [Lane], step: &Step<'_>, along: f32) {
        let keys = step.key.len();
        for (block, s) in s.chunks_exact_mut(keys).enumerate() {
            let v = lanes::block(step.value, block);
            let mut sum = lane!(l => along * v[l]);
            for (s, ((&r, &k), &w)) in s.iter_mut().zip(step.receptance.iter().zip(step.key).zip(step.decay)) {
                let before = *s;
                sum = lane!(l => sum[l] + r * before[l]);
                *s = lane!(l => w * before[l] + k * v[l]);
            }
            let columns = lanes::columns(y.len(), block);
            lanes::store(&mut y[columns], &sum);
        }
    }
}

impl HostOperator<6> for Wkv {
    fn forward(&self, inputs: &[FlexTensor; 6], wanted: [bool; 6]) -> (FlexTensor, Saved) {
        let tensors = Inputs::prepared(inputs);
        let inputs = Inputs::new(&tensors);
        let [y, last, kept] = inputs.forward(slice(&tensors[5]), wanted.contains(&true));
        self.last.put(tensor(last, &dimensions(&tensors[5])));
        (tensor(y, &inputs.value.shape()), vec![kept])
    }

    fn backward(&self, given: Given<6>, _: [bool; 6]) -> [Option<FlexTensor>; 6] {
        let tensors = Inputs::prepared(&given.inputs);
        let of_last = self.last.gradient().map(|gradient| contiguous(&gradient));
        let of_last = of_last.as_ref().map(slice);
        let found = super::backward::run(&Inputs::new(&tensors), &given.saved[0], slice(&given.gradient), of_last);
        let mut shapes = tensors.iter().map(dimensions);
        found.map(|values| shapes.next().map(|shape| tensor(values, &shape)))
    }
}
