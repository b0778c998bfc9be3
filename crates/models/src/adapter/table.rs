//! What an adapter does to the table of tokens: a low-rank addition, or rows of some tokens in place of the base's.
//!
//! LoRA's `A` starts at zero here and `B` at random, for `A` is looked up: `e(t) + s B A[:, t]` (PEFT's `lora_embedding_A` and `_B`). Rows that
//! are trained (PEFT's `trainable_token_indices`) start as the base's. A head that is the embedding has either too, unless the adapter says otherwise.

use std::collections::HashMap;

use burn::tensor::{Bool, Tensor, TensorData};
use espalier_kernels::{
    embedding::embedding,
    linear::{Precision, linear},
};

use super::linear_adapter::{LinearAdapter, LinearPass, LinearWeights};
use crate::{
    Result,
    layers::linear::{LinearMap, LinearMapMut},
    parameter::{Parameter, Parameters},
};

/// The part of an adapter at the table of tokens.
#[derive(Debug, Clone)]
pub enum TableAdapter {
    /// Something is added to every row.
    LowRank(Box<LowRankTable>),
    /// Some rows are others.
    Rows(Box<TokenRows>),
}

impl TableAdapter {
    /// The rows of `ids` `[ids, width]` as the adapter changes them.
    pub fn changed(&self, rows: Tensor<2>, ids: &[u32]) -> Tensor<2> {
        match self {
            Self::LowRank(own) => rows + own.addition(ids),
            Self::Rows(own) => own.replaced(rows, ids),
        }
    }

    /// The logits `[rows, vocabulary]` that a head gives of `states` `[rows, width]`, as the adapter changes them at a head that is the table.
    pub fn logits(&self, logits: Tensor<2>, states: &Tensor<2>, precision: Precision) -> Tensor<2> {
        match self {
            Self::LowRank(own) => logits + own.added_logits(states),
            Self::Rows(own) => logits.clone() + own.difference(states.clone(), logits, precision),
        }
    }

    /// Multiplies what it adds by a weight; says whether it can.
    pub fn weigh(&mut self, weight: f64) -> bool {
        match self {
            Self::LowRank(own) => {
                own.scale *= weight;
                true
            }
            Self::Rows(_) => weight == 1.0,
        }
    }
}

impl Parameters for TableAdapter {
    fn visit<'a>(&'a self, visitor: &mut dyn FnMut(&'a Parameter)) {
        match self {
            Self::LowRank(own) => [&own.down, &own.up].into_iter().for_each(visitor),
            Self::Rows(own) => visitor(&own.rows),
        }
    }

    fn visit_mut(&mut self, visitor: &mut dyn FnMut(&mut Parameter)) {
        match self {
            Self::LowRank(own) => {
                let LowRankTable { down, up, .. } = own.as_mut();
                [down, up].into_iter().for_each(visitor);
            }
            Self::Rows(own) => visitor(&mut own.rows),
        }
    }

    fn visit_linears_mut(&mut self, _: &mut dyn FnMut(LinearMapMut<'_>)) {}

    fn visit_linears<'a>(&'a self, _: &mut dyn FnMut(LinearMap<'a>)) {}
}

/// `scale A^T B^T` beside a table.
#[derive(Debug, Clone)]
pub struct LowRankTable {
    /// `A` transposed, `[vocabulary, rank]`.
    pub down: Parameter,
    /// `B`, `[width, rank]`.
    pub up: Parameter,
    /// `alpha / rank`, or `alpha / sqrt(rank)` for rsLoRA.
    pub scale: f64,
}

impl LowRankTable {
    /// The rank of the addition.
    pub fn rank(&self) -> usize {
        self.down.shape()[1]
    }

    /// What is added to the rows of `ids`, `[ids, width]`.
    fn addition(&self, ids: &[u32]) -> Tensor<2> {
        let narrow = embedding(self.down.value::<2>(), ids) * self.scale;
        linear(narrow, self.up.value::<2>(), None, Precision::F32)
    }
}

impl LowRankTable {
    /// What is added to the logits of `states` `[rows, width]`, `[rows, vocabulary]`.
    fn added_logits(&self, states: &Tensor<2>) -> Tensor<2> {
        let up = self.up.value::<2>().transpose();
        let narrow = linear(states.clone(), up, None, Precision::F32) * self.scale;
        linear(narrow, self.down.value::<2>(), None, Precision::F32)
    }
}

/// Rows of some tokens, in place of the base's. At the table they are looked up, at a head of its own they are multiplied by.
#[derive(Debug, Clone)]
pub struct TokenRows {
    /// Whose they are, each once.
    pub ids: Vec<u32>,
    /// `[ids, width]`.
    pub rows: Parameter,
}

impl TokenRows {
    /// For each of `ids` the place of its row, 0 where it has none, and which have one.
    fn places(&self, ids: &[u32]) -> (Vec<u32>, Vec<bool>) {
        let places: HashMap<u32, u32> = self.ids.iter().copied().zip(0..).collect();
        let place = |id: &u32| {
            let found = places.get(id).copied();
            (found.unwrap_or(0), found.is_some())
        };
        ids.iter().map(place).unzip()
    }

    /// `rows` of `ids` with its own where it has them, `[ids, width]`.
    fn replaced(&self, rows: Tensor<2>, ids: &[u32]) -> Tensor<2> {
        let (places, own) = self.places(ids);
        if !own.contains(&true) {
            return rows;
        }
        let looked_up = embedding(self.rows.value::<2>(), &places);
        let [count, width] = rows.dims();
        let own = Tensor::<2, Bool>::from_data(TensorData::new(own, [count, 1]), &rows.device());
        rows.mask_where(own.expand([count, width]), looked_up)
    }
}

impl TokenRows {
    /// What its tokens' logits of `states` `[rows, width]` have more than those of the base, `product` `[rows, vocabulary]`.
    fn difference(&self, states: Tensor<2>, product: Tensor<2>, precision: Precision) -> Tensor<2> {
        let [count, vocabulary] = product.dims();
        let own = linear(states, self.rows.value::<2>(), None, precision);
        let all: Vec<u32> = (0..vocabulary as u32).collect();
        let (places, is_own) = self.places(&all);
        let device = product.device();
        let is_own =
            Tensor::<2, Bool>::from_data(TensorData::new(is_own, [1, vocabulary]), &device);
        // Each token's logits as a row, so that they are looked up as rows of a table are.
        let spread = embedding(own.transpose(), &places).transpose();
        let difference = spread - product;
        difference.mask_fill(is_own.bool_not().expand([count, vocabulary]), 0.0)
    }
}

impl LinearAdapter for TokenRows {
    /// The logits of its tokens are others, `[rows, vocabulary]`.
    fn addition(&self, pass: &LinearPass<'_>) -> Tensor<2> {
        self.difference(pass.input.clone(), pass.product.clone(), pass.precision)
    }

    fn merge(&self, base: &LinearWeights) -> Result<LinearWeights> {
        let all: Vec<u32> = (0..base.weight.dims()[0] as u32).collect();
        let weight = self.replaced(base.weight.clone(), &all).inner() - base.weight.clone();
        Ok(LinearWeights { weight, bias: None })
    }

    fn parameters(&self) -> Vec<&Parameter> {
        vec![&self.rows]
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        vec![&mut self.rows]
    }

    fn token_rows(&self) -> Option<&TokenRows> {
        Some(self)
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use espalier_kernels::readback::ReadFloats;

    use super::*;
    use crate::layers::{embedding::Embedding, linear::Linear};

    fn parameter(name: &str, shape: [usize; 2], values: &[f32]) -> Parameter {
        let flat = Tensor::from_floats(values, &Device::flex());
        Parameter::new(name, shape.to_vec(), flat)
    }

    fn table() -> Embedding {
        Embedding::new(parameter("e", [3, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))
    }

    fn rows() -> TokenRows {
        TokenRows {
            ids: vec![2, 0],
            rows: parameter("r", [2, 2], &[-1.0, -2.0, 7.0, 8.0]),
        }
    }

    fn floats(tensor: Tensor<2>) -> Vec<f32> {
        let count = tensor.dims().iter().product::<usize>();
        tensor.reshape([count]).floats()
    }

    #[test]
    fn some_rows_are_others_where_they_are_looked_up_and_merged() {
        let mut table = table();
        table
            .adapters
            .attach("default", TableAdapter::Rows(Box::new(rows())));
        let expected = [-1.0, -2.0, 3.0, 4.0, 7.0, 8.0, -1.0, -2.0];
        assert_eq!(floats(table.rows(&[2, 1, 0, 2])), expected);
        assert_eq!(floats(table.rows(&[1])), [3.0, 4.0]);
        table.merge();
        assert_eq!(table.weight.to_vec(), [7.0, 8.0, 3.0, 4.0, -1.0, -2.0]);
        assert!(!table.adapters.is_active());
    }

    #[test]
    fn a_low_rank_addition_is_that_of_the_definition() {
        let mut table = table();
        // A = [[1, 0, 2]], B = [[3], [4]]: what is added to token t is 0.5 A[t] B.
        let low_rank = LowRankTable {
            down: parameter("a", [3, 1], &[1.0, 0.0, 2.0]),
            up: parameter("b", [2, 1], &[3.0, 4.0]),
            scale: 0.5,
        };
        table
            .adapters
            .attach("default", TableAdapter::LowRank(Box::new(low_rank)));
        assert_eq!(floats(table.rows(&[0, 1])), [2.5, 4.0, 3.0, 4.0]);
        table.merge();
        assert_eq!(table.weight.to_vec(), [2.5, 4.0, 3.0, 4.0, 8.0, 10.0]);
    }

    #[test]
    fn logits_are_those_of_the_changed_table() {
        let low_rank = LowRankTable {
            down: parameter("a", [3, 1], &[1.0, 0.0, 2.0]),
            up: parameter("b", [2, 1], &[3.0, 4.0]),
            scale: 0.5,
        };
        let mut table = table();
        for (name, own) in [
            ("first", TableAdapter::LowRank(Box::new(low_rank))),
            ("second", TableAdapter::Rows(Box::new(rows()))),
        ] {
            table.adapters.attach(name, own);
            let x = Tensor::<3>::from_floats([[[1.0, 1.0]], [[0.5, -2.0]]], &Device::flex());
            let logits = table.logits(x.clone(), Precision::F32);
            assert_eq!(logits.dims(), [2, 1, 3]);
            let expected = linear(x, table.table(), None, Precision::F32);
            assert_eq!(logits.into_data(), expected.into_data(), "{name}");
        }
    }

    #[test]
    fn logits_of_some_tokens_are_those_of_their_rows() {
        let weight = parameter("w", [3, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let mut head = Linear::from_weight("head", weight, Precision::F32);
        head.adapters.attach("default", Box::new(rows()));
        let x = Tensor::<2>::from_floats([[1.0, 1.0], [0.0, 2.0]], &Device::flex());
        let expected = [15.0, 7.0, -3.0, 16.0, 8.0, -4.0];
        assert_eq!(floats(head.forward(x.clone())), expected);
        head.visit_linears_mut(&mut |map| map.merge().unwrap());
        assert_eq!(floats(head.forward(x)), expected);
    }
}
