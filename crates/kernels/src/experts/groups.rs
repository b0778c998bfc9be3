//! Products of rows that are grouped by expert, each group with its expert's matrix.

use std::ops::Range;

use super::Routing;
use crate::{
    matmul::{Matrix, Precision, Write, multiplied_each, scratch},
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

impl<'a> Groups<'a> {
    /// The rows of all places, which `write` gives.
    pub fn rows<'b>(self, write: &'b Write<'b>, width: usize) -> Matrix<'b> {
        Matrix::made(write, self.routing.order().len(), width)
    }

    /// `rows[group] matrix(expert)` for every group: `[places, columns of the matrices]`.
    pub fn products<'b>(self, rows: Matrix<'b>, matrix: impl Fn(usize) -> Matrix<'b>) -> Vec<f32> {
        self.run(|expert, group| (part(rows, group), matrix(expert)))
    }

    /// `left[group]^T right[group]` for every expert, zero where it has no rows: `[experts, left's width, right's width]`.
    pub fn outer_products(self, left: Matrix<'_>, right: Matrix<'_>) -> Vec<f32> {
        self.run(|_, group| (part(left, group.clone()).transposed(), part(right, group)))
    }

    fn run<'b>(
        self,
        factors: impl Fn(usize, Range<usize>) -> (Matrix<'b>, Matrix<'b>),
    ) -> Vec<f32> {
        let experts = self.routing.experts();
        let factors: Vec<_> = (0..experts)
            .map(|expert| factors(expert, self.routing.group(expert)))
            .collect();
        let busy = self.routing.load().iter().filter(|load| **load > 0).count();
        multiplied_each(
            &factors,
            self.routing.order().len() <= FEW_ROWS * busy,
            self.precision,
        )
    }

    /// Writes the row of each place's token.
    pub fn of_tokens(
        self,
        rows: &'a [f32],
        width: usize,
    ) -> impl Fn(usize, usize, &mut [f32]) + Sync + 'a {
        move |place, first, out| {
            let token = self.routing.order()[place] as usize / self.routing.active();
            out.copy_from_slice(&rows[token * width + first..][..out.len()]);
        }
    }

    /// Writes the row of every place out of what [`Groups::scattered`] made.
    pub fn of_slots(
        self,
        tokens: &'a [f32],
        width: usize,
        heads: usize,
    ) -> impl Fn(usize, usize, &mut [f32]) + Sync + 'a {
        let (active, piece) = (self.routing.active(), width / heads);
        move |place, first, mut out| {
            let slot = self.routing.order()[place] as usize;
            let mut column = first;
            while !out.is_empty() {
                let (head, inside) = (column / piece, column % piece);
                let start = (slot / active * heads * active + head * active + slot % active)
                    * piece
                    + inside;
                let (here, rest) = out.split_at_mut(out.len().min(piece - inside));
                here.copy_from_slice(&tokens[start..start + here.len()]);
                column += here.len();
                out = rest;
            }
        }
    }

    /// Writes what `write` does, times the weight of the place's slot.
    pub fn weighted(
        self,
        write: &'a Write<'a>,
        weights: &'a [f32],
    ) -> impl Fn(usize, usize, &mut [f32]) + Sync + 'a {
        move |place, first, out| {
            write(place, first, out);
            scale(out, weights[self.routing.order()[place] as usize]);
        }
    }

    /// The sum of each token's rows, times their slots' weights where there are any: `[tokens, width]`.
    pub fn combined(self, rows: &[f32], width: usize, weights: Option<&[f32]>) -> Vec<f32> {
        let [out] = fresh(
            [(self.routing.tokens() * width, ROWS * width)],
            |i, [out]| {
                for (offset, sum) in out.chunks_exact_mut(width.max(1)).enumerate() {
                    for (slot, place) in self.routing.places(i * ROWS + offset) {
                        let weight = weights.map_or(1.0, |weights| weights[slot]);
                        add_scaled(sum, &rows[place * width..(place + 1) * width], weight);
                    }
                }
            },
        );
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

    /// The gradient of every slot's weight: the product of the place's row in `a` and of the row that `write` writes. `a` is
    /// multiplied by the weights on the way.
    pub fn weigh(self, weights: &[f32], a: &mut [f32], write: &Write<'_>) -> Vec<f32> {
        let order = self.routing.order();
        let width = a.len() / order.len().max(1);
        let mut by_place = vec![0.0; order.len()];
        for_chunks(
            [(&mut by_place, ROWS), (a, ROWS * width)],
            |i, [sums, a]| {
                scratch::with(width, |b| {
                    let rows = a.chunks_exact_mut(width.max(1));
                    for ((sum, a), place) in sums.iter_mut().zip(rows).zip(i * ROWS..) {
                        write(place, 0, b);
                        *sum = dot(a, b);
                        scale(a, weights[order[place] as usize]);
                    }
                });
            },
        );
        self.by_slot(&by_place)
    }

    /// A number of every place as one of every slot, zero where it was dropped.
    pub fn by_slot(self, by_place: &[f32]) -> Vec<f32> {
        let mut by_slot = vec![0.0; self.routing.chosen().len()];
        self.routing
            .order()
            .iter()
            .zip(by_place)
            .for_each(|(slot, value)| by_slot[*slot as usize] = *value);
        by_slot
    }
}

vectorised! {
    fn scale(values: &mut [f32], factor: f32) {
        values.iter_mut().for_each(|value| *value *= factor);
    }
}

vectorised! {
    fn add_scaled(sums: &mut [f32], values: &[f32], factor: f32) {
        sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += factor * value);
    }
}

/// Some rows.
fn part(rows: Matrix<'_>, group: Range<usize>) -> Matrix<'_> {
    rows.part(group.start, group.len(), 0, rows.columns())
}
