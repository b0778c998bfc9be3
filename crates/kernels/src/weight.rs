//! The weight of a linear map or a table: a tensor, which may be trained, or [`Stored`] rows, which are read and never changed.

use burn::tensor::{Device, Tensor, TensorData};
use burn_flex::FlexTensor;

use crate::{
    fused::{contiguous, dimensions, slice},
    matmul::Matrix,
    stored::Stored,
};

/// What operators take for a weight of rank `D`. No gradient reaches a stored one.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use espalier_kernels::{linear::{Precision, linear}, stored::{Bf16, Stored}, weight::Weight};
/// let stored = Stored::new(&Bf16, vec![1, 2], vec![0x80, 0x3f, 0x00, 0x40].into()).ok_or("two numbers")?;
/// let x = Tensor::<2>::from_floats([[3.0, 5.0]], &Device::flex());
/// let y = linear(x, Weight::Stored(stored), None, Precision::F32);
/// assert_eq!(y.into_scalar::<f32>(), 3.0 * 1.0 + 5.0 * 2.0);
/// # Ok::<(), &str>(())
/// ```
#[derive(Debug, Clone)]
pub enum Weight<const D: usize> {
    /// f32, tracked by autodiff where it is trained.
    Tensor(Tensor<D>),
    /// Rows in a format of their own, on the host.
    Stored(Stored),
}

impl<const D: usize> From<Tensor<D>> for Weight<D> {
    fn from(tensor: Tensor<D>) -> Self {
        Self::Tensor(tensor)
    }
}

impl<const D: usize> Weight<D> {
    /// The weight in f32 on `device`; a stored one is expanded.
    pub fn into_tensor(self, device: &Device) -> Tensor<D> {
        match self {
            Self::Tensor(tensor) => tensor,
            Self::Stored(stored) => {
                let data = TensorData::new(stored.expanded(), stored.shape());
                Tensor::from_data(data, &device.clone().inner())
            }
        }
    }

    /// What an operator on the host is given in the tensor's place, and what it holds itself: an empty tensor stands for stored rows,
    /// so that the graph keeps neither a copy of them nor a node.
    pub(crate) fn into_parts(self) -> (Tensor<D>, Option<Stored>) {
        match self {
            Self::Tensor(tensor) => (tensor, None),
            Self::Stored(stored) => (Tensor::empty([0; D], &Device::flex()), Some(stored)),
        }
    }
}

/// A weight as an operator on the host reads it.
#[derive(Debug, Clone)]
pub(crate) enum Held {
    Tensor(FlexTensor),
    Stored(Stored),
}

impl Held {
    /// The tensor that the operator was given, or the stored rows that it holds.
    pub fn new(tensor: &FlexTensor, stored: &Option<Stored>) -> Self {
        match stored {
            Some(stored) => Self::Stored(stored.clone()),
            None => Self::Tensor(contiguous(tensor)),
        }
    }

    /// The length of each axis.
    pub fn shape(&self) -> Vec<usize> {
        match self {
            Self::Tensor(tensor) => dimensions(tensor),
            Self::Stored(stored) => stored.shape().to_vec(),
        }
    }

    /// All rows as one matrix.
    pub fn matrix(&self) -> Matrix<'_> {
        let shape = self.shape();
        self.rows(0, shape.iter().rev().skip(1).product())
    }

    /// A matrix of a stack `[matrices, rows, width]`.
    pub fn matrix_of(&self, number: usize) -> Matrix<'_> {
        let rows = self.shape()[1];
        self.rows(number * rows, rows)
    }

    fn rows(&self, first: usize, count: usize) -> Matrix<'_> {
        match self {
            Self::Stored(stored) => stored.matrix(first..first + count),
            Self::Tensor(tensor) => {
                let width = dimensions(tensor).last().copied().unwrap_or(0);
                let values = &slice(tensor)[first * width..(first + count) * width];
                Matrix::new(values, count, width)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        activation::Activation,
        cross_entropy::{HeadOptions, linear_cross_entropy, linear_log_probabilities},
        embedding::embedding,
        experts::{Form, Routing, expert_feed_forward, expert_linear, expert_sum},
        linear::{Group, Precision, linear, low_rank::low_rank_linear},
        stored::Bf16,
        testing::{Leaf, evaluate, numbers},
    };

    /// A weight in bf16, and the tensor of the same numbers.
    fn both<const D: usize>(shape: [usize; D], seed: u64) -> [Weight<D>; 2] {
        let count = shape.iter().product();
        let bytes: Vec<u8> = numbers(count, seed)
            .iter()
            .flat_map(|value| ((value.to_bits() >> 16) as u16).to_le_bytes())
            .collect();
        let stored = Stored::new(&Bf16, shape.to_vec(), bytes.into()).unwrap();
        let tensor = Weight::Stored(stored.clone()).into_tensor(&Device::flex());
        [Weight::Stored(stored), Weight::Tensor(tensor)]
    }

    /// Asserts that values and gradients have the same bits with either weight.
    fn same<const D: usize>(
        shapes: &[&[usize]],
        weights: [Weight<D>; 2],
        operator: impl Fn(&[Leaf], Weight<D>) -> Tensor<1>,
    ) {
        let [stored, tensor] =
            weights.map(|weight| evaluate(shapes, &|leaves| operator(leaves, weight.clone())));
        assert!(stored == tensor);
    }

    #[test]
    fn operators_give_the_same_bits_as_with_the_expanded_tensor() {
        for (rows, precision) in [1, 3, 6, 7, 50]
            .into_iter()
            .flat_map(|rows| [(rows, Precision::F32), (rows, Precision::Bf16)])
        {
            let [inputs, outputs, rank] = [37, 21, 4];
            let weights = || both([outputs, inputs], 11);
            same(&[&[rows, inputs], &[outputs]], weights(), |t, weight| {
                linear(t[0].get::<2>(), weight, Some(t[1].get()), precision).reshape([-1])
            });
            same(&[&[rows, inputs]], weights(), |t, weight| {
                let (group, x) = (Group::new(2), t[0].get::<2>());
                let map = || group.linear(x.clone(), weight.clone(), None, precision);
                (map() + map()).reshape([-1])
            });
            let shapes: [&[usize]; 3] = [&[rows, inputs], &[rank, inputs], &[outputs, rank]];
            same(&shapes, weights(), |t, weight| {
                let (down, up) = (t[1].get(), t[2].get());
                low_rank_linear(t[0].get::<2>(), weight, down, up, 0.5, precision).reshape([-1])
            });
            let targets: Vec<u32> = (0..rows).map(|i| (i * 5 % outputs) as u32).collect();
            let options = HeadOptions {
                precision,
                ..HeadOptions::default()
            };
            same(&[&[rows, inputs], &[outputs]], weights(), |t, weight| {
                linear_cross_entropy(t[0].get(), weight, Some(t[1].get()), &targets, options)
            });
            same(&[&[rows, inputs]], weights(), |t, weight| {
                linear_log_probabilities(t[0].get(), weight, None, &targets, options)
            });
        }
    }

    #[test]
    fn experts_give_the_same_bits_as_with_the_expanded_tensors() {
        let [experts, active, width, inner] = [3, 2, 12, 10];
        for tokens in [1, 5, 60] {
            let scores = numbers(tokens * experts, 7);
            let routing = Arc::new(Routing::top_k(&scores, experts, active, None, None));
            let shapes: [&[usize]; 2] = [&[tokens, width], &[tokens, active]];
            for precision in [Precision::F32, Precision::Bf16] {
                let form = Form {
                    activation: Activation::Silu,
                    gated: true,
                    precision,
                };
                let [stored, tensor] = both([experts, width, inner], 13);
                let down = |up: &Weight<3>| match up {
                    Weight::Stored(_) => stored.clone(),
                    Weight::Tensor(_) => tensor.clone(),
                };
                same(&shapes, both([experts, 2 * inner, width], 12), |t, up| {
                    let (x, weights, down) = (t[0].get(), t[1].get(), down(&up));
                    expert_feed_forward(x, weights, up, down, &routing, form, None).reshape([-1])
                });
                same(
                    &shapes[..1],
                    both([experts, inner, width], 14),
                    |t, weight| {
                        let x = t[0].get::<2>();
                        expert_linear(x, weight, &routing, [1, 2], precision, None).reshape([-1])
                    },
                );
                let shapes: [&[usize]; 2] = [&[tokens * active, width], &[tokens, active]];
                same(&shapes, both([experts, inner, width], 15), |t, weight| {
                    let (x, weights) = (t[0].get(), t[1].get());
                    expert_sum(x, weight, weights, &routing, 1, precision).reshape([-1])
                });
            }
        }
    }

    #[test]
    fn stored_tables_are_looked_up() {
        let rows = both([5, 9], 16).map(|table| embedding(table, &[4, 0, 4]));
        let [stored, tensor] = rows.map(|rows| rows.into_data().try_into_vec::<f32>().unwrap());
        assert_eq!(stored, tensor);
    }
}
