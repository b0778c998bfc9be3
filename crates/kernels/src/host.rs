//! Operators on host memory: one mechanism that makes a pair of plain functions, a forward and its backward, an operator
//! that Burn can differentiate.
//!
//! An operator implements [`HostOperator`] on f32 buffers and is applied by [`one`], [`two`], [`three`] or [`four`]. Only the CPU
//! backend runs it; the public functions of this crate fall back to their definition in Burn operations elsewhere.

use std::{fmt::Debug, sync::Arc};

use burn::{
    backend::{
        Autodiff, Backend, Dispatch, Flex, TensorMetadata,
        autodiff::{
            checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
            grads::Gradients,
            ops::{Backward, Ops, OpsKind},
        },
        backend_extension,
        tensor::FloatTensor,
    },
    tensor::{DType, Device, Tensor, TensorData},
};
use burn_flex::FlexTensor;

/// A forward and a backward on host memory, over `N` f32 tensors.
pub(crate) trait HostOperator<const N: usize>: Debug + Send + Sync + 'static {
    /// The output, and what the backward needs besides inputs and output. `wanted` says which inputs will ask for a
    /// gradient; where none does, nothing need be saved.
    fn forward(&self, inputs: &[FlexTensor; N], wanted: [bool; N]) -> (FlexTensor, Saved);

    /// Whether the backward reads the output, which then stays in memory until it runs.
    fn keeps_output(&self) -> bool {
        false
    }

    /// Whether the backward is given this input; one that it makes again need not stay in memory.
    fn keeps_input(&self, _input: usize) -> bool {
        true
    }

    /// Gradients of the wanted inputs, in their shapes.
    fn backward(&self, given: Given<N>, wanted: [bool; N]) -> [Option<FlexTensor>; N];
}

/// What a forward keeps for its backward.
pub(crate) type Saved = Vec<Vec<f32>>;

/// What a backward is given.
pub(crate) struct Given<const N: usize> {
    /// The inputs of the forward; nothing in place of those that the operator does not keep.
    pub inputs: [FlexTensor; N],
    /// Its output, where the operator keeps it.
    pub output: Option<FlexTensor>,
    /// What it saved besides.
    pub saved: Saved,
    /// Gradient of the output, contiguous.
    pub gradient: FlexTensor,
}

/// Whether `x` is f32 in host memory, where the operators of this module run.
pub(crate) fn on_host<const D: usize>(x: &Tensor<D>) -> bool {
    x.dtype() == DType::F32 && x.device().inner() == Device::flex()
}

/// The elements of a contiguous tensor.
///
/// Operators call it on what [`contiguous`] or [`tensor`] made; anything else would be a broken invariant.
pub(crate) fn slice(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice::<f32>().unwrap_or_default()
}

/// The tensor itself where its elements lie in order, else a copy that does.
pub(crate) fn contiguous(tensor: &FlexTensor) -> FlexTensor {
    if tensor.is_contiguous() { tensor.clone() } else { tensor.to_contiguous() }
}

/// A tensor over `values`.
pub(crate) fn tensor(values: Vec<f32>, shape: &[usize]) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape))
}

/// The dimensions of a tensor.
pub(crate) fn dimensions(tensor: &FlexTensor) -> Vec<usize> {
    tensor.shape().to_vec()
}

/// What the graph keeps of one application.
#[derive(Debug, Clone)]
struct Kept<const N: usize> {
    operator: Arc<dyn HostOperator<N>>,
    inputs: [FlexTensor; N],
    output: Option<FlexTensor>,
    saved: Arc<Saved>,
}

#[derive(Debug)]
struct HostBackward;

impl<const N: usize> Backward<Flex, N> for HostBackward {
    type State = Kept<N>;

    fn backward(self, ops: Ops<Self::State, N>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let gradient = contiguous(&gradients.consume::<Flex>(&ops.node));
        let Kept { operator, inputs, output, saved } = ops.state;
        let wanted = ops.parents.each_ref().map(Option::is_some);
        // The graph runs once, so that this is the only owner and nothing is copied.
        let given = Given { inputs, output, saved: Arc::unwrap_or_clone(saved), gradient };
        let found = operator.backward(given, wanted);
        for (parent, gradient) in ops.parents.into_iter().zip(found) {
            if let (Some(parent), Some(gradient)) = (parent, gradient) {
                gradients.register::<Flex>(parent.id, gradient);
            }
        }
    }
}

/// Burn's door to the operators, one method for each number of tensors.
#[backend_extension(Flex, Autodiff)]
trait HostOperators: Backend {
    fn host_one(a: FloatTensor<Self>, operator: Arc<dyn HostOperator<1>>) -> FloatTensor<Self>;
    fn host_two(a: FloatTensor<Self>, b: FloatTensor<Self>, operator: Arc<dyn HostOperator<2>>) -> FloatTensor<Self>;
    fn host_three(
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        c: FloatTensor<Self>,
        operator: Arc<dyn HostOperator<3>>,
    ) -> FloatTensor<Self>;
    fn host_four(
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        c: FloatTensor<Self>,
        d: FloatTensor<Self>,
        operator: Arc<dyn HostOperator<4>>,
    ) -> FloatTensor<Self>;
}

impl HostOperators for Flex {
    fn host_one(a: FlexTensor, operator: Arc<dyn HostOperator<1>>) -> FlexTensor {
        operator.forward(&[a], [false]).0
    }

    fn host_two(a: FlexTensor, b: FlexTensor, operator: Arc<dyn HostOperator<2>>) -> FlexTensor {
        operator.forward(&[a, b], [false; 2]).0
    }

    fn host_three(a: FlexTensor, b: FlexTensor, c: FlexTensor, operator: Arc<dyn HostOperator<3>>) -> FlexTensor {
        operator.forward(&[a, b, c], [false; 3]).0
    }

    fn host_four(
        a: FlexTensor,
        b: FlexTensor,
        c: FlexTensor,
        d: FlexTensor,
        operator: Arc<dyn HostOperator<4>>,
    ) -> FlexTensor {
        operator.forward(&[a, b, c, d], [false; 4]).0
    }
}

/// The inputs that the operator keeps.
fn kept<const N: usize>(operator: &dyn HostOperator<N>, inputs: [FlexTensor; N]) -> [FlexTensor; N] {
    let mut index = 0;
    inputs.map(|input| {
        index += 1;
        if operator.keeps_input(index - 1) { input } else { tensor(Vec::new(), &[0]) }
    })
}

/// Applies the operator to tracked tensors and keeps what the backward needs, where any of them is tracked.
macro_rules! tracked {
    ($operator:ident, $($input:ident),+) => {{
        let nodes = [$($input.node()),+];
        let wanted = [$($input.is_tracked()),+];
        let prepared = HostBackward.prepare::<C>(nodes).compute_bound().stateful();
        let inputs = [$($input.into_primitive()),+];
        let (output, saved) = $operator.forward(&inputs, wanted);
        match prepared {
            OpsKind::Tracked(prepared) => {
                let kept_output = $operator.keeps_output().then(|| output.clone());
                let inputs = kept($operator.as_ref(), inputs);
                let kept = Kept { operator: $operator, inputs, output: kept_output, saved: Arc::new(saved) };
                prepared.finish(kept, output)
            }
            OpsKind::UnTracked(prepared) => prepared.finish(output),
        }
    }};
}

impl<C: CheckpointStrategy> HostOperators for Autodiff<Flex, C> {
    fn host_one(a: FloatTensor<Self>, operator: Arc<dyn HostOperator<1>>) -> FloatTensor<Self> {
        tracked!(operator, a)
    }

    fn host_two(a: FloatTensor<Self>, b: FloatTensor<Self>, operator: Arc<dyn HostOperator<2>>) -> FloatTensor<Self> {
        tracked!(operator, a, b)
    }

    fn host_three(
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        c: FloatTensor<Self>,
        operator: Arc<dyn HostOperator<3>>,
    ) -> FloatTensor<Self> {
        tracked!(operator, a, b, c)
    }

    fn host_four(
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        c: FloatTensor<Self>,
        d: FloatTensor<Self>,
        operator: Arc<dyn HostOperator<4>>,
    ) -> FloatTensor<Self> {
        tracked!(operator, a, b, c, d)
    }
}

/// Applies an operator of one tensor.
pub(crate) fn one<const A: usize, const OUT: usize>(a: Tensor<A>, operator: impl HostOperator<1>) -> Tensor<OUT> {
    Tensor::from_dispatch(Dispatch::host_one(a.into_dispatch(), Arc::new(operator)))
}

/// Applies an operator of two tensors.
pub(crate) fn two<const A: usize, const B: usize, const OUT: usize>(
    a: Tensor<A>,
    b: Tensor<B>,
    operator: impl HostOperator<2>,
) -> Tensor<OUT> {
    Tensor::from_dispatch(Dispatch::host_two(a.into_dispatch(), b.into_dispatch(), Arc::new(operator)))
}

/// Applies an operator of three tensors.
pub(crate) fn three<const A: usize, const B: usize, const C: usize, const OUT: usize>(
    a: Tensor<A>,
    b: Tensor<B>,
    c: Tensor<C>,
    operator: impl HostOperator<3>,
) -> Tensor<OUT> {
    let (a, b, c) = (a.into_dispatch(), b.into_dispatch(), c.into_dispatch());
    Tensor::from_dispatch(Dispatch::host_three(a, b, c, Arc::new(operator)))
}

/// Applies an operator of four tensors.
pub(crate) fn four<const A: usize, const B: usize, const C: usize, const D: usize, const OUT: usize>(
    a: Tensor<A>,
    b: Tensor<B>,
    c: Tensor<C>,
    d: Tensor<D>,
    operator: impl HostOperator<4>,
) -> Tensor<OUT> {
    let (a, b, c, d) = (a.into_dispatch(), b.into_dispatch(), c.into_dispatch(), d.into_dispatch());
    Tensor::from_dispatch(Dispatch::host_four(a, b, c, d, Arc::new(operator)))
}
