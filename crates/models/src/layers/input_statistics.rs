//! How large the inputs of linear maps are, column by column: an importance matrix, by which a quantised format chooses whose errors count.
//!
//! The error of an output is the sum of the errors of a row of the weight times the inputs, so that the square of an error counts by the mean
//! square of its column's input.

use std::{cell::RefCell, collections::HashMap};

use burn::tensor::Tensor;
use espalier_kernels::readback::ReadFloats;

/// Sums of squares of each column, and the rows that they are over.
type Sums = HashMap<String, (Vec<f64>, usize)>;

thread_local! {
    static RECORDED: RefCell<Option<Sums>> = const { RefCell::new(None) };
}

/// Calls `work` and gives, for the weight of every linear map whose input it computed on this thread, the mean square of each column of that
/// input.
pub fn recorded<T>(work: impl FnOnce() -> T) -> (T, HashMap<String, Vec<f32>>) {
    let before = RECORDED.replace(Some(Sums::new()));
    let result = work();
    let sums = RECORDED.replace(before).unwrap_or_default();
    let mean = |(name, (sums, rows)): (String, (Vec<f64>, usize))| {
        let rows = rows.max(1) as f64;
        let means = sums.into_iter().map(|sum| (sum / rows) as f32).collect();
        (format!("{name}.weight"), means)
    };
    (result, sums.into_iter().map(mean).collect())
}

/// Whether inputs are being recorded.
pub(super) fn are_recorded() -> bool {
    RECORDED.with_borrow(Option::is_some)
}

/// Adds the rows of an input of the layer of this name.
pub(super) fn record<const D: usize>(name: &str, input: Tensor<D>) {
    let width = input.dims()[D - 1];
    let numbers = input.inner().floats();
    RECORDED.with_borrow_mut(|recorded| {
        let Some(all) = recorded else {
            return;
        };
        let (sums, rows) = all
            .entry(name.to_owned())
            .or_insert_with(|| (vec![0.0; width], 0));
        for row in numbers.chunks_exact(width.max(1)) {
            let squares = row.iter().map(|x| f64::from(*x) * f64::from(*x));
            sums.iter_mut()
                .zip(squares)
                .for_each(|(sum, square)| *sum += square);
            *rows += 1;
        }
    });
}
