//! The definition in Burn operations.

use burn::tensor::{Int, Tensor, TensorData, activation::softmax};

use super::Options;
use crate::linear::reference::rounded;

/// `softmax(softcap(scale * q k^T) + bias + mask) v`; shapes as in [`super::attention`], `mask`:
/// `[batch or 1, 1, queries, keys]`. The share of a score of `sinks` `[heads]` is left out of the sum.
pub fn attention(
    query: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
    mask: Tensor<4>,
    bias: Option<Tensor<2>>,
    sinks: Option<Tensor<1>>,
    options: Options,
) -> Tensor<4> {
    let [batch, queries, heads, width] = query.dims();
    let ([_, keys, kv_heads, _], value_width) = (key.dims(), value.dims()[3]);
    let group = heads / kv_heads;
    let [query, key, value] =
        [query, key, value].map(|x| rounded(x, options.precision).swap_dims(1, 2));
    let scores = (query * options.scale)
        .reshape([batch, kv_heads, group * queries, width])
        .matmul(key.swap_dims(2, 3));
    let mut scores = scores.reshape([batch, heads, queries, keys]);
    if let Some(softcap) = options.softcap {
        scores = (scores / softcap).tanh() * softcap;
    }
    if let Some(bias) = bias {
        scores = scores + by_distance(bias, queries, keys);
    }
    let scores = scores + mask;
    let weights = match sinks {
        Some(sinks) => {
            let sinks = sinks
                .reshape([1, heads, 1, 1])
                .expand([batch, heads, queries, 1]);
            softmax(Tensor::cat(vec![scores, sinks], 3), 3).narrow(3, 0, keys)
        }
        None => softmax(scores, 3),
    };
    let mixed = weights
        .reshape([batch, kv_heads, group * queries, keys])
        .matmul(value);
    mixed
        .reshape([batch, heads, queries, value_width])
        .swap_dims(1, 2)
}

/// From `[heads, queries + keys - 1]` to `[1, heads, queries, keys]`: element `query - key + keys - 1` of each head.
fn by_distance(bias: Tensor<2>, queries: usize, keys: usize) -> Tensor<4> {
    let heads = bias.dims()[0];
    let index = |query: usize| (0..keys).map(move |key| (query + keys - 1 - key) as i32);
    let indices: Vec<i32> = (0..queries).flat_map(index).collect();
    let indices = TensorData::new(indices, [queries * keys]);
    let indices = Tensor::<1, Int>::from_data(indices, &bias.device().inner());
    bias.select(1, indices).reshape([1, heads, queries, keys])
}
