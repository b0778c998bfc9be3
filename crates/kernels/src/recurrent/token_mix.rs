//! A mix of each token with the one before it, as RWKV's layers begin (arXiv 2305.13048, section 3.1).

use burn::tensor::Tensor;
use burn_flex::FlexTensor;

use super::{
    lanes::summed,
    sequence::{Sequence, readable},
    token_shift,
};
use crate::{
    host::{self, Given, HostOperator, Saved, slice, tensor},
    parallel::{fresh, zeros},
    simd::vectorised,
};

/// `y_t = x_t + (x_{t-1} - x_t) mu`.
///
/// `x`: `[batch, time, width]`; `before`: `[batch, width]`, the token before the first, zeros where absent; `mu`:
/// `[1, 1, width]`, or `[batch, time, width]` where each token has its own. The shape of `x` comes back.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use espalier_kernels::recurrent::token_mix::token_mix;
/// let x = Tensor::from_floats([[[4.0], [8.0]]], &Device::flex());
/// let mu = Tensor::from_floats([[[0.25]]], &Device::flex());
/// assert_eq!(token_mix(x, None, mu).into_data().try_to_vec::<f32>().unwrap(), [3.0, 7.0]);
/// ```
pub fn token_mix(x: Tensor<3>, before: Option<Tensor<2>>, mu: Tensor<3>) -> Tensor<3> {
    let [batch, _, width] = x.dims();
    if !host::on_host(&x) {
        let (previous, _) = token_shift::token_shift(x.clone(), before);
        return x.clone() + (previous - x) * mu;
    }
    let before = before.unwrap_or_else(|| Tensor::zeros([batch, width], &x.device().inner()));
    host::three(x, before.unsqueeze_dim::<3>(1), mu, Mix)
}

/// Rows that one task takes. Fixed, so that sums over rows do not depend on the number of threads.
const ROWS: usize = 64;

/// Over the tokens, `[batch, 1, width]` before them, and the weights.
#[derive(Debug)]
struct Mix;

/// The rows that an output row is made from.
struct Rows<'a> {
    x: Sequence<'a>,
    before: Sequence<'a>,
    mu: Sequence<'a>,
}

impl<'a> Rows<'a> {
    fn new([x, before, mu]: &'a [FlexTensor; 3]) -> Self {
        let (x, before) = (Sequence::new(x), Sequence::new(before));
        Self { mu: Sequence::repeated(mu, x.batch, x.time), x, before }
    }

    /// Batch and time of a row.
    fn place(&self, row: usize) -> (usize, usize) {
        (row / self.x.time, row % self.x.time)
    }

    /// The token, the one before it, and its weights.
    fn of(&self, row: usize) -> [&'a [f32]; 3] {
        let (batch, time) = self.place(row);
        let previous = if time == 0 { self.before.row(batch, 0) } else { self.x.row(batch, time - 1) };
        [self.x.row(batch, time), previous, self.mu.row(batch, time)]
    }
}

vectorised! {
    fn mix(y: &mut [f32], x: &[f32], previous: &[f32], mu: &[f32]) {
        for ((y, x), (previous, mu)) in y.iter_mut().zip(x).zip(previous.iter().zip(mu)) {
            *y = x + (previous - x) * mu;
        }
    }
}

vectorised! {
    /// What a row's own output asks of it.
    fn from_own(of_x: &mut [f32], gradient: &[f32], mu: &[f32]) {
        for ((of_x, gradient), mu) in of_x.iter_mut().zip(gradient).zip(mu) {
            *of_x = gradient - gradient * mu;
        }
    }
}

vectorised! {
    /// Adds what the next row's output asks of it.
    fn from_next(of_x: &mut [f32], gradient: &[f32], mu: &[f32]) {
        for ((of_x, gradient), mu) in of_x.iter_mut().zip(gradient).zip(mu) {
            *of_x += gradient * mu;
        }
    }
}

vectorised! {
    fn of_weights(of_mu: &mut [f32], gradient: &[f32], x: &[f32], previous: &[f32]) {
        for ((of_mu, gradient), (x, previous)) in of_mu.iter_mut().zip(gradient).zip(x.iter().zip(previous)) {
            *of_mu += gradient * (previous - x);
        }
    }
}

impl HostOperator<3> for Mix {
    fn forward(&self, inputs: &[FlexTensor; 3], _: [bool; 3]) -> (FlexTensor, Saved) {
        let inputs = inputs.each_ref().map(readable);
        let rows = Rows::new(&inputs);
        let width = rows.x.width;
        let [y] = fresh([(rows.x.len(), (ROWS * width).max(1))], |task, [y]| {
            for (i, y) in y.chunks_exact_mut(width).enumerate() {
                let [x, previous, mu] = rows.of(task * ROWS + i);
                mix(y, x, previous, mu);
            }
        });
        (tensor(y, &rows.x.shape()), Vec::new())
    }

    fn backward(&self, given: Given<3>, wanted: [bool; 3]) -> [Option<FlexTensor>; 3] {
        let inputs = given.inputs.each_ref().map(readable);
        let rows = Rows::new(&inputs);
        let [batch, time, width] = rows.x.shape();
        let gradient = |row: usize| &slice(&given.gradient)[row * width..(row + 1) * width];
        let [of_x] = fresh([(rows.x.len(), (ROWS * width).max(1))], |task, [of_x]| {
            for (row, of_x) in (task * ROWS..).zip(of_x.chunks_exact_mut(width)) {
                from_own(of_x, gradient(row), rows.of(row)[2]);
                if rows.place(row).1 + 1 < time {
                    from_next(of_x, gradient(row + 1), rows.of(row + 1)[2]);
                }
            }
        });
        let mut of_before = zeros(batch * width);
        for (i, of_before) in of_before.chunks_exact_mut(width.max(1)).enumerate() {
            from_next(of_before, gradient(i * time), rows.of(i * time)[2]);
        }
        let of_mu = wanted[2].then(|| self.of_mu(&rows, slice(&given.gradient), &given.inputs[2]));
        [Some(tensor(of_x, &[batch, time, width])), Some(tensor(of_before, &[batch, 1, width])), of_mu]
    }
}

impl Mix {
    fn of_mu(&self, rows: &Rows<'_>, gradient: &[f32], mu: &FlexTensor) -> FlexTensor {
        let (count, width) = (rows.x.batch * rows.x.time, rows.x.width);
        let shape = host::dimensions(mu);
        let own = shape[0] * shape[1] == count && count > 1;
        // Weights of their own have a row for each row, shared ones a sum for each task.
        let size = if own { ROWS * width } else { width };
        let length = if own { count * width } else { count.div_ceil(ROWS) * width };
        let [sums] = fresh([(length, size.max(1))], |task, [sums]: [&mut [f32]; 1]| {
            for row in task * ROWS..((task + 1) * ROWS).min(count) {
                let start = if own { (row - task * ROWS) * width } else { 0 };
                let [x, previous, _] = rows.of(row);
                of_weights(&mut sums[start..start + width], &gradient[row * width..(row + 1) * width], x, previous);
            }
        });
        tensor(if own { sums } else { summed(&sums, width) }, &shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        recurrent::testing::{check_parts, tensor},
        testing::agree,
    };
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn agrees_with_the_reference(batch in 1usize..4, time in 1usize..90, width in 1usize..20, own in any::<bool>()) {
            let mu: &[usize] = if own { &[batch, time, width] } else { &[1, 1, width] };
            agree(&[&[batch, time, width], &[batch, width], mu], 1e-5,
                |t| token_mix(t[0].get(), Some(t[1].get()), t[2].get()).reshape([-1]),
                |t| {
                    let x: Tensor<3> = t[0].get();
                    let before = t[1].get::<2>().unsqueeze_dim(1);
                    let previous = Tensor::cat(vec![before, x.clone()], 1).slice([0..batch, 0..time, 0..width]);
                    (x.clone() + (previous - x) * t[2].get::<3>()).reshape([-1])
                });
        }
    }

    #[test]
    fn parts_join_and_the_future_is_unseen() {
        check_parts([2, 70, 5], |x: Tensor<3>, state: Option<Tensor<2>>| {
            let [batch, time, width] = x.dims();
            let last = x.clone().slice([0..batch, time - 1..time, 0..width]).reshape([batch, width]);
            (token_mix(x, state, tensor([1, 1, 5], 3)), last)
        });
    }
}
