//! Three products on host memory: `y = x W^T`, `dx = dy W`, `dW = dy^T x`; the bias rides along.

use burn_flex::FlexTensor;

use crate::{
    host::{Given, HostOperator, Saved, contiguous, dimensions, slice, tensor},
    matmul::{How, Matrix, Precision, multiplied, product},
};

/// The operator, with and without bias.
#[derive(Debug)]
pub(super) struct Linear(pub Precision);

impl HostOperator<2> for Linear {
    fn forward(&self, [x, weight]: &[FlexTensor; 2], _: [bool; 2]) -> (FlexTensor, Saved) {
        (self.forward(x, weight, None), Vec::new())
    }

    fn backward(&self, given: Given<2>, wanted: [bool; 2]) -> [Option<FlexTensor>; 2] {
        let [x, weight] = &given.inputs;
        self.backward(x, weight, &given.gradient, wanted)
    }
}

impl HostOperator<3> for Linear {
    fn forward(&self, [x, weight, bias]: &[FlexTensor; 3], _: [bool; 3]) -> (FlexTensor, Saved) {
        (self.forward(x, weight, Some(bias)), Vec::new())
    }

    fn backward(&self, given: Given<3>, wanted: [bool; 3]) -> [Option<FlexTensor>; 3] {
        let [x, weight, bias] = &given.inputs;
        let [of_x, of_weight] = self.backward(x, weight, &given.gradient, [wanted[0], wanted[1]]);
        let of_bias =
            wanted[2].then(|| tensor(column_sums(slice(&given.gradient), dimensions(bias)[0]), &dimensions(bias)));
        [of_x, of_weight, of_bias]
    }
}

impl Linear {
    fn forward(&self, x: &FlexTensor, weight: &FlexTensor, bias: Option<&FlexTensor>) -> FlexTensor {
        let (x, weight) = (contiguous(x), contiguous(weight));
        let ([outputs, inputs], mut shape) = (sizes(&weight), dimensions(&x));
        let rows = slice(&x).len() / inputs.max(1);
        let left = Matrix::new(slice(&x), rows, inputs);
        let right = Matrix::new(slice(&weight), outputs, inputs).transposed();
        let y = match bias {
            Some(bias) => {
                let mut y = slice(&contiguous(bias)).repeat(rows);
                product(&mut y, left, right, true, How::all(self.0));
                y
            }
            None => multiplied(left, right, How::all(self.0)),
        };
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
        let [outputs, inputs] = sizes(weight);
        let rows = slice(gradient).len() / outputs.max(1);
        let upstream = Matrix::new(slice(gradient), rows, outputs);
        let of_x = wanted[0].then(|| {
            let weight = contiguous(weight);
            let result = multiplied(upstream, Matrix::new(slice(&weight), outputs, inputs), How::all(self.0));
            tensor(result, &dimensions(x))
        });
        let of_weight = wanted[1].then(|| {
            let x = contiguous(x);
            let result = multiplied(upstream.transposed(), Matrix::new(slice(&x), rows, inputs), How::all(self.0));
            tensor(result, &[outputs, inputs])
        });
        [of_x, of_weight]
    }
}

fn sizes(weight: &FlexTensor) -> [usize; 2] {
    let shape = dimensions(weight);
    [shape[0], shape[1]]
}

/// The sum of all rows.
fn column_sums(values: &[f32], width: usize) -> Vec<f32> {
    let mut sums = vec![0.0; width];
    for row in values.chunks_exact(width.max(1)) {
        sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
    }
    sums
}
