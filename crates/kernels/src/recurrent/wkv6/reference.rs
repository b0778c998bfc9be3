//! The definition in Burn operations.

use burn::tensor::Tensor;

use super::Wkv6;

/// One step after the other; shapes as in [`super::wkv6`].
pub fn wkv6(wkv: Wkv6, state: Tensor<4>) -> (Tensor<3>, Tensor<4>) {
    let [batch, time, _] = wkv.value.dims();
    let [_, heads, keys, values] = state.dims();
    let decay = wkv
        .decay
        .exp()
        .neg()
        .exp()
        .expand([batch, time, heads * keys]);
    let bonus = wkv.bonus.reshape([1, heads, keys, 1]);
    let mut s = state;
    let mut outputs = Vec::with_capacity(time);
    for t in 0..time {
        let row = |x: &Tensor<3>| {
            x.clone()
                .slice([0..batch, t..t + 1, 0..heads * keys])
                .reshape([batch, heads, keys, 1])
        };
        let value = wkv
            .value
            .clone()
            .slice([0..batch, t..t + 1, 0..heads * values]);
        let added = row(&wkv.key) * value.reshape([batch, heads, 1, values]);
        let y = (row(&wkv.receptance) * (s.clone() + bonus.clone() * added.clone())).sum_dim(2);
        outputs.push(y.reshape([batch, 1, heads * values]));
        s = row(&decay) * s + added;
    }
    (Tensor::cat(outputs, 1), s)
}
