//! One linear map for every slot, and the weighted sum of such maps for every token, on host memory.

use std::sync::Arc;

use burn_flex::FlexTensor;

use super::{
    Routing,
    groups::{Groups, matrix},
};
use crate::{
    host::{Given, HostOperator, Saved, contiguous, dimensions, slice, tensor},
    matmul::Precision,
};

/// What both operators share: how rows are multiplied, and how slots lie.
#[derive(Debug)]
pub(super) struct Linear {
    pub routing: Arc<Routing>,
    /// Heads of the rows that slots read and of those that they give.
    pub heads: [usize; 2],
    pub precision: Precision,
}

impl Linear {
    fn groups(&self) -> Groups<'_> {
        Groups { routing: &self.routing, precision: self.precision }
    }

    /// Whether `x` has a row for every token and not for every slot.
    fn by_token(&self, x: &FlexTensor) -> bool {
        dimensions(x)[0] != self.routing.chosen().len()
    }

    /// The row of `x` that each place reads.
    fn read(&self, x: &FlexTensor) -> Vec<f32> {
        let (width, active) = (dimensions(x)[1], self.routing.active());
        match self.by_token(x) {
            true => self.groups().gathered(slice(x), width, |slot| slot / active),
            false => self.groups().collected(slice(x), width, self.heads[0]),
        }
    }

    /// The inverse of [`Linear::read`], with the sum over a token's places where they read the same row.
    fn returned(&self, rows: &[f32], x: &FlexTensor) -> FlexTensor {
        let width = dimensions(x)[1];
        let of_x = match self.by_token(x) {
            true => self.groups().combined(rows, width, None),
            false => self.groups().scattered(rows, width, self.heads[0]),
        };
        tensor(of_x, &dimensions(x))
    }
}

/// The operator on rows and the stacked weight.
impl HostOperator<2> for Linear {
    fn forward(&self, inputs: &[FlexTensor; 2], _: [bool; 2]) -> (FlexTensor, Saved) {
        let [x, weight] = inputs.each_ref().map(contiguous);
        let outputs = dimensions(&weight)[1];
        let products = self.groups().products(&self.read(&x), |expert| matrix(&weight, expert).transposed());
        let y = self.groups().scattered(&products, outputs, self.heads[1]);
        (tensor(y, &[self.routing.chosen().len(), outputs]), Vec::new())
    }

    fn backward(&self, given: Given<2>, wanted: [bool; 2]) -> [Option<FlexTensor>; 2] {
        let [x, weight] = given.inputs.each_ref().map(contiguous);
        let gradient = contiguous(&given.gradient);
        let upstream = self.groups().collected(slice(&gradient), dimensions(&weight)[1], self.heads[1]);
        let of_weight =
            wanted[1].then(|| tensor(self.groups().outer_products(&upstream, &self.read(&x)), &dimensions(&weight)));
        let of_x = wanted[0].then(|| {
            let rows = self.groups().products(&upstream, |expert| matrix(&weight, expert));
            self.returned(&rows, &x)
        });
        [of_x, of_weight]
    }
}

/// The operator on rows, the stacked weight and the choices' weights, whose outputs are summed for every token.
#[derive(Debug)]
pub(super) struct Sum(pub Linear);

impl HostOperator<3> for Sum {
    fn forward(&self, inputs: &[FlexTensor; 3], _: [bool; 3]) -> (FlexTensor, Saved) {
        let [x, weight, weights] = inputs.each_ref().map(contiguous);
        let (groups, outputs) = (self.0.groups(), dimensions(&weight)[1]);
        let products = groups.products(&self.0.read(&x), |expert| matrix(&weight, expert).transposed());
        let y = groups.combined(&products, outputs, Some(slice(&weights)));
        (tensor(y, &[self.0.routing.tokens(), outputs]), Vec::new())
    }

    /// The gradient of a choice's weight is taken before the product, `<g, W x> = <W^T g, x>`, so that no output is kept.
    fn backward(&self, given: Given<3>, wanted: [bool; 3]) -> [Option<FlexTensor>; 3] {
        let [x, weight, weights] = given.inputs.each_ref().map(contiguous);
        let gradient = contiguous(&given.gradient);
        let (groups, active) = (self.0.groups(), self.0.routing.active());
        let upstream = groups.gathered(slice(&gradient), dimensions(&weight)[1], |slot| slot / active);
        let mut of_rows = groups.products(&upstream, |expert| matrix(&weight, expert));
        let mut rows = self.0.read(&x);
        let of_weights = groups.weigh(slice(&weights), &mut of_rows, &mut rows, dimensions(&weight)[2]);
        let of_weight = wanted[1].then(|| tensor(groups.outer_products(&upstream, &rows), &dimensions(&weight)));
        let of_x = wanted[0].then(|| self.0.returned(&of_rows, &x));
        [of_x, of_weight, wanted[2].then(|| tensor(of_weights, &dimensions(&weights)))]
    }
}
