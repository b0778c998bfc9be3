//! Norms in one pass over each row, forward and backward.
//!
//! With `n = (x - mean) inverse` (RMSNorm: no mean), `h = dy weight` and `width` elements a row,
//! `dx = inverse (h - n mean(h n) - mean(h))` (RMSNorm: no last term), `dweight = sum dy n`, `dbias = sum dy`.

use crate::{
    fused::{FusedOperator, Given, Saved, contiguous, dimensions, owned, slice, tensor},
    parallel::{chunk, for_chunks, fresh, zeros},
    simd::{add, dot, sum, vectorised},
};
use burn_flex::FlexTensor;

#[derive(Debug)]
pub(super) struct RmsNorm {
    pub epsilon: f32,
}

#[derive(Debug)]
pub(super) struct LayerNorm {
    pub epsilon: f32,
    /// Equal parts of a row, each normed by itself.
    pub groups: usize,
}

/// Rows that one task takes. Fixed, so that sums over rows do not depend on the number of threads.
pub(super) const ROWS: usize = 64;

impl FusedOperator<2> for RmsNorm {
    fn forward(&self, [x, weight]: &[FlexTensor; 2], _: [bool; 2]) -> (FlexTensor, Saved) {
        forward(x, weight, None, self.epsilon, 1)
    }

    fn backward(&self, given: Given<2>, _: [bool; 2]) -> [Option<FlexTensor>; 2] {
        let [x, weight] = &given.inputs;
        let [of_x, of_weight, _] =
            backward(x, weight, &given.saved[0], &given.gradient, None, None);
        [of_x, of_weight]
    }
}

impl FusedOperator<3> for LayerNorm {
    fn forward(&self, [x, weight, bias]: &[FlexTensor; 3], _: [bool; 3]) -> (FlexTensor, Saved) {
        forward(x, weight, Some(bias), self.epsilon, self.groups)
    }

    fn backward(&self, given: Given<3>, _: [bool; 3]) -> [Option<FlexTensor>; 3] {
        let [x, weight, _] = &given.inputs;
        backward(
            x,
            weight,
            &given.saved[0],
            &given.gradient,
            Some(self.groups),
            None,
        )
    }
}

/// The output, and mean and inverse deviation of every group of every row. A bias makes it LayerNorm.
pub(super) fn forward(
    x: &FlexTensor,
    weight: &FlexTensor,
    bias: Option<&FlexTensor>,
    epsilon: f32,
    groups: usize,
) -> (FlexTensor, Saved) {
    let (x, weight) = (contiguous(x), contiguous(weight));
    let bias = bias.map(contiguous);
    let width = slice(&weight).len().max(1);
    let sizes = [
        (slice(&x).len(), ROWS * width),
        (slice(&x).len() / width * groups * 2, ROWS * groups * 2),
    ];
    let [y, statistics] = fresh(sizes, |i, [y, statistics]| {
        forward_rows(
            y,
            statistics,
            chunk(slice(&x), ROWS * width, i),
            slice(&weight),
            bias.as_ref().map(slice),
            epsilon,
            groups,
        );
    });
    (tensor(y, &dimensions(&x)), vec![statistics])
}

vectorised! {
    pub(super) fn forward_rows(y: &mut [f32], statistics: &mut [f32], x: &[f32], weight: &[f32], bias: Option<&[f32]>, epsilon: f32, groups: usize) {
        let width = weight.len() / groups;
        for (part, statistics) in statistics.chunks_exact_mut(2).enumerate() {
            let (y, x) = (&mut y[part * width..(part + 1) * width], &x[part * width..(part + 1) * width]);
            let group = part % groups * width..(part % groups + 1) * width;
            let weight = &weight[group.clone()];
            let Some(bias) = bias else {
                let inverse = 1.0 / (dot(x, x) / width as f32 + epsilon).sqrt();
                statistics[1] = inverse;
                for i in 0..width {
                    y[i] = x[i] * inverse * weight[i];
                }
                continue;
            };
            let (mean, bias) = (sum(x) / width as f32, &bias[group]);
            for i in 0..width {
                y[i] = x[i] - mean;
            }
            let inverse = 1.0 / (dot(y, y) / width as f32 + epsilon).sqrt();
            statistics.copy_from_slice(&[mean, inverse]);
            for i in 0..width {
                y[i] = y[i] * inverse * weight[i] + bias[i];
            }
        }
    }
}

/// The gradients of rows, weight and bias; the first one is added to `onto` where there is that.
pub(super) fn backward(
    x: &FlexTensor,
    weight: &FlexTensor,
    statistics: &[f32],
    gradient: &FlexTensor,
    // Groups of a LayerNorm; RMSNorm has none.
    centred: Option<usize>,
    onto: Option<FlexTensor>,
) -> [Option<FlexTensor>; 3] {
    let (x, weight) = (contiguous(x), contiguous(weight));
    let (width, groups) = (slice(&weight).len().max(1), centred.unwrap_or(1));
    let (count, size) = (slice(&x).len(), ROWS * width);
    let tasks = count.div_ceil(size);
    let rows = |i: usize, of_x: &mut [f32], partial: &mut [f32], add: bool| {
        let (x, gradient) = (chunk(slice(&x), size, i), chunk(slice(gradient), size, i));
        let statistics = chunk(statistics, ROWS * groups * 2, i);
        backward_rows(
            of_x,
            partial,
            x,
            gradient,
            statistics,
            slice(&weight),
            centred,
            add,
        );
    };
    // Each task's sums for weight and bias, added up in order below.
    let (of_x, partial) = match onto {
        Some(onto) => {
            let (mut of_x, mut partial) = (owned(onto), zeros(tasks * width * 2));
            for_chunks(
                [
                    (&mut of_x.storage_mut::<f32>()[..], size),
                    (&mut partial, width * 2),
                ],
                |i, [of_x, partial]| {
                    rows(i, of_x, partial, true);
                },
            );
            (of_x, partial)
        }
        None => {
            let [of_x, partial] = fresh(
                [(count, size), (tasks * width * 2, width * 2)],
                |i, [of_x, partial]| rows(i, of_x, partial, false),
            );
            (tensor(of_x, &dimensions(&x)), partial)
        }
    };
    let mut sums = vec![0.0; width * 2];
    for partial in partial.chunks_exact(width * 2) {
        add(&mut sums, partial);
    }
    let of_bias = sums.split_off(width);
    let shape = dimensions(&weight);
    let of_bias = centred.map(|_| tensor(of_bias, &shape));
    [Some(of_x), Some(tensor(sums, &shape)), of_bias]
}

vectorised! {
    fn backward_rows(of_x: &mut [f32], partial: &mut [f32], x: &[f32], gradient: &[f32], statistics: &[f32], weight: &[f32], centred: Option<usize>, add: bool) {
        let groups = centred.unwrap_or(1);
        let (all, width) = (weight, weight.len() / groups);
        let (of_weights, of_biases) = partial.split_at_mut(all.len());
        let (mut normed, mut scaled) = (vec![0.0; width], vec![0.0; width]);
        let (normed, scaled) = (&mut normed[..width], &mut scaled[..width]);
        for (part, statistics) in statistics.chunks_exact(2).enumerate() {
            let (mean, inverse, place) = (statistics[0], statistics[1], part * width..(part + 1) * width);
            let (of_x, x, gradient) = (&mut of_x[place.clone()], &x[place.clone()], &gradient[place]);
            let group = part % groups * width..(part % groups + 1) * width;
            let weight = &all[group.clone()];
            let (of_weight, of_bias) = (&mut of_weights[group.clone()], &mut of_biases[group]);
            for i in 0..width {
                normed[i] = (x[i] - mean) * inverse;
                of_weight[i] += gradient[i] * normed[i];
                scaled[i] = gradient[i] * weight[i];
            }
            if centred.is_some() {
                for i in 0..width {
                    of_bias[i] += gradient[i];
                }
            }
            let along = dot(scaled, normed) / width as f32;
            let shift = if centred.is_some() { sum(scaled) / width as f32 } else { 0.0 };
            match add {
                true => for i in 0..width {
                    of_x[i] += inverse * (scaled[i] - normed[i] * along - shift);
                },
                false => for i in 0..width {
                    of_x[i] = inverse * (scaled[i] - normed[i] * along - shift);
                },
            }
        }
    }
}
