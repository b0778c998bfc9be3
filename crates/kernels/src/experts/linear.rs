//! One linear map for every slot, on host memory.

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

/// The operator on rows and the stacked weight.
#[derive(Debug)]
pub(super) struct Linear {
    routing: Arc<Routing>,
    precision: Precision,
}

impl Linear {
    pub fn new(routing: Arc<Routing>, precision: Precision) -> Self {
        Self { routing, precision }
    }

    fn groups(&self) -> Groups<'_> {
        Groups { routing: &self.routing, precision: self.precision }
    }

    /// Whether `x` has a row for every token and not for every slot.
    fn by_token(&self, x: &FlexTensor) -> bool {
        dimensions(x)[0] != self.routing.chosen().len()
    }

    /// The row of `x` that each place reads.
    fn gathered(&self, x: &FlexTensor) -> Vec<f32> {
        let (by_token, active) = (self.by_token(x), self.routing.active());
        let source = |slot| if by_token { slot / active } else { slot };
        self.groups().gathered(slice(x), dimensions(x)[1], source)
    }
}

impl HostOperator<2> for Linear {
    fn forward(&self, inputs: &[FlexTensor; 2], _: [bool; 2]) -> (FlexTensor, Saved) {
        let [x, weight] = inputs.each_ref().map(contiguous);
        let outputs = dimensions(&weight)[1];
        let rows = self.gathered(&x);
        let products = self.groups().products(&rows, outputs, |expert| matrix(&weight, expert).transposed());
        let y = self.groups().scattered(&products, outputs);
        (tensor(y, &[self.routing.chosen().len(), outputs]), Vec::new())
    }

    fn backward(&self, given: Given<2>, wanted: [bool; 2]) -> [Option<FlexTensor>; 2] {
        let [x, weight] = given.inputs.each_ref().map(contiguous);
        let [_, outputs, inputs] = [0, 1, 2].map(|axis| dimensions(&weight)[axis]);
        let upstream = self.groups().gathered(slice(&given.gradient), outputs, |slot| slot);
        let of_weight = wanted[1].then(|| {
            let products = self.groups().outer_products(&upstream, &self.gathered(&x), outputs * inputs);
            tensor(products, &dimensions(&weight))
        });
        let of_x = wanted[0].then(|| {
            let rows = self.groups().products(&upstream, inputs, |expert| matrix(&weight, expert));
            let of_x = match self.by_token(&x) {
                true => self.groups().combined(&rows, inputs, None),
                false => self.groups().scattered(&rows, inputs),
            };
            tensor(of_x, &dimensions(&x))
        });
        [of_x, of_weight]
    }
}
