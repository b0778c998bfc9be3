//! Products of rows that are grouped by expert, each group with its expert's matrix.

use std::ops::Range;

use burn_flex::FlexTensor;

use super::Routing;
use crate::{
    host::{dimensions, slice},
    matmul::{Matrix, Precision, multiplied_each},
    parallel::{copied, for_chunks, fresh},
    simd::{dot, vectorised},
};

/// Rows of a group up to which groups run side by side; above, each runs on all threads.
const FEW_ROWS: usize = 32;
/// Rows of a task that moves rows.
const ROWS: usize = 32;

/// Rows in groups.
#[derive(Clone, Copy)]
pub(super) struct Groups<'a> {
    pub routing: &'a Routing,
    pub precision: Precision,
}

impl Groups<'_> {
    /// `rows[group] matrix(expert)` for every group: `[places, width]` from rows of any width.
    pub fn products<'a>(self, rows: &'a [f32], matrix: impl Fn(usize) -> Matrix<'a>) -> Vec<f32> {
        let count = self.routing.order().len();
        self.run(|expert, group| (part(rows, count, group), matrix(expert)))
    }

    /// `left[group]^T right[group]` for every expert, zero where it has no rows: `[experts, left's width, right's width]`.
    pub fn outer_products(self, left: &[f32], right: &[f32]) -> Vec<f32> {
        let count = self.routing.order().len();
        self.run(|_, group| (part(left, count, group.clone()).transposed(), part(right, count, group)))
    }

    fn run<'a>(self, factors: impl Fn(usize, Range<usize>) -> (Matrix<'a>, Matrix<'a>)) -> Vec<f32> {
        let experts = self.routing.experts();
        let factors: Vec<_> = (0..experts).map(|expert| factors(expert, self.routing.group(expert))).collect();
        let busy = self.routing.load().iter().filter(|load| **load > 0).count();
        multiplied_each(&factors, self.routing.order().len() <= FEW_ROWS * busy, self.precision)
    }

    /// Row `source(slot)` of `rows` for every place.
    pub fn gathered(self, rows: &[f32], width: usize, source: impl Fn(usize) -> usize + Sync) -> Vec<f32> {
        let order = self.routing.order();
        copied(order.len(), width, |place| rows[source(order[place] as usize) * width..].get(..width))
    }

    /// The sum of each token's rows, times their slots' weights where there are any: `[tokens, width]`.
    pub fn combined(self, rows: &[f32], width: usize, weights: Option<&[f32]>) -> Vec<f32> {
        let [out] = fresh([(self.routing.tokens() * width, ROWS * width)], |i, [out]| {
            for (offset, sum) in out.chunks_exact_mut(width.max(1)).enumerate() {
                for (slot, place) in self.routing.places(i * ROWS + offset) {
                    let weight = weights.map_or(1.0, |weights| weights[slot]);
                    let row = &rows[place * width..(place + 1) * width];
                    sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += weight * value);
                }
            }
        });
        out
    }

    /// Each slot's row, zero where it was dropped, a token's slots side by side: `[tokens, active * width]`. Where rows have several
    /// `heads`, the first heads of all slots come first, then the second ones, and so on.
    pub fn scattered(self, rows: &[f32], width: usize, heads: usize) -> Vec<f32> {
        let (active, piece) = (self.routing.active(), width / heads);
        copied(self.routing.tokens() * heads * active, piece, |i| {
            let (token, head, choice) = (i / (heads * active), i / active % heads, i % active);
            let place = self.routing.place(token * active + choice)?;
            rows[place * width + head * piece..].get(..piece)
        })
    }

    /// The row of every place out of what [`Groups::scattered`] made.
    pub fn collected(self, tokens: &[f32], width: usize, heads: usize) -> Vec<f32> {
        let (order, active, piece) = (self.routing.order(), self.routing.active(), width / heads);
        copied(order.len() * heads, piece, |i| {
            let slot = order[i / heads] as usize;
            let head = slot / active * heads * active + i % heads * active + slot % active;
            tokens[head * piece..].get(..piece)
        })
    }

    /// The gradient of every slot's weight, the product of the place's row in both buffers, which are multiplied by the weights on
    /// the way.
    pub fn weigh(self, weights: &[f32], a: &mut [f32], b: &mut [f32], width: usize) -> Vec<f32> {
        let order = self.routing.order();
        let mut by_place = vec![0.0; order.len()];
        for_chunks([(&mut by_place, ROWS), (a, ROWS * width), (b, ROWS * width)], |i, [sums, a, b]| {
            let rows = a.chunks_exact_mut(width.max(1)).zip(b.chunks_exact_mut(width.max(1)));
            for ((sum, slot), (a, b)) in sums.iter_mut().zip(&order[i * ROWS..]).zip(rows) {
                *sum = weigh_row(a, b, weights[*slot as usize]);
            }
        });
        let mut by_slot = vec![0.0; self.routing.chosen().len()];
        order.iter().zip(by_place).for_each(|(slot, sum)| by_slot[*slot as usize] = sum);
        by_slot
    }
}

vectorised! {
    /// The product of both rows, which are then multiplied by `weight`.
    fn weigh_row(a: &mut [f32], b: &mut [f32], weight: f32) -> f32 {
        let product = dot(a, b);
        a.iter_mut().for_each(|a| *a *= weight);
        b.iter_mut().for_each(|b| *b *= weight);
        product
    }
}

/// Some of `count` rows.
fn part(rows: &[f32], count: usize, group: Range<usize>) -> Matrix<'_> {
    let width = rows.len() / count.max(1);
    Matrix::new(&rows[group.start * width..group.end * width], group.len(), width)
}

/// The matrix of an expert in `[experts, out, in]`.
pub(super) fn matrix(weights: &FlexTensor, expert: usize) -> Matrix<'_> {
    let shape = dimensions(weights);
    let size = shape[1] * shape[2];
    Matrix::new(&slice(weights)[expert * size..(expert + 1) * size], shape[1], shape[2])
}
