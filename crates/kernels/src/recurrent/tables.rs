//! Small matrix products for the chunks of a recurrence, on tables that stay in the first two caches. They need no packing, so a
//! product over a few steps costs only its operations.

use super::channel_block::{ChannelBlock, LANES};
use crate::simd::{multiply_add, vectorised};

/// Rows of an output whose sums stay in registers; tables have a multiple of it.
pub(super) const ROWS: usize = 4;

/// A factor of numbers: element `(row, step)` is `values[row * to_row + step * to_step]`.
#[derive(Clone, Copy)]
pub(super) struct Factor<'a> {
    values: &'a [f32],
    to_row: usize,
    to_step: usize,
}

impl<'a> Factor<'a> {
    /// A table of rows.
    pub fn new(values: &'a [f32], width: usize) -> Self {
        Self {
            values,
            to_row: width,
            to_step: 1,
        }
    }

    /// A table whose rows are the steps.
    pub fn transposed(values: &'a [f32], width: usize) -> Self {
        Self {
            values,
            to_row: 1,
            to_step: width,
        }
    }
}

vectorised! {
    /// `out += left right`, where `out` and `right` are rows of `blocks` vectors and `depth` is the number of `right`'s rows.
    pub(super) fn add_product<const FUSED: bool>(out: &mut [ChannelBlock], left: Factor<'_>, right: &[ChannelBlock], depth: usize, blocks: usize) {
        for (group, out) in out.chunks_exact_mut(ROWS * blocks).enumerate() {
            for block in 0..blocks {
                let mut sums = [[0.0; LANES]; ROWS];
                for (row, sums) in sums.iter_mut().enumerate() {
                    *sums = out[row * blocks + block];
                }
                for step in 0..depth {
                    let right = &right[step * blocks + block];
                    for (row, sums) in sums.iter_mut().enumerate() {
                        let factor = left.values[(group * ROWS + row) * left.to_row + step * left.to_step];
                        for l in 0..LANES {
                            sums[l] = multiply_add::<FUSED>(factor, right[l], sums[l]);
                        }
                    }
                }
                for (row, sums) in sums.iter().enumerate() {
                    out[row * blocks + block] = *sums;
                }
            }
        }
    }
}

vectorised! {
    /// Multiplies every row of a table by its factor.
    pub(super) fn scale_rows(table: &mut [ChannelBlock], factors: &[f32], blocks: usize) {
        for (row, factor) in table.chunks_exact_mut(blocks).zip(factors) {
            for lane in row {
                for value in lane {
                    *value *= factor;
                }
            }
        }
    }
}

vectorised! {
    /// Multiplies every row of a table by a row of factors.
    pub(super) fn scale_columns(table: &mut [ChannelBlock], factors: &[ChannelBlock]) {
        for row in table.chunks_exact_mut(factors.len()) {
            for (lane, factors) in row.iter_mut().zip(factors) {
                for l in 0..LANES {
                    lane[l] *= factors[l];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_layouts_give_the_products() {
        let (rows, depth, blocks) = (2 * ROWS, 3, 2);
        let number = |i: usize| ((i * 7) % 11) as f32 - 5.0;
        let right: Vec<ChannelBlock> = (0..depth * blocks)
            .map(|i| std::array::from_fn(|l| number(i * LANES + l)))
            .collect();
        let left: Vec<f32> = (0..rows * depth).map(|i| number(i + 3)).collect();
        let turned: Vec<f32> = (0..rows * depth)
            .map(|i| left[i % rows * depth + i / rows])
            .collect();
        for factor in [Factor::new(&left, depth), Factor::transposed(&turned, rows)] {
            let mut out = vec![[1.0; LANES]; rows * blocks];
            add_product(&mut out, factor, &right, depth, blocks);
            for (i, lane) in out.iter().enumerate() {
                for (l, found) in lane.iter().enumerate() {
                    let terms = (0..depth)
                        .map(|s| left[i / blocks * depth + s] * right[s * blocks + i % blocks][l]);
                    assert_eq!(*found, 1.0 + terms.sum::<f32>());
                }
            }
        }
        let mut table = vec![[2.0; LANES]; 2 * blocks];
        scale_rows(&mut table, &[1.0, 3.0], blocks);
        scale_columns(&mut table, &[[1.0; LANES], [0.5; LANES]]);
        assert_eq!(
            table,
            [[2.0; LANES], [1.0; LANES], [6.0; LANES], [3.0; LANES]]
        );
    }
}
