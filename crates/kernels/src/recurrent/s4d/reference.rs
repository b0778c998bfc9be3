//! The definition in Burn operations.

use burn::tensor::Tensor;

use super::{Modes, S4d};

/// The recurrence step by step; shapes as in [`super::s4d`].
pub fn s4d(s4d: S4d, state: Tensor<3>) -> (Tensor<3>, Tensor<3>) {
    let ([batch, time, width], modes) = (s4d.x.dims(), s4d.real.dims()[0]);
    let Modes { weight, exponent } = Modes::new(&s4d);
    let column = |x: Tensor<2>| x.reshape([1, modes, 1]);
    let size = exponent[0].clone().exp();
    let power = [
        column(size.clone() * exponent[1].clone().cos()),
        column(size * exponent[1].clone().sin()),
    ];
    let weight = weight.map(column);
    let part = |i: usize| {
        state
            .clone()
            .slice([0..batch, i * modes..(i + 1) * modes, 0..width])
    };
    let [mut real, mut imaginary] = [part(0), part(1)];
    let mut outputs = Vec::with_capacity(time);
    for t in 0..time {
        let x = s4d.x.clone().slice([0..batch, t..t + 1, 0..width]);
        let turned = power[1].clone() * real.clone() + power[0].clone() * imaginary.clone();
        real = power[0].clone() * real - power[1].clone() * imaginary + x;
        imaginary = turned;
        outputs.push(
            (weight[0].clone() * real.clone() - weight[1].clone() * imaginary.clone()).sum_dim(1),
        );
    }
    let y = Tensor::cat(outputs, 1) + s4d.x * s4d.skip.reshape([1, 1, 1]);
    (y, Tensor::cat(vec![real, imaginary], 1))
}
