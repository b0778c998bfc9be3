//! Linear maps as experts, on host memory: a map for every slot (a token's choice of an expert), and for every token the sum of its
//! slots' maps by their gating weights.

use std::sync::Arc;

use burn_flex::FlexTensor;

use super::{Routing, groups::Groups};
use crate::{
    fused::{FusedOperator, Given, Saved, contiguous, dimensions, slice, tensor},
    linear::Group,
    matmul::{Precision, Write},
    stored::Stored,
    weight::Held,
};

/// The options of both operators: the arithmetic of the products, and the layout of slots.
#[derive(Debug)]
pub(super) struct Linear {
    pub routing: Arc<Routing>,
    /// Heads of the rows that slots read and of those that they give.
    pub heads: [usize; 2],
    pub precision: Precision,
    /// Other readers of the rows.
    pub readers: Option<Group>,
    /// The stacked weight, where it is no tensor.
    pub stored: Option<Stored>,
}

impl Linear {
    fn groups(&self) -> Groups<'_> {
        Groups {
            routing: &self.routing,
            precision: self.precision,
        }
    }

    /// Whether `x` has a row for every token and not for every slot.
    fn by_token(&self, x: &FlexTensor) -> bool {
        slice(x).len() != self.routing.chosen().len() * width(x)
    }

    /// Writes the row of `x` that each place reads.
    fn read<'a>(&'a self, x: &'a FlexTensor) -> Box<Write<'a>> {
        let width = width(x);
        match self.by_token(x) {
            true => Box::new(self.groups().of_tokens(slice(x), width)),
            false => Box::new(self.groups().of_slots(slice(x), width, self.heads[0])),
        }
    }

    /// The inverse of [`Linear::read`], with the sum over a token's places where they read the same row.
    fn returned(&self, rows: &[f32], x: &FlexTensor) -> FlexTensor {
        let width = width(x);
        let of_x = match self.by_token(x) {
            true => self.groups().combined(rows, width, None),
            false => self.groups().scattered(rows, width, self.heads[0]),
        };
        tensor(of_x, &dimensions(x))
    }
}

/// Elements of a row.
fn width(x: &FlexTensor) -> usize {
    dimensions(x).last().copied().unwrap_or(0)
}

/// Outputs and inputs.
fn sizes(weight: &Held) -> [usize; 2] {
    let shape = weight.shape();
    [shape[1], shape[2]]
}

/// The operator on rows and the stacked weight.
impl FusedOperator<2> for Linear {
    fn forward(&self, inputs: &[FlexTensor; 2], _: [bool; 2]) -> (FlexTensor, Saved) {
        let (x, weight) = (contiguous(&inputs[0]), Held::new(&inputs[1], &self.stored));
        let [outputs, width] = sizes(&weight);
        let rows = self.read(&x);
        let rows = self.groups().rows(&rows, width);
        let products = self
            .groups()
            .products(rows, |expert| weight.matrix_of(expert).transposed());
        let y = self.groups().scattered(&products, outputs, self.heads[1]);
        (
            tensor(y, &[self.routing.chosen().len(), outputs]),
            Vec::new(),
        )
    }

    fn backward(&self, given: Given<2>, wanted: [bool; 2]) -> [Option<FlexTensor>; 2] {
        let x = contiguous(&given.inputs[0]);
        let weight = Held::new(&given.inputs[1], &self.stored);
        let gradient = contiguous(&given.gradient);
        let (groups, [outputs, width]) = (self.groups(), sizes(&weight));
        let upstream = groups.of_slots(slice(&gradient), outputs, self.heads[1]);
        let upstream = groups.rows(&upstream, outputs);
        let of_weight = wanted[1].then(|| {
            let rows = self.read(&x);
            tensor(
                groups.outer_products(upstream, groups.rows(&rows, width)),
                &weight.shape(),
            )
        });
        let of_x = wanted[0].then(|| {
            let rows = groups.products(upstream, |expert| weight.matrix_of(expert));
            Group::leave(self.readers.as_ref(), self.returned(&rows, &x))
        });
        [of_x.flatten(), of_weight]
    }
}

/// The operator on rows, the stacked weight and the choices' weights, whose outputs are summed for every token.
#[derive(Debug)]
pub(super) struct Sum(pub Linear);

impl FusedOperator<3> for Sum {
    fn forward(&self, inputs: &[FlexTensor; 3], _: [bool; 3]) -> (FlexTensor, Saved) {
        let [x, weight, weights] = inputs.each_ref();
        let [x, weights] = [x, weights].map(contiguous);
        let weight = Held::new(weight, &self.0.stored);
        let (groups, [outputs, width]) = (self.0.groups(), sizes(&weight));
        let rows = self.0.read(&x);
        let products = groups.products(groups.rows(&rows, width), |expert| {
            weight.matrix_of(expert).transposed()
        });
        let y = groups.combined(&products, outputs, Some(slice(&weights)));
        (tensor(y, &[self.0.routing.tokens(), outputs]), Vec::new())
    }

    /// The gradient of a choice's weight is taken before the product, `<g, W x> = <W^T g, x>`, so that no output is kept.
    fn backward(&self, given: Given<3>, wanted: [bool; 3]) -> [Option<FlexTensor>; 3] {
        let [x, weight, weights] = given.inputs.each_ref();
        let [x, weights] = [x, weights].map(contiguous);
        let weight = Held::new(weight, &self.0.stored);
        let gradient = contiguous(&given.gradient);
        let (groups, [outputs, width]) = (self.0.groups(), sizes(&weight));
        let upstream = groups.of_tokens(slice(&gradient), outputs);
        let upstream = groups.rows(&upstream, outputs);
        let mut of_rows = groups.products(upstream, |expert| weight.matrix_of(expert));
        let rows = self.0.read(&x);
        let of_weights = groups.weigh(slice(&weights), &mut of_rows, &rows);
        let of_weight = wanted[1].then(|| {
            let rows = groups.weighted(&rows, slice(&weights));
            tensor(
                groups.outer_products(upstream, groups.rows(&rows, width)),
                &weight.shape(),
            )
        });
        let of_x = wanted[0].then(|| self.0.returned(&of_rows, &x));
        [
            of_x,
            of_weight,
            wanted[2].then(|| tensor(of_weights, &dimensions(&weights))),
        ]
    }
}
