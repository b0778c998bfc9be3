//! Feed-forward experts on host memory, forward and backward in one operator.
//!
//! The backward keeps the inner rows before the activation and makes the rest again. The gradient of a choice's weight is
//! taken before the last product, `<g, W h> = <W^T g, h>`, so that the experts' outputs are not kept.

use std::sync::Arc;

use burn_flex::FlexTensor;

use super::{
    Form, Routing,
    groups::{Groups, matrix},
};
use crate::{
    activation::cpu::{gated, gated_backward, plain, plain_backward},
    host::{Given, HostOperator, Saved, contiguous, dimensions, slice, tensor},
    linear::Group,
    matmul::{Matrix, scratch},
    parallel::{DisjointRows, fresh},
    simd::{dot, scaled, vectorised},
};

/// The operator on rows, weights and the two stacked matrices.
#[derive(Debug)]
pub(super) struct FeedForward {
    routing: Arc<Routing>,
    form: Form,
    /// Other readers of the rows.
    readers: Option<Group>,
}

/// Rows of a task that works on rows.
const ROWS: usize = 32;

impl FeedForward {
    pub fn new(routing: Arc<Routing>, form: Form, readers: Option<Group>) -> Self {
        Self { routing, form, readers }
    }

    fn groups(&self) -> Groups<'_> {
        Groups { routing: &self.routing, precision: self.form.precision }
    }

    /// Elements of an inner row whose hidden one has `width`.
    fn inner_width(&self, width: usize) -> usize {
        if self.form.gated { 2 * width } else { width }
    }

    /// Writes `activation(gate) * up` or `activation(up)` of each inner row.
    fn hidden<'a>(&self, inner: &'a [f32], width: usize) -> impl Fn(usize, usize, &mut [f32]) + Sync + 'a {
        let (Form { activation, gated: is_gated, .. }, wide) = (self.form, self.inner_width(width));
        move |place, first, out| {
            let row = &inner[place * wide..(place + 1) * wide];
            let columns = first..first + out.len();
            match is_gated {
                true => gated(activation, out, &row[columns.clone()], &row[width..][columns]),
                false => plain(activation, out, &row[columns]),
            }
        }
    }

    /// The gradients of every slot's weight and of the inner rows. What is in `hidden`, the gradient of the hidden rows without
    /// their weights, gives way to the hidden rows times their weights.
    fn inner_gradient(&self, inner: &[f32], hidden: &mut [f32], weights: &[f32], width: usize) -> (Vec<f32>, Vec<f32>) {
        let (Form { activation, gated: is_gated, .. }, wide) = (self.form, self.inner_width(width));
        let (order, again) = (self.routing.order(), self.hidden(inner, width));
        let one = |place: usize, out: &mut [f32], hidden: &mut [f32], gradient: &mut [f32]| {
            let weight = weights[order[place] as usize];
            scaled(gradient, hidden, weight);
            let inner = &inner[place * wide..(place + 1) * wide];
            match is_gated {
                true => {
                    let (of_gate, of_up) = out.split_at_mut(width);
                    gated_backward(activation, of_gate, of_up, &inner[..width], &inner[width..], gradient);
                }
                false => plain_backward(activation, out, inner, gradient),
            }
            again(place, 0, gradient);
            replaced(hidden, gradient, weight)
        };
        let rows = DisjointRows::new(hidden, width);
        let [by_place, of_inner] = fresh([(order.len(), ROWS), (inner.len(), ROWS * wide)], |i, [sums, out]| {
            scratch::with(width, |gradient| {
                for ((sum, out), place) in sums.iter_mut().zip(out.chunks_exact_mut(wide.max(1))).zip(i * ROWS..) {
                    #[allow(unsafe_code)]
                    // SAFETY: every place comes once.
                    let hidden = unsafe { rows.row(place) };
                    *sum = one(place, out, hidden, gradient);
                }
            });
        });
        (self.groups().by_slot(&by_place), of_inner)
    }
}

vectorised! {
    /// The product of both rows; the first one becomes the second one times `factor`.
    fn replaced(row: &mut [f32], by: &[f32], factor: f32) -> f32 {
        let product = dot(row, by);
        row.iter_mut().zip(by).for_each(|(value, by)| *value = factor * by);
        product
    }
}

impl HostOperator<4> for FeedForward {
    fn forward(&self, inputs: &[FlexTensor; 4], wanted: [bool; 4]) -> (FlexTensor, Saved) {
        let [x, weights, up, down] = inputs.each_ref().map(contiguous);
        let (groups, width, narrow) = (self.groups(), dimensions(&x)[1], dimensions(&down)[2]);
        let rows = groups.of_tokens(slice(&x), width);
        let inner = groups.products(groups.rows(&rows, width), |expert| matrix(&up, expert).transposed());
        let hidden = self.hidden(&inner, narrow);
        let products = groups.products(groups.rows(&hidden, narrow), |expert| matrix(&down, expert).transposed());
        let y = groups.combined(&products, width, Some(slice(&weights)));
        drop(hidden);
        let saved = if wanted.contains(&true) { vec![inner] } else { Vec::new() };
        (tensor(y, &dimensions(&x)), saved)
    }

    fn backward(&self, given: Given<4>, wanted: [bool; 4]) -> [Option<FlexTensor>; 4] {
        let [x, weights, up, down] = given.inputs.each_ref().map(contiguous);
        let gradient = contiguous(&given.gradient);
        let (groups, width, narrow) = (self.groups(), dimensions(&x)[1], dimensions(&down)[2]);
        let inner = given.saved.into_iter().next().unwrap_or_default();
        let upstream = groups.of_tokens(slice(&gradient), width);
        let upstream = groups.rows(&upstream, width);
        let mut hidden = groups.products(upstream, |expert| matrix(&down, expert));
        let (of_weights, of_inner) = self.inner_gradient(&inner, &mut hidden, slice(&weights), narrow);
        let places = self.routing.order().len();
        let of_down = wanted[3].then(|| {
            let hidden = Matrix::new(&hidden, places, narrow);
            tensor(groups.outer_products(upstream, hidden), &dimensions(&down))
        });
        let of_inner = Matrix::new(&of_inner, places, self.inner_width(narrow));
        let of_up = wanted[2].then(|| {
            let rows = groups.of_tokens(slice(&x), width);
            tensor(groups.outer_products(of_inner, groups.rows(&rows, width)), &dimensions(&up))
        });
        let of_x = wanted[0].then(|| {
            let rows = groups.products(of_inner, |expert| matrix(&up, expert));
            Group::leave(self.readers.as_ref(), tensor(groups.combined(&rows, width, None), &dimensions(&x)))
        });
        [of_x.flatten(), wanted[1].then(|| tensor(of_weights, &dimensions(&weights))), of_up, of_down]
    }
}
