//! The definition in Burn operations.

use burn::tensor::Tensor;

use super::Wkv7;

/// One step after the other; shapes as in [`super::wkv7`].
pub fn wkv7(wkv: Wkv7, state: Tensor<4>) -> (Tensor<3>, Tensor<4>) {
    let [batch, time, _] = wkv.value.dims();
    let [_, heads, values, keys] = state.dims();
    let decay = wkv.log_decay.exp();
    let mut s = state;
    let mut outputs = Vec::with_capacity(time);
    for t in 0..time {
        let row = |x: &Tensor<3>| {
            x.clone()
                .slice([0..batch, t..t + 1, 0..heads * keys])
                .reshape([batch, heads, 1, keys])
        };
        let value = wkv
            .value
            .clone()
            .slice([0..batch, t..t + 1, 0..heads * values])
            .reshape([batch, heads, values, 1]);
        let removed = (s.clone() * row(&wkv.removal)).sum_dim(3);
        s = s * row(&decay) + removed * row(&wkv.replacement) + value * row(&wkv.key);
        outputs.push((s.clone() * row(&wkv.receptance)).sum_dim(3).reshape([
            batch,
            1,
            heads * values,
        ]));
    }
    (Tensor::cat(outputs, 1), s)
}
