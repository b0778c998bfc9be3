//! Named weights, and the one way to walk over them.
//!
//! A [`Parameter`] that is trained keeps its values in f32 and flat, so that optimisers, norms and files treat all of them alike; one
//! that is not trained may stay as its file holds it. Layers ask for the shape they need. Copies share memory until one of them is
//! changed, which makes snapshots free.

use std::{
    ops::Range,
    sync::{Arc, OnceLock},
};

use burn::tensor::{Device, Tensor, TensorData};
use espalier_kernels::{
    decomposition::orthonormal,
    one_bit::WeightBits,
    readback::ReadFloats,
    stored::{Stored, Ternary},
    weight::Weight,
};

use crate::source::Values;

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
    weight: Weight<1>,
    trainable: bool,
    fixed: bool,
    decays: bool,
    learning_rate: f64,
    orthonormal: bool,
    adapter: Option<Arc<str>>,
    /// What the weight is rounded to, kept until it changes; copies share it as they share the weight.
    packed: Arc<OnceLock<Option<Stored>>>,
}

impl Parameter {
    /// A weight that is not trained yet; `flat` holds the elements in row-major order.
    pub fn new(name: impl Into<String>, shape: Vec<usize>, flat: Tensor<1>) -> Self {
        debug_assert_eq!(shape.iter().product::<usize>(), flat.dims()[0]);
        Self::from_weight(name, shape, Weight::Tensor(flat.inner()))
    }

    /// A weight that stays as its file holds it until it is trained or changed.
    pub fn stored(name: impl Into<String>, stored: Stored) -> Self {
        Self::from_weight(name, stored.shape().to_vec(), Weight::Stored(stored))
    }

    fn from_weight(name: impl Into<String>, shape: Vec<usize>, weight: Weight<1>) -> Self {
        let decays = shape.len() > 1;
        Self {
            name: name.into(),
            shape,
            weight,
            trainable: false,
            fixed: false,
            decays,
            learning_rate: 1.0,
            orthonormal: false,
            adapter: None,
            packed: Arc::default(),
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

    /// The same weight, with this factor on the learning rate.
    pub fn with_learning_rate(self, factor: f64) -> Self {
        Self {
            learning_rate: factor,
            ..self
        }
    }

    /// The same matrix, whose rows are to stay orthonormal while it is trained: it does not decay, for the way back undoes that.
    pub fn with_orthonormal_rows(self) -> Self {
        Self {
            orthonormal: true,
            ..self.undecayed()
        }
    }

    /// The same weight, as one of the adapter of this name.
    pub fn of_adapter(self, adapter: &str) -> Self {
        Self {
            adapter: Some(adapter.into()),
            ..self
        }
    }

    /// The same weight under another name.
    pub fn renamed(self, name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            ..self
        }
    }

    /// The name of the adapter that it belongs to; none for the base's weights.
    pub fn adapter(&self) -> Option<&str> {
        self.adapter.as_deref()
    }

    /// Its factor on the learning rate.
    pub fn learning_rate(&self) -> f64 {
        self.learning_rate
    }

    /// Multiplies its factor on the learning rate.
    pub fn scale_learning_rate(&mut self, factor: f64) {
        self.learning_rate *= factor;
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

    /// Bytes that the elements take as they are now.
    pub fn bytes(&self) -> usize {
        self.as_stored()
            .map_or(4 * self.len(), |stored| stored.bytes().len())
    }

    /// Where it is.
    pub fn device(&self) -> Device {
        match &self.weight {
            Weight::Tensor(flat) => flat.device(),
            Weight::Stored(_) => Device::flex(),
        }
    }

    /// The weight in its shape as operators that multiply or look up rows take it. `D` is the rank of [`Parameter::shape`].
    pub fn weight<const D: usize>(&self) -> Weight<D> {
        match &self.weight {
            Weight::Tensor(_) => Weight::Tensor(self.value()),
            Weight::Stored(stored) => Weight::Stored(stored.clone()),
        }
    }

    /// The weight in its shape, tracked by autodiff where it is trained; a stored one is expanded for this call. `D` is the rank of
    /// [`Parameter::shape`].
    pub fn value<const D: usize>(&self) -> Tensor<D> {
        let mut shape = [1; D];
        shape.copy_from_slice(&self.shape);
        match &self.weight {
            Weight::Tensor(flat) => flat.clone().reshape(shape),
            Weight::Stored(_) => self.flat().reshape(shape),
        }
    }

    /// The elements, outside autodiff: `[len]`.
    pub fn flat(&self) -> Tensor<1> {
        match &self.weight {
            Weight::Tensor(flat) => flat.clone().inner(),
            Weight::Stored(stored) => floats(stored.expanded(), &Device::flex()),
        }
    }

    /// The tensor whose gradient [`burn::tensor::Gradients`] holds after a backward pass where the weight is trained, `[len]`; none of
    /// a stored weight.
    pub fn leaf(&self) -> Option<&Tensor<1>> {
        match &self.weight {
            Weight::Tensor(flat) => Some(flat),
            Weight::Stored(_) => None,
        }
    }

    /// The rows as its file holds them, where the weight has stayed so.
    pub fn as_stored(&self) -> Option<&Stored> {
        match &self.weight {
            Weight::Tensor(_) => None,
            Weight::Stored(stored) => Some(stored),
        }
    }

    /// Whether its numbers are those of a finer weight, rounded to be read and never changed.
    pub fn is_quantised(&self) -> bool {
        self.as_stored()
            .is_some_and(|stored| stored.format().is_quantised())
    }

    /// The values as a source of another model's weights gives them; stored ones are shared.
    pub fn values(&self) -> Values {
        match self.as_stored() {
            Some(stored) => Values::Stored(stored.clone()),
            None => Values::Floats(self.to_vec()),
        }
    }

    /// A matrix rounded to these values and packed, two bits a number; made once, and again when the weight has changed. Nothing of
    /// what is no matrix, or not on the host.
    pub fn packed(&self, bits: WeightBits) -> Option<&Stored> {
        if let Some(stored) = self.as_stored().filter(|stored| Ternary::is_of(stored)) {
            return Some(stored);
        }
        let [rows, width] = self.shape[..] else {
            return None;
        };
        if self.device().inner() != Device::flex() {
            return None;
        }
        let pack = || {
            let packed = bits.packed([rows, width], &self.to_vec());
            if let Some(stored) = self.as_stored() {
                stored.bytes().release();
            }
            packed
        };
        self.packed.get_or_init(pack).as_ref()
    }

    /// Takes rows of the same shape in place of the elements. The weight is not trained from then on.
    pub(crate) fn set_stored(&mut self, stored: Stored) {
        debug_assert_eq!(stored.shape(), self.shape);
        self.trainable = false;
        self.packed = Arc::default();
        self.weight = Weight::Stored(stored);
    }

    /// Replaces the elements (`[len]`); a trained weight becomes a new leaf.
    pub fn set_flat(&mut self, flat: Tensor<1>) {
        let flat = flat.inner();
        self.packed = Arc::default();
        self.weight = Weight::Tensor(if self.trainable {
            flat.autodiff().require_grad()
        } else {
            flat
        });
    }

    /// Replaces the elements by what `change` makes of them. The old tensor is given away, so that a change in place costs
    /// no copy.
    pub fn update(&mut self, change: impl FnOnce(Tensor<1>) -> Tensor<1>) {
        let device = self.device().inner();
        let nothing = Weight::Tensor(Tensor::empty([0], &device));
        let flat = match std::mem::replace(&mut self.weight, nothing) {
            Weight::Tensor(flat) => flat,
            Weight::Stored(stored) => taken(&stored),
        };
        self.set_flat(change(flat.inner()));
    }

    /// Brings a matrix with orthonormal rows back to such after a step: those that span the same space, by a QR decomposition of the
    /// transpose. Other weights stay as they are.
    pub fn restore_orthonormal_rows(&mut self) {
        if let [rows, columns] = self.shape[..]
            && self.orthonormal
        {
            self.update(|flat| {
                let columns_of = flat.reshape([rows, columns]).transpose();
                let restored = orthonormal(columns_of).transpose();
                restored.reshape([rows * columns])
            });
        }
    }

    /// Replaces the elements from memory, in row-major order.
    pub fn set_data(&mut self, values: Vec<f32>, device: &Device) {
        self.set_flat(floats(values, &device.clone().inner()));
    }

    /// The elements in row-major order.
    pub fn to_vec(&self) -> Vec<f32> {
        match &self.weight {
            Weight::Tensor(flat) => flat.clone().inner().floats(),
            Weight::Stored(stored) => stored.expanded(),
        }
    }

    /// The first elements, `count` of them or as many as there are.
    pub fn first(&self, count: usize) -> Vec<f32> {
        let count = count.min(self.len());
        match &self.weight {
            Weight::Tensor(flat) => flat.clone().inner().narrow(0, 0, count).floats(),
            Weight::Stored(stored) => {
                let mut elements = stored.expanded_rows(0..count.div_ceil(stored.width().max(1)));
                elements.truncate(count);
                elements
            }
        }
    }

    /// Some rows in f32, counted over all axes but the last, outside autodiff: `[rows, width]`.
    pub fn rows(&self, rows: Range<usize>) -> Tensor<2> {
        let width = self.shape.last().copied().unwrap_or(1);
        let size = [rows.len(), width];
        match &self.weight {
            Weight::Tensor(flat) => {
                let place = rows.start * width..rows.end * width;
                flat.clone().inner().slice([place]).reshape(size)
            }
            Weight::Stored(stored) => {
                floats(stored.expanded_rows(rows), &Device::flex()).reshape(size)
            }
        }
    }

    /// Takes the values of another parameter of the same shape, whose memory both share from then on.
    pub fn set_values_of(&mut self, other: &Self) {
        self.weight = other.weight.clone();
        self.packed = other.packed.clone();
        self.set_trainable(self.trainable);
    }

    /// Whether gradients are asked for.
    pub fn is_trainable(&self) -> bool {
        self.trainable
    }

    /// Asks for gradients, or stops asking; of a fixed weight nobody gets them. A stored weight that is to be trained becomes f32, and
    /// stays so.
    pub fn set_trainable(&mut self, trainable: bool) {
        self.trainable = trainable && !self.fixed;
        match &self.weight {
            Weight::Tensor(flat) => self.set_flat(flat.clone()),
            Weight::Stored(stored) if self.trainable => self.set_flat(taken(stored)),
            Weight::Stored(_) => {}
        }
    }
}

fn floats(values: Vec<f32>, device: &Device) -> Tensor<1> {
    let count = values.len();
    Tensor::from_data(TensorData::new(values, [count]), device)
}

/// The numbers in f32, which take the place of the stored ones: the pages of these are given back.
fn taken(stored: &Stored) -> Tensor<1> {
    let values = floats(stored.expanded(), &Device::flex());
    stored.bytes().release();
    values
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
