//! The definition in Burn operations.

use burn::tensor::Tensor;

use super::Wkv4;

/// One step after the other; shapes as in [`super::wkv4`]. The common exponents cancel, so that they need no gradient.
pub fn wkv4(wkv: Wkv4, state: Tensor<3>) -> (Tensor<3>, Tensor<3>) {
    let [batch, time, width] = wkv.value.dims();
    let part = |i: usize| state.clone().slice([0..batch, i..i + 1, 0..width]);
    let [mut a, mut b, mut p] = [part(0), part(1), part(2)];
    let w = wkv.decay.exp().neg().reshape([1, 1, width]);
    let u = wkv.bonus.reshape([1, 1, width]);
    let mut outputs = Vec::with_capacity(time);
    for t in 0..time {
        let row = |x: &Tensor<3>| x.clone().slice([0..batch, t..t + 1, 0..width]);
        let (k, v) = (row(&wkv.key), row(&wkv.value));
        let weights = |before: Tensor<3>, now: Tensor<3>| {
            let largest = before.clone().max_pair(now.clone()).detach();
            (
                (before - largest.clone()).exp(),
                (now - largest.clone()).exp(),
                largest,
            )
        };
        let (before, now, _) = weights(p.clone(), k.clone() + u.clone());
        outputs.push(
            (before.clone() * a.clone() + now.clone() * v.clone()) / (before * b.clone() + now),
        );
        let (before, now, largest) = weights(p + w.clone(), k);
        (a, b, p) = (
            before.clone() * a + now.clone() * v,
            before * b + now,
            largest,
        );
    }
    (Tensor::cat(outputs, 1), Tensor::cat(vec![a, b, p], 1))
}
