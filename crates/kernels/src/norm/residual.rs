//! A residual sum and the norm of it in one pass over memory.

use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::Tensor;
use burn_flex::FlexTensor;

use super::cpu::{self, ROWS};
use crate::{
    host::{self, Given, HostOperator, Saved, contiguous, dimensions, slice, tensor},
    parallel::{chunk, fresh},
    simd::vectorised,
    transient::{Transient, values},
};

/// `s = x + y`, and `s / sqrt(mean(s^2) + epsilon) * weight`.
///
/// `x`, `y`: any shape `[.., width]`, `weight`: `[width]`. The norm is made again from the sum in the backward.
pub fn add_rms_norm<const D: usize>(
    x: Tensor<D>,
    y: Tensor<D>,
    weight: Tensor<1>,
    epsilon: f64,
) -> (Tensor<D>, Transient<D>) {
    if !host::on_host(&x) {
        let sum = x + y;
        return (sum.clone(), super::rms_norm(sum, weight, epsilon).into());
    }
    let (add, norm) = operators(&weight, None, epsilon);
    let sum: Tensor<D> = host::two(x, y, add);
    let normed = host::two(sum.clone(), weight.clone(), norm);
    let normed = super::remade(normed, &sum, [&weight], epsilon);
    (sum, normed)
}

/// `s = x + y`, and `(s - mean) / sqrt(var + epsilon) * weight + bias`.
///
/// `x`, `y`: any shape `[.., width]`, `weight` and `bias`: `[width]`. The norm is made again from the sum in the backward.
pub fn add_layer_norm<const D: usize>(
    x: Tensor<D>,
    y: Tensor<D>,
    weight: Tensor<1>,
    bias: Tensor<1>,
    epsilon: f64,
) -> (Tensor<D>, Transient<D>) {
    if !host::on_host(&x) {
        let sum = x + y;
        return (sum.clone(), super::layer_norm(sum, weight, bias, epsilon).into());
    }
    let (add, norm) = operators(&weight, Some(&bias), epsilon);
    let sum: Tensor<D> = host::two(x, y, add);
    let normed = host::three(sum.clone(), weight.clone(), bias.clone(), norm);
    let normed = super::remade(normed, &sum, [&weight, &bias], epsilon);
    (sum, normed)
}

/// What the sum leaves for the norm: its output, and the statistics of its rows.
type Prepared = Arc<Mutex<Option<(Vec<f32>, Vec<f32>)>>>;

/// The sum, which computes the norm on the way.
#[derive(Debug)]
struct Add {
    weight: FlexTensor,
    bias: Option<FlexTensor>,
    epsilon: f32,
    prepared: Prepared,
}

/// The norm, which was computed with the sum.
#[derive(Debug)]
struct Norm {
    epsilon: f32,
    prepared: Prepared,
}

fn operators(weight: &Tensor<1>, bias: Option<&Tensor<1>>, epsilon: f64) -> (Add, Norm) {
    let (epsilon, prepared) = (epsilon as f32, Prepared::default());
    let add = Add { weight: values(weight), bias: bias.map(values), epsilon, prepared: prepared.clone() };
    (add, Norm { epsilon, prepared })
}

impl HostOperator<2> for Add {
    fn forward(&self, [x, y]: &[FlexTensor; 2], _: [bool; 2]) -> (FlexTensor, Saved) {
        let (x, y) = (contiguous(x), contiguous(y));
        let (count, width) = (slice(&x).len(), slice(&self.weight).len().max(1));
        let size = ROWS * width;
        let sizes = [(count, size), (count, size), (count / width * 2, ROWS * 2)];
        let [sum, normed, statistics] = fresh(sizes, |i, [sum, normed, statistics]| {
            add(sum, chunk(slice(&x), size, i), chunk(slice(&y), size, i));
            let bias = self.bias.as_ref().map(slice);
            cpu::forward_rows(normed, statistics, sum, slice(&self.weight), bias, self.epsilon, 1);
        });
        *self.prepared.lock().unwrap_or_else(PoisonError::into_inner) = Some((normed, statistics));
        (tensor(sum, &dimensions(&x)), Vec::new())
    }

    fn backward(&self, given: Given<2>, _: [bool; 2]) -> [Option<FlexTensor>; 2] {
        [Some(given.gradient.clone()), Some(given.gradient)]
    }
}

vectorised! {
    fn add(sum: &mut [f32], x: &[f32], y: &[f32]) {
        sum.iter_mut().zip(x).zip(y).for_each(|((sum, x), y)| *sum = x + y);
    }
}

impl Norm {
    fn take(&self, x: &FlexTensor, weight: &FlexTensor, bias: Option<&FlexTensor>) -> (FlexTensor, Saved) {
        match self.prepared.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some((normed, statistics)) => (tensor(normed, &dimensions(x)), vec![statistics]),
            None => cpu::forward(x, weight, bias, self.epsilon, 1),
        }
    }
}

impl HostOperator<2> for Norm {
    fn forward(&self, [x, weight]: &[FlexTensor; 2], _: [bool; 2]) -> (FlexTensor, Saved) {
        self.take(x, weight, None)
    }

    fn backward(&self, given: Given<2>, wanted: [bool; 2]) -> [Option<FlexTensor>; 2] {
        cpu::RmsNorm { epsilon: self.epsilon }.backward(given, wanted)
    }
}

impl HostOperator<3> for Norm {
    fn forward(&self, [x, weight, bias]: &[FlexTensor; 3], _: [bool; 3]) -> (FlexTensor, Saved) {
        self.take(x, weight, Some(bias))
    }

    fn backward(&self, given: Given<3>, wanted: [bool; 3]) -> [Option<FlexTensor>; 3] {
        cpu::LayerNorm { epsilon: self.epsilon, groups: 1 }.backward(given, wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{norm::reference, testing::agree};
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn agree_with_a_sum_and_a_norm(rows in 1usize..150, width in 2usize..90) {
            let shapes: [&[usize]; 4] = [&[rows, width], &[rows, width], &[width], &[width]];
            let both = |(sum, normed): (Tensor<2>, Transient<2>)| (sum * 0.5 + normed.into_tensor()).reshape([-1]);
            agree(&shapes[..3], 1e-5, |t| both(add_rms_norm(t[0].get(), t[1].get(), t[2].get(), 1e-3)), |t| {
                let sum = t[0].get::<2>() + t[1].get();
                both((sum.clone(), reference::rms_norm(sum, t[2].get(), 1e-3).into()))
            });
            agree(&shapes, 1e-5, |t| both(add_layer_norm(t[0].get(), t[1].get(), t[2].get(), t[3].get(), 1e-3)), |t| {
                let sum = t[0].get::<2>() + t[1].get();
                both((sum.clone(), reference::layer_norm(sum, t[2].get(), t[3].get(), 1e-3).into()))
            });
        }
    }
}
