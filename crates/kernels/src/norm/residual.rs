//! The residual stream and its norm, which the next mixer reads, as one operator with two outputs in one pass over memory.
//!
//! The backward adds the norm's gradient contribution to the residual stream's in the same pass; as two operators, Burn would add
//! them in another pass on one thread. Shapes: `[.., width]`.

use burn::tensor::Tensor;
use burn_flex::FlexTensor;

use super::cpu::{self, ROWS};
use crate::{
    fused::{self, FusedOperator, Given, Outputs, Saved, contiguous, dimensions, slice, tensor},
    parallel::{chunk, fresh, piece},
    recomputable::Recomputable,
    simd::sums,
};

/// `x` itself, and `x / sqrt(mean(x^2) + epsilon) * weight`.
///
/// `x`: any shape `[.., width]`, `weight`: `[width]`. The norm is recomputed from `x` in the backward.
pub fn rms_norm_beside<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<1>,
    epsilon: f64,
) -> (Tensor<D>, Recomputable<D>) {
    if !fused::on_host(&x) {
        return (x.clone(), super::rms_norm(x, weight, epsilon).into());
    }
    let operator = Residual::new(1, epsilon);
    let outputs = operator.outputs.clone();
    let node: Tensor<D> = fused::two(x, weight.clone(), operator);
    parts(&outputs, &node, [&weight], epsilon)
}

/// `x` itself, and `(x - mean) / sqrt(var + epsilon) * weight + bias`.
///
/// `x`: any shape `[.., width]`, `weight` and `bias`: `[width]`. The norm is recomputed from `x` in the backward.
pub fn layer_norm_beside<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<1>,
    bias: Tensor<1>,
    epsilon: f64,
) -> (Tensor<D>, Recomputable<D>) {
    if !fused::on_host(&x) {
        return (
            x.clone(),
            super::layer_norm(x, weight, bias, epsilon).into(),
        );
    }
    let operator = Residual::new(1, epsilon);
    let outputs = operator.outputs.clone();
    let node: Tensor<D> = fused::three(x, weight.clone(), bias.clone(), Centred(operator));
    parts(&outputs, &node, [&weight, &bias], epsilon)
}

/// `s = x + y`, and `s / sqrt(mean(s^2) + epsilon) * weight`.
///
/// `x`, `y`: any shape `[.., width]`, `weight`: `[width]`. The norm is recomputed from the sum in the backward.
pub fn add_rms_norm<const D: usize>(
    x: Tensor<D>,
    y: Tensor<D>,
    weight: Tensor<1>,
    epsilon: f64,
) -> (Tensor<D>, Recomputable<D>) {
    if !fused::on_host(&x) {
        let sum = x + y;
        return (sum.clone(), super::rms_norm(sum, weight, epsilon).into());
    }
    let operator = Residual::new(2, epsilon);
    let outputs = operator.outputs.clone();
    let node: Tensor<D> = fused::three(x, y, weight.clone(), operator);
    parts(&outputs, &node, [&weight], epsilon)
}

/// `s = x + y`, and `(s - mean) / sqrt(var + epsilon) * weight + bias`.
///
/// `x`, `y`: any shape `[.., width]`, `weight` and `bias`: `[width]`. The norm is recomputed from the sum in the backward.
pub fn add_layer_norm<const D: usize>(
    x: Tensor<D>,
    y: Tensor<D>,
    weight: Tensor<1>,
    bias: Tensor<1>,
    epsilon: f64,
) -> (Tensor<D>, Recomputable<D>) {
    if !fused::on_host(&x) {
        let sum = x + y;
        return (
            sum.clone(),
            super::layer_norm(sum, weight, bias, epsilon).into(),
        );
    }
    let operator = Residual::new(2, epsilon);
    let outputs = operator.outputs.clone();
    let node: Tensor<D> = fused::four(x, y, weight.clone(), bias.clone(), Centred(operator));
    parts(&outputs, &node, [&weight, &bias], epsilon)
}

/// `x + y`, on all threads. `x`, `y`: the same shape.
pub fn add<const D: usize>(x: Tensor<D>, y: Tensor<D>) -> Tensor<D> {
    match fused::on_host(&x) {
        true => fused::two(x, y, Add),
        false => x + y,
    }
}

fn parts<const D: usize, const N: usize>(
    outputs: &Outputs<2>,
    node: &Tensor<D>,
    factors: [&Tensor<1>; N],
    epsilon: f64,
) -> (Tensor<D>, Recomputable<D>) {
    let (sum, normed): (Tensor<D>, Tensor<D>) = (outputs.output(0, node), outputs.output(1, node));
    let normed = super::remade(normed, &sum, factors, epsilon);
    (sum, normed)
}

/// One or two summands, and the weight: their sum, which is also the node's value, and its RMSNorm.
#[derive(Debug)]
struct Residual {
    outputs: Outputs<2>,
    summands: usize,
    epsilon: f32,
}

/// The same with a bias, and LayerNorm.
#[derive(Debug)]
struct Centred(Residual);

impl Residual {
    fn new(summands: usize, epsilon: f64) -> Self {
        Self {
            outputs: Outputs::default(),
            summands,
            epsilon: epsilon as f32,
        }
    }

    fn run(&self, inputs: &[FlexTensor], bias: Option<&FlexTensor>) -> (FlexTensor, Saved) {
        let weight = &inputs[self.summands];
        let (sum, normed, saved) = match &inputs[..self.summands] {
            [x, y] => self.summed(&contiguous(x), &contiguous(y), &contiguous(weight), bias),
            _ => {
                let x = contiguous(&inputs[0]);
                let (normed, saved) = cpu::forward(&x, weight, bias, self.epsilon, 1);
                (x, normed, saved)
            }
        };
        self.outputs.put([sum.clone(), normed]);
        (sum, saved)
    }

    fn summed(
        &self,
        x: &FlexTensor,
        y: &FlexTensor,
        weight: &FlexTensor,
        bias: Option<&FlexTensor>,
    ) -> (FlexTensor, FlexTensor, Saved) {
        let bias = bias.map(contiguous);
        let (count, width) = (slice(x).len(), slice(weight).len().max(1));
        let size = ROWS * width;
        let sizes = [(count, size), (count, size), (count / width * 2, ROWS * 2)];
        let [sum, normed, statistics] = fresh(sizes, |i, [sum, normed, statistics]| {
            sums(sum, chunk(slice(x), size, i), chunk(slice(y), size, i));
            cpu::forward_rows(
                normed,
                statistics,
                sum,
                slice(weight),
                bias.as_ref().map(slice),
                self.epsilon,
                1,
            );
        });
        let shape = dimensions(x);
        (
            tensor(sum, &shape),
            tensor(normed, &shape),
            vec![statistics],
        )
    }

    /// The gradients of the sum, the weight and the bias.
    fn gradients(
        &self,
        sum: Option<&FlexTensor>,
        weight: &FlexTensor,
        saved: &Saved,
        is_centred: bool,
    ) -> [Option<FlexTensor>; 3] {
        match (self.outputs.gradients(), sum, saved.first()) {
            ([of_sum, Some(of_norm)], Some(sum), Some(statistics)) => cpu::backward(
                sum,
                weight,
                statistics,
                &of_norm,
                is_centred.then_some(1),
                of_sum,
            ),
            ([of_sum, _], ..) => [of_sum, None, None],
        }
    }
}

impl FusedOperator<2> for Residual {
    fn forward(&self, inputs: &[FlexTensor; 2], _: [bool; 2]) -> (FlexTensor, Saved) {
        self.run(inputs, None)
    }

    fn backward(&self, given: Given<2>, _: [bool; 2]) -> [Option<FlexTensor>; 2] {
        let [x, weight] = &given.inputs;
        let [of_x, of_weight, _] = self.gradients(Some(x), weight, &given.saved, false);
        [of_x, of_weight]
    }
}

impl FusedOperator<3> for Centred {
    fn forward(&self, inputs: &[FlexTensor; 3], _: [bool; 3]) -> (FlexTensor, Saved) {
        self.0.run(inputs, Some(&inputs[2]))
    }

    fn backward(&self, given: Given<3>, _: [bool; 3]) -> [Option<FlexTensor>; 3] {
        let [x, weight, _] = &given.inputs;
        self.0.gradients(Some(x), weight, &given.saved, true)
    }
}

impl FusedOperator<3> for Residual {
    fn forward(&self, inputs: &[FlexTensor; 3], _: [bool; 3]) -> (FlexTensor, Saved) {
        self.run(inputs, None)
    }

    fn keeps_output(&self) -> bool {
        true
    }

    fn keeps_input(&self, input: usize) -> bool {
        input == 2
    }

    fn backward(&self, given: Given<3>, _: [bool; 3]) -> [Option<FlexTensor>; 3] {
        let [of_sum, of_weight, _] =
            self.gradients(given.output.as_ref(), &given.inputs[2], &given.saved, false);
        [of_sum.clone(), of_sum, of_weight]
    }
}

impl FusedOperator<4> for Centred {
    fn forward(&self, inputs: &[FlexTensor; 4], _: [bool; 4]) -> (FlexTensor, Saved) {
        self.0.run(inputs, Some(&inputs[3]))
    }

    fn keeps_output(&self) -> bool {
        true
    }

    fn keeps_input(&self, input: usize) -> bool {
        input == 2
    }

    fn backward(&self, given: Given<4>, _: [bool; 4]) -> [Option<FlexTensor>; 4] {
        let [of_sum, of_weight, of_bias] =
            self.0
                .gradients(given.output.as_ref(), &given.inputs[2], &given.saved, true);
        [of_sum.clone(), of_sum, of_weight, of_bias]
    }
}

/// The plain sum.
#[derive(Debug)]
struct Add;

impl FusedOperator<2> for Add {
    fn forward(&self, [x, y]: &[FlexTensor; 2], _: [bool; 2]) -> (FlexTensor, Saved) {
        let (x, y) = (contiguous(x), contiguous(y));
        let size = piece(slice(&x).len());
        let [sum] = fresh([(slice(&x).len(), size)], |i, [sum]| {
            sums(sum, chunk(slice(&x), size, i), chunk(slice(&y), size, i));
        });
        (tensor(sum, &dimensions(&x)), Vec::new())
    }

    fn keeps_input(&self, _: usize) -> bool {
        false
    }

    fn backward(&self, given: Given<2>, _: [bool; 2]) -> [Option<FlexTensor>; 2] {
        [Some(given.gradient.clone()), Some(given.gradient)]
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
            let both = |(sum, normed): (Tensor<2>, Recomputable<2>)| (sum * 0.5 + normed.into_tensor()).reshape([-1]);
            agree(&shapes[..3], 1e-5, |t| both(add_rms_norm(t[0].get(), t[1].get(), t[2].get(), 1e-3)), |t| {
                let sum = t[0].get::<2>() + t[1].get();
                both((sum.clone(), reference::rms_norm(sum, t[2].get(), 1e-3).into()))
            });
            let beside = [&[rows, width][..], &[width], &[width]];
            agree(&beside[..2], 1e-5, |t| both(rms_norm_beside(t[0].get(), t[1].get(), 1e-3)), |t| {
                both((t[0].get(), reference::rms_norm(t[0].get(), t[1].get(), 1e-3).into()))
            });
            agree(&beside, 1e-5, |t| both(layer_norm_beside(t[0].get(), t[1].get(), t[2].get(), 1e-3)), |t| {
                both((t[0].get(), reference::layer_norm(t[0].get(), t[1].get(), t[2].get(), 1e-3).into()))
            });
            agree(&shapes, 1e-5, |t| both(add_layer_norm(t[0].get(), t[1].get(), t[2].get(), t[3].get(), 1e-3)), |t| {
                let sum = t[0].get::<2>() + t[1].get();
                both((sum.clone(), reference::layer_norm(sum, t[2].get(), t[3].get(), 1e-3).into()))
            });
        }
    }

    #[test]
    fn either_output_may_go_unused() {
        let shapes: [&[usize]; 2] = [&[70, 5], &[5]];
        agree(
            &shapes,
            1e-5,
            |t| {
                rms_norm_beside(t[0].get::<2>(), t[1].get(), 1e-3)
                    .1
                    .into_tensor()
                    .reshape([-1])
            },
            |t| reference::rms_norm(t[0].get::<2>(), t[1].get(), 1e-3).reshape([-1]),
        );
        let sum = |t: &[crate::testing::Leaf]| {
            add_rms_norm(
                t[0].get::<2>(),
                t[1].get(),
                Tensor::ones([5], &burn::tensor::Device::flex()),
                1e-3,
            )
            .0
        };
        agree(
            &[&[70, 5], &[70, 5]],
            0.0,
            |t| sum(t).reshape([-1]),
            |t| (t[0].get::<2>() + t[1].get()).reshape([-1]),
        );
        agree(
            &[&[70, 5], &[70, 5]],
            0.0,
            |t| add(t[0].get::<2>(), t[1].get()).reshape([-1]),
            |t| (t[0].get::<2>() + t[1].get()).reshape([-1]),
        );
    }
}
