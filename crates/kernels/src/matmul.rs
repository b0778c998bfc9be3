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
    assert_eq!(out.len(), left.rows * right.columns, "output of a product");
    #[allow(unsafe_code)]
    // SAFETY: `out` has room for the result by the assertion above, and its elements are initialised.
    unsafe {
        run(out.as_mut_ptr(), left, right, add, threads);
    }
}

/// `left right` in new memory, which is not cleared first.
pub(crate) fn multiplied(left: Matrix<'_>, right: Matrix<'_>, threads: Threads) -> Vec<f32> {
    let count = left.rows * right.columns;
    let mut out = Vec::with_capacity(count);
    #[allow(unsafe_code)]
    // SAFETY: the vector has room for the result, and without `add` all of it is written and nothing of it is read.
    unsafe {
        run(out.as_mut_ptr(), left, right, false, threads);
        out.set_len(count);
    }
    out
}

/// The product.
///
/// # Safety
/// `out` has room for `left.rows * right.columns` elements, which are initialised where `add` is set.
#[allow(unsafe_code)]
unsafe fn run(out: *mut f32, left: Matrix<'_>, right: Matrix<'_>, add: bool, threads: Threads) {
    let (rows, columns, depth) = (left.rows, right.columns, left.columns);
    assert_eq!(depth, right.rows, "inner sizes of a product");
    if rows * columns == 0 {
        return;
    }
    if depth == 0 {
        if !add {
            // SAFETY: `out` has room for this many elements, and zero is a valid one.
            unsafe { out.write_bytes(0, rows * columns) };
        }
        return;
    }
    let parallelism = match threads {
        Threads::One => Parallelism::None,
        Threads::All => Parallelism::Rayon(0),
    };
    // SAFETY: all three matrices lie inside their memory: the inputs by the assertion of `Matrix`, the output by the
    // caller's promise.
    unsafe {
        gemm::gemm(
            rows,
            columns,
            depth,
            out,
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
        let fresh = multiplied(Matrix::strided(&left, 2, 2, 3), Matrix::new(&right, 2, 2), Threads::One);
        assert_eq!(fresh, [5.0, 2.0, 11.0, 4.0]);
        assert_eq!(multiplied(Matrix::new(&[], 1, 0), Matrix::new(&[], 0, 2), Threads::One), [0.0, 0.0]);
    }
}
