//! Three products on host memory: `y = x W^T`, `dx = dy W`, `dW = dy^T x`; the bias rides along.

use super::{
    bias::column_sums,
    group::{Factor, Group, Rows},
};
use crate::{
    fused::{FusedOperator, Given, Saved, contiguous, dimensions, slice, tensor},
    matmul::{How, Matrix, Precision, multiplied, sum_of_products, tall_product},
    parallel::for_chunks,
    recomputable::Remake,
    stored::Stored,
    weight::Held,
};
use burn_flex::FlexTensor;

/// The operator, with and without bias.
#[derive(Debug)]
pub(super) struct Linear {
    pub precision: Precision,
    pub group: Group,
    /// Recomputes the input, where it is not kept.
    pub remake: Option<Remake>,
    /// The weight, where it is no tensor.
    pub stored: Option<Stored>,
}

/// Outputs of a map so narrow that the gradient of its weight takes less arithmetic than reading, as a router's.
const NARROW: usize = 16;

impl FusedOperator<2> for Linear {
    fn forward(&self, [x, weight]: &[FlexTensor; 2], _: [bool; 2]) -> (FlexTensor, Saved) {
        (self.forward(x, weight, None), Vec::new())
    }

    fn keeps_input(&self, input: usize) -> bool {
        input > 0 || self.remake.is_none()
    }

    fn backward(&self, given: Given<2>, wanted: [bool; 2]) -> [Option<FlexTensor>; 2] {
        let [x, weight] = &given.inputs;
        self.backward(x, weight, &given.gradient, wanted)
    }
}

impl FusedOperator<3> for Linear {
    fn forward(&self, [x, weight, bias]: &[FlexTensor; 3], _: [bool; 3]) -> (FlexTensor, Saved) {
        (self.forward(x, weight, Some(bias)), Vec::new())
    }

    fn keeps_input(&self, input: usize) -> bool {
        input > 0 || self.remake.is_none()
    }

    fn backward(&self, given: Given<3>, wanted: [bool; 3]) -> [Option<FlexTensor>; 3] {
        let [x, weight, bias] = &given.inputs;
        let [of_x, of_weight] = self.backward(x, weight, &given.gradient, [wanted[0], wanted[1]]);
        let of_bias = wanted[2].then(|| {
            tensor(
                column_sums(slice(&given.gradient), dimensions(bias)[0]),
                &dimensions(bias),
            )
        });
        [of_x, of_weight, of_bias]
    }
}

impl Linear {
    fn forward(
        &self,
        x: &FlexTensor,
        weight: &FlexTensor,
        bias: Option<&FlexTensor>,
    ) -> FlexTensor {
        let rows = self.group.input(x, self.precision);
        let weight = Held::new(weight, &self.stored);
        let right = weight.matrix().transposed();
        let mut y = sum_of_products(&[(rows.left(), right)], How::all(self.precision));
        let (mut shape, outputs) = (dimensions(x), weight.shape()[0]);
        if let Some(bias) = bias {
            let bias = contiguous(bias);
            for_chunks([(&mut y, 64 * outputs)], |_, [rows]| {
                for row in rows.chunks_exact_mut(outputs.max(1)) {
                    row.iter_mut()
                        .zip(slice(&bias))
                        .for_each(|(y, bias)| *y += bias);
                }
            });
        }
        if let Some(last) = shape.last_mut() {
            *last = outputs;
        }
        tensor(y, &shape)
    }

    fn backward(
        &self,
        x: &FlexTensor,
        weight: &FlexTensor,
        gradient: &FlexTensor,
        wanted: [bool; 2],
    ) -> [Option<FlexTensor>; 2] {
        let of_weight = wanted[1].then(|| {
            let x = self.remake.as_ref().map_or(x, Remake::get);
            let (x, upstream) = (Rows::plain(x), Rows::plain(gradient));
            let (upstream, x) = (upstream.matrix(), x.matrix());
            let products = match upstream.columns() <= NARROW {
                true => tall_product(upstream, x, self.precision),
                false => multiplied(upstream.transposed(), x, How::all(self.precision)),
            };
            tensor(products, &dimensions(weight))
        });
        let of_x = wanted[0].then(|| {
            let (upstream, precision) = (Rows::plain(gradient), self.precision);
            let weight = Held::new(weight, &self.stored);
            let shape = input_shape(gradient, &weight);
            self.group.gradient(
                vec![Factor {
                    upstream,
                    weight,
                    precision,
                }],
                &shape,
            )
        });
        [of_x.flatten(), of_weight]
    }
}

/// The shape of the input, from the gradient of the output and the weight `[out, in]`.
pub(super) fn input_shape(gradient: &FlexTensor, weight: &Held) -> Vec<usize> {
    let mut shape = dimensions(gradient);
    if let Some(last) = shape.last_mut() {
        *last = weight.shape()[1];
    }
    shape
}

/// A tensor of two axes.
pub(super) fn matrix(weight: &FlexTensor) -> Matrix<'_> {
    let shape = dimensions(weight);
    Matrix::new(slice(weight), shape[0], shape[1])
}
