//! Products of rows that are grouped by expert, each group with its expert's matrix.

use std::ops::Range;

use burn_flex::FlexTensor;

use super::Routing;
use crate::{
    host::{dimensions, slice},
    matmul::{How, Matrix, Precision, Threads, product},
    parallel::{for_chunks, for_items},
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

/// One expert's part of an output.
type Item<'a> = (usize, Range<usize>, &'a mut [f32]);

impl Groups<'_> {
    /// `rows[group] matrix(expert)` for every group: `[places, width]` from rows of any width.
    pub fn products<'a>(self, rows: &[f32], width: usize, matrix: impl Fn(usize) -> Matrix<'a> + Sync) -> Vec<f32> {
        let count = self.routing.order().len();
        let mut out = vec![0.0; count * width];
        let mut items = Vec::with_capacity(self.routing.experts());
        let mut rest = &mut out[..];
        for expert in 0..self.routing.experts() {
            let group = self.routing.group(expert);
            let (part, behind) = std::mem::take(&mut rest).split_at_mut(group.len() * width);
            rest = behind;
            items.push((expert, group, part));
        }
        self.run(items, |expert, group| (part(rows, count, group), matrix(expert)));
        out
    }

    /// `left[group]^T right[group]` for every expert, zero where it has no rows: `[experts, left's width, right's width]`.
    pub fn outer_products(self, left: &[f32], right: &[f32], size: usize) -> Vec<f32> {
        let count = self.routing.order().len();
        let mut out = vec![0.0; self.routing.experts() * size];
        let items = out.chunks_mut(size.max(1)).enumerate();
        let items = items.map(|(expert, part)| (expert, self.routing.group(expert), part)).collect();
        self.run(items, |_, group| (part(left, count, group.clone()).transposed(), part(right, count, group)));
        out
    }

    fn run<'a>(
        self,
        mut items: Vec<Item<'_>>,
        factors: impl Fn(usize, Range<usize>) -> (Matrix<'a>, Matrix<'a>) + Sync,
    ) {
        items.retain(|(_, group, out)| !group.is_empty() && !out.is_empty());
        let few = self.routing.order().len() <= FEW_ROWS * items.len();
        let how = |threads| How { precision: self.precision, threads };
        let one = |(expert, group, out): Item<'_>, threads| {
            let (left, right) = factors(expert, group);
            product(out, left, right, false, how(threads));
        };
        match few {
            true => for_items(items, |item| one(item, Threads::One)),
            false => items.into_iter().for_each(|item| one(item, Threads::All)),
        }
    }

    /// Row `source(slot)` of `rows` for every place.
    pub fn gathered(self, rows: &[f32], width: usize, source: impl Fn(usize) -> usize + Sync) -> Vec<f32> {
        let order = self.routing.order();
        let mut out = vec![0.0; order.len() * width];
        for_chunks([(&mut out, ROWS * width)], |i, [out]| {
            for (row, slot) in out.chunks_exact_mut(width.max(1)).zip(&order[i * ROWS..]) {
                let source = source(*slot as usize);
                row.copy_from_slice(&rows[source * width..(source + 1) * width]);
            }
        });
        out
    }

    /// The sum of each token's rows, times their slots' weights where there are any: `[tokens, width]`.
    pub fn combined(self, rows: &[f32], width: usize, weights: Option<&[f32]>) -> Vec<f32> {
        let mut out = vec![0.0; self.routing.tokens() * width];
        for_chunks([(&mut out, ROWS * width)], |i, [out]| {
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

    /// Each slot's row, zero where it was dropped: `[slots, width]`.
    pub fn scattered(self, rows: &[f32], width: usize) -> Vec<f32> {
        let active = self.routing.active();
        let mut out = vec![0.0; self.routing.chosen().len() * width];
        for_chunks([(&mut out, active * width)], |token, [out]| {
            for (slot, place) in self.routing.places(token) {
                let first = (slot - token * active) * width;
                out[first..first + width].copy_from_slice(&rows[place * width..(place + 1) * width]);
            }
        });
        out
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
