//! Named weights, and the one way to walk over them.
//!
//! A [`Parameter`] keeps its values flat, so that optimisers, norms and files treat all of them alike; layers ask for the
//! shape they need. Copies share memory until one of them is changed, which makes snapshots free.

use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorData};
use espalier_kernels::readback::ReadFloats;

/// A named weight.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use espalier_models::parameter::Parameter;
/// let parameter = Parameter::new("head.weight", vec![2, 3], Tensor::zeros([6], &Device::flex()));
/// assert_eq!(parameter.value::<2>().dims(), [2, 3]);
/// assert!(!parameter.is_trainable());
/// ```
#[derive(Debug, Clone)]
pub struct Parameter {
    name: String,
    shape: Vec<usize>,
    flat: Tensor<1>,
    trainable: bool,
    fixed: bool,
    decays: bool,
    adapter: Option<Arc<str>>,
}

impl Parameter {
    /// A weight that is not trained yet; `flat` holds the elements in row-major order.
    pub fn new(name: impl Into<String>, shape: Vec<usize>, flat: Tensor<1>) -> Self {
        debug_assert_eq!(shape.iter().product::<usize>(), flat.dims()[0]);
        let decays = shape.len() > 1;
        Self {
            name: name.into(),
            shape,
            flat: flat.inner(),
            trainable: false,
            fixed: false,
            decays,
            adapter: None,
        }
    }

    /// The same weight, never to be trained.
    pub fn fixed(self) -> Self {
        Self {
            fixed: true,
            ..self
        }
    }

    /// The same weight, never to decay, though it is a matrix.
    pub fn undecayed(self) -> Self {
        Self {
            decays: false,
            ..self
        }
    }

    /// The same weight, as one of the adapter of this name.
    pub fn of_adapter(self, adapter: &str) -> Self {
        Self {
            adapter: Some(adapter.into()),
            ..self
        }
    }

    /// The name of the adapter that it belongs to; none for the base's weights.
    pub fn adapter(&self) -> Option<&str> {
        self.adapter.as_deref()
    }

    /// Whether weight decay acts on it: on matrices, unless their meaning forbids it.
    pub fn decays(&self) -> bool {
        self.decays
    }

    /// Whether the weight is never trained.
    pub fn is_fixed(&self) -> bool {
        self.fixed
    }

    /// Our name of the weight, such as `blocks.0.mixer.query.weight`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The shape; linear weights are `[out, in]`.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether the weight has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The weight in its shape, tracked by autodiff where it is trained. `D` is the rank of [`Parameter::shape`].
    pub fn value<const D: usize>(&self) -> Tensor<D> {
        let mut shape = [1; D];
        shape.copy_from_slice(&self.shape);
        self.flat.clone().reshape(shape)
    }

    /// The elements, outside autodiff: `[len]`.
    pub fn flat(&self) -> Tensor<1> {
        self.flat.clone().inner()
    }

    /// The tracked leaf whose gradient [`burn::tensor::Gradients`] holds after a backward pass: `[len]`.
    pub fn leaf(&self) -> &Tensor<1> {
        &self.flat
    }

    /// Replaces the elements (`[len]`); a trained weight becomes a new leaf.
    pub fn set_flat(&mut self, flat: Tensor<1>) {
        let flat = flat.inner();
        self.flat = if self.trainable {
            flat.autodiff().require_grad()
        } else {
            flat
        };
    }

    /// Replaces the elements by what `change` makes of them. The old tensor is given away, so that a change in place costs
    /// no copy.
    pub fn update(&mut self, change: impl FnOnce(Tensor<1>) -> Tensor<1>) {
        let device = self.flat.device().inner();
        let flat = std::mem::replace(&mut self.flat, Tensor::empty([0], &device));
        self.set_flat(change(flat.inner()));
    }

    /// Replaces the elements from memory, in row-major order.
    pub fn set_data(&mut self, values: Vec<f32>, device: &Device) {
        let count = values.len();
        self.set_flat(Tensor::from_data(
            TensorData::new(values, [count]),
            &device.clone().inner(),
        ));
    }

    /// The elements in row-major order.
    pub fn to_vec(&self) -> Vec<f32> {
        self.flat().floats()
    }

    /// Whether gradients are asked for.
    pub fn is_trainable(&self) -> bool {
        self.trainable
    }

    /// Asks for gradients, or stops asking; of a fixed weight nobody gets them.
    pub fn set_trainable(&mut self, trainable: bool) {
        self.trainable = trainable && !self.fixed;
        self.set_flat(self.flat());
    }
}

use crate::layers::linear::{LinearMap, LinearMapMut};

/// Whatever holds parameters: layers, blocks, models.
pub trait Parameters {
    /// Shows every parameter, in a fixed order.
    fn visit<'a>(&'a self, visitor: &mut dyn FnMut(&'a Parameter));

    /// Shows every parameter for change, in the same order.
    fn visit_mut(&mut self, visitor: &mut dyn FnMut(&mut Parameter));

    /// Shows every linear map that can have an adapter for change, in the same order.
    fn visit_linears_mut(&mut self, visitor: &mut dyn FnMut(LinearMapMut<'_>));

    /// Shows every linear map that can have an adapter, in the same order.
    fn visit_linears<'a>(&'a self, visitor: &mut dyn FnMut(LinearMap<'a>));
}

impl Parameters for Parameter {
    fn visit<'a>(&'a self, visitor: &mut dyn FnMut(&'a Parameter)) {
        visitor(self);
    }

    fn visit_mut(&mut self, visitor: &mut dyn FnMut(&mut Parameter)) {
        visitor(self);
    }

    fn visit_linears_mut(&mut self, _: &mut dyn FnMut(LinearMapMut<'_>)) {}

    fn visit_linears<'a>(&'a self, _: &mut dyn FnMut(LinearMap<'a>)) {}
}

/// Implements [`Parameters`] for a collection that iterates over its parts.
macro_rules! collection_of_parameters {
    ($collection:ty, $($generics:tt)*) => {
        impl<$($generics)*> Parameters for $collection {
            fn visit<'a>(&'a self, visitor: &mut dyn FnMut(&'a Parameter)) {
                self.iter().for_each(|part| part.visit(visitor));
            }

            fn visit_mut(&mut self, visitor: &mut dyn FnMut(&mut Parameter)) {
                self.iter_mut().for_each(|part| part.visit_mut(visitor));
            }

            fn visit_linears_mut(&mut self, visitor: &mut dyn FnMut(LinearMapMut<'_>)) {
                self.iter_mut().for_each(|part| part.visit_linears_mut(visitor));
            }

            fn visit_linears<'a>(&'a self, visitor: &mut dyn FnMut(LinearMap<'a>)) {
                self.iter().for_each(|part| part.visit_linears(visitor));
            }
        }
    };
}

collection_of_parameters!(Option<T>, T: Parameters);
collection_of_parameters!(Vec<T>, T: Parameters);
collection_of_parameters!([T; N], T: Parameters, const N: usize);

/// Implements [`Parameters`] for a struct by naming its fields in order, or for an enum by naming its variants.
macro_rules! parameters {
    (enum $type:ty: $($variant:ident),+) => {
        impl $crate::parameter::Parameters for $type {
            fn visit<'a>(&'a self, visitor: &mut dyn FnMut(&'a $crate::parameter::Parameter)) {
                match self {
                    $(Self::$variant(part) => $crate::parameter::Parameters::visit(part, visitor),)+
                }
            }

            fn visit_mut(&mut self, visitor: &mut dyn FnMut(&mut $crate::parameter::Parameter)) {
                match self {
                    $(Self::$variant(part) => $crate::parameter::Parameters::visit_mut(part, visitor),)+
                }
            }

            fn visit_linears_mut(&mut self, visitor: &mut dyn FnMut($crate::layers::linear::LinearMapMut<'_>)) {
                match self {
                    $(Self::$variant(part) => $crate::parameter::Parameters::visit_linears_mut(part, visitor),)+
                }
            }

            fn visit_linears<'a>(&'a self, visitor: &mut dyn FnMut($crate::layers::linear::LinearMap<'a>)) {
                match self {
                    $(Self::$variant(part) => $crate::parameter::Parameters::visit_linears(part, visitor),)+
                }
            }
        }
    };
    ($type:ty: $($field:ident),+) => {
        impl $crate::parameter::Parameters for $type {
            fn visit<'a>(&'a self, visitor: &mut dyn FnMut(&'a $crate::parameter::Parameter)) {
                $($crate::parameter::Parameters::visit(&self.$field, visitor);)+
            }

            fn visit_mut(&mut self, visitor: &mut dyn FnMut(&mut $crate::parameter::Parameter)) {
                $($crate::parameter::Parameters::visit_mut(&mut self.$field, visitor);)+
            }

            fn visit_linears_mut(&mut self, visitor: &mut dyn FnMut($crate::layers::linear::LinearMapMut<'_>)) {
                $($crate::parameter::Parameters::visit_linears_mut(&mut self.$field, visitor);)+
            }

            fn visit_linears<'a>(&'a self, visitor: &mut dyn FnMut($crate::layers::linear::LinearMap<'a>)) {
                $($crate::parameter::Parameters::visit_linears(&self.$field, visitor);)+
            }
        }
    };
}

pub(crate) use parameters;
