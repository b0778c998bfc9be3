//! The token before, which RWKV mixes with the current one (arXiv 2305.13048, section 3.1).

use burn::tensor::Tensor;
use burn_flex::FlexTensor;

use super::{
    last_steps,
    sequence::{Sequence, readable},
};
use crate::{
    fused::{self, FusedOperator, Given, Saved, slice, tensor},
    parallel::{for_chunks, zeros},
};

/// `y_t = x_{t-1}`; and the last token, with which the next part of the sequence continues.
///
/// `x`: `[batch, time, width]`, `state`: `[batch, width]`, the token before the first, zeros where absent. Returns the
/// shapes of `x` and `state`.
pub fn token_shift(x: Tensor<3>, state: Option<Tensor<2>>) -> (Tensor<3>, Tensor<2>) {
    let [batch, _, width] = x.dims();
    let state = state
        .unwrap_or_else(|| Tensor::zeros([batch, width], &x.device().inner()))
        .unsqueeze_dim::<3>(1);
    let last = last_steps(x.clone(), 1).reshape([batch, width]);
    let shifted = match fused::on_host(&x) {
        true => fused::two(x, state, Shift),
        false => reference(x, state),
    };
    (shifted, last)
}

/// The definition in Burn operations; `state`: `[batch, 1, width]`.
fn reference(x: Tensor<3>, state: Tensor<3>) -> Tensor<3> {
    let [batch, time, width] = x.dims();
    Tensor::cat(vec![state, x], 1).slice([0..batch, 0..time, 0..width])
}

#[derive(Debug)]
struct Shift;

impl FusedOperator<2> for Shift {
    fn forward(&self, inputs: &[FlexTensor; 2], _: [bool; 2]) -> (FlexTensor, Saved) {
        let inputs = inputs.each_ref().map(readable);
        let [x, state] = inputs.each_ref().map(Sequence::new);
        let mut y = zeros(x.len());
        for_chunks([(&mut y, (x.time * x.width).max(1))], |batch, [y]| {
            for (t, y) in y.chunks_exact_mut(x.width).enumerate() {
                y.copy_from_slice(if t == 0 {
                    state.row(batch, 0)
                } else {
                    x.row(batch, t - 1)
                });
            }
        });
        (tensor(y, &x.shape()), Vec::new())
    }

    fn backward(&self, given: Given<2>, _: [bool; 2]) -> [Option<FlexTensor>; 2] {
        let x = readable(&given.inputs[0]);
        let [batch, time, width] = Sequence::new(&x).shape();
        let gradient = slice(&given.gradient);
        let (mut of_x, mut of_state) = (zeros(gradient.len()), zeros(batch * width));
        for_chunks(
            [
                (&mut of_x[..], (time * width).max(1)),
                (&mut of_state, width),
            ],
            |i, [of_x, of_state]| {
                let (first, rest) =
                    gradient[i * time * width..(i + 1) * time * width].split_at(width);
                of_state.copy_from_slice(first);
                of_x[..rest.len()].copy_from_slice(rest);
            },
        );
        [
            Some(tensor(of_x, &[batch, time, width])),
            Some(tensor(of_state, &[batch, 1, width])),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        recurrent::testing::{both, check_parts},
        testing::agree,
    };
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn agrees_with_the_reference(batch in 1usize..4, time in 1usize..9, width in 1usize..9) {
            agree(&[&[batch, time, width], &[batch, width]], 0.0,
                |t| both(token_shift(t[0].get(), Some(t[1].get()))),
                |t| {
                    let x: Tensor<3> = t[0].get();
                    let last = x.clone().slice([0..batch, time - 1..time, 0..width]);
                    both((reference(x, t[1].get::<2>().unsqueeze_dim(1)), last))
                });
        }
    }

    #[test]
    fn parts_join_and_the_future_is_unseen() {
        check_parts([2, 9, 5], token_shift);
    }
}
