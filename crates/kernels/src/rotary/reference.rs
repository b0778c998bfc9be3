//! The definition in Burn operations.

use burn::tensor::Tensor;

/// Rotates the first `2 * half` channels of `x` `[batch, time, heads, head_dim]`; the rest pass. `cosine`, `sine`:
/// `[batch or 1, time, 1, half]`.
pub fn rotate(x: Tensor<4>, cosine: Tensor<4>, sine: Tensor<4>) -> Tensor<4> {
    let [.., width] = x.dims();
    let half = cosine.dims()[3];
    let low = x.clone().narrow(3, 0, half);
    let high = x.clone().narrow(3, half, half);
    let rotated_low = low.clone() * cosine.clone() - high.clone() * sine.clone();
    let rotated_high = high * cosine + low * sine;
    let mut parts = vec![rotated_low, rotated_high];
    if width > 2 * half {
        parts.push(x.narrow(3, 2 * half, width - 2 * half));
    }
    Tensor::cat(parts, 3)
}
