//! The largest singular values of a matrix and their vectors, by a random range finder (arXiv 0909.4061, Algorithms 4.4 and 5.1).
//!
//! `Q` spans what `A (A^T A)^q` makes of random vectors, orthonormal after every product; `Q^T A = U' S V^T` is small, and
//! `A = (Q U') S V^T`. Where as many vectors are drawn as the shorter side has, nothing is left out. The large products run as tensors,
//! the small factorisations are nalgebra's in f64.

use burn::tensor::{Device, Tensor, TensorData};
use nalgebra::DMatrix;

use crate::readback::ReadFloats;

/// Vectors that are drawn beyond those asked for: their share of the range is found more surely.
const OVERSAMPLING: usize = 8;

/// `U S V^T`, the singular values in falling order.
#[derive(Debug, Clone)]
pub struct Svd {
    /// `U`, `[rows, rank]`.
    pub left: Tensor<2>,
    /// `S`, `[rank]`.
    pub values: Vec<f32>,
    /// `V^T`, `[rank, columns]`.
    pub right: Tensor<2>,
}

/// How the vectors are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Search {
    /// From random vectors, in so many passes over the matrix; two suit spectra that fall, sixteen any.
    Random {
        /// Passes, each a product with the matrix and with its transpose.
        passes: usize,
        /// Seed of the random vectors.
        seed: u64,
    },
    /// All of them, of which the largest are kept.
    Exact,
}

/// The `rank` largest singular values of `matrix` (`[rows, columns]`), or all where there are fewer.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use espalier_kernels::decomposition::{Search, truncated_svd};
/// let matrix = Tensor::from_floats([[3.0, 0.0], [0.0, 1.0], [0.0, 0.0]], &Device::flex());
/// let svd = truncated_svd(matrix, 1, Search::Exact);
/// assert!((svd.values[0] - 3.0).abs() < 1e-6);
/// assert_eq!((svd.left.dims(), svd.right.dims()), ([3, 1], [1, 2]));
/// ```
pub fn truncated_svd(matrix: Tensor<2>, rank: usize, search: Search) -> Svd {
    let matrix = matrix.inner();
    let [rows, columns] = matrix.dims();
    let shorter = rows.min(columns);
    let rank = rank.min(shorter);
    let (drawn, passes, seed) = match search {
        Search::Exact => (shorter, 0, 0),
        Search::Random { passes, seed } => ((rank + OVERSAMPLING).min(shorter), passes, seed),
    };
    if rows < columns {
        let svd = of_tall(matrix.transpose(), [rank, drawn], passes, seed);
        return Svd {
            left: svd.right.transpose(),
            values: svd.values,
            right: svd.left.transpose(),
        };
    }
    of_tall(matrix, [rank, drawn], passes, seed)
}

/// The same of a matrix with at least as many rows as columns.
fn of_tall(matrix: Tensor<2>, [rank, drawn]: [usize; 2], passes: usize, seed: u64) -> Svd {
    let device = matrix.device();
    let columns = matrix.dims()[1];
    let range = match drawn == columns {
        true => orthonormal(matrix.clone()),
        false => {
            let random = normal_numbers(columns * drawn, seed);
            let random = Tensor::from_data(TensorData::new(random, [columns, drawn]), &device);
            let mut range = orthonormal(matrix.clone().matmul(random));
            for _ in 0..passes {
                let other = orthonormal(matrix.clone().transpose().matmul(range));
                range = orthonormal(matrix.clone().matmul(other));
            }
            range
        }
    };
    let small = to_nalgebra(range.clone().transpose().matmul(matrix));
    let svd = small.svd(true, true);
    // Asked for two lines above.
    let (Some(left), Some(right)) = (svd.u, svd.v_t) else {
        return Svd {
            left: range,
            values: Vec::new(),
            right: Tensor::zeros([0, columns], &device),
        };
    };
    let left = from_nalgebra(&left.columns(0, rank).into_owned(), &device);
    Svd {
        left: range.matmul(left),
        values: (0..rank).map(|i| svd.singular_values[i] as f32).collect(),
        right: from_nalgebra(&right.rows(0, rank).into_owned(), &device),
    }
}

/// Orthonormal columns that span those of `matrix` (`[rows, columns]`, not more columns than rows): `Q` of its QR decomposition, with the signs
/// that make the diagonal of `R` positive.
pub fn orthonormal(matrix: Tensor<2>) -> Tensor<2> {
    let device = matrix.device();
    let (mut q, r) = to_nalgebra(matrix.inner()).qr().unpack();
    for (i, mut column) in q.column_iter_mut().enumerate() {
        if r[(i, i)] < 0.0 {
            column.neg_mut();
        }
    }
    from_nalgebra(&q, &device)
}

fn to_nalgebra(matrix: Tensor<2>) -> DMatrix<f64> {
    let [rows, columns] = matrix.dims();
    let values = matrix.reshape([rows * columns]).floats();
    DMatrix::from_row_iterator(rows, columns, values.into_iter().map(f64::from))
}

fn from_nalgebra(matrix: &DMatrix<f64>, device: &Device) -> Tensor<2> {
    let (rows, columns) = matrix.shape();
    let values: Vec<f32> = matrix
        .row_iter()
        .flat_map(|row| row.iter().map(|value| *value as f32).collect::<Vec<_>>())
        .collect();
    Tensor::from_data(TensorData::new(values, [rows, columns]), device)
}

/// Standard normal numbers, a function of the seed: SplitMix64, then Box and Muller.
fn normal_numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut uniform = || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    };
    let normal = |_| {
        let radius = (-2.0 * (1.0 - uniform()).ln()).sqrt();
        (radius * (std::f64::consts::TAU * uniform()).cos()) as f32
    };
    (0..count).map(normal).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A matrix with these singular values.
    fn with_values(rows: usize, columns: usize, values: &[f32]) -> Tensor<2> {
        let device = Device::flex();
        let random = |rows, columns, seed| {
            let numbers = normal_numbers(rows * columns, seed);
            Tensor::<2>::from_data(TensorData::new(numbers, [rows, columns]), &device)
        };
        let left = orthonormal(random(rows, values.len(), 1));
        let right = orthonormal(random(columns, values.len(), 2));
        let scale = Tensor::<1>::from_floats(values, &device).unsqueeze::<2>();
        (left * scale).matmul(right.transpose())
    }

    fn largest(difference: Tensor<2>) -> f32 {
        difference.abs().max().into_scalar::<f32>()
    }

    fn whole(svd: &Svd) -> Tensor<2> {
        let values = Tensor::<1>::from_floats(&svd.values[..], &Device::flex()).unsqueeze::<2>();
        (svd.left.clone() * values).matmul(svd.right.clone())
    }

    #[test]
    fn a_low_rank_is_found_whole_by_either_search() {
        for (rows, columns) in [(40, 17), (17, 40), (30, 30)] {
            let matrix = with_values(rows, columns, &[5.0, 3.0, 2.0, 0.5]);
            for search in [Search::Exact, Search::Random { passes: 2, seed: 7 }] {
                let svd = truncated_svd(matrix.clone(), 4, search);
                for (found, expected) in svd.values.iter().zip([5.0, 3.0, 2.0, 0.5]) {
                    assert!((found - expected).abs() < 1e-5, "{found} {expected}");
                }
                assert!(largest(whole(&svd) - matrix.clone()) < 1e-5);
                let gram = svd.left.clone().transpose().matmul(svd.left);
                assert!(largest(gram - Tensor::eye(4, &Device::flex())) < 1e-5);
            }
        }
    }

    #[test]
    fn the_largest_values_of_many_are_found() {
        let values: Vec<f32> = (0..60).map(|i| 0.9f32.powi(i)).collect();
        let matrix = with_values(90, 60, &values);
        let search = Search::Random { passes: 8, seed: 3 };
        let svd = truncated_svd(matrix, 5, search);
        assert_eq!(svd.left.dims(), [90, 5]);
        for (found, expected) in svd.values.iter().zip(&values) {
            assert!((found - expected).abs() < 1e-4, "{found} {expected}");
        }
    }

    #[test]
    fn a_rank_beyond_the_matrix_is_all_of_it() {
        let matrix = with_values(6, 4, &[2.0, 1.0, 0.5, 0.25]);
        let svd = truncated_svd(matrix.clone(), 100, Search::Random { passes: 1, seed: 0 });
        assert_eq!(svd.values.len(), 4);
        assert!(largest(whole(&svd) - matrix) < 1e-5);
    }
}
