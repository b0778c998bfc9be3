//! Flash attention on host memory: blocks of queries against blocks of keys, products by the matrix kernel.
//!
//! Forward, for each block of keys: `m' = max(m, max s)`, `l' = l e^(m - m') + sum e^(s - m')`, `o' = o e^(m - m') +
//! e^(s - m') v`. Backward (arXiv 2205.14135, Algorithm 4): `p = e^(s - lse)`, `dv += p^T do`, `dp = do v^T`,
//! `ds = p (dp - sum(do o)) scale`, `dq += ds k`, `dk += ds^T q`.

use std::ops::Range;

use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::Mask;
use crate::{
    host::{Given, HostOperator, Saved, dimensions, slice, tensor},
    matmul::{How, Matrix, Precision, product},
    parallel::DisjointRows,
    simd::{dot, exp, maximum, sum, vectorised},
};

#[derive(Debug)]
pub(super) struct Flash {
    pub mask: Mask,
    pub scale: f32,
}

/// Queries of a block.
const QUERIES: usize = 64;
/// Keys of a block.
const KEYS: usize = 256;

/// A tensor `[batch, time, heads, width]` with any strides but of the last axis.
struct Heads<'a> {
    values: &'a [f32],
    strides: [usize; 3],
    batch: usize,
    time: usize,
    heads: usize,
    width: usize,
}

/// The tensor itself where its last axis lies in order, else a copy that does.
fn readable(tensor: &FlexTensor) -> FlexTensor {
    let strides = tensor.layout().strides();
    if strides[3] == 1 && strides.iter().all(|s| *s >= 0) { tensor.clone() } else { tensor.to_contiguous() }
}

impl<'a> Heads<'a> {
    fn new(tensor: &'a FlexTensor) -> Self {
        let (shape, layout) = (dimensions(tensor), tensor.layout());
        let stride = |axis: usize| layout.strides()[axis].unsigned_abs();
        Self {
            values: &tensor.storage::<f32>()[layout.start_offset()..],
            strides: [stride(0), stride(1), stride(2)],
            batch: shape[0],
            time: shape[1],
            heads: shape[2],
            width: shape[3],
        }
    }

    /// Some positions of one head: `[positions, width]`.
    fn matrix(&self, batch: usize, head: usize, positions: Range<usize>) -> Matrix<'a> {
        let start = batch * self.strides[0] + positions.start * self.strides[1] + head * self.strides[2];
        Matrix::strided(&self.values[start..], positions.len(), self.width, self.strides[1])
    }

    fn row(&self, batch: usize, position: usize, head: usize) -> &'a [f32] {
        let start = batch * self.strides[0] + position * self.strides[1] + head * self.strides[2];
        &self.values[start..start + self.width]
    }

    /// Index of a row in a contiguous tensor of this shape.
    fn index(&self, batch: usize, position: usize, head: usize) -> usize {
        (batch * self.time + position) * self.heads + head
    }
}

/// The blocks of `range`.
fn blocks(range: Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    range.step_by(size).map(move |start| start..(start + size).min(end))
}

/// All keys that some of the queries see.
fn span(intervals: &[(u32, u32)]) -> Range<usize> {
    let first = intervals.iter().map(|i| i.0).min().unwrap_or(0);
    first as usize..intervals.iter().map(|i| i.1).max().unwrap_or(0) as usize
}

impl HostOperator<3> for Flash {
    /// Saves the log of each softmax's denominator, in the order of the output's rows.
    fn forward(&self, inputs: &[FlexTensor; 3], _: [bool; 3]) -> (FlexTensor, Saved) {
        let inputs = inputs.each_ref().map(readable);
        let [query, key, value] = inputs.each_ref().map(Heads::new);
        let mut output = vec![0.0; query.batch * query.time * query.heads * query.width];
        let mut saved = vec![0.0; query.batch * query.time * query.heads];
        let (outputs, sums) = (DisjointRows::new(&mut output, query.width), DisjointRows::new(&mut saved, 1));
        let per_head = query.time.div_ceil(QUERIES);
        (0..query.batch * query.heads * per_head).into_par_iter().for_each(|task| {
            // The last blocks of queries see the most keys; they go first, so that no thread waits for one at the end.
            let (block, pair) = (per_head - 1 - task / (query.batch * query.heads), task % (query.batch * query.heads));
            let (batch, head) = (pair / query.heads, pair % query.heads);
            let rows = block * QUERIES..((block + 1) * QUERIES).min(query.time);
            let (mixed, log_sums) = self.forward_block(&query, &key, &value, batch, head, rows.clone());
            for (i, position) in rows.enumerate() {
                let index = query.index(batch, position, head);
                #[allow(unsafe_code)]
                // SAFETY: each task has its own batch, head and positions, hence its own rows.
                let (row, sum) = unsafe { (outputs.row(index), sums.row(index)) };
                row.copy_from_slice(&mixed[i * query.width..(i + 1) * query.width]);
                sum[0] = log_sums[i];
            }
        });
        let shape = [query.batch, query.time, query.heads, query.width];
        (tensor(output, &shape), vec![saved])
    }

    fn keeps_output(&self) -> bool {
        true
    }

    fn backward(&self, given: Given<3>, _: [bool; 3]) -> [Option<FlexTensor>; 3] {
        let inputs = given.inputs.each_ref().map(readable);
        let [query, key, value] = inputs.each_ref().map(Heads::new);
        let Some(output) = &given.output else { return [None, None, None] };
        let (gradient, output) = (Heads::new(&given.gradient), Heads::new(output));
        let mut of_query = vec![0.0; slice(&given.gradient).len()];
        let mut of_key = vec![0.0; key.batch * key.time * key.heads * key.width];
        let mut of_value = vec![0.0; of_key.len()];
        {
            let query_rows = DisjointRows::new(&mut of_query, query.width);
            let key_rows = DisjointRows::new(&mut of_key, key.width);
            let value_rows = DisjointRows::new(&mut of_value, key.width);
            let task = Backward { flash: self, query, key, value, output, gradient, log_sums: &given.saved[0] };
            let (batch, kv_heads) = (task.key.batch, task.key.heads);
            (0..batch * kv_heads).into_par_iter().for_each(|pair| {
                task.run(pair / kv_heads, pair % kv_heads, &query_rows, &key_rows, &value_rows);
            });
        }
        let shapes = given.inputs.each_ref().map(dimensions);
        [Some(tensor(of_query, &shapes[0])), Some(tensor(of_key, &shapes[1])), Some(tensor(of_value, &shapes[2]))]
    }
}

impl Flash {
    /// The mixed values `[rows, width]` of one head's block of queries, and the logs of their denominators.
    fn forward_block(
        &self,
        query: &Heads<'_>,
        key: &Heads<'_>,
        value: &Heads<'_>,
        batch: usize,
        head: usize,
        rows: Range<usize>,
    ) -> (Vec<f32>, Vec<f32>) {
        let (count, width, kv_head) = (rows.len(), query.width, head / (query.heads / key.heads));
        let intervals = self.mask.intervals(batch, rows.clone());
        let queries = query.matrix(batch, head, rows);
        let mut mixed = vec![0.0; count * width];
        let (mut largest, mut sums) = (vec![f32::NEG_INFINITY; count], vec![0.0; count]);
        let mut scores = vec![0.0; count * KEYS];
        for keys in blocks(span(intervals), KEYS) {
            let scores = &mut scores[..count * keys.len()];
            product(
                scores,
                queries,
                key.matrix(batch, kv_head, keys.clone()).transposed(),
                false,
                How::one(Precision::F32),
            );
            let keys_matrix = value.matrix(batch, kv_head, keys.clone());
            online_softmax(scores, intervals, keys.start, keys.len(), self.scale, &mut largest, &mut sums, &mut mixed);
            product(&mut mixed, Matrix::new(scores, count, keys.len()), keys_matrix, true, How::one(Precision::F32));
        }
        for ((row, sum), largest) in mixed.chunks_exact_mut(width).zip(&sums).zip(&mut largest) {
            // A row that sees nothing stays zero.
            if *sum > 0.0 || sum.is_nan() {
                row.iter_mut().for_each(|x| *x /= sum);
                *largest += sum.ln();
            }
        }
        (mixed, largest)
    }
}

/// The part of a block of `count` keys from `start` that a query sees.
#[inline(always)]
fn visible(&(first, end): &(u32, u32), start: usize, count: usize) -> Range<usize> {
    let first = (first as usize).clamp(start, start + count) - start;
    first..((end as usize).clamp(start, start + count) - start).max(first)
}

vectorised! {
    /// Scores become weights relative to the largest score so far; sums and mixed values follow.
    fn online_softmax(scores: &mut [f32], intervals: &[(u32, u32)], start: usize, count: usize, scale: f32, largest: &mut [f32], sums: &mut [f32], mixed: &mut [f32]) {
        let width = mixed.len() / intervals.len();
        let rows = scores.chunks_exact_mut(count).zip(intervals).zip(mixed.chunks_exact_mut(width));
        for (((scores, interval), mixed), (largest, total)) in rows.zip(largest.iter_mut().zip(sums)) {
            let seen = visible(interval, start, count);
            scores[..seen.start].fill(0.0);
            scores[seen.end..].fill(0.0);
            let scores = &mut scores[seen];
            if scores.is_empty() {
                continue;
            }
            let here = maximum(scores) * scale;
            // Written so that NaN is taken over and reaches the loss.
            let now = if here <= *largest { *largest } else { here };
            let keep = exp(*largest - now);
            scores.iter_mut().for_each(|s| *s = exp(*s * scale - now));
            *total = *total * keep + sum(scores);
            if keep != 1.0 {
                mixed.iter_mut().for_each(|x| *x *= keep);
            }
            *largest = now;
        }
    }
}

/// The backward of one pair of batch row and key head.
struct Backward<'a> {
    flash: &'a Flash,
    query: Heads<'a>,
    key: Heads<'a>,
    value: Heads<'a>,
    output: Heads<'a>,
    gradient: Heads<'a>,
    log_sums: &'a [f32],
}

impl Backward<'_> {
    fn run(
        &self,
        batch: usize,
        kv_head: usize,
        query_rows: &DisjointRows<'_>,
        key_rows: &DisjointRows<'_>,
        value_rows: &DisjointRows<'_>,
    ) {
        let (width, group) = (self.key.width, self.query.heads / self.key.heads);
        let mut of_key = vec![0.0; self.key.time * width];
        let mut of_value = vec![0.0; self.key.time * width];
        for head in kv_head * group..(kv_head + 1) * group {
            for rows in blocks(0..self.query.time, QUERIES) {
                let of_query = self.block(batch, head, kv_head, rows.clone(), &mut of_key, &mut of_value);
                for (position, values) in rows.zip(of_query.chunks_exact(width)) {
                    #[allow(unsafe_code)]
                    // SAFETY: each task has its own batch row and its own query heads.
                    unsafe { query_rows.row(self.query.index(batch, position, head)) }.copy_from_slice(values);
                }
            }
        }
        let rows = of_key.chunks_exact(width).zip(of_value.chunks_exact(width));
        for (position, (of_key, of_value)) in rows.enumerate() {
            let index = self.key.index(batch, position, kv_head);
            #[allow(unsafe_code)]
            // SAFETY: each task has its own batch row and its own key head.
            let (key, value) = unsafe { (key_rows.row(index), value_rows.row(index)) };
            key.copy_from_slice(of_key);
            value.copy_from_slice(of_value);
        }
    }

    /// Adds one block of queries to the gradients of keys and values; returns the gradient of the queries.
    fn block(
        &self,
        batch: usize,
        head: usize,
        kv_head: usize,
        rows: Range<usize>,
        of_key: &mut [f32],
        of_value: &mut [f32],
    ) -> Vec<f32> {
        let (count, width) = (rows.len(), self.key.width);
        let intervals = self.flash.mask.intervals(batch, rows.clone());
        let queries = self.query.matrix(batch, head, rows.clone());
        let gradients = self.gradient.matrix(batch, head, rows.clone());
        let row = |position| (self.gradient.row(batch, position, head), self.output.row(batch, position, head));
        let along: Vec<f32> = rows.clone().map(|position| dot_rows(row(position).0, row(position).1)).collect();
        let log_sums: Vec<f32> = rows.map(|position| self.log_sums[self.query.index(batch, position, head)]).collect();
        let mut of_query = vec![0.0; count * width];
        let (mut weights, mut of_scores) = (vec![0.0; count * KEYS], vec![0.0; count * KEYS]);
        for keys in blocks(span(intervals), KEYS) {
            let (size, part) = (keys.len(), keys.start * width..keys.end * width);
            let (weights, of_scores) = (&mut weights[..count * size], &mut of_scores[..count * size]);
            let (key, value) =
                (self.key.matrix(batch, kv_head, keys.clone()), self.value.matrix(batch, kv_head, keys.clone()));
            product(weights, queries, key.transposed(), false, How::one(Precision::F32));
            product(of_scores, gradients, value.transposed(), false, How::one(Precision::F32));
            score_gradients(weights, of_scores, intervals, keys.start, size, self.flash.scale, &log_sums, &along);
            let weights = Matrix::new(weights, count, size).transposed();
            product(&mut of_value[part.clone()], weights, gradients, true, How::one(Precision::F32));
            let of_scores = Matrix::new(of_scores, count, size);
            product(&mut of_key[part], of_scores.transposed(), queries, true, How::one(Precision::F32));
            product(&mut of_query, of_scores, key, true, How::one(Precision::F32));
        }
        of_query
    }
}

vectorised! {
    fn dot_rows(a: &[f32], b: &[f32]) -> f32 {
        dot(a, b)
    }
}

vectorised! {
    /// Scores become weights, gradients of weights become gradients of scores.
    fn score_gradients(scores: &mut [f32], of_scores: &mut [f32], intervals: &[(u32, u32)], start: usize, count: usize, scale: f32, log_sums: &[f32], along: &[f32]) {
        let rows = scores.chunks_exact_mut(count).zip(of_scores.chunks_exact_mut(count)).zip(intervals);
        for (((scores, of_scores), interval), (log_sum, along)) in rows.zip(log_sums.iter().zip(along)) {
            let seen = visible(interval, start, count);
            for side in [&mut *scores, &mut *of_scores] {
                side[..seen.start].fill(0.0);
                side[seen.end..].fill(0.0);
            }
            for (score, of_score) in scores[seen.clone()].iter_mut().zip(&mut of_scores[seen]) {
                *score = exp(*score * scale - log_sum);
                *of_score = *score * (*of_score - along) * scale;
            }
        }
    }
}
