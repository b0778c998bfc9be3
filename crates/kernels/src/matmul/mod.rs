//! Matrix products on host memory, in f32 or with factors rounded to bf16 and sums in f32.
//!
//! Large products go through packed panels and register tiles ([`blocked`]); products with few rows, as in decoding, read
//! the right factor once, where it lies ([`few_rows`]). An element's sum runs in an order that depends on the depth and on
//! the instruction set alone: the number of threads changes no bit.

mod blocked;
mod few_rows;
pub(crate) mod kernel;
pub(crate) mod scratch;
mod stages;
mod tall;
mod tiles;

use std::{fmt, mem::MaybeUninit, str::FromStr};

use blocked::Sum;
pub(crate) use blocked::{Left, Packed, Term};
pub(crate) use kernel::transpose;
pub(crate) use tall::tall_product;

use serde::{Deserialize, Serialize};

use crate::{
    parallel::{for_items, threads},
    stored::StoredRows,
};

/// The arithmetic of matrix products.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// Factors and sums in f32.
    #[default]
    F32,
    /// Factors rounded to bf16 (to nearest, ties to even), sums in f32. Faster where the processor multiplies bf16, twice with
    /// AVX-512 on Zen 4, several times with AMX; elsewhere the same numbers at the speed of f32.
    Bf16,
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        })
    }
}

impl FromStr for Precision {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            _ => Err("expected `f32` or `bf16`".into()),
        }
    }
}

/// Writes some elements of a row, from a column on: `(row, first column, elements)`.
pub(crate) type Write<'a> = dyn Fn(usize, usize, &mut [f32]) + Sync + 'a;

/// Where the elements of a matrix are.
#[derive(Clone, Copy)]
enum Source<'a> {
    /// In memory.
    Values(&'a [f32]),
    /// Nowhere yet: a function writes them while the product packs them, counting from the given row and column.
    Made(&'a Write<'a>, [usize; 2]),
    /// In memory in a format of their own, which the product expands while it packs them; from the given row and column.
    Stored(StoredRows<'a>, [usize; 2]),
}

/// A matrix, its elements adjacent along rows or along columns.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    source: Source<'a>,
    rows: usize,
    columns: usize,
    /// Distances between rows and between columns, one of which is 1; the other one is 0 where the elements are made or stored.
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
        let last = rows.saturating_sub(1) * row_stride + columns;
        assert!(
            rows == 0 || last <= values.len(),
            "a {rows} x {columns} matrix over {} elements",
            values.len()
        );
        Self {
            source: Source::Values(values),
            rows,
            columns,
            row_stride,
            column_stride: 1,
        }
    }

    /// Rows that are written when a product packs them: what several products read from memory is better kept there.
    pub fn made(write: &'a Write<'a>, rows: usize, columns: usize) -> Self {
        Self::from_source(Source::Made(write, [0, 0]), rows, columns)
    }

    /// Rows in a format of their own.
    pub fn stored(stored: StoredRows<'a>, rows: usize, columns: usize) -> Self {
        Self::from_source(Source::Stored(stored, [0, 0]), rows, columns)
    }

    fn from_source(source: Source<'a>, rows: usize, columns: usize) -> Self {
        Self {
            source,
            rows,
            columns,
            row_stride: 0,
            column_stride: 1,
        }
    }

    /// Elements of a row.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Whether the elements of a column are adjacent, those of a row are not.
    fn is_transposed(&self) -> bool {
        self.column_stride != 1
    }

    /// Whether the elements are yet to be written.
    fn is_made(&self) -> bool {
        matches!(self.source, Source::Made(..))
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

    /// Some rows from `row` and some columns from `column`.
    pub fn part(self, row: usize, rows: usize, column: usize, columns: usize) -> Self {
        assert!(
            row + rows <= self.rows && column + columns <= self.columns,
            "part of a matrix"
        );
        let source = match self.source {
            Source::Values(values) => {
                let start = row * self.row_stride + column * self.column_stride;
                Source::Values(&values[start.min(values.len())..])
            }
            Source::Made(write, start) => Source::Made(write, self.moved(start, [row, column])),
            Source::Stored(stored, start) => {
                Source::Stored(stored, self.moved(start, [row, column]))
            }
        };
        Self {
            source,
            rows,
            columns,
            ..self
        }
    }

    /// The start of a part that begins at `[row, column]` of this matrix, counted in rows that lie in one piece.
    fn moved(&self, [first, second]: [usize; 2], [row, column]: [usize; 2]) -> [usize; 2] {
        match self.is_transposed() {
            true => [first + column, second + row],
            false => [first + row, second + column],
        }
    }

    /// Calls `work` with the same matrix in memory.
    fn in_memory<T>(self, work: impl FnOnce(Matrix<'_>, &[f32]) -> T) -> T {
        match self.source {
            Source::Values(values) => work(self, values),
            Source::Made(write, start) => self.written(write, start, work),
            Source::Stored(stored, start) => {
                let write =
                    |row: usize, first: usize, out: &mut [f32]| stored.expand(row, first, out);
                self.written(&write, start, work)
            }
        }
    }

    /// Calls `work` with the matrix as `write` gives it.
    fn written<T>(
        self,
        write: &Write<'_>,
        [row, column]: [usize; 2],
        work: impl FnOnce(Matrix<'_>, &[f32]) -> T,
    ) -> T {
        let is_transposed = self.is_transposed();
        let [rows, columns] = if is_transposed {
            [self.columns, self.rows]
        } else {
            [self.rows, self.columns]
        };
        scratch::with(rows * columns, |values| {
            let parts = values.chunks_exact_mut(columns.max(1));
            parts
                .enumerate()
                .for_each(|(i, part)| write(row + i, column, part));
            let matrix = Matrix::new(values, rows, columns);
            work(
                if is_transposed {
                    matrix.transposed()
                } else {
                    matrix
                },
                values,
            )
        })
    }
}

/// Whether a product may use all threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Threads {
    /// The calling thread alone, for products inside parallel tasks.
    One,
    /// All threads.
    All,
}

impl Threads {
    /// How many.
    fn count(self) -> usize {
        match self {
            Self::One => 1,
            Self::All => threads(),
        }
    }
}

/// How a product is computed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct How {
    /// Its arithmetic.
    pub precision: Precision,
    /// Its threads.
    pub threads: Threads,
}

impl How {
    /// On all threads.
    pub fn all(precision: Precision) -> Self {
        Self {
            precision,
            threads: Threads::All,
        }
    }

    /// On the calling thread.
    pub fn one(precision: Precision) -> Self {
        Self {
            precision,
            threads: Threads::One,
        }
    }
}

/// `out = left right`, or `out += left right` when `add` is set; `out` holds rows of `right.columns` elements.
pub(crate) fn product(out: &mut [f32], left: Matrix<'_>, right: Matrix<'_>, add: bool, how: How) {
    assert_eq!(out.len(), left.rows * right.columns, "output of a product");
    #[allow(unsafe_code)]
    // SAFETY: `out` has room for the result by the assertion above, and its elements are initialised.
    unsafe {
        run(out.as_mut_ptr(), left, right, add, how);
    }
}

/// `left right` in new memory, which is not cleared first.
pub(crate) fn multiplied(left: Matrix<'_>, right: Matrix<'_>, how: How) -> Vec<f32> {
    let count = left.rows * right.columns;
    let mut out = Vec::with_capacity(count);
    #[allow(unsafe_code)]
    // SAFETY: the vector has room for the result, and without `add` all of it is written and nothing of it is read.
    unsafe {
        run(out.as_mut_ptr(), left, right, false, how);
        out.set_len(count);
    }
    out
}

/// Products one after another in new memory, which is not cleared first: on all threads, most of them on one each, or, where they
/// are many and small, all of them `side_by_side`.
pub(crate) fn multiplied_each(
    factors: &[(Matrix<'_>, Matrix<'_>)],
    side_by_side: bool,
    precision: Precision,
) -> Vec<f32> {
    let sizes = factors
        .iter()
        .map(|(left, right)| left.rows * right.columns);
    let count = sizes.clone().sum();
    let mut out = Vec::with_capacity(count);
    let mut rest = &mut out.spare_capacity_mut()[..count];
    let mut items = Vec::with_capacity(factors.len());
    for ((left, right), size) in factors.iter().zip(sizes) {
        let (part, behind) = std::mem::take(&mut rest).split_at_mut(size);
        rest = behind;
        items.push((part, *left, *right));
    }
    let one = |(part, left, right): (&mut [MaybeUninit<f32>], Matrix<'_>, Matrix<'_>), how| {
        #[allow(unsafe_code)]
        // SAFETY: the part has room for its product, and without `add` nothing of it is read.
        unsafe {
            run(part.as_mut_ptr().cast(), left, right, false, how);
        }
    };
    let all = How::all(precision);
    match side_by_side {
        true => for_items(items, |item| one(item, How::one(precision))),
        false => {
            let is_large =
                |(_, left, right): &(_, Matrix<'_>, Matrix<'_>)| is_blocked(*left, *right);
            let (mut large, small): (Vec<_>, Vec<_>) = items.into_iter().partition(is_large);
            small.into_iter().for_each(|item| one(item, all));
            let terms: Vec<_> = large
                .iter()
                .map(|(_, left, right)| [(Left::Plain(*left), *right)])
                .collect();
            let parts = large.iter_mut().map(|(part, ..)| part.as_mut_ptr().cast());
            let sums: Vec<_> = parts
                .zip(&terms)
                .map(|(out, terms)| Sum {
                    out,
                    terms,
                    add: false,
                })
                .collect();
            #[allow(unsafe_code)]
            // SAFETY: every part has room for its product, no two overlap, and without `add` nothing is read.
            unsafe {
                blocked::sums_of_products(&sums, all);
            }
        }
    }
    #[allow(unsafe_code)]
    // SAFETY: the products were written to all parts, and the parts are the whole.
    unsafe {
        out.set_len(count);
    }
    out
}

/// Whether a product goes through packed panels.
fn is_blocked(left: Matrix<'_>, right: Matrix<'_>) -> bool {
    left.rows > few_rows::LIMIT && left.columns > 0 && right.columns > 0
}

/// The sum of several products of one size, in new memory. Small products ride along with large ones, which costs less
/// than adding them afterwards.
pub(crate) fn sum_of_products(terms: &[Term<'_>], how: How) -> Vec<f32> {
    let Some((left, right)) = terms.first() else {
        return Vec::new();
    };
    let count = left.rows() * right.columns;
    if count == 0 || terms.iter().all(|(left, _)| left.depth() == 0) {
        return vec![0.0; count];
    }
    let mut out = Vec::with_capacity(count);
    #[allow(unsafe_code)]
    // SAFETY: the vector has room for the result, all of which is written before anything is added.
    unsafe {
        run_terms(out.as_mut_ptr(), terms, false, how);
        out.set_len(count);
    }
    out
}

/// Adds several products of one size to `out`.
pub(crate) fn add_products(out: &mut [f32], terms: &[Term<'_>], how: How) {
    let size = terms
        .first()
        .map_or(out.len(), |(left, right)| left.rows() * right.columns);
    assert_eq!(out.len(), size, "output of a sum of products");
    if !out.is_empty() {
        #[allow(unsafe_code)]
        // SAFETY: `out` has room for the result by the assertion above, and its elements are initialised.
        unsafe {
            run_terms(out.as_mut_ptr(), terms, true, how);
        }
    }
}

/// The sum of products, not empty.
///
/// # Safety
/// `out` has room for the result. Its elements are initialised where `add` is set or no term has any depth.
#[allow(unsafe_code)]
unsafe fn run_terms(out: *mut f32, terms: &[Term<'_>], add: bool, how: How) {
    let size = |(left, right): &Term<'_>| [left.rows(), right.columns];
    let rows = terms.first().map_or(0, |(left, _)| left.rows());
    for term in terms {
        assert!(
            Some(size(term)) == terms.first().map(size) && term.0.depth() == term.1.rows,
            "sizes of a sum of products"
        );
    }
    let terms: Vec<Term<'_>> = terms
        .iter()
        .copied()
        .filter(|(left, _)| left.depth() > 0)
        .collect();
    let plain: Option<Vec<_>> = terms
        .iter()
        .map(|(left, right)| Some((left.plain()?, *right)))
        .collect();
    // SAFETY: by the caller's promise; all of `out` is written before anything is added.
    unsafe {
        match plain {
            Some(plain) if rows <= few_rows::LIMIT => {
                for (i, (left, right)) in plain.into_iter().enumerate() {
                    few_rows::product(out, left, right, add || i > 0, how);
                }
            }
            _ if terms.is_empty() => (),
            _ => blocked::sums_of_products(
                &[Sum {
                    out,
                    terms: &terms,
                    add,
                }],
                how,
            ),
        }
    }
}

/// The product.
///
/// # Safety
/// `out` has room for `left.rows * right.columns` elements, which are initialised where `add` is set.
#[allow(unsafe_code)]
unsafe fn run(out: *mut f32, left: Matrix<'_>, right: Matrix<'_>, add: bool, how: How) {
    assert_eq!(left.columns, right.rows, "inner sizes of a product");
    let count = left.rows * right.columns;
    if left.columns == 0 && !add {
        // SAFETY: `out` has room for this many elements, and zero is a valid one.
        unsafe { out.write_bytes(0, count) };
    }
    if count == 0 || left.columns == 0 {
        return;
    }
    // SAFETY: by the caller's promise.
    unsafe {
        match is_blocked(left, right) {
            true => blocked::sums_of_products(
                &[Sum {
                    out,
                    terms: &[(Left::Plain(left), right)],
                    add,
                }],
                how,
            ),
            false => few_rows::product(out, left, right, add, how),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::numbers;
    use proptest::prelude::*;

    fn f32_on(threads: Threads) -> How {
        How {
            precision: Precision::F32,
            threads,
        }
    }

    #[test]
    fn strided_and_transposed_products() {
        let left = [1.0, 2.0, 9.0, 3.0, 4.0, 9.0];
        let right = [1.0, 0.0, 2.0, 1.0];
        let mut out = [0.0; 4];
        let (one, all) = (f32_on(Threads::One), f32_on(Threads::All));
        product(
            &mut out,
            Matrix::strided(&left, 2, 2, 3),
            Matrix::new(&right, 2, 2),
            false,
            one,
        );
        assert_eq!(out, [5.0, 2.0, 11.0, 4.0]);
        product(
            &mut out,
            Matrix::new(&right, 2, 2).transposed(),
            Matrix::new(&right, 2, 2),
            true,
            all,
        );
        assert_eq!(out, [10.0, 4.0, 13.0, 5.0]);
        let fresh = multiplied(
            Matrix::strided(&left, 2, 2, 3),
            Matrix::new(&right, 2, 2),
            one,
        );
        assert_eq!(fresh, [5.0, 2.0, 11.0, 4.0]);
        assert_eq!(
            multiplied(Matrix::new(&[], 1, 0), Matrix::new(&[], 0, 2), one),
            [0.0, 0.0]
        );
    }

    /// To bf16 by definition: of the two neighbours the nearer, of two equally near the even one.
    fn rounded(x: f32) -> f32 {
        let below = f32::from_bits(x.to_bits() & 0xffff_0000);
        let above = f32::from_bits((x.to_bits() & 0xffff_0000).wrapping_add(0x1_0000));
        let (down, up) = (
            (f64::from(x) - f64::from(below)).abs(),
            (f64::from(above) - f64::from(x)).abs(),
        );
        let even = (below.to_bits() >> 16) & 1 == 0;
        if down < up || (down == up && even) {
            below
        } else {
            above
        }
    }

    /// Compares a product with the sum in f64 over factors in the product's precision.
    fn check([rows, columns, depth]: [usize; 3], transposed: [bool; 2], add: bool, how: How) {
        let gap = 3;
        let matrix = |values: &'static [f32], [rows, columns]: [usize; 2], transposed: bool| {
            match transposed {
                true => Matrix::strided(values, columns, rows, rows + gap).transposed(),
                false => Matrix::strided(values, rows, columns, columns + gap),
            }
        };
        let leak = |count: usize, seed| &*numbers(count, seed).leak();
        let (largest, room) = (rows.max(columns).max(depth), |a: usize| a + gap);
        let (a, b) = (
            leak(room(largest) * largest, 1),
            leak(room(largest) * largest, 2),
        );
        let (left, right) = (
            matrix(a, [rows, depth], transposed[0]),
            matrix(b, [depth, columns], transposed[1]),
        );
        let mut out = numbers(rows * columns, 3);
        let before = out.clone();
        product(&mut out, left, right, add, how);
        let factor = |m: &Matrix<'_>, i: usize, j: usize| {
            let Source::Values(values) = m.source else {
                unreachable!("the matrices are in memory")
            };
            let value = values[i * m.row_stride + j * m.column_stride];
            f64::from(
                if how.precision == Precision::Bf16 && rows > few_rows::LIMIT {
                    rounded(value)
                } else {
                    value
                },
            )
        };
        for i in 0..rows {
            for j in 0..columns {
                let sum: f64 = (0..depth)
                    .map(|k| factor(&left, i, k) * factor(&right, k, j))
                    .sum();
                let expected = sum
                    + if add {
                        f64::from(before[i * columns + j])
                    } else {
                        0.0
                    };
                let found = f64::from(out[i * columns + j]);
                assert!(
                    (found - expected).abs() < 1e-5 * (depth as f64).sqrt().max(1.0),
                    "{found} for {expected}"
                );
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]
        #[test]
        fn agree_with_sums_in_f64(rows in 1usize..70, columns in 1usize..70, depth in 1usize..70, left: bool,
            right: bool, add: bool, bf16: bool, all: bool) {
            let precision = if bf16 { Precision::Bf16 } else { Precision::F32 };
            let how = if all { How::all(precision) } else { How::one(precision) };
            check([rows, columns, depth], [left, right], add, how);
        }
    }

    #[test]
    fn transposes_of_any_size() {
        for [rows, columns] in [[1, 1], [5, 3], [64, 32], [40, 17], [100, 16]] {
            let values = numbers(rows * columns, 4);
            let mut turned = vec![9.0; rows * columns];
            transpose(&values, rows, columns, &mut turned);
            assert!(
                (0..rows * columns).all(|i| turned[i % columns * rows + i / columns] == values[i])
            );
        }
    }

    #[test]
    fn several_blocks_join() {
        for precision in [Precision::F32, Precision::Bf16] {
            check([200, 40, 1100], [true, false], true, How::all(precision));
            check([40, 300, 700], [false, true], false, How::all(precision));
            check([20, 3100, 300], [false, true], true, How::all(precision));
        }
    }

    #[test]
    fn rows_have_the_same_bits_in_a_large_product_as_in_small_ones() {
        let [rows, columns, depth] = [460, 2070, 1040];
        let (left, right) = (numbers(rows * depth, 1), numbers(depth * columns, 2));
        let (left, right) = (
            Matrix::new(&left, rows, depth),
            Matrix::new(&right, depth, columns),
        );
        for precision in [Precision::F32, Precision::Bf16] {
            let how = How::all(precision);
            let whole = multiplied(left, right, how);
            for first in (0..rows).step_by(46) {
                let part = multiplied(left.part(first, 46, 0, depth), right, how);
                assert!(whole[first * columns..(first + 46) * columns] == part);
            }
        }
    }

    #[test]
    fn made_rows_are_as_good_as_rows_in_memory() {
        let value = |row: usize, column: usize| ((row * 7 + column * 13) % 11) as f32 - 5.0;
        let write = |row: usize, first: usize, out: &mut [f32]| {
            out.iter_mut()
                .zip(first..)
                .for_each(|(out, column)| *out = value(row, column));
        };
        for [rows, columns, others] in [[3, 5, 4], [40, 70, 9], [300, 33, 50], [35, 600, 20]] {
            let values: Vec<f32> = (0..rows * columns)
                .map(|i| value(i / columns, i % columns))
                .collect();
            let other = numbers(rows.max(columns) * others, 3);
            for precision in [Precision::F32, Precision::Bf16] {
                let how = How::all(precision);
                let products = |matrix: Matrix<'_>| {
                    let (tall, wide) = (
                        Matrix::new(&other, rows, others),
                        Matrix::new(&other, others, rows),
                    );
                    let part = matrix.part(1, rows - 1, 2, columns - 2);
                    [
                        multiplied(matrix, Matrix::new(&other, columns, others), how),
                        multiplied(matrix.transposed(), tall, how),
                        multiplied(wide, matrix, how),
                        multiplied(part, Matrix::new(&other, columns - 2, others), how),
                        multiplied(part.transposed(), tall.part(1, rows - 1, 0, others), how),
                    ]
                };
                let made = products(Matrix::made(&write, rows, columns));
                assert!(
                    made == products(Matrix::new(&values, rows, columns)),
                    "{rows} x {columns}, {precision}"
                );
            }
        }
    }

    #[test]
    fn sums_of_products_are_sums_of_products() {
        let [a, b, c, d] = [(30, 900), (900, 40), (30, 5), (5, 40)];
        let values = [a, b, c, d].map(|(rows, columns)| numbers(rows * columns, rows as u64));
        let matrix = |i: usize, (rows, columns)| Matrix::new(&values[i], rows, columns);
        for precision in [Precision::F32, Precision::Bf16] {
            let how = How::all(precision);
            let mut expected = multiplied(matrix(0, a), matrix(1, b), how);
            product(&mut expected, matrix(2, c), matrix(3, d), true, how);
            let packed = Packed::new(matrix(0, a), precision).unwrap();
            for left in [Left::Plain(matrix(0, a)), Left::Packed(&packed)] {
                let sum = sum_of_products(
                    &[
                        (left, matrix(1, b)),
                        (Left::Plain(matrix(2, c)), matrix(3, d)),
                    ],
                    how,
                );
                assert!(sum.iter().zip(&expected).all(|(x, y)| (x - y).abs() < 1e-4));
            }
        }
    }

    #[test]
    fn what_is_not_finite_stays_so_in_both_precisions() {
        let mut left = vec![1.0; 20 * 20];
        (left[0], left[20], left[40]) = (f32::NAN, f32::INFINITY, f32::from_bits(0x7fff_ffff));
        let right = vec![1.0; 20 * 20];
        for precision in [Precision::F32, Precision::Bf16] {
            let out = multiplied(
                Matrix::new(&left, 20, 20),
                Matrix::new(&right, 20, 20),
                How::one(precision),
            );
            assert!(out[0].is_nan() && out[20] == f32::INFINITY && out[40].is_nan());
            assert!(out[60..].iter().all(|value| *value == 20.0));
        }
    }
}
