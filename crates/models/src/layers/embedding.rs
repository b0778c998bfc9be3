//! The table of tokens, `[vocabulary, width]`, and what adapters do to it.

use burn::tensor::Tensor;
use espalier_kernels::{
    embedding::embedding,
    linear::{Precision, linear},
    weight::Weight,
};

use crate::{
    adapter::{attachments::Attachments, table::TableAdapter},
    layers::linear::{LinearMap, LinearMapMut},
    parameter::{Parameter, Parameters},
};

/// A row for every token, which a head may share.
#[derive(Debug, Clone)]
pub struct Embedding {
    /// `[vocabulary, width]`.
    pub weight: Parameter,
    /// What adapters do to it, by their names.
    pub adapters: Attachments<TableAdapter>,
}

impl Embedding {
    /// A table that no adapter changes.
    pub fn new(weight: Parameter) -> Self {
        Self {
            weight,
            adapters: Attachments::default(),
        }
    }

    /// The width of a row.
    pub fn width(&self) -> usize {
        self.weight.shape()[1]
    }

    /// The rows of tokens as the active adapters change them, `[ids, width]`. Ids are within the vocabulary.
    pub fn rows(&self, ids: &[u32]) -> Tensor<2> {
        let rows = embedding(self.weight.weight::<2>(), ids);
        self.adapters
            .active()
            .fold(rows, |rows, adapter| adapter.changed(rows, ids))
    }

    /// The whole table as the active adapters change it, `[vocabulary, width]`: what a head that shares it multiplies by.
    pub fn table(&self) -> Weight<2> {
        if !self.adapters.is_active() {
            return self.weight.weight();
        }
        let ids: Vec<u32> = (0..self.weight.shape()[0] as u32).collect();
        let adapters = self.adapters.active();
        Weight::Tensor(adapters.fold(self.weight.value(), |rows, adapter| {
            adapter.changed(rows, &ids)
        }))
    }

    /// What the table gives as a head, `[.., width]` to `[.., vocabulary]`: the product with the table as the active adapters change it,
    /// which is not made, for a token that is decoded needs no more than a row of it.
    pub fn logits<const D: usize>(&self, hidden: Tensor<D>, precision: Precision) -> Tensor<D> {
        if !self.adapters.is_active() {
            return linear(hidden, self.weight.weight(), None, precision);
        }
        let (mut shape, width) = (hidden.dims(), self.width());
        let count = shape.iter().product::<usize>() / width.max(1);
        let states = hidden.reshape([count, width]);
        let product = linear(states.clone(), self.weight.weight::<2>(), None, precision);
        let change = |logits, adapter: &TableAdapter| adapter.logits(logits, &states, precision);
        let logits = self.adapters.active().fold(product, change);
        shape[D - 1] = self.weight.shape()[0];
        logits.reshape(shape)
    }

    /// Puts what the active adapters do into the table, in f32, and removes them.
    pub fn merge(&mut self) {
        if !self.adapters.is_active() {
            return;
        }
        if let Weight::Tensor(table) = self.table() {
            let count = self.weight.len();
            self.weight.set_flat(table.reshape([count]));
        }
        self.adapters.detach_active();
    }
}

impl Parameters for Embedding {
    fn visit<'a>(&'a self, visitor: &mut dyn FnMut(&'a Parameter)) {
        self.weight.visit(visitor);
        self.adapters.visit(visitor);
    }

    fn visit_mut(&mut self, visitor: &mut dyn FnMut(&mut Parameter)) {
        self.weight.visit_mut(visitor);
        self.adapters.visit_mut(visitor);
    }

    fn visit_linears_mut(&mut self, _: &mut dyn FnMut(LinearMapMut<'_>)) {}

    fn visit_linears<'a>(&'a self, _: &mut dyn FnMut(LinearMap<'a>)) {}
}
