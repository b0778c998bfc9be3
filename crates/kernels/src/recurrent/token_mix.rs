//! A mix of each token with the one before it, as RWKV's layers begin (arXiv 2305.13048, section 3.1).

use burn::tensor::Tensor;
use burn_flex::FlexTensor;

use super::{
    channel_block::summed,
    sequence::{Sequence, readable},
    token_shift,
};
use crate::{
    fused::{self, FusedOperator, Given, Outputs, Saved, slice, tensor},
    parallel::{fresh, fresh_with, zeros},
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
    let [y] = token_mixes(x, before, [mu]);
    y
}

/// [`token_mix`] by several weights, in one pass over the tokens; up to six, as layers have them.
pub fn token_mixes<const N: usize>(
    x: Tensor<3>,
    before: Option<Tensor<2>>,
    mus: [Tensor<3>; N],
) -> [Tensor<3>; N] {
    let [batch, _, width] = x.dims();
    if !fused::on_host(&x) {
        let (previous, _) = token_shift::token_shift(x.clone(), before);
        let difference = previous - x.clone();
        return mus.map(|mu| x.clone() + difference.clone() * mu);
    }
    let before = before
        .unwrap_or_else(|| Tensor::zeros([batch, width], &x.device().inner()))
        .unsqueeze_dim::<3>(1);
    let outputs = Outputs::<N>::default();
    let mixes = Mixes {
        outputs: outputs.clone(),
    };
    let node: Tensor<3> = match mus.each_ref().map(Tensor::clone).as_slice() {
        [a] => fused::three(x, before, a.clone(), mixes),
        [a, b] => fused::four(x, before, a.clone(), b.clone(), mixes),
        [a, b, c] => fused::five(x, before, a.clone(), b.clone(), c.clone(), mixes),
        [a, b, c, d] => fused::six(x, before, a.clone(), b.clone(), c.clone(), d.clone(), mixes),
        [a, b, c, d, e] => fused::seven(
            x,
            before,
            a.clone(),
            b.clone(),
            c.clone(),
            d.clone(),
            e.clone(),
            mixes,
        ),
        [a, b, c, d, e, f] => fused::eight(
            x,
            before,
            a.clone(),
            b.clone(),
            c.clone(),
            d.clone(),
            e.clone(),
            f.clone(),
            mixes,
        ),
        _ => {
            let before = before.reshape([batch, width]);
            return mus.map(|mu| token_mix(x.clone(), Some(before.clone()), mu));
        }
    };
    std::array::from_fn(|i| outputs.output(i, &node))
}

/// Rows that one task takes. Fixed, so that sums over rows do not depend on the number of threads.
const ROWS: usize = 32;

/// Over the tokens, `[batch, 1, width]` before them, and the weights of each of `N` mixes.
#[derive(Debug)]
struct Mixes<const N: usize> {
    outputs: Outputs<N>,
}

/// Tokens, each with the one before it.
pub(super) struct Pairs<'a> {
    /// The tokens.
    pub x: Sequence<'a>,
    before: Sequence<'a>,
}

impl<'a> Pairs<'a> {
    /// Of tokens and `[batch, 1, width]` before them, both readable.
    pub fn new(x: &'a FlexTensor, before: &'a FlexTensor) -> Self {
        Self {
            x: Sequence::new(x),
            before: Sequence::new(before),
        }
    }

    /// Batch and time of a row.
    fn place(&self, row: usize) -> (usize, usize) {
        (row / self.x.time, row % self.x.time)
    }

    /// The token and the one before it.
    pub fn of(&self, row: usize) -> [&'a [f32]; 2] {
        let (batch, time) = self.place(row);
        let previous = if time == 0 {
            self.before.row(batch, 0)
        } else {
            self.x.row(batch, time - 1)
        };
        [self.x.row(batch, time), previous]
    }
}

/// The rows that output rows are made from.
struct Rows<'a> {
    pairs: Pairs<'a>,
    mus: Vec<Sequence<'a>>,
}

impl<'a> Rows<'a> {
    fn new(inputs: &'a [FlexTensor]) -> Self {
        let pairs = Pairs::new(&inputs[0], &inputs[1]);
        let repeated = |mu| Sequence::repeated(mu, pairs.x.batch, pairs.x.time);
        Self {
            mus: inputs[2..].iter().map(repeated).collect(),
            pairs,
        }
    }

    /// The weights of a row in one mix.
    fn mu(&self, mix: usize, row: usize) -> &'a [f32] {
        let (batch, time) = self.pairs.place(row);
        self.mus[mix].row(batch, time)
    }

    /// Whether rows have weights of their own in a mix; else all share them.
    fn own(&self, mix: usize) -> bool {
        self.mus[mix].has_rows()
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
    /// Adds the gradient contribution of a token's own mix.
    fn from_own(of_x: &mut [f32], gradient: &[f32], mu: &[f32]) {
        for ((of_x, gradient), mu) in of_x.iter_mut().zip(gradient).zip(mu) {
            *of_x += gradient - gradient * mu;
        }
    }
}

vectorised! {
    /// Adds the gradient contribution of the next token's mix.
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

impl<const N: usize, const INPUTS: usize> FusedOperator<INPUTS> for Mixes<N> {
    fn forward(&self, inputs: &[FlexTensor; INPUTS], _: [bool; INPUTS]) -> (FlexTensor, Saved) {
        let inputs = inputs.each_ref().map(readable);
        let rows = Rows::new(&inputs);
        let width = rows.pairs.x.width;
        let ys = fresh(
            [(rows.pairs.x.len(), (ROWS * width).max(1)); N],
            |task, mut ys| {
                for i in 0..ys[0].len() / width.max(1) {
                    let row = task * ROWS + i;
                    let [x, previous] = rows.pairs.of(row);
                    for (number, y) in ys.iter_mut().enumerate() {
                        mix(
                            &mut y[i * width..(i + 1) * width],
                            x,
                            previous,
                            rows.mu(number, row),
                        );
                    }
                }
            },
        );
        self.outputs
            .put(ys.map(|y| tensor(y, &rows.pairs.x.shape())));
        (tensor(Vec::new(), &[0]), Vec::new())
    }

    fn backward(&self, given: Given<INPUTS>, _: [bool; INPUTS]) -> [Option<FlexTensor>; INPUTS] {
        let inputs = given.inputs.each_ref().map(readable);
        let rows = Rows::new(&inputs);
        let [batch, time, width] = rows.pairs.x.shape();
        let gradients = self.outputs.gradients();
        // The mixes that something depends on.
        let asked: Vec<(usize, &[f32])> = gradients
            .iter()
            .enumerate()
            .filter_map(|(number, found)| Some((number, slice(found.as_ref()?))))
            .collect();
        let of_row = |row: usize| row * width..(row + 1) * width;
        let count = batch * time;
        // Weights of their own have a row for each row, shared ones a sum for each task.
        let size = |number: usize| match rows.own(number) {
            true => (count * width, (ROWS * width).max(1)),
            false => (count.div_ceil(ROWS) * width, width.max(1)),
        };
        let of_mus = std::array::from_fn::<_, N, _>(size);
        let ([of_x], of_mus) = fresh_with(
            [(rows.pairs.x.len(), (ROWS * width).max(1))],
            of_mus,
            |task, [of_x], of_mus| {
                for (i, of_x) in of_x.chunks_exact_mut(width).enumerate() {
                    let row = task * ROWS + i;
                    let [x, previous] = rows.pairs.of(row);
                    let goes_on = rows.pairs.place(row).1 + 1 < time;
                    for (number, gradient) in &asked {
                        let own = &gradient[of_row(row)];
                        from_own(of_x, own, rows.mu(*number, row));
                        if goes_on {
                            from_next(of_x, &gradient[of_row(row + 1)], rows.mu(*number, row + 1));
                        }
                        let start = if rows.own(*number) { i * width } else { 0 };
                        of_weights(&mut of_mus[*number][start..start + width], own, x, previous);
                    }
                }
            },
        );
        let mut of_before = zeros(batch * width);
        for (i, of_before) in of_before.chunks_exact_mut(width.max(1)).enumerate() {
            for (number, gradient) in &asked {
                from_next(
                    of_before,
                    &gradient[of_row(i * time)],
                    rows.mu(*number, i * time),
                );
            }
        }
        let mut of_mus = of_mus.into_iter().enumerate().map(|(number, sums)| {
            let sums = if rows.own(number) {
                sums
            } else {
                summed(&sums, width)
            };
            tensor(sums, &fused::dimensions(&given.inputs[2 + number]))
        });
        let (of_x, of_before) = (
            tensor(of_x, &[batch, time, width]),
            tensor(of_before, &[batch, 1, width]),
        );
        let mut first = [of_x, of_before].into_iter();
        std::array::from_fn(|_| first.next().or_else(|| of_mus.next()))
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

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn several_mixes_agree_with_single_ones(batch in 1usize..3, time in 1usize..70, width in 1usize..20, own in any::<bool>()) {
            let mu: &[usize] = if own { &[batch, time, width] } else { &[1, 1, width] };
            let shapes: [&[usize]; 6] = [&[batch, time, width], &[batch, width], mu, mu, &[1, 1, width], mu];
            // The third mix goes unused.
            let joined = |[a, b, _, d]: [Tensor<3>; 4]| Tensor::cat(vec![a.reshape([-1]), b.reshape([-1]), d.reshape([-1])], 0);
            let unused = || Tensor::<3>::ones([1, 1, width], &burn::tensor::Device::flex());
            agree(&[shapes[0], shapes[1], mu, mu, mu], 1e-5,
                |t| joined(token_mixes(t[0].get(), Some(t[1].get()), [t[2].get(), t[3].get(), unused(), t[4].get()])),
                |t| joined([t[2].get(), t[3].get(), unused(), t[4].get()].map(|mu| token_mix(t[0].get(), Some(t[1].get()), mu))));
        }
    }

    #[test]
    fn parts_join_and_the_future_is_unseen() {
        check_parts([2, 70, 5], |x: Tensor<3>, state: Option<Tensor<2>>| {
            let [batch, time, width] = x.dims();
            let last = x
                .clone()
                .slice([0..batch, time - 1..time, 0..width])
                .reshape([batch, width]);
            (token_mix(x, state, tensor([1, 1, 5], 3)), last)
        });
    }
}
