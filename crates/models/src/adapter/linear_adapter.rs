//! What an adapter does to one linear map: something is added to its output.

use std::fmt::Debug;

use burn::tensor::Tensor;
use espalier_kernels::{linear::Precision, weight::Weight};

use super::{attachments::Attachments, low_rank::LowRank, table::TokenRows};
use crate::{
    Result,
    layers::linear::{LinearMap, LinearMapMut},
    parameter::{Parameter, Parameters},
};

/// The part of an adapter at one linear map `y = x W^T + b`. Active ones are summed: each adds to the base's output, and does not
/// see what others add.
pub trait LinearAdapter: CloneLinearAdapter + Debug + Send + Sync {
    /// What is added to the base's output, `[rows, out]`.
    fn addition(&self, pass: &LinearPass<'_>) -> Tensor<2>;

    /// What is added to the base's weight and bias in place of the adapter.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) with the reason, where no weight computes the same.
    fn merge(&self, base: &LinearWeights) -> Result<LinearWeights>;

    /// The parameters, in a fixed order.
    fn parameters(&self) -> Vec<&Parameter>;

    /// The parameters for change, in the same order.
    fn parameters_mut(&mut self) -> Vec<&mut Parameter>;

    /// Draws anew which of its inputs are dropped in training, where it says that some are; none are when absent.
    fn set_dropout(&mut self, _seed: Option<u64>) {}

    /// Share of its inputs that it drops in training.
    fn dropout(&self) -> f64 {
        0.0
    }

    /// Multiplies what it adds by a weight; says whether it can.
    fn weigh(&mut self, weight: f64) -> bool {
        weight == 1.0
    }

    /// The adapter as a low-rank addition, where it is one: a single one takes part in the product of its frozen weight, and
    /// those of experts are stacked.
    fn low_rank(&self) -> Option<&LowRank> {
        None
    }

    /// The rows of some outputs that take the place of the base's, where it is that.
    fn token_rows(&self) -> Option<&TokenRows> {
        None
    }
}

/// One pass through a linear map, as its adapters see it.
pub struct LinearPass<'a> {
    /// What the map reads, `[rows, in]`.
    pub input: Tensor<2>,
    /// What the base gives before its bias is added, `[rows, out]`.
    pub product: Tensor<2>,
    /// The base's bias, `[out]`.
    pub bias: Option<Tensor<1>>,
    /// Gives the base's weight, `[out, in]`.
    pub weight: &'a dyn Fn() -> Weight<2>,
    /// The arithmetic of products.
    pub precision: Precision,
}

/// A weight and a bias, or what is added to them; outside autodiff.
#[derive(Debug, Clone)]
pub struct LinearWeights {
    /// `[out, in]`.
    pub weight: Tensor<2>,
    /// `[out]`, where the map has a bias.
    pub bias: Option<Tensor<1>>,
}

/// Copies an adapter of any kind; every [`LinearAdapter`] that is [`Clone`] has it.
pub trait CloneLinearAdapter {
    /// A copy. Its parameters share memory with this one's until one of them changes.
    fn boxed(&self) -> Box<dyn LinearAdapter>;
}

impl<T: LinearAdapter + Clone + 'static> CloneLinearAdapter for T {
    fn boxed(&self) -> Box<dyn LinearAdapter> {
        Box::new(self.clone())
    }
}

impl Clone for Box<dyn LinearAdapter> {
    fn clone(&self) -> Self {
        (**self).boxed()
    }
}

/// The adapters of one linear map.
pub type LinearAdapters = Attachments<Box<dyn LinearAdapter>>;

impl LinearAdapters {
    /// What the active adapters add to the base's output together, `[rows, out]`; nothing where none is active.
    pub fn addition(&self, pass: &LinearPass<'_>) -> Option<Tensor<2>> {
        self.active()
            .map(|adapter| adapter.addition(pass))
            .reduce(|sum, addition| sum + addition)
    }
}

impl Parameters for Box<dyn LinearAdapter> {
    fn visit<'a>(&'a self, visitor: &mut dyn FnMut(&'a Parameter)) {
        self.parameters().into_iter().for_each(visitor);
    }

    fn visit_mut(&mut self, visitor: &mut dyn FnMut(&mut Parameter)) {
        self.parameters_mut().into_iter().for_each(visitor);
    }

    fn visit_linears_mut(&mut self, _: &mut dyn FnMut(LinearMapMut<'_>)) {}

    fn visit_linears<'a>(&'a self, _: &mut dyn FnMut(LinearMap<'a>)) {}
}
