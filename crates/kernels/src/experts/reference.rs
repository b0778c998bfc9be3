//! The definition in Burn operations: all experts on all tokens, their outputs weighted by zero where they were not chosen.

use std::sync::Arc;

use burn::tensor::{Tensor, TensorData};

use super::{Form, Routing};
use crate::{activation::reference::activate, linear::reference::linear as map, matmul::Precision};

/// See [`super::expert_feed_forward`].
pub fn feed_forward(
    x: Tensor<2>,
    weights: Tensor<2>,
    up: Tensor<3>,
    down: Tensor<3>,
    routing: &Arc<Routing>,
    form: Form,
) -> Tensor<2> {
    let [experts, rows, width] = up.dims();
    let mut sum = x.zeros_like();
    for expert in 0..experts {
        let up: Tensor<2> = up.clone().narrow(0, expert, 1).reshape([rows, width]);
        let inner = map(x.clone(), up, None, form.precision);
        let inner = match form.gated {
            true => {
                let [gate, up] =
                    [0, rows / 2].map(|first| inner.clone().narrow(1, first, rows / 2));
                activate(form.activation, gate) * up
            }
            false => activate(form.activation, inner),
        };
        let down = down.clone().narrow(0, expert, 1);
        let [_, width, inner_width] = down.dims();
        let y = map(
            inner,
            down.reshape([width, inner_width]),
            None,
            form.precision,
        );
        let chosen = weights.clone()
            * taken(routing, expert, &x).reshape([routing.tokens(), routing.active()]);
        sum = sum + y * chosen.sum_dim(1);
    }
    sum
}

/// See [`super::expert_linear`].
pub fn linear(
    x: Tensor<2>,
    weight: Tensor<3>,
    routing: &Arc<Routing>,
    heads: [usize; 2],
    precision: Precision,
) -> Tensor<2> {
    let [experts, outputs, inputs] = weight.dims();
    let (tokens, active) = (routing.tokens(), routing.active());
    let x = match x.dims()[0] == tokens * active {
        true => x
            .reshape([tokens, heads[0], active, inputs / heads[0]])
            .swap_dims(1, 2)
            .reshape([tokens * active, inputs]),
        false => x
            .reshape([tokens, 1, inputs])
            .repeat_dim(1, active)
            .reshape([tokens * active, inputs]),
    };
    let mut sum: Option<Tensor<2>> = None;
    for expert in 0..experts {
        let weight = weight
            .clone()
            .narrow(0, expert, 1)
            .reshape([outputs, inputs]);
        let y = map(x.clone(), weight, None, precision) * taken(routing, expert, &x);
        sum = Some(match sum {
            Some(sum) => sum + y,
            None => y,
        });
    }
    let sum = sum.unwrap_or_else(|| Tensor::zeros([tokens * active, outputs], &x.device().inner()));
    let by_part = sum
        .reshape([tokens, active, heads[1], outputs / heads[1]])
        .swap_dims(1, 2);
    by_part.reshape([tokens * active, outputs])
}

/// See [`super::expert_sum`].
pub fn sum(
    x: Tensor<2>,
    weight: Tensor<3>,
    weights: Tensor<2>,
    routing: &Arc<Routing>,
    heads: usize,
    precision: Precision,
) -> Tensor<2> {
    let [_, outputs, _] = weight.dims();
    let (tokens, active) = (routing.tokens(), routing.active());
    let y = linear(x, weight, routing, [heads, 1], precision).reshape([tokens, active, outputs]);
    (y * weights.unsqueeze_dim(2))
        .sum_dim(1)
        .reshape([tokens, outputs])
}

/// One for every slot that `expert` takes, zero elsewhere: `[slots, 1]`.
fn taken(routing: &Routing, expert: usize, like: &Tensor<2>) -> Tensor<2> {
    let mut taken = vec![0f32; routing.chosen().len()];
    routing.order()[routing.group(expert)]
        .iter()
        .for_each(|slot| taken[*slot as usize] = 1.0);
    let count = taken.len();
    Tensor::from_data(TensorData::new(taken, [count, 1]), &like.device().inner())
}
