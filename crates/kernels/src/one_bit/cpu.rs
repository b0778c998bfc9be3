//! The products on host memory, of weights that are trained and of packed ones.

use burn_flex::FlexTensor;

use super::{
    WeightBits,
    dots::{self, Bytes},
    rounding::{self, RoundedRows},
};
use crate::{
    fused::{FusedOperator, Given, Saved, contiguous, dimensions, slice, tensor},
    matmul::{How, Matrix, Precision, multiplied},
    parallel::{chunk, for_chunks, fresh},
    recomputable::Remake,
    stored::{
        Stored,
        ternary::{self, HEAD},
    },
};

/// Whole numbers up to 256 are exact in bf16, which is the faster of the two.
const EXACT: Precision = Precision::Bf16;

/// Rows up to which integer products are faster than expanded codes.
const FEW: usize = 12;

/// Outputs of a task.
const OUTPUTS: usize = 64;

/// A weight that is rounded for every product.
#[derive(Debug)]
pub(super) struct BitLinear {
    pub bits: WeightBits,
    /// The arithmetic of the backward.
    pub precision: Precision,
    /// Recomputes the input, where it is not kept.
    pub remake: Option<Remake>,
}

impl FusedOperator<2> for BitLinear {
    fn forward(&self, [x, weight]: &[FlexTensor; 2], _: [bool; 2]) -> (FlexTensor, Saved) {
        let [outputs, inputs] = size(weight);
        let rows = rounding::rows(slice(&contiguous(x)), inputs);
        let (units, scale) = rounding::weight(self.bits, slice(&contiguous(weight)));
        let units = Matrix::new(&units, outputs, inputs);
        let y = product_of_rows(&rows, units, scale);
        (tensor(y, &with_last(x, outputs)), Vec::new())
    }

    fn keeps_input(&self, input: usize) -> bool {
        input > 0 || self.remake.is_none()
    }

    fn backward(&self, given: Given<2>, wanted: [bool; 2]) -> [Option<FlexTensor>; 2] {
        let [x, weight] = &given.inputs;
        let ([outputs, inputs], how) = (size(weight), How::all(self.precision));
        let gradient = slice(&given.gradient);
        let count = gradient.len() / outputs.max(1);
        let of_x = wanted[0].then(|| {
            let (units, scale) = rounding::weight(self.bits, slice(&contiguous(weight)));
            let upstream = Matrix::new(gradient, count, outputs);
            let mut dx = multiplied(upstream, Matrix::new(&units, outputs, inputs), how);
            scale_rows(&mut dx, inputs, |_| scale);
            tensor(dx, &with_last(&given.gradient, inputs))
        });
        let of_weight = wanted[1].then(|| {
            let x = contiguous(self.remake.as_ref().map_or(x, Remake::get));
            let rows = rounding::rows(slice(&x), inputs);
            let mut upstream = gradient.to_vec();
            scale_rows(&mut upstream, outputs, |row| 1.0 / rows.scales[row]);
            let upstream = Matrix::new(&upstream, count, outputs);
            let dw = multiplied(upstream.transposed(), rows.matrix(inputs), how);
            tensor(dw, &dimensions(weight))
        });
        [of_x, of_weight]
    }
}

/// A packed weight.
#[derive(Debug)]
pub(super) struct PackedLinear {
    /// `[out, in]`.
    pub weight: Stored,
    /// The same without its scale.
    pub units: Stored,
    /// The arithmetic of the backward.
    pub precision: Precision,
}

impl FusedOperator<1> for PackedLinear {
    fn forward(&self, [x]: &[FlexTensor; 1], _: [bool; 1]) -> (FlexTensor, Saved) {
        let (outputs, inputs) = (self.weight.rows(), self.weight.width());
        let rows = rounding::rows(slice(&contiguous(x)), inputs);
        let y = match rows.scales.len() <= FEW {
            true => self.few(&rows, inputs),
            false => {
                let scale = ternary::scale(self.weight.bytes());
                product_of_rows(&rows, self.units.matrix(0..outputs), scale)
            }
        };
        (tensor(y, &with_last(x, outputs)), Vec::new())
    }

    fn keeps_input(&self, _: usize) -> bool {
        false
    }

    fn backward(&self, given: Given<1>, wanted: [bool; 1]) -> [Option<FlexTensor>; 1] {
        let (outputs, inputs) = (self.weight.rows(), self.weight.width());
        [wanted[0].then(|| {
            let gradient = slice(&given.gradient);
            let upstream = Matrix::new(gradient, gradient.len() / outputs.max(1), outputs);
            let how = How::all(self.precision);
            let dx = multiplied(upstream, self.weight.matrix(0..outputs), how);
            tensor(dx, &with_last(&given.gradient, inputs))
        })]
    }
}

impl PackedLinear {
    /// As [`product_of_rows`], in integers, each byte of the weight read once.
    fn few(&self, rows: &RoundedRows, inputs: usize) -> Vec<f32> {
        let values = rows.values.chunks_exact(inputs.max(1));
        let x: Vec<Bytes> = values.map(Bytes::new).collect();
        let (outputs, count, dot) = (self.weight.rows(), x.len(), dots::dot());
        let size = self.weight.format().row_bytes(inputs).unwrap_or(HEAD);
        // One row of inputs after another for each output.
        let sizes = [(outputs * count, OUTPUTS * count.max(1))];
        let [products] = fresh(sizes, |i, [out]| {
            let weights = chunk(self.weight.bytes(), OUTPUTS * size, i).chunks_exact(size);
            for (out, weight) in out.chunks_exact_mut(count).zip(weights) {
                let (scale, codes) = (ternary::scale(weight), weight[HEAD..].as_chunks().0);
                for ((out, x), input) in out.iter_mut().zip(&x).zip(&rows.scales) {
                    *out = (dot(codes, &x.blocks) - x.sum) as f32 * (scale / input);
                }
            }
        });
        match count {
            1 => products,
            _ => (0..outputs * count)
                .map(|i| products[i % outputs * count + i / outputs])
                .collect(),
        }
    }
}

impl RoundedRows {
    fn matrix(&self, width: usize) -> Matrix<'_> {
        Matrix::new(&self.values, self.scales.len(), width)
    }
}

/// The product with units `[out, in]`, times the scales.
fn product_of_rows(rows: &RoundedRows, units: Matrix<'_>, scale: f32) -> Vec<f32> {
    let units = units.transposed();
    let outputs = units.columns();
    let width = rows.values.len() / rows.scales.len().max(1);
    let mut y = multiplied(rows.matrix(width), units, How::all(EXACT));
    scale_rows(&mut y, outputs, |row| scale / rows.scales[row]);
    y
}

/// Multiplies each row by a factor.
fn scale_rows(values: &mut [f32], width: usize, factor: impl Fn(usize) -> f32 + Sync) {
    const ROWS: usize = 64;
    let width = width.max(1);
    for_chunks([(values, ROWS * width)], |i, [rows]| {
        for (row, values) in rows.chunks_exact_mut(width).enumerate() {
            let factor = factor(i * ROWS + row);
            values.iter_mut().for_each(|value| *value *= factor);
        }
    });
}

/// Outputs and inputs of a weight.
fn size(weight: &FlexTensor) -> [usize; 2] {
    let shape = dimensions(weight);
    [shape[0], shape[1]]
}

/// The shape with another last axis.
fn with_last(x: &FlexTensor, last: usize) -> Vec<usize> {
    let mut shape = dimensions(x);
    if let Some(axis) = shape.last_mut() {
        *axis = last;
    }
    shape
}
