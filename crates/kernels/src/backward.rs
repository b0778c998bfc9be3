//! The backward pass of a loss, and the check that no gradient was lost on the way.
//!
//! Layers that read one input in a [`Group`](crate::linear::Group) leave their contributions to its gradient with the group, which
//! passes the sum on when the last of them has come. A reader whose output no loss depends on never comes; without a check
//! the input would silently have no gradient at all.

use std::cell::Cell;

use burn::tensor::{Gradients, Tensor};

thread_local! {
    /// Groups that have some of their gradient contributions and wait for others, of backward passes of this thread.
    static WAITING: Cell<usize> = const { Cell::new(0) };
}

/// A group that waits for the rest of its gradient contributions.
#[derive(Debug)]
pub(crate) struct Waiting(());

impl Waiting {
    /// The first contribution has come.
    pub fn begin() -> Self {
        WAITING.set(WAITING.get() + 1);
        Self(())
    }

    /// The last one has.
    pub fn end(self) {
        WAITING.set(WAITING.get().saturating_sub(1));
    }
}

/// Gradients were lost: so many inputs have readers that are no part of the loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LostGradients {
    /// Inputs without a gradient.
    pub inputs: usize,
}

impl std::fmt::Display for LostGradients {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} layers' inputs have no gradient, because the loss does not depend on every map that reads them",
            self.inputs
        )
    }
}

impl std::error::Error for LostGradients {}

/// The gradients of `loss`.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use espalier_kernels::backward::backward;
/// let x = Tensor::<1>::from_floats([3.0], &Device::flex()).autodiff().require_grad();
/// let gradients = backward(x.clone().powi_scalar(2))?;
/// assert_eq!(x.grad(&gradients).unwrap().into_scalar::<f32>(), 6.0);
/// # Ok::<(), espalier_kernels::backward::LostGradients>(())
/// ```
///
/// # Errors
/// When an output of a [`Group`](crate::linear::Group) of maps is no part of the loss, so that gradients are missing.
pub fn backward(loss: Tensor<1>) -> Result<Gradients, LostGradients> {
    // Within a backward, blocks that are run again have backwards of their own.
    let outer = WAITING.replace(0);
    let gradients = loss.backward();
    match WAITING.replace(outer) {
        0 => Ok(gradients),
        inputs => Err(LostGradients { inputs }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linear::{Group, Precision};
    use burn::tensor::Device;

    fn leaf<const D: usize>(shape: [usize; D]) -> Tensor<D> {
        Tensor::ones(shape, &Device::flex())
            .autodiff()
            .require_grad()
    }

    #[test]
    fn a_reader_that_leaves_the_graph_is_an_error() {
        let (x, weight) = (leaf([2, 3]), leaf([4, 3]));
        let group = Group::new(2);
        let map = |group: &Group| group.linear(x.clone(), weight.clone(), None, Precision::F32);
        let (kept, _left) = (map(&group), map(&group));
        assert_eq!(
            backward(kept.sum()).err(),
            Some(LostGradients { inputs: 1 })
        );

        let group = Group::new(2);
        let both = map(&group) + map(&group);
        let gradients = backward(both.sum()).unwrap();
        assert_eq!(x.grad(&gradients).unwrap().sum().into_scalar::<f32>(), 48.0);
    }
}
