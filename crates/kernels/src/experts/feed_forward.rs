//! Feed-forward experts on host memory, forward and backward in one operator.
//!
//! The backward keeps the inner rows before the activation and recomputes the rest. The gradient of a choice's weight is
//! taken before the last product, `<g, W h> = <W^T g, h>`, so that the experts' outputs are not kept.

use std::sync::Arc;

use burn_flex::FlexTensor;

use super::{Form, Routing, groups::Groups};
use crate::{
    activation::cpu::{gated, gated_backward, plain, plain_backward},
    fused::{FusedOperator, Given, Saved, contiguous, dimensions, slice, tensor},
    linear::Group,
    matmul::{Matrix, scratch},
    parallel::for_chunks,
    simd::{dot, scaled, vectorised},
    stored::Stored,
    weight::Held,
};

/// The operator on rows, weights and the two stacked matrices.
#[derive(Debug)]
pub(super) struct FeedForward {
    pub routing: Arc<Routing>,
    pub form: Form,
    /// Other readers of the rows.
    pub readers: Option<Group>,
    /// The two matrices, where they are no tensors.
    pub stored: [Option<Stored>; 2],
}

/// Rows of a task that works on rows.
const ROWS: usize = 32;

impl FeedForward {
    /// The two matrices.
    fn held(&self, [up, down]: [&FlexTensor; 2]) -> [Held; 2] {
        let [stored_up, stored_down] = &self.stored;
        [Held::new(up, stored_up), Held::new(down, stored_down)]
    }

    fn groups(&self) -> Groups<'_> {
        Groups {
            routing: &self.routing,
            precision: self.form.precision,
        }
    }

    /// Elements of an inner row whose hidden one has `width`.
    fn inner_width(&self, width: usize) -> usize {
        if self.form.gated { 2 * width } else { width }
    }

    /// Writes `activation(gate) * up` or `activation(up)` of each inner row.
    fn hidden<'a>(
        &'a self,
        inner: &'a [f32],
        width: usize,
    ) -> impl Fn(usize, usize, &mut [f32]) + Sync + 'a {
        let wide = self.inner_width(width);
        move |place, first, out| self.activate(&inner[place * wide..(place + 1) * wide], first, out)
    }

    /// The hidden row of an inner row, from a column on.
    fn activate(&self, inner: &[f32], first: usize, out: &mut [f32]) {
        let (
            Form {
                activation,
                gated: is_gated,
                ..
            },
            columns,
        ) = (self.form, first..first + out.len());
        match is_gated {
            true => {
                let (gate, up) = inner.split_at(inner.len() / 2);
                gated(activation, out, &gate[columns.clone()], &up[columns]);
            }
            false => plain(activation, out, &inner[columns]),
        }
    }

    /// The gradient of an inner row.
    fn activate_backward(&self, of_inner: &mut [f32], inner: &[f32], gradient: &[f32]) {
        let Form {
            activation,
            gated: is_gated,
            ..
        } = self.form;
        match is_gated {
            true => {
                let ((gate, up), (of_gate, of_up)) = (
                    inner.split_at(inner.len() / 2),
                    of_inner.split_at_mut(inner.len() / 2),
                );
                gated_backward(activation, of_gate, of_up, gate, up, gradient);
            }
            false => plain_backward(activation, of_inner, inner, gradient),
        }
    }

    /// The gradient of every slot's weight. The inner rows give way to their gradients, and what is in `hidden`, the gradient of the
    /// hidden rows without their weights, to the hidden rows times their weights.
    fn inner_gradient(
        &self,
        inner: &mut [f32],
        hidden: &mut [f32],
        weights: &[f32],
        width: usize,
    ) -> Vec<f32> {
        let (order, wide) = (self.routing.order(), self.inner_width(width));
        let mut by_place = vec![0.0; order.len()];
        let chunks = [
            (&mut by_place[..], ROWS),
            (inner, ROWS * wide),
            (hidden, ROWS * width),
        ];
        for_chunks(chunks, |i, [sums, inner, hidden]| {
            scratch::parts([wide, width], |[row, gradient]| {
                let rows = inner
                    .chunks_exact_mut(wide.max(1))
                    .zip(hidden.chunks_exact_mut(width.max(1)));
                for ((sum, (inner, hidden)), place) in sums.iter_mut().zip(rows).zip(i * ROWS..) {
                    let weight = weights[order[place] as usize];
                    row.copy_from_slice(inner);
                    scaled(gradient, hidden, weight);
                    self.activate_backward(inner, row, gradient);
                    self.activate(row, 0, gradient);
                    *sum = replaced(hidden, gradient, weight);
                }
            });
        });
        self.groups().by_slot(&by_place)
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

impl FusedOperator<4> for FeedForward {
    fn forward(&self, inputs: &[FlexTensor; 4], wanted: [bool; 4]) -> (FlexTensor, Saved) {
        let [x, weights, up, down] = inputs.each_ref();
        let ([up, down], [x, weights]) = (self.held([up, down]), [x, weights].map(contiguous));
        let (groups, width, narrow) = (self.groups(), dimensions(&x)[1], down.shape()[2]);
        let rows = groups.of_tokens(slice(&x), width);
        let inner = groups.products(groups.rows(&rows, width), |expert| {
            up.matrix_of(expert).transposed()
        });
        let hidden = self.hidden(&inner, narrow);
        let products = groups.products(groups.rows(&hidden, narrow), |expert| {
            down.matrix_of(expert).transposed()
        });
        let y = groups.combined(&products, width, Some(slice(&weights)));
        drop(hidden);
        let saved = if wanted.contains(&true) {
            vec![inner]
        } else {
            Vec::new()
        };
        (tensor(y, &dimensions(&x)), saved)
    }

    fn backward(&self, given: Given<4>, wanted: [bool; 4]) -> [Option<FlexTensor>; 4] {
        let [x, weights, up, down] = given.inputs.each_ref();
        let ([up, down], [x, weights]) = (self.held([up, down]), [x, weights].map(contiguous));
        let gradient = contiguous(&given.gradient);
        let (groups, width, narrow) = (self.groups(), dimensions(&x)[1], down.shape()[2]);
        let mut inner = given.saved.into_iter().next().unwrap_or_default();
        let upstream = groups.of_tokens(slice(&gradient), width);
        let upstream = groups.rows(&upstream, width);
        let mut hidden = groups.products(upstream, |expert| down.matrix_of(expert));
        let of_weights = self.inner_gradient(&mut inner, &mut hidden, slice(&weights), narrow);
        let places = self.routing.order().len();
        let of_down = wanted[3].then(|| {
            let hidden = Matrix::new(&hidden, places, narrow);
            tensor(groups.outer_products(upstream, hidden), &down.shape())
        });
        let of_inner = Matrix::new(&inner, places, self.inner_width(narrow));
        let of_up = wanted[2].then(|| {
            let rows = groups.of_tokens(slice(&x), width);
            tensor(
                groups.outer_products(of_inner, groups.rows(&rows, width)),
                &up.shape(),
            )
        });
        let of_x = wanted[0].then(|| {
            let rows = groups.products(of_inner, |expert| up.matrix_of(expert));
            Group::leave(
                self.readers.as_ref(),
                tensor(groups.combined(&rows, width, None), &dimensions(&x)),
            )
        });
        [
            of_x.flatten(),
            wanted[1].then(|| tensor(of_weights, &dimensions(&weights))),
            of_up,
            of_down,
        ]
    }
}
