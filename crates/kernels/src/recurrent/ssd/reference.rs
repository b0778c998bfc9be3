//! The definition in Burn operations.

use burn::tensor::Tensor;

use super::Ssd;

/// One step after the other; shapes as in [`super::ssd`].
pub fn ssd(ssd: Ssd, state: Tensor<4>) -> (Tensor<3>, Tensor<4>) {
    let [batch, time, _] = ssd.x.dims();
    let [_, heads, width, states] = state.dims();
    let groups = ssd.groups;
    let transition = ssd.transition.reshape([1, heads, 1, 1]);
    let skip = ssd.skip.reshape([1, heads, 1, 1]);
    let mut s = state;
    let mut outputs = Vec::with_capacity(time);
    for t in 0..time {
        let x = ssd
            .x
            .clone()
            .slice([0..batch, t..t + 1, 0..heads * width])
            .reshape([batch, heads, width, 1]);
        let dt = ssd
            .step
            .clone()
            .slice([0..batch, t..t + 1, 0..heads])
            .reshape([batch, heads, 1, 1]);
        let shared = |table: &Tensor<3>| {
            let row = table
                .clone()
                .slice([0..batch, t..t + 1, 0..groups * states])
                .reshape([batch, groups, 1, states]);
            row.repeat_dim(2, heads / groups)
                .reshape([batch, heads, 1, states])
        };
        s = (dt.clone() * transition.clone()).exp() * s + dt * x.clone() * shared(&ssd.input);
        let y = (s.clone() * shared(&ssd.output)).sum_dim(3) + x * skip.clone();
        outputs.push(y.reshape([batch, 1, heads * width]));
    }
    (Tensor::cat(outputs, 1), s)
}
