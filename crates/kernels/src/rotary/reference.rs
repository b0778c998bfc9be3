//! The definition in Burn operations.

use burn::tensor::Tensor;

/// Rotates the first `2 * half` channels of `x` `[batch, time, heads, head_dim]`; the rest pass. `cosine`, `sine`:
/// `[batch or 1, time, 1, half]`.
pub fn rotate(x: Tensor<4>, cosine: Tensor<4>, sine: Tensor<4>, interleaved: bool) -> Tensor<4> {
    let [batch, time, heads, width] = x.dims();
    let half = cosine.dims()[3];
    let turned = x.clone().narrow(3, 0, 2 * half);
    // Pairs as the last axis when interleaved, halves as the last but one otherwise.
    let (shape, axis) = if interleaved {
        ([half, 2], 4)
    } else {
        ([2, half], 3)
    };
    let turned = turned.reshape([batch, time, heads, shape[0], shape[1]]);
    let part = |index: usize| {
        turned
            .clone()
            .narrow(axis, index, 1)
            .reshape([batch, time, heads, half])
    };
    let (low, high) = (part(0), part(1));
    let rotated_low = low.clone() * cosine.clone() - high.clone() * sine.clone();
    let rotated_high = high * cosine + low * sine;
    let wide = |x: Tensor<4>| x.unsqueeze_dim::<5>(axis);
    let rotated = Tensor::cat(vec![wide(rotated_low), wide(rotated_high)], axis);
    let mut parts = vec![rotated.reshape([batch, time, heads, 2 * half])];
    if width > 2 * half {
        parts.push(x.narrow(3, 2 * half, width - 2 * half));
    }
    Tensor::cat(parts, 3)
}
