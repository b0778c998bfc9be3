//! Mixes of each token with the one before it by weights that depend on the token, as RWKV-6's layers begin (arXiv 2404.05892,
//! section 4.2.1, "data-dependent linear interpolation").
//!
//! The weights come out of narrow parts, one for each mix. Map and mix are one operator, so that the sums over all tokens that
//! the shared weights ask for are taken on the way.

use burn::tensor::Tensor;
use burn_flex::FlexTensor;

use super::{
    channel_block::summed,
    sequence::readable,
    token_mix::{Pairs, token_mixes},
};
use crate::{
    fused::{self, FusedOperator, Given, Outputs, Saved, contiguous, dimensions, slice, tensor},
    linear::reference,
    matmul::{Matrix, Precision, multiplied_each, tall_product},
    parallel::{copied, fresh, fresh_with, zeros},
    simd::vectorised,
};

/// `y_m = x_t + (x_{t-1} - x_t) (shared_m + narrow_m up_m)` for each mix `m`.
///
/// `x`: `[batch, time, width]`; `before`: `[batch, width]`, the token before the first, zeros where absent; `shared`: `[mixes,
/// width]`; `narrow`: `[batch, time, mixes * rank]`, a part for each mix; `up`: `[mixes, rank, width]`. Every mix has the shape of
/// `x`. Products run in `precision`.
pub fn dynamic_mixes<const N: usize>(
    x: Tensor<3>,
    before: Option<Tensor<2>>,
    shared: Tensor<2>,
    narrow: Tensor<3>,
    up: Tensor<3>,
    precision: Precision,
) -> [Tensor<3>; N] {
    let [batch, _, width] = x.dims();
    if !fused::on_host(&x) {
        let weights = weights(&shared, &narrow, &up, precision);
        return token_mixes(x, before, weights);
    }
    let before = before
        .unwrap_or_else(|| Tensor::zeros([batch, width], &x.device().inner()))
        .unsqueeze_dim::<3>(1);
    let outputs = Outputs::<N>::default();
    let mixes = Mixes {
        outputs: outputs.clone(),
        precision,
    };
    let node: Tensor<1> = fused::five(x, before, shared, narrow, up, mixes);
    std::array::from_fn(|i| outputs.output(i, &node))
}

/// The weights of every mix by their definition.
fn weights<const N: usize>(
    shared: &Tensor<2>,
    narrow: &Tensor<3>,
    up: &Tensor<3>,
    precision: Precision,
) -> [Tensor<3>; N] {
    let [_, rank, width] = up.dims();
    std::array::from_fn(|mix| {
        let up = up
            .clone()
            .narrow(0, mix, 1)
            .reshape([rank, width])
            .swap_dims(0, 1);
        let shared = shared.clone().narrow(0, mix, 1).reshape([width]);
        reference::linear(
            narrow.clone().narrow(2, mix * rank, rank),
            up,
            Some(shared),
            precision,
        )
    })
}

/// Rows that one task takes. Fixed, so that sums over rows do not depend on the number of threads.
const ROWS: usize = 32;

/// Over the tokens, `[batch, 1, width]` before them, shared weights, narrow parts and maps out of them.
#[derive(Debug)]
struct Mixes<const N: usize> {
    outputs: Outputs<N>,
    precision: Precision,
}

vectorised! {
    fn mix(y: &mut [f32], x: &[f32], previous: &[f32], own: &[f32], shared: &[f32]) {
        for (((y, x), (previous, own)), shared) in y.iter_mut().zip(x).zip(previous.iter().zip(own)).zip(shared) {
            *y = x + (previous - x) * (own + shared);
        }
    }
}

vectorised! {
    /// Adds the gradient contribution of a token's own mix.
    fn from_own(of_x: &mut [f32], gradient: &[f32], own: &[f32], shared: &[f32]) {
        for ((of_x, gradient), (own, shared)) in of_x.iter_mut().zip(gradient).zip(own.iter().zip(shared)) {
            *of_x += gradient - gradient * (own + shared);
        }
    }
}

vectorised! {
    /// Adds the gradient contribution of the next token's mix.
    fn from_next(of_x: &mut [f32], gradient: &[f32], own: &[f32], shared: &[f32]) {
        for ((of_x, gradient), (own, shared)) in of_x.iter_mut().zip(gradient).zip(own.iter().zip(shared)) {
            *of_x += gradient * (own + shared);
        }
    }
}

vectorised! {
    fn of_weights(of_own: &mut [f32], of_shared: &mut [f32], gradient: &[f32], x: &[f32], previous: &[f32]) {
        let sums = of_own.iter_mut().zip(of_shared);
        for (((own, shared), gradient), (x, previous)) in sums.zip(gradient).zip(x.iter().zip(previous)) {
            *own = gradient * (previous - x);
            *shared += *own;
        }
    }
}

/// The narrow part of each mix and the map out of it.
struct Factors<'a> {
    narrow: &'a [f32],
    up: &'a [f32],
    mixes: usize,
    rows: usize,
    rank: usize,
    width: usize,
}

impl<'a> Factors<'a> {
    /// Of contiguous tensors.
    fn new(narrow: &'a FlexTensor, up: &'a FlexTensor) -> Self {
        let (shape, [batch, time]) = (
            dimensions(up),
            [dimensions(narrow)[0], dimensions(narrow)[1]],
        );
        let (narrow, up) = (slice(narrow), slice(up));
        Self {
            narrow,
            up,
            mixes: shape[0],
            rows: batch * time,
            rank: shape[1],
            width: shape[2],
        }
    }

    fn narrow(&self, mix: usize) -> Matrix<'a> {
        let start = (mix * self.rank).min(self.narrow.len());
        Matrix::strided(
            &self.narrow[start..],
            self.rows,
            self.rank,
            self.mixes * self.rank,
        )
    }

    fn up(&self, mix: usize) -> Matrix<'a> {
        let size = self.rank * self.width;
        Matrix::new(
            &self.up[mix * size..(mix + 1) * size],
            self.rank,
            self.width,
        )
    }
}

impl<const N: usize> FusedOperator<5> for Mixes<N> {
    fn forward(&self, inputs: &[FlexTensor; 5], wanted: [bool; 5]) -> (FlexTensor, Saved) {
        let [x, before, shared, narrow, up] = inputs;
        let ([x, before], [shared, narrow, up]) = (
            [x, before].map(readable),
            [shared, narrow, up].map(contiguous),
        );
        let (pairs, factors) = (Pairs::new(&x, &before), Factors::new(&narrow, &up));
        let products: Vec<_> = (0..N)
            .map(|mix| (factors.narrow(mix), factors.up(mix)))
            .collect();
        let own = multiplied_each(&products, false, self.precision);
        let (width, count) = (factors.width, pairs.x.len());
        let ys = fresh([(count, (ROWS * width).max(1)); N], |task, mut ys| {
            for i in 0..ys[0].len() / width.max(1) {
                let row = task * ROWS + i;
                let [x, previous] = pairs.of(row);
                for (number, y) in ys.iter_mut().enumerate() {
                    let own = &own[number * count + row * width..][..width];
                    mix(
                        &mut y[i * width..(i + 1) * width],
                        x,
                        previous,
                        own,
                        &slice(&shared)[number * width..][..width],
                    );
                }
            }
        });
        self.outputs.put(ys.map(|y| tensor(y, &pairs.x.shape())));
        (
            tensor(Vec::new(), &[0]),
            if wanted.contains(&true) {
                vec![own]
            } else {
                Vec::new()
            },
        )
    }

    fn backward(&self, given: Given<5>, _: [bool; 5]) -> [Option<FlexTensor>; 5] {
        let [x, before, shared, narrow, up] = &given.inputs;
        let ([x, before], [shared, narrow, up]) = (
            [x, before].map(readable),
            [shared, narrow, up].map(contiguous),
        );
        let (pairs, factors) = (Pairs::new(&x, &before), Factors::new(&narrow, &up));
        let own = given.saved.into_iter().next().unwrap_or_default();
        let gradients = self.outputs.gradients();
        let asked: Vec<(usize, &[f32])> = gradients
            .iter()
            .enumerate()
            .filter_map(|(number, found)| Some((number, slice(found.as_ref()?))))
            .collect();
        let [batch, time, width] = pairs.x.shape();
        let count = batch * time * width;
        let of_row = |row: usize| row * width..(row + 1) * width;
        let own = |number: usize, row: usize| &own[number * count..][of_row(row)];
        let shared = |number: usize| &slice(&shared)[of_row(number)];
        let size = (ROWS * width).max(1);
        let tasks = count.div_ceil(size);
        let ([of_x, of_shared], of_own) = fresh_with(
            [(count, size), (tasks * N * width, (N * width).max(1))],
            [(count, size); N],
            |task, [of_x, of_shared], of_own| {
                for (i, of_x) in of_x.chunks_exact_mut(width).enumerate() {
                    let row = task * ROWS + i;
                    let [x, previous] = pairs.of(row);
                    for (number, gradient) in &asked {
                        let here = &gradient[of_row(row)];
                        from_own(of_x, here, own(*number, row), shared(*number));
                        if !(row + 1).is_multiple_of(time) {
                            from_next(
                                of_x,
                                &gradient[of_row(row + 1)],
                                own(*number, row + 1),
                                shared(*number),
                            );
                        }
                        let of_own = &mut of_own[*number][of_row(i)];
                        of_weights(of_own, &mut of_shared[of_row(*number)], here, x, previous);
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
                    own(*number, i * time),
                    shared(*number),
                );
            }
        }
        let (of_narrow, of_up) = self.of_factors(&factors, &of_own);
        [
            Some(tensor(of_x, &[batch, time, width])),
            Some(tensor(of_before, &[batch, 1, width])),
            Some(tensor(summed(&of_shared, N * width), &[N, width])),
            Some(tensor(of_narrow, &dimensions(&narrow))),
            Some(tensor(of_up, &dimensions(&up))),
        ]
    }
}

impl<const N: usize> Mixes<N> {
    /// The gradients of the narrow parts, side by side, and of the maps out of them.
    fn of_factors(&self, factors: &Factors<'_>, of_own: &[Vec<f32>; N]) -> (Vec<f32>, Vec<f32>) {
        let Factors {
            rows, rank, width, ..
        } = *factors;
        let of_own = |mix: usize| Matrix::new(&of_own[mix], rows, width);
        let products: Vec<_> = (0..N)
            .map(|mix| (of_own(mix), factors.up(mix).transposed()))
            .collect();
        let of_narrow = multiplied_each(&products, false, self.precision);
        let side_by_side = copied(rows * N, rank, |piece| {
            let (row, mix) = (piece / N, piece % N);
            of_narrow.get((mix * rows + row) * rank..)?.get(..rank)
        });
        let of_up = (0..N)
            .flat_map(|mix| tall_product(factors.narrow(mix), of_own(mix), self.precision))
            .collect();
        (side_by_side, of_up)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::agree;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn agrees_with_the_definition(batch in 1usize..4, time in 1usize..60, width in 1usize..40, rank in 1usize..9) {
            let shapes: [&[usize]; 5] =
                [&[batch, time, width], &[batch, width], &[3, width], &[batch, time, 3 * rank], &[3, rank, width]];
            // The last mix goes unused.
            let joined = |[a, b, _]: [Tensor<3>; 3]| Tensor::cat(vec![a.reshape([-1]), b.reshape([-1])], 0);
            agree(&shapes, 1e-5,
                |t| joined(dynamic_mixes(t[0].get(), Some(t[1].get()), t[2].get(), t[3].get(), t[4].get(), Precision::F32)),
                |t| {
                    let weights = weights(&t[2].get(), &t[3].get(), &t[4].get(), Precision::F32);
                    joined(token_mixes(t[0].get(), Some(t[1].get()), weights))
                });
        }
    }
}
