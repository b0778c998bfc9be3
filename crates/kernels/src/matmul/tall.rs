//! Small products `left^T right` that sum over many rows, such as the gradients of low-rank factors (LoRA) and of
//! RWKV-6's narrow mixes.
//!
//! Reading the larger factor takes longer than the arithmetic. A task reads some of its rows once, packs them where its
//! tiles find them in the second cache, and sums by itself; the sums of all tasks are added up in order.

use super::{
    Matrix, Precision,
    kernel::{Segment, Side, kernel_for},
    scratch,
    tiles::{Block, GROUP, Output, Tiles, parts},
};
use crate::{
    parallel::{chunk, fresh},
    simd::add,
};

/// Rows of a task. Fixed, so that sums do not depend on the number of threads.
const ROWS: usize = 256;
/// Rows that are packed at once.
const STEPS: usize = 64;
/// Elements of the result that one task adds up.
const CHUNK: usize = 1 << 12;

/// `left^T right`, `[left.columns, right.columns]`, in new memory.
pub(crate) fn tall_product(left: Matrix<'_>, right: Matrix<'_>, precision: Precision) -> Vec<f32> {
    assert_eq!(left.rows, right.rows, "inner sizes of a product");
    let kernel = kernel_for(precision, right.columns);
    let (rows, size) = (left.rows, [left.columns, right.columns]);
    let count = size[0] * size[1];
    let [parts] = fresh([(rows.div_ceil(ROWS) * count, count)], |task, [sums]| {
        let (first, end) = (task * ROWS, (task * ROWS + ROWS).min(rows));
        for start in (first..end).step_by(STEPS) {
            let steps = STEPS.min(end - start);
            let lengths = [
                kernel.packed_len(Side::Left, size[0], steps),
                kernel.packed_len(Side::Right, size[1], steps),
            ];
            scratch::parts(lengths, |[of_left, of_right]| {
                kernel.pack(
                    of_left,
                    Side::Left,
                    left.part(start, steps, 0, size[0]).transposed(),
                );
                kernel.pack(
                    of_right,
                    Side::Right,
                    right.part(start, steps, 0, size[1]).transposed(),
                );
                let segments = vec![Segment {
                    units: kernel.units(steps),
                    left: of_left,
                    right: of_right,
                }];
                let output = Output {
                    start: sums.as_mut_ptr(),
                    stride: size[1],
                    size,
                };
                let blocks = vec![Block {
                    segments,
                    lanes: Vec::new(),
                }];
                let tiles = Tiles {
                    kernel,
                    blocks,
                    own: None,
                    parts: parts(kernel, size, GROUP),
                    output,
                    add: start > first,
                };
                #[allow(unsafe_code)]
                // SAFETY: `sums` holds `size` elements.
                (0..tiles.groups()).for_each(|group| unsafe { tiles.run_group(group) });
            });
        }
    });
    let [sums] = fresh([(count, CHUNK)], |i, [sums]| {
        parts
            .chunks_exact(count.max(1))
            .for_each(|part| add(sums, chunk(part, CHUNK, i)));
    });
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        matmul::{How, multiplied},
        testing::numbers,
    };
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn is_the_product_of_the_transposed(rows in 1usize..600, left in 1usize..70, right in 1usize..40, bf16: bool) {
            let precision = if bf16 { Precision::Bf16 } else { Precision::F32 };
            let (a, b) = (numbers(rows * left, 1), numbers(rows * right, 2));
            let (a, b) = (Matrix::new(&a, rows, left), Matrix::new(&b, rows, right));
            let sums = tall_product(a, b, precision);
            let expected = multiplied(a.transposed(), b, How::one(precision));
            // Few rows are multiplied unrounded elsewhere.
            let tolerance = if bf16 { 0.02 } else { 1e-5 } * (rows as f32).sqrt();
            prop_assert!(sums.len() == expected.len());
            prop_assert!(sums.iter().zip(&expected).all(|(x, y)| (x - y).abs() < tolerance));
        }
    }
}
