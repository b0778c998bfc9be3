//! The definition in Burn operations.

use burn::tensor::{Tensor, activation::softmax};

/// `softmax(scale * q k^T + bias) v`; shapes as in [`super::attention`], `bias`: `[batch or 1, 1, queries, keys]`.
pub fn attention(query: Tensor<4>, key: Tensor<4>, value: Tensor<4>, bias: Tensor<4>, scale: f64) -> Tensor<4> {
    let [batch, queries, heads, width] = query.dims();
    let [_, keys, kv_heads, _] = key.dims();
    let group = heads / kv_heads;
    let (query, key, value) = (query.swap_dims(1, 2), key.swap_dims(1, 2), value.swap_dims(1, 2));
    let scores = (query * scale).reshape([batch, kv_heads, group * queries, width]).matmul(key.swap_dims(2, 3));
    let weights = softmax(scores.reshape([batch, heads, queries, keys]) + bias, 3);
    let mixed = weights.reshape([batch, kv_heads, group * queries, keys]).matmul(value);
    mixed.reshape([batch, heads, queries, width]).swap_dims(1, 2)
}
