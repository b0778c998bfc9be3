//! Gradient checkpointing (arXiv 1604.06174): a segment of the graph keeps its input alone; its backward runs it again.

use std::{
    fmt::Debug,
    sync::{Arc, Mutex, PoisonError},
};

use burn::{
    backend::{
        Autodiff, Backend, Dispatch, Flex,
        autodiff::{
            NodeId,
            checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
            grads::Gradients,
            ops::{Backward, Ops, OpsKind},
        },
        backend_extension,
        tensor::FloatTensor,
    },
    tensor::Tensor,
};
use burn_flex::FlexTensor;

use crate::host;

/// A part of a model that can run twice with the same result.
pub trait Segment: Debug + Send + Sync + 'static {
    /// The output for `x`, outside autodiff. `x` and the output: `[batch, time, width]`.
    fn forward(&self, x: Tensor<3>) -> Tensor<3>;

    /// The output for `x`, tracked, with a new leaf for every trained parameter, in the order in which
    /// [`recomputed`] was given them.
    fn tracked(&self, x: Tensor<3>) -> (Tensor<3>, Vec<Tensor<1>>);
}

/// Runs `segment` on `x` without keeping what its backward needs. `leaves` are the segment's trained parameters; they
/// receive their gradients as if the segment were part of the graph.
///
/// On the CPU; elsewhere the segment runs and keeps everything.
pub fn recomputed(x: Tensor<3>, leaves: Vec<Tensor<1>>, segment: Arc<dyn Segment>) -> Tensor<3> {
    let ids = Arc::new(Mutex::new(Vec::with_capacity(leaves.len())));
    for leaf in &leaves {
        Dispatch::identify(leaf.clone().into_dispatch(), ids.clone());
    }
    let x = x.into_dispatch();
    let first = leaves.into_iter().next().map_or_else(|| x.clone(), Tensor::into_dispatch);
    let leaves = std::mem::take(&mut *ids.lock().unwrap_or_else(PoisonError::into_inner));
    Tensor::from_dispatch(Dispatch::recomputed(x, first, leaves, segment))
}

/// Whether [`recomputed`] works for tensors like `x`.
pub fn is_supported(x: &Tensor<3>) -> bool {
    host::on_host(x)
}

#[backend_extension(Flex, Autodiff)]
trait Recomputation: Backend {
    /// Adds the tensor's identifier to the list.
    fn identify(x: FloatTensor<Self>, ids: Arc<Mutex<Vec<NodeId>>>) -> FloatTensor<Self>;

    fn recomputed(
        x: FloatTensor<Self>,
        first_leaf: FloatTensor<Self>,
        leaves: Vec<NodeId>,
        segment: Arc<dyn Segment>,
    ) -> FloatTensor<Self>;
}

fn outside_autodiff(segment: &dyn Segment, x: FlexTensor) -> FlexTensor {
    primitive(segment.forward(Tensor::from_primitive::<Flex>(x)))
}

/// The tensor on the host; on another device, where no caller puts it, nothing.
fn primitive<const D: usize>(x: Tensor<D>) -> FlexTensor {
    x.inner().try_into_primitive::<Flex>().unwrap_or_else(|_| host::tensor(Vec::new(), &[0; D]))
}

impl Recomputation for Flex {
    fn identify(x: FlexTensor, _: Arc<Mutex<Vec<NodeId>>>) -> FlexTensor {
        x
    }

    fn recomputed(x: FlexTensor, _: FlexTensor, _: Vec<NodeId>, segment: Arc<dyn Segment>) -> FlexTensor {
        outside_autodiff(segment.as_ref(), x)
    }
}

#[derive(Debug, Clone)]
struct Kept {
    x: FlexTensor,
    leaves: Vec<NodeId>,
    segment: Arc<dyn Segment>,
}

#[derive(Debug)]
struct Recompute;

/// The parents are the input and one of the leaves, so that the segment is tracked where either is; the other leaves
/// are known by their identifiers.
impl Backward<Flex, 2> for Recompute {
    type State = Kept;

    fn backward(self, ops: Ops<Self::State, 2>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let gradient = Tensor::<3>::from_primitive::<Flex>(gradients.consume::<Flex>(&ops.node));
        let Kept { x, leaves, segment } = ops.state;
        let x = Tensor::<3>::from_primitive::<Flex>(x).autodiff().require_grad();
        let (y, own_leaves) = segment.tracked(x.clone());
        let mut found = (y * gradient.autodiff()).sum().backward();
        if let [Some(parent), _] = &ops.parents
            && let Some(of_x) = x.grad_remove(&mut found)
        {
            gradients.register::<Flex>(parent.id, primitive(of_x));
        }
        for (leaf, own) in leaves.into_iter().zip(own_leaves) {
            if let Some(of_leaf) = own.grad_remove(&mut found) {
                gradients.register::<Flex>(leaf, primitive(of_leaf));
            }
        }
    }
}

impl<C: CheckpointStrategy> Recomputation for Autodiff<Flex, C> {
    fn identify(x: FloatTensor<Self>, ids: Arc<Mutex<Vec<NodeId>>>) -> FloatTensor<Self> {
        ids.lock().unwrap_or_else(PoisonError::into_inner).push(x.id());
        x
    }

    fn recomputed(
        x: FloatTensor<Self>,
        first_leaf: FloatTensor<Self>,
        leaves: Vec<NodeId>,
        segment: Arc<dyn Segment>,
    ) -> FloatTensor<Self> {
        let prepared = Recompute.prepare::<C>([x.node(), first_leaf.node()]).compute_bound().stateful();
        let x = x.into_primitive();
        let y = outside_autodiff(segment.as_ref(), x.clone());
        match prepared {
            OpsKind::Tracked(prepared) => prepared.finish(Kept { x, leaves, segment }, y),
            OpsKind::UnTracked(prepared) => prepared.finish(y),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    /// `x * weight + x^2`.
    #[derive(Debug)]
    struct Scale(Tensor<1>);

    impl Segment for Scale {
        fn forward(&self, x: Tensor<3>) -> Tensor<3> {
            x.clone() * self.0.clone().unsqueeze() + x.clone() * x
        }

        fn tracked(&self, x: Tensor<3>) -> (Tensor<3>, Vec<Tensor<1>>) {
            let leaf = self.0.clone().autodiff().require_grad();
            (x.clone() * leaf.clone().unsqueeze() + x.clone() * x, vec![leaf])
        }
    }

    #[test]
    fn gradients_arrive_as_if_nothing_was_recomputed() {
        let device = Device::flex();
        let values = Tensor::<3>::from_floats([[[1.0, -2.0, 3.0]]], &device);
        let weight = Tensor::<1>::from_floats([0.5, 2.0, -1.0], &device);
        let read = |x: Tensor<1>| x.into_data().try_into_vec::<f32>().unwrap();
        for tracked_input in [true, false] {
            let x = if tracked_input { values.clone().autodiff().require_grad() } else { values.clone() };
            let leaf = weight.clone().autodiff().require_grad();
            let segment = Arc::new(Scale(weight.clone()));
            // Two segments share the leaf, so that its gradients add up.
            let once = recomputed(x.clone(), vec![leaf.clone()], segment.clone());
            let twice = recomputed(once, vec![leaf.clone()], segment);
            let gradients = twice.clone().sum().backward();
            let own = weight.clone().autodiff().require_grad();
            let own_x = values.clone().autodiff().require_grad();
            let scale = |x: Tensor<3>| x.clone() * own.clone().unsqueeze() + x.clone() * x;
            let expected = scale(scale(own_x.clone()));
            let expected_gradients = expected.clone().sum().backward();
            assert_eq!(read(twice.inner().flatten(0, 2)), read(expected.inner().flatten(0, 2)));
            assert_eq!(read(leaf.grad(&gradients).unwrap()), read(own.grad(&expected_gradients).unwrap()));
            if tracked_input {
                let (found, expected) = (x.grad(&gradients).unwrap(), own_x.grad(&expected_gradients).unwrap());
                assert_eq!(read(found.flatten(0, 2)), read(expected.flatten(0, 2)));
            }
        }
    }
}
