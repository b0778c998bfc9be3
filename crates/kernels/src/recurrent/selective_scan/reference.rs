//! The definition in Burn operations.

use burn::tensor::{Tensor, activation::softplus};

use super::SelectiveScan;

/// One step after the other; shapes as in [`super::selective_scan`].
pub fn selective_scan(scan: SelectiveScan, state: Tensor<3>) -> (Tensor<3>, Tensor<3>) {
    let ([batch, time, width], [_, states]) = (scan.x.dims(), scan.transition.dims());
    let transition = scan.transition.swap_dims(0, 1).unsqueeze::<3>();
    let biased = match scan.step_bias {
        Some(bias) => scan.step + bias.reshape([1, 1, width]),
        None => scan.step,
    };
    let step = softplus(biased, 1.0);
    let mut h = state;
    let mut outputs = Vec::with_capacity(time);
    for t in 0..time {
        let row = |x: &Tensor<3>| x.clone().slice([0..batch, t..t + 1, 0..width]);
        let each = |x: &Tensor<3>| {
            x.clone()
                .slice([0..batch, t..t + 1, 0..states])
                .swap_dims(1, 2)
        };
        let (x, dt) = (row(&scan.x), row(&step));
        h = (dt.clone() * transition.clone()).exp() * h + each(&scan.input) * (dt * x);
        outputs.push((each(&scan.output) * h.clone()).sum_dim(1));
    }
    let y = Tensor::cat(outputs, 1) + scan.x * scan.skip.reshape([1, 1, width]);
    (y, h)
}
