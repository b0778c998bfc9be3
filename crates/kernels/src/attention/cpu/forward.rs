//! The forward with its online softmax, for each panel of queries over blocks of keys: `m' = max(m, max s)`,
//! `l' = l e^(m - m') + sum e^(s - m')`, `o' = o e^(m - m') + v^T e^(s - m')`, all transposed: queries lie side by side.

use std::ops::Range;

use super::{
    Inputs, keys_of_block,
    scores::{self, Panel, Softmax},
};
use crate::{
    matmul::{
        Matrix, Precision,
        kernel::{Kernel, Segment, Side, kernel},
        scratch, transpose,
    },
    parallel::DisjointRows,
};

/// Mixes the values for some queries of one head, and writes them and the logs of their denominators.
pub(super) fn run(
    inputs: &Inputs<'_>,
    batch: usize,
    head: usize,
    queries: Range<usize>,
    (outputs, log_sums): &(DisjointRows<'_>, DisjointRows<'_>),
) {
    let kernel = kernel(inputs.flash.options.precision);
    let (width, value_width) = (inputs.query.width, inputs.value.width);
    let (wide, most) = (kernel.columns, keys_of_block(kernel));
    let seen = inputs.flash.mask.span(batch, queries.clone());
    let kv_head = inputs.kv_head(head);
    // Keys before the first block that anybody sees are not packed.
    let first = seen.start / most * most;
    let keys = first..seen.end.max(first);
    let key = inputs.key.matrix(batch, kv_head, keys.clone());
    let value = inputs
        .value
        .matrix(batch, kv_head, keys.clone())
        .transposed();
    let sizes = [
        kernel.packed_len(Side::Right, wide, width),
        most * wide,
        most * wide,
        value_width.next_multiple_of(kernel.rows) * wide,
        kernel.packed_len(Side::Left, keys.len(), width),
        kernel.packed_len(Side::Left, value_width, keys.len()),
        value_width * wide,
    ];
    scratch::parts(
        sizes,
        |[of_query, scores, weights, mixed, of_key, of_value, rows_of]| {
            kernel.pack(of_key, Side::Left, key);
            kernel.pack(of_value, Side::Left, value);
            for start in queries.clone().step_by(wide) {
                let panel = Panel::new(
                    inputs,
                    batch,
                    head,
                    start..(start + wide).min(queries.end),
                    wide,
                );
                kernel.pack(
                    of_query,
                    Side::Right,
                    inputs.query.matrix(batch, head, panel.queries.clone()),
                );
                mixed.fill(0.0);
                let mut softmax = Softmax::new(inputs.sink(head));
                for block in panel.blocks(most) {
                    score_tiles(
                        kernel, width, &panel, &block, first, of_key, of_query, scores,
                    );
                    let rows = &mut scores[..block.len() * wide];
                    scores::online_softmax(wide, rows, &panel, block.start, &mut softmax, mixed);
                    let weights =
                        right_factor(kernel, inputs.flash.options.precision, rows, wide, weights);
                    add_mixed(
                        kernel,
                        value_width,
                        keys.len(),
                        block.start - first,
                        block.len(),
                        of_value,
                        weights,
                        mixed,
                    );
                }
                transpose(&mixed[..value_width * wide], value_width, wide, rows_of);
                for ((lane, position), mixed) in panel
                    .queries
                    .clone()
                    .enumerate()
                    .zip(rows_of.chunks_exact(value_width))
                {
                    let index = inputs.query.index(batch, position, head);
                    #[allow(unsafe_code)]
                    // SAFETY: each task has its own batch row, head and positions, hence its own rows.
                    let (row, log_sum) = unsafe { (outputs.row(index), log_sums.row(index)) };
                    log_sum[0] = softmax.write(lane, mixed, row);
                }
            }
        },
    );
}

/// The scores of a block, `[keys, queries]`, before any scale.
#[allow(clippy::too_many_arguments)]
pub(super) fn score_tiles(
    kernel: &Kernel,
    width: usize,
    panel: &Panel<'_>,
    block: &Range<usize>,
    first: usize,
    left: &[f32],
    right: &[f32],
    out: &mut [f32],
) {
    let (high, wide, units) = (kernel.rows, kernel.columns, kernel.units(width));
    debug_assert!((block.start - first).is_multiple_of(high) && panel.wide == wide);
    let panels = left[(block.start - first) * units..].chunks_exact(high * units);
    for (left, out) in panels
        .zip(out.chunks_mut(high * wide))
        .take(block.len().div_ceil(high))
    {
        #[allow(unsafe_code)]
        // SAFETY: `out` holds a whole tile: blocks are made of whole panels and the buffer of whole blocks.
        unsafe {
            assert!(out.len() == high * wide);
            kernel.tile(
                &[Segment { units, left, right }],
                out.as_mut_ptr(),
                wide,
                [high, wide],
                false,
            );
        }
    }
}

/// A block `[keys, queries]` as the right factor of a product over keys: itself, or in the kernel's units.
pub(super) fn right_factor<'a>(
    kernel: &Kernel,
    precision: Precision,
    block: &'a [f32],
    wide: usize,
    packed: &'a mut [f32],
) -> &'a [f32] {
    if precision == Precision::F32 {
        return block;
    }
    kernel.pack(
        packed,
        Side::Right,
        Matrix::new(block, block.len() / wide, wide).transposed(),
    );
    packed
}

/// `out += left right` over some keys: `left` holds panels of `width` lanes over `depth` keys, `out` rows of queries.
#[allow(clippy::too_many_arguments)]
pub(super) fn add_mixed(
    kernel: &Kernel,
    width: usize,
    depth: usize,
    start: usize,
    count: usize,
    left: &[f32],
    right: &[f32],
    out: &mut [f32],
) {
    let (high, wide, units) = (kernel.rows, kernel.columns, kernel.units(depth));
    let panels = left.chunks_exact(high * units).take(width.div_ceil(high));
    for (left, out) in panels.zip(out.chunks_exact_mut(high * wide)) {
        let segment = Segment {
            units: kernel.units(count),
            left: &left[start / kernel.pair * high..],
            right,
        };
        #[allow(unsafe_code)]
        // SAFETY: `out` holds a whole tile.
        unsafe {
            kernel.tile(&[segment], out.as_mut_ptr(), wide, [high, wide], true);
        }
    }
}
