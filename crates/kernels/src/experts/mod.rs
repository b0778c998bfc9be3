//! Experts: each token passes through a few of many feed-forward layers or linear maps (arXiv 1701.06538).
//!
//! A [`Routing`] says which; rows are grouped by expert, multiplied group by group with one stacked weight, and scattered
//! back to their tokens. Experts without tokens cost nothing. The routing itself has no gradient; the weights of the choices have.

mod feed_forward;
mod groups;
mod linear;
pub mod reference;
mod routing;
mod scores;
#[cfg(test)]
mod speed;

use std::sync::Arc;

use burn::tensor::Tensor;

pub use self::{
    routing::Routing,
    scores::{choice_weights, expected_shares, sigmoid_weights},
};
use crate::{activation::Activation, fused, linear::Group, matmul::Precision, weight::Weight};

/// The form of every expert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Form {
    /// The nonlinearity.
    pub activation: Activation,
    /// Whether the first matrix holds gates and then inputs, `[2 inner, width]`, rather than inputs, `[inner, width]`.
    pub gated: bool,
    /// The arithmetic of the products.
    pub precision: Precision,
}

/// `y_t = sum_i w_ti E_i(x_t)` over the choices of token `t`, with `E(x) = down(activation(gate(x)) * up(x))` or
/// `down(activation(up(x)))`. Dropped choices add nothing.
///
/// `x`: `[tokens, width]`, `weights`: `[tokens, active]`, `up`: `[experts, inner or 2 inner, width]`, `down`:
/// `[experts, width, inner]`; returns `[tokens, width]`. Maps that read `x` too, as the router does, may share a group of `readers`
/// with it, see [`Group::beside`].
pub fn expert_feed_forward(
    x: Tensor<2>,
    weights: Tensor<2>,
    up: impl Into<Weight<3>>,
    down: impl Into<Weight<3>>,
    routing: &Arc<Routing>,
    form: Form,
    readers: Option<Group>,
) -> Tensor<2> {
    let (up, down) = (up.into(), down.into());
    if !fused::on_host(&x) {
        let [up, down] = [up, down].map(|weight| weight.into_tensor(&x.device()));
        return reference::feed_forward(x, weights, up, down, routing, form);
    }
    let [(up, stored_up), (down, stored_down)] = [up, down].map(Weight::into_parts);
    let operator = feed_forward::FeedForward {
        routing: routing.clone(),
        form,
        readers,
        stored: [stored_up, stored_down],
    };
    fused::four(x, weights, up, down, operator)
}

/// `y_s = W_e(s) x_s` for every slot `s`: `[tokens * active, out]`, zero where it was dropped.
///
/// `x`: a row for every token, `[.., in]`, or for every slot, `[tokens * active, in]`; `weight`: `[experts, out, in]`; `readers` as for
/// [`expert_feed_forward`].
///
/// The slots of a token, of `x` (where it has slots) and of `y`, may be cut into `heads`: the first heads of all of them side by side,
/// then the second ones, and so on, as attention wants them. With one head a slot is a row.
pub fn expert_linear<const D: usize>(
    x: Tensor<D>,
    weight: impl Into<Weight<3>>,
    routing: &Arc<Routing>,
    heads: [usize; 2],
    precision: Precision,
    readers: Option<Group>,
) -> Tensor<2> {
    if !fused::on_host(&x) {
        let weight = weight.into().into_tensor(&x.device());
        let shape = x.dims();
        let width = shape.last().copied().unwrap_or(1).max(1);
        let rows = shape.iter().product::<usize>() / width;
        return reference::linear(x.reshape([rows, width]), weight, routing, heads, precision);
    }
    let (weight, stored) = weight.into().into_parts();
    let operator = linear::Linear {
        routing: routing.clone(),
        heads,
        precision,
        readers,
        stored,
    };
    fused::two(x, weight, operator)
}

/// `y_t = sum_i w_ti W_e x_ti` over the choices of token `t`: `[tokens, out]`; dropped choices add nothing.
///
/// `x`, `weight` and `heads` of `x` as in [`expert_linear`], `weights`: `[tokens, active]`.
pub fn expert_sum(
    x: Tensor<2>,
    weight: impl Into<Weight<3>>,
    weights: Tensor<2>,
    routing: &Arc<Routing>,
    heads: usize,
    precision: Precision,
) -> Tensor<2> {
    if !fused::on_host(&x) {
        let weight = weight.into().into_tensor(&x.device());
        return reference::sum(x, weight, weights, routing, heads, precision);
    }
    let (weight, stored) = weight.into().into_parts();
    let operator = linear::Sum(linear::Linear {
        routing: routing.clone(),
        heads: [heads, 1],
        precision,
        readers: None,
        stored,
    });
    fused::three(x, weight, weights, operator)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{agree, numbers};
    use proptest::prelude::*;

    fn routing(
        tokens: usize,
        experts: usize,
        active: usize,
        capacity: Option<usize>,
    ) -> Arc<Routing> {
        Arc::new(Routing::top_k(
            &numbers(tokens * experts, 7),
            experts,
            active,
            capacity,
            None,
        ))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn feed_forward_agrees_with_the_dense_reference(tokens in 1usize..40, experts in 1usize..7, active in 1usize..4,
            width in 1usize..20, inner in 1usize..20, gated: bool, tight: bool) {
            let active = active.min(experts);
            let routing = routing(tokens, experts, active, tight.then_some(1 + tokens / experts));
            let rows = if gated { 2 * inner } else { inner };
            let shapes: [&[usize]; 4] =
                [&[tokens, width], &[tokens, active], &[experts, rows, width], &[experts, width, inner]];
            let longest = tokens.max(width).max(inner) as f32;
            for (precision, tolerance) in [(Precision::F32, 1e-5), (Precision::Bf16, longest.sqrt() / 32.0)] {
                let form = |precision| Form { activation: Activation::Silu, gated, precision };
                agree(&shapes, tolerance, |t| {
                    let (x, weights, up, down) = (t[0].get(), t[1].get(), t[2].get(), t[3].get());
                    expert_feed_forward(x, weights, up, down, &routing, form(precision), None).reshape([-1])
                }, |t| {
                    let (x, weights, up, down) = (t[0].get(), t[1].get(), t[2].get(), t[3].get());
                    reference::feed_forward(x, weights, up, down, &routing, form(Precision::F32)).reshape([-1])
                });
            }
        }

        #[test]
        fn linear_maps_and_their_sums_agree_with_the_dense_reference(tokens in 1usize..40, experts in 1usize..7,
            active in 1usize..4, inputs in 1usize..10, outputs in 1usize..10, heads in [1usize..4, 1usize..4], by_slot: bool,
            tight: bool) {
            let (active, [inputs, outputs]) = (active.min(experts), [inputs * heads[0], outputs * heads[1]]);
            let routing = routing(tokens, experts, active, tight.then_some(1 + tokens / experts));
            let rows = if by_slot { tokens * active } else { tokens };
            let shapes: [&[usize]; 3] = [&[rows, inputs], &[experts, outputs, inputs], &[tokens, active]];
            let longest = tokens.max(inputs).max(outputs) as f32;
            for (precision, tolerance) in [(Precision::F32, 1e-5), (Precision::Bf16, longest.sqrt() / 32.0)] {
                agree(&shapes[..2], tolerance,
                    |t| expert_linear(t[0].get::<2>(), t[1].get(), &routing, heads, precision, None).reshape([-1]),
                    |t| reference::linear(t[0].get(), t[1].get(), &routing, heads, Precision::F32).reshape([-1]));
                agree(&shapes, tolerance,
                    |t| expert_sum(t[0].get(), t[1].get(), t[2].get(), &routing, heads[0], precision).reshape([-1]),
                    |t| reference::sum(t[0].get(), t[1].get(), t[2].get(), &routing, heads[0], Precision::F32)
                        .reshape([-1]));
            }
        }
    }

    /// A router, another map in `precision` and experts that read one input, in a group or each for itself.
    fn with_readers(
        t: &[crate::testing::Leaf],
        routing: &Arc<Routing>,
        precision: Precision,
        shared: bool,
    ) -> Tensor<1> {
        let (x, readers) = (t[0].get::<3>(), Group::beside(2, 2));
        let map = |weight, precision| match shared {
            true => readers.linear(x.clone(), weight, None, precision),
            false => Group::new(1).linear(x.clone(), weight, None, precision),
        };
        let (logits, y) = (map(t[1].get(), Precision::F32), map(t[2].get(), precision));
        let (experts, tokens) = (routing.experts(), routing.tokens());
        let weights = choice_weights(logits.reshape([tokens, experts]), routing, true);
        let readers = shared.then(|| readers.clone());
        let query = expert_linear(
            x.clone(),
            t[3].get(),
            routing,
            [1, 1],
            precision,
            readers.clone(),
        );
        let output = expert_sum(query, t[4].get(), weights, routing, 1, precision);
        let other = expert_linear(x, t[3].get(), routing, [1, 1], precision, readers);
        Tensor::cat(
            vec![y.reshape([-1]), output.reshape([-1]), other.reshape([-1])],
            0,
        )
    }

    #[test]
    fn readers_of_x_share_its_gradient() {
        for tokens in [1, 12] {
            let routing = routing(2 * tokens, 3, 2, None);
            let shapes: [&[usize]; 5] = [
                &[2, tokens, 10],
                &[3, 10],
                &[7, 10],
                &[3, 6, 10],
                &[3, 4, 6],
            ];
            for precision in [Precision::F32, Precision::Bf16] {
                let run = |t: &[crate::testing::Leaf], shared| {
                    with_readers(t, &routing, precision, shared)
                };
                agree(&shapes, 1e-5, |t| run(t, true), |t| run(t, false));
            }
        }
    }

    #[test]
    fn groups_of_many_rows_agree_too() {
        let routing = routing(300, 2, 1, None);
        let shapes: [&[usize]; 4] = [&[300, 9], &[300, 1], &[2, 10, 9], &[2, 9, 5]];
        let form = Form {
            activation: Activation::Relu,
            gated: true,
            precision: Precision::F32,
        };
        let run = |operator: &dyn Fn(Tensor<2>, Tensor<2>, Tensor<3>, Tensor<3>) -> Tensor<2>,
                   t: &[crate::testing::Leaf]| {
            operator(t[0].get(), t[1].get(), t[2].get(), t[3].get()).reshape([-1])
        };
        agree(
            &shapes,
            1e-5,
            |t| {
                run(
                    &|x, w, u, d| expert_feed_forward(x, w, u, d, &routing, form, None),
                    t,
                )
            },
            |t| {
                run(
                    &|x, w, u, d| reference::feed_forward(x, w, u, d, &routing, form),
                    t,
                )
            },
        );
    }
}
