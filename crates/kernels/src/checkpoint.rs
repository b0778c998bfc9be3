//! Gradient checkpointing (arXiv 1604.06174): a segment of the graph, a block of the model, keeps only its input, `[batch, time,
//! width]`; its backward runs the forward again.

use std::{
    collections::HashMap,
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

use crate::{fused, release};

/// A part of a model that can run twice with the same result.
pub trait Segment: Debug + Send + Sync + 'static {
    /// The output for `x`, outside autodiff. `x` and the output: `[batch, time, width]`.
    fn forward(&self, x: Tensor<3>) -> Tensor<3>;

    /// The output for `x`, tracked. `wanted` says which shared inputs get a gradient.
    fn tracked(&self, x: Tensor<3>, wanted: [bool; 2]) -> Tracked;
}

/// A second run of a segment.
#[derive(Debug)]
pub struct Tracked {
    /// The output of the second run, tracked by autodiff.
    pub output: Tensor<3>,
    /// A new leaf for every trained parameter, in the order in which [`recomputed`] was given them.
    pub leaves: Vec<Tensor<1>>,
    /// A new leaf for every shared input that gets a gradient.
    pub shared: Shared,
}

/// Further inputs of a segment from other parts of the graph (an encoder's hidden states, a shared bias): flat, any of them absent.
pub type Shared = [Option<Tensor<1>>; 2];

/// Runs `segment` on `x` without keeping what its backward needs. `leaves` are the segment's trained parameters; they and the
/// shared inputs, whose values the segment has itself, receive their gradients as if the segment were part of the graph.
///
/// On the CPU; elsewhere the segment runs and keeps everything.
pub fn recomputed(
    x: Tensor<3>,
    shared: Shared,
    leaves: Vec<Tensor<1>>,
    segment: Arc<dyn Segment>,
) -> Tensor<3> {
    let nodes = nodes(&leaves);
    let x = x.into_dispatch();
    let first = leaves
        .into_iter()
        .next()
        .map_or_else(|| x.clone(), Tensor::into_dispatch);
    let given = shared.each_ref().map(Option::is_some);
    let [memory, bias] =
        shared.map(|shared| shared.map_or_else(|| x.clone(), Tensor::into_dispatch));
    Tensor::from_dispatch(Dispatch::recomputed(
        x,
        first,
        memory,
        bias,
        Arc::new(Recipe {
            leaves: nodes,
            given,
            segment,
        }),
    ))
}

/// The graph's nodes of tensors that it tracks.
fn nodes(leaves: &[Tensor<1>]) -> Vec<NodeId> {
    let ids = Arc::new(Mutex::new(Vec::with_capacity(leaves.len())));
    for leaf in leaves {
        Dispatch::identify(leaf.clone().into_dispatch(), ids.clone());
    }
    std::mem::take(&mut *ids.lock().unwrap_or_else(PoisonError::into_inner))
}

/// The graph's node of a tensor, where it is tracked.
pub(crate) fn node(leaf: &Tensor<1>) -> Option<NodeId> {
    nodes(std::slice::from_ref(leaf)).pop()
}

/// Whether [`recomputed`] works for tensors like `x`.
pub fn is_supported(x: &Tensor<3>) -> bool {
    fused::on_host(x)
}

#[backend_extension(Flex, Autodiff)]
trait Recomputation: Backend {
    /// Adds the tensor's identifier to the list.
    fn identify(x: FloatTensor<Self>, ids: Arc<Mutex<Vec<NodeId>>>) -> FloatTensor<Self>;

    fn recomputed(
        x: FloatTensor<Self>,
        first_leaf: FloatTensor<Self>,
        first_shared: FloatTensor<Self>,
        second_shared: FloatTensor<Self>,
        recipe: Arc<Recipe>,
    ) -> FloatTensor<Self>;
}

/// The segment to run a second time, and the graph's nodes that receive its gradients.
#[derive(Debug)]
struct Recipe {
    leaves: Vec<NodeId>,
    /// Which shared inputs there are; the input itself stands in for the others.
    given: [bool; 2],
    segment: Arc<dyn Segment>,
}

fn outside_autodiff(segment: &dyn Segment, x: FlexTensor) -> FlexTensor {
    primitive(segment.forward(Tensor::from_primitive::<Flex>(x)))
}

/// The tensor on the host; on another device, where no caller puts it, nothing.
fn primitive<const D: usize>(x: Tensor<D>) -> FlexTensor {
    x.inner()
        .try_into_primitive::<Flex>()
        .unwrap_or_else(|_| fused::tensor(Vec::new(), &[0; D]))
}

impl Recomputation for Flex {
    fn identify(x: FlexTensor, _: Arc<Mutex<Vec<NodeId>>>) -> FlexTensor {
        x
    }

    fn recomputed(
        x: FlexTensor,
        _: FlexTensor,
        _: FlexTensor,
        _: FlexTensor,
        recipe: Arc<Recipe>,
    ) -> FlexTensor {
        outside_autodiff(recipe.segment.as_ref(), x)
    }
}

#[derive(Debug, Clone)]
struct Kept {
    x: FlexTensor,
    recipe: Arc<Recipe>,
}

#[derive(Debug)]
struct Recompute;

/// The parents are the input, one of the leaves, so that the segment is tracked where either is, and the shared inputs; the
/// other leaves are known by their identifiers.
impl Backward<Flex, 4> for Recompute {
    type State = Kept;

    fn backward(self, ops: Ops<Self::State, 4>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let gradient = Tensor::<3>::from_primitive::<Flex>(gradients.consume::<Flex>(&ops.node));
        let Kept { x, recipe } = ops.state;
        let x = Tensor::<3>::from_primitive::<Flex>(x)
            .autodiff()
            .require_grad();
        let [input, _, first, second] = ops.parents;
        let parents = [(first, recipe.given[0]), (second, recipe.given[1])]
            .map(|(parent, given)| parent.filter(|_| given));
        let tracked = recipe
            .segment
            .tracked(x.clone(), parents.each_ref().map(Option::is_some));
        let mut found = (tracked.output * gradient.autodiff()).sum().backward();
        let mut register = |to: NodeId, gradient: Option<FlexTensor>| {
            gradient
                .into_iter()
                .for_each(|gradient| gradients.register::<Flex>(to, gradient));
        };
        if let Some(parent) = input {
            register(parent.id, x.grad_remove(&mut found).map(primitive));
        }
        let mut whole = HashMap::new();
        for (leaf, own) in recipe.leaves.iter().zip(tracked.leaves) {
            match own.grad_remove(&mut found) {
                Some(gradient) if release::is_alone(*leaf) => {
                    whole.insert((*leaf).into(), gradient);
                }
                gradient => register(*leaf, gradient.map(primitive)),
            }
        }
        for (parent, own) in parents.into_iter().zip(tracked.shared) {
            if let (Some(parent), Some(own)) = (parent, own) {
                register(parent.id, own.grad_remove(&mut found).map(primitive));
            }
        }
        // The segment's hold on its parameters is given up before these may change, which then takes no copy of them.
        drop((recipe, found));
        release::give(whole);
    }
}

impl<C: CheckpointStrategy> Recomputation for Autodiff<Flex, C> {
    fn identify(x: FloatTensor<Self>, ids: Arc<Mutex<Vec<NodeId>>>) -> FloatTensor<Self> {
        ids.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(x.id());
        x
    }

    fn recomputed(
        x: FloatTensor<Self>,
        first_leaf: FloatTensor<Self>,
        first_shared: FloatTensor<Self>,
        second_shared: FloatTensor<Self>,
        recipe: Arc<Recipe>,
    ) -> FloatTensor<Self> {
        let nodes = [
            x.node(),
            first_leaf.node(),
            first_shared.node(),
            second_shared.node(),
        ];
        let prepared = Recompute.prepare::<C>(nodes).compute_bound().stateful();
        let x = x.into_primitive();
        let y = outside_autodiff(recipe.segment.as_ref(), x.clone());
        match prepared {
            OpsKind::Tracked(prepared) => {
                release::joined(&recipe.leaves);
                prepared.finish(Kept { x, recipe }, y)
            }
            OpsKind::UnTracked(prepared) => prepared.finish(y),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    /// `x * weight + x^2 * shared`.
    #[derive(Debug)]
    struct Scale {
        weight: Tensor<1>,
        shared: Tensor<1>,
    }

    fn scale(x: Tensor<3>, weight: Tensor<1>, shared: Tensor<1>) -> Tensor<3> {
        x.clone() * weight.unsqueeze() + x.clone() * x * shared.unsqueeze()
    }

    impl Segment for Scale {
        fn forward(&self, x: Tensor<3>) -> Tensor<3> {
            scale(x, self.weight.clone(), self.shared.clone())
        }

        fn tracked(&self, x: Tensor<3>, wanted: [bool; 2]) -> Tracked {
            assert!(!wanted[0], "only the second shared input is there");
            let leaf = self.weight.clone().autodiff().require_grad();
            let shared = if wanted[1] {
                self.shared.clone().autodiff().require_grad()
            } else {
                self.shared.clone()
            };
            let output = scale(x, leaf.clone(), shared.clone());
            Tracked {
                output,
                leaves: vec![leaf],
                shared: [None, Some(shared).filter(|_| wanted[1])],
            }
        }
    }

    #[test]
    fn gradients_arrive_as_if_nothing_was_recomputed() {
        let device = Device::flex();
        let values = Tensor::<3>::from_floats([[[1.0, -2.0, 3.0]]], &device);
        let weight = Tensor::<1>::from_floats([0.5, 2.0, -1.0], &device);
        let seen = Tensor::<1>::from_floats([1.0, -0.5, 0.25], &device);
        let read = |x: Tensor<1>| x.into_data().try_into_vec::<f32>().unwrap();
        for (tracked_input, tracked_shared) in
            [(true, true), (true, false), (false, true), (false, false)]
        {
            let tracked = |x: Tensor<1>, is: bool| if is { x.autodiff().require_grad() } else { x };
            let make = || {
                (
                    tracked(values.clone().flatten(0, 2), tracked_input),
                    tracked(seen.clone(), tracked_shared),
                )
            };
            let (x, shared) = make();
            let leaf = weight.clone().autodiff().require_grad();
            let segment = Arc::new(Scale {
                weight: weight.clone(),
                shared: seen.clone() * 2.0,
            });
            // Two segments share the leaf, and an input that is no leaf, so that their gradients add up.
            let double = shared.clone() * 2.0;
            let run = |x| {
                recomputed(
                    x,
                    [None, Some(double.clone())],
                    vec![leaf.clone()],
                    segment.clone(),
                )
            };
            let twice = run(run(x.clone().reshape([1, 1, 3])));
            let gradients = twice.clone().sum().backward();
            let (own_x, own_shared) = make();
            let own = weight.clone().autodiff().require_grad();
            let plain = |x| scale(x, own.clone(), own_shared.clone() * 2.0);
            let expected = plain(plain(own_x.clone().reshape([1, 1, 3])));
            let expected_gradients = expected.clone().sum().backward();
            assert_eq!(
                read(twice.inner().flatten(0, 2)),
                read(expected.inner().flatten(0, 2))
            );
            let pairs = [
                (&leaf, &own, true),
                (&x, &own_x, tracked_input),
                (&shared, &own_shared, tracked_shared),
            ];
            for (found, expected, _) in pairs.into_iter().filter(|(_, _, tracked)| *tracked) {
                let (found, expected) = (
                    found.grad(&gradients).unwrap(),
                    expected.grad(&expected_gradients).unwrap(),
                );
                assert_eq!(read(found), read(expected));
            }
        }
    }
}
