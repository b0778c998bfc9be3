//! Operators on host memory: one mechanism that makes a pair of plain functions, a forward and its backward, an operator
//! that Burn can differentiate.
//!
//! An operator implements [`FusedOperator`] on f32 buffers and is applied by the function named after the number of its
//! inputs, from [`one`] to [`eight`]; further outputs leave through a [`Side`] or [`Outputs`]. Only the CPU backend runs it; the
//! public functions of this crate fall back to their definition in Burn operations elsewhere.

use std::{
    fmt::Debug,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

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
pub(crate) trait FusedOperator<const N: usize>: Debug + Send + Sync + 'static {
    /// The output, and what the backward needs besides inputs and output. `wanted` says which inputs will ask for a
    /// gradient; where none does, nothing need be saved.
    fn forward(&self, inputs: &[FlexTensor; N], wanted: [bool; N]) -> (FlexTensor, Saved);

    /// Whether the backward reads the output, which then stays in memory until it runs.
    fn keeps_output(&self) -> bool {
        false
    }

    /// Whether the backward is given this input; one that it recomputes need not stay in memory.
    fn keeps_input(&self, _input: usize) -> bool {
        true
    }

    /// Gradients of the wanted inputs, in their shapes.
    fn backward(&self, given: Given<N>, wanted: [bool; N]) -> [Option<FlexTensor>; N];
}

/// Buffers that a forward keeps for its backward.
pub(crate) type Saved = Vec<Vec<f32>>;

/// The inputs of a backward.
pub(crate) struct Given<const N: usize> {
    /// The inputs of the forward; nothing in place of those that the operator does not keep.
    pub inputs: [FlexTensor; N],
    /// Its output, where the operator keeps it.
    pub output: Option<FlexTensor>,
    /// The buffers that the forward saved.
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
    if tensor.is_contiguous() {
        tensor.clone()
    } else {
        tensor.to_contiguous()
    }
}

/// The tensor itself where it is the only owner of its memory and fills it, else a copy.
pub(crate) fn owned(mut tensor: FlexTensor) -> FlexTensor {
    let count = dimensions(&tensor).iter().product::<usize>();
    let whole = tensor.is_contiguous()
        && tensor
            .try_storage_mut::<f32>()
            .is_some_and(|all| all.len() == count);
    if whole {
        tensor
    } else {
        self::tensor(slice(&contiguous(&tensor)).to_vec(), &dimensions(&tensor))
    }
}

/// A tensor over `values`.
pub(crate) fn tensor(values: Vec<f32>, shape: &[usize]) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape))
}

/// The dimensions of a tensor.
pub(crate) fn dimensions(tensor: &FlexTensor) -> Vec<usize> {
    tensor.shape().to_vec()
}

/// The part of one application that the autodiff graph keeps.
#[derive(Debug, Clone)]
struct Kept<const N: usize> {
    operator: Arc<dyn FusedOperator<N>>,
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
        let Kept {
            operator,
            inputs,
            output,
            saved,
        } = ops.state;
        let wanted = ops.parents.each_ref().map(Option::is_some);
        // The graph runs once, so that this is the only owner and nothing is copied.
        let given = Given {
            inputs,
            output,
            saved: Arc::unwrap_or_clone(saved),
            gradient,
        };
        let found = operator.backward(given, wanted);
        for (parent, gradient) in ops.parents.into_iter().zip(found) {
            if let (Some(parent), Some(gradient)) = (parent, gradient) {
                gradients.register::<Flex>(parent.id, gradient);
            }
        }
    }
}

/// The inputs that the operator keeps.
fn kept<const N: usize>(
    operator: &dyn FusedOperator<N>,
    inputs: [FlexTensor; N],
) -> [FlexTensor; N] {
    let mut index = 0;
    inputs.map(|input| {
        index += 1;
        if operator.keeps_input(index - 1) {
            input
        } else {
            tensor(Vec::new(), &[0])
        }
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

/// Burn's door to the operators, one method for each number of tensors, and the function that goes through it.
macro_rules! doors {
    ($($(#[$doc:meta])* $name:ident by $door:ident, $count:literal: $($input:ident $rank:ident),+;)+) => {
        #[backend_extension(Flex, Autodiff)]
        #[allow(clippy::too_many_arguments)]
        trait FusedOperators: Backend {
            $(fn $door($($input: FloatTensor<Self>,)+ operator: Arc<dyn FusedOperator<$count>>) -> FloatTensor<Self>;)+
        }

        impl FusedOperators for Flex {
            $(fn $door($($input: FlexTensor,)+ operator: Arc<dyn FusedOperator<$count>>) -> FlexTensor {
                operator.forward(&[$($input),+], [false; $count]).0
            })+
        }

        impl<C: CheckpointStrategy> FusedOperators for Autodiff<Flex, C> {
            $(fn $door(
                $($input: FloatTensor<Self>,)+
                operator: Arc<dyn FusedOperator<$count>>,
            ) -> FloatTensor<Self> {
                tracked!(operator, $($input),+)
            })+
        }

        $(
            $(#[$doc])*
            #[allow(clippy::too_many_arguments)]
            pub(crate) fn $name<$(const $rank: usize,)+ const OUT: usize>(
                $($input: Tensor<$rank>,)+
                operator: impl FusedOperator<$count>,
            ) -> Tensor<OUT> {
                Tensor::from_dispatch(Dispatch::$door($($input.into_dispatch(),)+ Arc::new(operator)))
            }
        )+
    };
}

doors! {
    /// Applies an operator of one tensor.
    one by host_one, 1: a A;
    /// Applies an operator of two tensors.
    two by host_two, 2: a A, b B;
    /// Applies an operator of three tensors.
    three by host_three, 3: a A, b B, c C;
    /// Applies an operator of four tensors.
    four by host_four, 4: a A, b B, c C, d D;
    /// Applies an operator of five tensors.
    five by host_five, 5: a A, b B, c C, d D, e E;
    /// Applies an operator of six tensors.
    six by host_six, 6: a A, b B, c C, d D, e E, f F;
    /// Applies an operator of seven tensors.
    seven by host_seven, 7: a A, b B, c C, d D, e E, f F, g G;
    /// Applies an operator of eight tensors.
    eight by host_eight, 8: a A, b B, c C, d D, e E, f F, g G, h H;
}

/// The way of several outputs: the operator's forward leaves them here, and its backward finds their gradients here. What the
/// operator itself returns is only the node that they descend from.
#[derive(Debug, Clone)]
pub(crate) struct Outputs<const N: usize>(Arc<Mutex<Slots<N>>>);

#[derive(Debug)]
struct Slots<const N: usize> {
    values: [Option<FlexTensor>; N],
    gradients: [Option<FlexTensor>; N],
    /// Whether the operator's node has been given a gradient, without which its backward would not run.
    asked: bool,
}

impl<const N: usize> Default for Outputs<N> {
    fn default() -> Self {
        let none = || std::array::from_fn(|_| None);
        Self(Arc::new(Mutex::new(Slots {
            values: none(),
            gradients: none(),
            asked: false,
        })))
    }
}

impl<const N: usize> Outputs<N> {
    fn slots(&self) -> MutexGuard<'_, Slots<N>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves the outputs.
    pub fn put(&self, values: [FlexTensor; N]) {
        self.slots().values = values.map(Some);
    }

    /// The gradients of the outputs, contiguous; none where nothing depends on one.
    pub fn gradients(&self) -> [Option<FlexTensor>; N] {
        std::mem::replace(&mut self.slots().gradients, std::array::from_fn(|_| None))
    }

    /// Output `number`, once the operator has run and given `node`.
    pub fn output<const D: usize, const OUT: usize>(
        &self,
        number: usize,
        node: &Tensor<D>,
    ) -> Tensor<OUT> {
        one(
            node.clone(),
            Port {
                outputs: self.clone(),
                number,
            },
        )
    }
}

/// One of several outputs, a descendant of the operator's node: its backward comes before the operator's.
#[derive(Debug)]
struct Port<const N: usize> {
    outputs: Outputs<N>,
    number: usize,
}

impl<const N: usize> FusedOperator<1> for Port<N> {
    fn forward(&self, [node]: &[FlexTensor; 1], _: [bool; 1]) -> (FlexTensor, Saved) {
        (
            self.outputs.slots().values[self.number]
                .take()
                .unwrap_or_else(|| node.clone()),
            Vec::new(),
        )
    }

    fn keeps_input(&self, _: usize) -> bool {
        false
    }

    fn backward(&self, given: Given<1>, _: [bool; 1]) -> [Option<FlexTensor>; 1] {
        let mut slots = self.outputs.slots();
        slots.gradients[self.number] = Some(given.gradient);
        let first = !std::mem::replace(&mut slots.asked, true);
        [first.then(|| tensor(Vec::new(), &[0]))]
    }
}

/// The way of a second output that seldom has a gradient, as a last state: the operator's forward leaves it here, and its backward
/// finds the gradient here. The first output stays the operator's own.
#[derive(Debug, Clone, Default)]
pub(crate) struct Side {
    value: Arc<Mutex<Option<FlexTensor>>>,
    gradient: Arc<Mutex<Option<FlexTensor>>>,
}

impl Side {
    /// Leaves the second output.
    pub fn put(&self, value: FlexTensor) {
        *self.value.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
    }

    /// The gradient of the second output; none where nothing depends on it.
    pub fn gradient(&self) -> Option<FlexTensor> {
        self.gradient
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// The second output, once the operator has run and given `first`, of which it becomes a descendant: its backward then
    /// comes before the operator's.
    pub fn output<const D: usize, const OUT: usize>(self, first: &Tensor<D>) -> Tensor<OUT> {
        one(first.clone(), self)
    }
}

impl FusedOperator<1> for Side {
    fn forward(&self, [first]: &[FlexTensor; 1], _: [bool; 1]) -> (FlexTensor, Saved) {
        let value = self
            .value
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        (value.unwrap_or_else(|| first.clone()), Vec::new())
    }

    fn backward(&self, given: Given<1>, _: [bool; 1]) -> [Option<FlexTensor>; 1] {
        *self.gradient.lock().unwrap_or_else(PoisonError::into_inner) = Some(given.gradient);
        let shape = dimensions(&given.inputs[0]);
        [Some(tensor(vec![0.0; shape.iter().product()], &shape))]
    }
}
