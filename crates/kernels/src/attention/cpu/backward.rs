//! The backward (arXiv 2205.14135, Algorithm 4): `p = e^(s - lse)`, `dv += p^T do`, `dp = do v^T`, `ds = p (dp - sum(do o))`,
//! `dq += ds k scale`, `dk += ds^T q scale`, with scores transposed as in the forward.

use super::{
    Heads, Inputs,
    forward::{add_mixed, right_factor, score_tiles},
    keys_of_block,
    scores::{self, Panel},
};
use crate::{
    matmul::{
        Matrix,
        kernel::{Kernel, Segment, Side, kernel},
        scratch, transpose,
    },
    parallel::DisjointRows,
    simd::{dot, vectorised},
};

/// The inputs of one task.
pub(super) struct Given<'a> {
    pub inputs: &'a Inputs<'a>,
    pub output: &'a Heads<'a>,
    pub gradient: &'a Heads<'a>,
    pub log_sums: &'a [f32],
}

impl Given<'_> {
    /// One head of one row: writes the gradients of its queries and adds those of keys, values and what the head has of its own.
    pub fn run(
        &self,
        (batch, head): (usize, usize),
        query_rows: &DisjointRows<'_>,
        of_key: &mut [f32],
        of_value: &mut [f32],
        of_own: &mut [f32],
    ) {
        let (query, key, precision) = (
            &self.inputs.query,
            &self.inputs.key,
            self.inputs.flash.options.precision,
        );
        let kernel = kernel(precision);
        let (width, value_width) = (query.width, self.inputs.value.width);
        let (high, wide, most) = (kernel.rows, kernel.columns, keys_of_block(kernel));
        let kv_head = self.inputs.kv_head(head);
        let keys = key.matrix(batch, kv_head, 0..key.time);
        let values = self.inputs.value.matrix(batch, kv_head, 0..key.time);
        let block = most * wide;
        let sizes = [
            kernel.packed_len(Side::Right, wide, width),
            kernel.packed_len(Side::Right, wide, value_width),
            kernel.packed_len(Side::Right, width, wide),
            kernel.packed_len(Side::Right, value_width, wide),
            block,
            block,
            block,
            width.next_multiple_of(high) * wide,
            kernel.packed_len(Side::Left, most, wide),
            kernel.packed_len(Side::Left, key.time, width),
            kernel.packed_len(Side::Left, key.time, value_width),
            kernel.packed_len(Side::Left, width, key.time),
            width * wide,
        ];
        scratch::parts(
            sizes,
            |[
                q,
                g,
                q_lanes,
                g_lanes,
                weights,
                of_scores,
                units,
                of_query,
                turned,
                k,
                v,
                k_lanes,
                rows_of,
            ]| {
                kernel.pack(k, Side::Left, keys);
                kernel.pack(v, Side::Left, values);
                kernel.pack(k_lanes, Side::Left, keys.transposed());
                for start in (0..query.time).step_by(wide) {
                    let queries = start..(start + wide).min(query.time);
                    let panel = Panel::new(self.inputs, batch, head, queries.clone(), wide);
                    let queries_matrix = query.matrix(batch, head, queries.clone());
                    let gradients = self.gradient.matrix(batch, head, queries.clone());
                    kernel.pack(q, Side::Right, queries_matrix);
                    kernel.pack(g, Side::Right, gradients);
                    kernel.pack(q_lanes, Side::Right, queries_matrix.transposed());
                    kernel.pack(g_lanes, Side::Right, gradients.transposed());
                    let (log_sums, along) = self.statistics(batch, head, &panel);
                    if let Some(sink) = self.inputs.sink(head) {
                        let lanes = log_sums.iter().zip(&along).take(queries.len());
                        let share = |(log_sum, along): (&f32, &f32)| (sink - log_sum).exp() * along;
                        of_own[0] -= lanes.map(share).sum::<f32>();
                    }
                    of_query.fill(0.0);
                    for block in panel.blocks(most) {
                        score_tiles(kernel, width, &panel, &block, 0, k, q, weights);
                        score_tiles(kernel, value_width, &panel, &block, 0, v, g, of_scores);
                        let size = block.len() * wide;
                        let (weights, of_scores) = (&mut weights[..size], &mut of_scores[..size]);
                        let of_bias = self.inputs.bias(head).map(|_| &mut *of_own);
                        scores::gradients(
                            wide,
                            weights,
                            of_scores,
                            &panel,
                            block.start,
                            &log_sums,
                            &along,
                            of_bias,
                        );
                        let add = |width: usize,
                                   out: &mut [f32],
                                   block_scores: &[f32],
                                   lanes: &[f32],
                                   turned: &mut [f32]| {
                            let out = &mut out[block.start * width..block.end * width];
                            add_lanes(
                                kernel,
                                width,
                                queries.len(),
                                block_scores,
                                lanes,
                                turned,
                                out,
                            );
                        };
                        add(value_width, of_value, weights, g_lanes, turned);
                        add(width, of_key, of_scores, q_lanes, turned);
                        let right = right_factor(kernel, precision, of_scores, wide, units);
                        add_mixed(
                            kernel,
                            width,
                            key.time,
                            block.start,
                            block.len(),
                            k_lanes,
                            right,
                            of_query,
                        );
                    }
                    transpose(&of_query[..width * wide], width, wide, rows_of);
                    for (position, from) in queries.zip(rows_of.chunks_exact(width)) {
                        #[allow(unsafe_code)]
                        // SAFETY: each task has its own batch row and its own head.
                        let row = unsafe { query_rows.row(query.index(batch, position, head)) };
                        row.copy_from_slice(from);
                    }
                }
            },
        );
    }

    /// For each query of a panel the log of its denominator, and the product of its output with that one's gradient.
    fn statistics(&self, batch: usize, head: usize, panel: &Panel<'_>) -> (Vec<f32>, Vec<f32>) {
        let (mut log_sums, mut along) = (vec![0.0; panel.wide], vec![0.0; panel.wide]);
        for (lane, position) in panel.queries.clone().enumerate() {
            let log_sum = self.log_sums[self.inputs.query.index(batch, position, head)];
            // A row that saw nothing has no weights; its lane is masked throughout.
            log_sums[lane] = if log_sum == f32::NEG_INFINITY {
                0.0
            } else {
                log_sum
            };
            along[lane] = dot_rows(
                self.gradient.row(batch, position, head),
                self.output.row(batch, position, head),
            );
        }
        (log_sums, along)
    }
}

/// `out += block right` over the queries of a panel: `block` is `[keys, queries]`, `out` `[keys, width]`.
fn add_lanes(
    kernel: &Kernel,
    width: usize,
    queries: usize,
    block: &[f32],
    right: &[f32],
    turned: &mut [f32],
    out: &mut [f32],
) {
    let (high, wide) = (kernel.rows, kernel.columns);
    let (keys, units) = (block.len() / wide, kernel.units(queries));
    kernel.pack(
        turned,
        Side::Left,
        Matrix::strided(block, keys, queries, wide),
    );
    for (i, left) in turned
        .chunks_exact(high * units)
        .enumerate()
        .take(keys.div_ceil(high))
    {
        for (j, right) in right
            .chunks_exact(wide * units)
            .enumerate()
            .take(width.div_ceil(wide))
        {
            let (key, column) = (i * high, j * wide);
            let size = [high.min(keys - key), wide.min(width - column)];
            let part =
                &mut out[key * width + column..(key + size[0] - 1) * width + column + size[1]];
            #[allow(unsafe_code)]
            // SAFETY: the part spans all rows and columns of the tile.
            unsafe {
                kernel.tile(
                    &[Segment { units, left, right }],
                    part.as_mut_ptr(),
                    width,
                    size,
                    true,
                );
            }
        }
    }
}

vectorised! {
    fn dot_rows(a: &[f32], b: &[f32]) -> f32 {
        dot(a, b)
    }
}
