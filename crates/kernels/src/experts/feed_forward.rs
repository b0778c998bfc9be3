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
    parallel::fresh,
};

/// The operator on rows, weights and the two stacked matrices.
#[derive(Debug)]
pub(super) struct FeedForward {
    routing: Arc<Routing>,
    form: Form,
}

/// Rows of a task that works on rows.
const ROWS: usize = 32;

impl FeedForward {
    pub fn new(routing: Arc<Routing>, form: Form) -> Self {
        Self { routing, form }
    }

    fn groups(&self) -> Groups<'_> {
        Groups { routing: &self.routing, precision: self.form.precision }
    }

    /// The token of each place.
    fn gathered(&self, rows: &[f32], width: usize) -> Vec<f32> {
        let active = self.routing.active();
        self.groups().gathered(rows, width, |slot| slot / active)
    }

    /// `activation(gate) * up` or `activation(up)` of every inner row.
    fn activated(&self, inner: &[f32], width: usize) -> Vec<f32> {
        let Form { activation, gated: is_gated, .. } = self.form;
        let wide = if is_gated { 2 * width } else { width };
        let [out] = fresh([(self.routing.order().len() * width, ROWS * width)], |i, [out]| {
            let inner = inner[i * ROWS * wide..].chunks_exact(wide.max(1));
            for (out, inner) in out.chunks_exact_mut(width.max(1)).zip(inner) {
                match is_gated {
                    true => gated(activation, out, &inner[..width], &inner[width..]),
                    false => plain(activation, out, inner),
                }
            }
        });
        out
    }

    /// The gradient of the inner rows from that of the hidden ones.
    fn inner_gradient(&self, inner: &[f32], of_hidden: &[f32], width: usize) -> Vec<f32> {
        let Form { activation, gated: is_gated, .. } = self.form;
        let wide = if is_gated { 2 * width } else { width };
        let [out] = fresh([(inner.len(), ROWS * wide)], |i, [out]| {
            let given = inner[i * ROWS * wide..].chunks_exact(wide.max(1));
            let given = given.zip(of_hidden[i * ROWS * width..].chunks_exact(width.max(1)));
            for (out, (inner, gradient)) in out.chunks_exact_mut(wide.max(1)).zip(given) {
                match is_gated {
                    true => {
                        let (of_gate, of_up) = out.split_at_mut(width);
                        gated_backward(activation, of_gate, of_up, &inner[..width], &inner[width..], gradient);
                    }
                    false => plain_backward(activation, out, inner, gradient),
                }
            }
        });
        out
    }
}

impl HostOperator<4> for FeedForward {
    fn forward(&self, inputs: &[FlexTensor; 4], wanted: [bool; 4]) -> (FlexTensor, Saved) {
        let [x, weights, up, down] = inputs.each_ref().map(contiguous);
        let (width, narrow) = (dimensions(&x)[1], dimensions(&down)[2]);
        let rows = self.gathered(slice(&x), width);
        let inner = self.groups().products(&rows, |expert| matrix(&up, expert).transposed());
        let hidden = self.activated(&inner, narrow);
        let products = self.groups().products(&hidden, |expert| matrix(&down, expert).transposed());
        let y = self.groups().combined(&products, width, Some(slice(&weights)));
        let saved = if wanted.contains(&true) { vec![inner] } else { Vec::new() };
        (tensor(y, &dimensions(&x)), saved)
    }

    fn backward(&self, given: Given<4>, wanted: [bool; 4]) -> [Option<FlexTensor>; 4] {
        let [x, weights, up, down] = given.inputs.each_ref().map(contiguous);
        let (width, narrow) = (dimensions(&x)[1], dimensions(&down)[2]);
        let inner = given.saved.into_iter().next().unwrap_or_default();
        let upstream = self.gathered(slice(&given.gradient), width);
        let mut hidden = self.activated(&inner, narrow);
        let mut of_hidden = self.groups().products(&upstream, |expert| matrix(&down, expert));
        let of_weights = self.groups().weigh(slice(&weights), &mut of_hidden, &mut hidden, narrow);
        let of_down = wanted[3].then(|| tensor(self.groups().outer_products(&upstream, &hidden), &dimensions(&down)));
        let of_inner = self.inner_gradient(&inner, &of_hidden, narrow);
        let of_up = wanted[2].then(|| {
            let rows = self.gathered(slice(&x), width);
            tensor(self.groups().outer_products(&of_inner, &rows), &dimensions(&up))
        });
        let of_x = wanted[0].then(|| {
            let rows = self.groups().products(&of_inner, |expert| matrix(&up, expert));
            tensor(self.groups().combined(&rows, width, None), &dimensions(&x))
        });
        [of_x, wanted[1].then(|| tensor(of_weights, &dimensions(&weights))), of_up, of_down]
    }
}
