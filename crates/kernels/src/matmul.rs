//! Matrix products on host memory, by the `gemm` crate.

use gemm::Parallelism;

/// A matrix over a slice, with any strides.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Matrix<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// Rows of `columns` elements, one after another.
    pub fn new(values: &'a [f32], rows: usize, columns: usize) -> Self {
        Self::strided(values, rows, columns, columns)
    }

    /// Rows of `columns` elements, `row_stride` apart.
    pub fn strided(values: &'a [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        let matrix = Self { values, rows, columns, row_stride, column_stride: 1 };
        let last = matrix.rows.saturating_sub(1) * row_stride + columns;
        assert!(rows == 0 || last <= values.len(), "a {rows} x {columns} matrix over {} elements", values.len());
        matrix
    }

    /// Rows and columns exchanged.
    pub fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }
}

/// Whether a product may use all threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Threads {
    /// The calling thread alone, for products inside parallel tasks.
    One,
    /// All of rayon's threads.
    All,
}

/// `out = left right`, or `out += left right` when `add` is set; `out` holds rows of `right.columns` elements.
pub(crate) fn product(out: &mut [f32], left: Matrix<'_>, right: Matrix<'_>, add: bool, threads: Threads) {
    let (rows, columns, depth) = (left.rows, right.columns, left.columns);
    assert_eq!(depth, right.rows, "inner sizes of a product");
    assert_eq!(out.len(), rows * columns, "output of a product");
    if rows * columns == 0 {
        return;
    }
    if depth == 0 {
        if !add {
            out.fill(0.0);
        }
        return;
    }
    let parallelism = match threads {
        Threads::One => Parallelism::None,
        Threads::All => Parallelism::Rayon(0),
    };
    #[allow(unsafe_code)]
    // SAFETY: all three matrices lie inside their slices: the inputs by the assertion of `Matrix`, the output by the
    // assertion above.
    unsafe {
        gemm::gemm(
            rows,
            columns,
            depth,
            out.as_mut_ptr(),
            1,
            columns as isize,
            add,
            left.values.as_ptr(),
            left.column_stride as isize,
            left.row_stride as isize,
            right.values.as_ptr(),
            right.column_stride as isize,
            right.row_stride as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strided_and_transposed_products() {
        let left = [1.0, 2.0, 9.0, 3.0, 4.0, 9.0];
        let right = [1.0, 0.0, 2.0, 1.0];
        let mut out = [0.0; 4];
        product(&mut out, Matrix::strided(&left, 2, 2, 3), Matrix::new(&right, 2, 2), false, Threads::One);
        assert_eq!(out, [5.0, 2.0, 11.0, 4.0]);
        product(&mut out, Matrix::new(&right, 2, 2).transposed(), Matrix::new(&right, 2, 2), true, Threads::All);
        assert_eq!(out, [10.0, 4.0, 13.0, 5.0]);
    }
}
