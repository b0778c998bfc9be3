//! The state of optimisers that are a rule for each parameter.

use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor, TensorData};
use espalier_models::{checkpoint::Dtype, parameter::Parameter};

use super::{Optimiser, Rule, Step};
use crate::{
    Result,
    named_tensors::{NamedTensor, SavedTensors, Values},
};

/// One tensor of a parameter's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// Its name in checkpoints is `<name>.<parameter>`.
    pub name: &'static str,
    /// Its elements.
    pub length: usize,
    /// Whether these are bytes, else f32.
    pub is_bytes: bool,
}

impl Slot {
    /// Numbers in f32.
    pub const fn floats(name: &'static str, length: usize) -> Self {
        Self {
            name,
            length,
            is_bytes: false,
        }
    }

    /// Bytes.
    pub const fn bytes(name: &'static str, length: usize) -> Self {
        Self {
            name,
            length,
            is_bytes: true,
        }
    }

    fn zeros(self, device: &Device) -> Value {
        match self.is_bytes {
            true => Value::Bytes(vec![0; self.length]),
            false => Value::Floats(Tensor::zeros([self.length], device)),
        }
    }
}

/// What stands in a [`Slot`].
#[derive(Debug, Clone)]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all state is numbers, the larger kind"
)]
pub enum Value {
    /// Numbers, `[length]`.
    Floats(Tensor<1>),
    /// Bytes.
    Bytes(Vec<u8>),
}

impl Value {
    /// The numbers; none of bytes.
    pub fn floats(self) -> Tensor<1> {
        match self {
            Self::Floats(values) => values,
            Self::Bytes(_) => Tensor::empty([0], &Device::flex()),
        }
    }

    /// The bytes; none of numbers.
    pub fn bytes(self) -> Vec<u8> {
        match self {
            Self::Floats(_) => Vec::new(),
            Self::Bytes(bytes) => bytes,
        }
    }
}

/// An optimiser that is a [`Rule`], with the state of every parameter.
#[derive(Debug, Clone)]
pub struct Ruled<R> {
    rule: R,
    states: BTreeMap<String, Vec<(Slot, Value)>>,
}

impl<R: Rule> Ruled<R> {
    /// The optimiser without state.
    pub fn new(rule: R) -> Self {
        Self {
            rule,
            states: BTreeMap::new(),
        }
    }

    fn fresh(&self, parameter: &Parameter) -> Vec<(Slot, Value)> {
        let device = parameter.device().inner();
        let slots = self.rule.slots(parameter).into_iter();
        slots.map(|slot| (slot, slot.zeros(&device))).collect()
    }
}

/// A value as checkpoints keep it.
fn named<'a>(key: &str, slot: Slot, value: &'a Value) -> NamedTensor<'a> {
    let name = format!("{}.{key}", slot.name);
    match value {
        Value::Floats(values) => NamedTensor::floats(name, values.clone()),
        Value::Bytes(bytes) => NamedTensor {
            name,
            shape: vec![bytes.len()],
            values: Values::Bytes(Dtype::U8, bytes.into()),
        },
    }
}

impl<R: Rule> Optimiser for Ruled<R> {
    fn start(&mut self, key: &str, parameter: &Parameter) {
        let state = self.fresh(parameter);
        self.states.insert(key.to_owned(), state);
    }

    fn step(&mut self, key: &str, parameter: &mut Parameter, gradient: Tensor<1>, step: Step) {
        // Taken out, so that nobody else holds it and it changes in place.
        let state = self.states.remove(key);
        let state = state.unwrap_or_else(|| self.fresh(parameter));
        let (slots, values): (Vec<Slot>, Vec<Value>) = state.into_iter().unzip();
        let values = self.rule.update(parameter, gradient, values, step);
        let state = slots.into_iter().zip(values).collect();
        self.states.insert(key.to_owned(), state);
    }

    fn state(&self) -> Vec<NamedTensor<'_>> {
        let mut tensors = Vec::new();
        for (key, state) in &self.states {
            tensors.extend(state.iter().map(|(slot, value)| named(key, *slot, value)));
        }
        tensors
    }

    fn restore(&mut self, key: &str, parameter: &Parameter, saved: &SavedTensors) -> Result<()> {
        let device = parameter.device().inner();
        let read = |slot: Slot| -> Result<(Slot, Value)> {
            let (name, shape) = (format!("{}.{key}", slot.name), [slot.length]);
            let value = match slot.is_bytes {
                true => Value::Bytes(saved.bytes(&name, Dtype::U8, &shape)?),
                false => {
                    let values = TensorData::new(saved.floats(&name, &shape)?, shape);
                    Value::Floats(Tensor::from_data(values, &device))
                }
            };
            Ok((slot, value))
        };
        let slots = self.rule.slots(parameter).into_iter();
        let state = slots.map(read).collect::<Result<_>>()?;
        self.states.insert(key.to_owned(), state);
        Ok(())
    }

    fn bytes(&self, parameter: &Parameter) -> u64 {
        let bytes = |slot: &Slot| match slot.is_bytes {
            true => slot.length as u64,
            false => 4 * slot.length as u64,
        };
        self.rule.slots(parameter).iter().map(bytes).sum()
    }
}
