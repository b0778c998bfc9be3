//! The rotation in one pass; its gradient is the rotation by the opposite angles.

use std::sync::Arc;

use super::Tables;
use crate::{
    fused::{FusedOperator, Given, Saved, contiguous, dimensions, slice, tensor},
    parallel::{chunk, fresh},
    simd::vectorised,
};
use burn_flex::FlexTensor;

#[derive(Debug)]
pub(super) struct Rotate(pub Arc<Tables>);

impl FusedOperator<1> for Rotate {
    fn forward(&self, [x]: &[FlexTensor; 1], _: [bool; 1]) -> (FlexTensor, Saved) {
        (rotate(x, &self.0, 1.0), Vec::new())
    }

    fn backward(&self, given: Given<1>, _: [bool; 1]) -> [Option<FlexTensor>; 1] {
        [Some(rotate(&given.gradient, &self.0, -1.0))]
    }
}

/// Tokens of a task.
const TOKENS: usize = 64;

fn rotate(x: &FlexTensor, tables: &Tables, direction: f32) -> FlexTensor {
    let (x, shape) = (contiguous(x), dimensions(x));
    let (width, token) = (shape[3], (shape[2] * shape[3]).max(1));
    let (half, period) = (tables.half, tables.batch * tables.time);
    let [y] = fresh([(slice(&x).len(), TOKENS * token)], |task, [y]| {
        let x = chunk(slice(&x), TOKENS * token, task);
        for (i, (y, x)) in y
            .chunks_exact_mut(token)
            .zip(x.chunks_exact(token))
            .enumerate()
        {
            let row = (task * TOKENS + i) % period * half;
            let (cosine, sine) = (
                &tables.cosine[row..row + half],
                &tables.sine[row..row + half],
            );
            match tables.interleaved {
                true => rotate_pairs(y, x, cosine, sine, width, direction),
                false => rotate_token(y, x, cosine, sine, width, direction),
            }
        }
    });
    tensor(y, &shape)
}

vectorised! {
    fn rotate_token(y: &mut [f32], x: &[f32], cosine: &[f32], sine: &[f32], width: usize, direction: f32) {
        let half = cosine.len();
        for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
            let ((y_low, y_rest), (x_low, x_rest)) = (y.split_at_mut(half), x.split_at(half));
            let ((y_high, y_rest), (x_high, x_rest)) = (y_rest.split_at_mut(half), x_rest.split_at(half));
            for i in 0..half {
                let sine = sine[i] * direction;
                y_low[i] = x_low[i] * cosine[i] - x_high[i] * sine;
                y_high[i] = x_high[i] * cosine[i] + x_low[i] * sine;
            }
            y_rest.copy_from_slice(x_rest);
        }
    }
}

vectorised! {
    /// As [`rotate_token`], for neighbouring channels.
    fn rotate_pairs(y: &mut [f32], x: &[f32], cosine: &[f32], sine: &[f32], width: usize, direction: f32) {
        let half = cosine.len();
        for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
            let ((y, y_rest), (x, x_rest)) = (y.split_at_mut(2 * half), x.split_at(2 * half));
            for i in 0..half {
                let sine = sine[i] * direction;
                y[2 * i] = x[2 * i] * cosine[i] - x[2 * i + 1] * sine;
                y[2 * i + 1] = x[2 * i + 1] * cosine[i] + x[2 * i] * sine;
            }
            y_rest.copy_from_slice(x_rest);
        }
    }
}
