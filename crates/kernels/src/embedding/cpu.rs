//! The gather of rows, and its gradient: a scatter that adds in the order of the ids, so that sums are reproducible.

use burn_flex::FlexTensor;

use crate::{
    fused::{FusedOperator, Given, Saved, contiguous, dimensions, slice, tensor},
    parallel::{chunk, fresh, zeros},
    simd::add,
};

#[derive(Debug)]
pub(super) struct Embedding {
    pub ids: Vec<u32>,
}

/// Rows that one task gathers.
const ROWS: usize = 64;

impl FusedOperator<1> for Embedding {
    fn forward(&self, [table]: &[FlexTensor; 1], _: [bool; 1]) -> (FlexTensor, Saved) {
        let (table, width) = (contiguous(table), dimensions(table)[1]);
        let rows = slice(&table);
        let [gathered] = fresh([(self.ids.len() * width, ROWS * width)], |i, [gathered]| {
            for (row, id) in gathered
                .chunks_exact_mut(width.max(1))
                .zip(chunk(&self.ids, ROWS, i))
            {
                row.copy_from_slice(&rows[*id as usize * width..(*id as usize + 1) * width]);
            }
        });
        (tensor(gathered, &[self.ids.len(), width]), Vec::new())
    }

    fn backward(&self, given: Given<1>, _: [bool; 1]) -> [Option<FlexTensor>; 1] {
        let shape = dimensions(&given.inputs[0]);
        let width = shape[1];
        let mut of_table = zeros(shape[0] * width);
        for (id, gradient) in self
            .ids
            .iter()
            .zip(slice(&given.gradient).chunks_exact(width.max(1)))
        {
            let row = &mut of_table[*id as usize * width..(*id as usize + 1) * width];
            add(row, gradient);
        }
        [Some(tensor(of_table, &shape))]
    }
}
