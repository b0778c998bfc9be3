//! The linear layer: a weight, and what adapters add to it.

use std::ops::Range;

use burn::tensor::Tensor;
use espalier_kernels::{
    linear::{Group, Precision, linear},
    one_bit::{WeightBits, bit_linear, packed_linear},
    recomputable::Recomputable,
    stored::Stored,
    weight::Weight,
};

use super::{Builder, input_statistics};
use crate::{
    Error, Result,
    adapter::{
        linear_adapter::{LinearAdapter, LinearAdapters, LinearPass, LinearWeights},
        low_rank::LowRank,
    },
    parameter::{Parameter, Parameters},
    source::Initial,
};

/// Why an adapter is not merged into a rounded weight.
const QUANTISED: &str = "the base is quantised, and rounding would change what an adapter adds to it; merge it into the full-precision base: load that without quantising it";

/// Why an adapter is not merged into a weight that is rounded when it multiplies.
const ROUNDED: &str = "the base's weights are rounded to one bit or 1.58 when they multiply, and what an adapter adds would be rounded away with them; keep the adapter beside the base";

/// `y = x W^T + b`, plus what the active adapters add.
#[derive(Debug, Clone)]
pub struct Linear {
    name: String,
    /// `[out, in]`.
    pub weight: Parameter,
    /// `[out]`.
    pub bias: Option<Parameter>,
    /// What adapters add, by their names.
    pub adapters: LinearAdapters,
    /// The arithmetic of the layer's products.
    pub precision: Precision,
    /// What the weight is rounded to when it multiplies, and the input to eight bits; nothing is when absent.
    pub bits: Option<WeightBits>,
}

/// A linear map as adapters see it: a layer, or a part of one expert's matrix in a stack.
#[derive(Debug, Clone)]
pub struct LinearMap<'a> {
    /// Our name of the map, such as `blocks.0.mixer.query`.
    pub name: String,
    /// The weight that holds it.
    pub weight: &'a str,
    /// Its rows of the weight, counted over all axes but the last.
    pub rows: Range<usize>,
    /// What the map reads: columns of the weight.
    pub inputs: usize,
    /// Whose it is, in a stack.
    pub expert: Option<usize>,
    /// What adapters add to it.
    pub adapters: &'a LinearAdapters,
}

impl LinearMap<'_> {
    /// Output and input width.
    pub fn size(&self) -> [usize; 2] {
        [self.rows.len(), self.inputs]
    }
}

/// As [`LinearMap`], for change.
#[derive(Debug)]
pub struct LinearMapMut<'a> {
    /// Our name of the map.
    pub name: String,
    /// Whose it is, in a stack.
    pub expert: Option<usize>,
    /// What adapters add to it.
    pub(crate) adapters: &'a mut LinearAdapters,
    /// The arithmetic of its products.
    pub precision: &'a mut Precision,
    /// What the weight is rounded to when it multiplies.
    pub(super) bits: Option<WeightBits>,
    /// The weight that holds it.
    pub(super) weight: &'a mut Parameter,
    /// Its rows of the weight.
    pub(super) rows: Range<usize>,
    /// The bias, where it has one.
    pub(super) bias: Option<&'a mut Parameter>,
}

impl LinearMapMut<'_> {
    /// Output and input width.
    pub fn size(&self) -> [usize; 2] {
        [
            self.rows.len(),
            self.weight.shape().last().copied().unwrap_or(0),
        ]
    }

    /// The base's weight and bias.
    pub fn weights(&self) -> LinearWeights {
        LinearWeights {
            weight: self.weight.rows(self.rows.clone()),
            bias: self.bias.as_ref().map(|bias| bias.flat()),
        }
    }

    /// The weight that holds it.
    pub(crate) fn weight(&self) -> &Parameter {
        self.weight
    }

    /// Its elements of the weight.
    fn place(&self) -> Range<usize> {
        let [_, inputs] = self.size();
        self.rows.start * inputs..self.rows.end * inputs
    }

    /// Adds the part of an adapter, active, in place of one that this adapter has here.
    ///
    /// # Errors
    /// When an expert of a stack gets one that is no low-rank addition.
    pub fn attach(&mut self, adapter: &str, part: Box<dyn LinearAdapter>) -> Result<()> {
        let is_plain = |own: &LowRank| own.is_product() && own.start.is_none();
        if self.expert.is_some() && !part.low_rank().is_some_and(is_plain) {
            return Err(Error::Invalid(format!(
                "`{}` is computed for all experts at once, which plain low-rank adapters alone can join; leave experts out of the targets",
                self.name
            )));
        }
        self.adapters.attach(adapter, part);
        Ok(())
    }

    /// Keeps the weight packed, two bits a number, in place of the one that is rounded when it multiplies. Whether it has been.
    pub(crate) fn pack(&mut self) -> bool {
        let packed = self.bits.and_then(|bits| self.weight.packed(bits).cloned());
        let found = packed.is_some();
        if let Some(packed) = packed {
            self.weight.set_stored(packed);
        }
        found
    }

    /// Adds the active adapters into weight and bias, in f32, and removes them.
    ///
    /// # Errors
    /// When one of them cannot be merged; the map is then as it was.
    pub fn merge(mut self) -> Result<()> {
        if self.weight.is_quantised() && self.adapters.is_active() {
            return Err(Error::Invalid(QUANTISED.into()));
        }
        if self.bits.is_some() && self.adapters.is_active() {
            return Err(Error::Invalid(ROUNDED.into()));
        }
        let [outputs, inputs] = self.size();
        let place = self.place();
        let additions = self
            .adapters
            .active()
            .map(|adapter| adapter.merge(&self.weights()))
            .collect::<Result<Vec<_>>>()?;
        for LinearWeights { weight, bias } in additions {
            self.weight.update(|flat| {
                let sum = flat.clone().slice([place.clone()]) + weight.reshape([outputs * inputs]);
                flat.slice_assign([place.clone()], sum)
            });
            if let (Some(sum), Some(addition)) = (&mut self.bias, bias) {
                sum.update(|flat| flat + addition);
            }
        }
        self.adapters.detach_active();
        Ok(())
    }
}

impl Linear {
    /// Builds `{name}.weight` `[outputs, inputs]` and, where asked, `{name}.bias`.
    ///
    /// # Errors
    /// When the source lacks a weight.
    pub fn build(
        builder: &mut Builder,
        name: &str,
        size: [usize; 2],
        bias: bool,
        deviation: f64,
    ) -> Result<Self> {
        let weight = builder.linear(
            format!("{name}.weight"),
            size.to_vec(),
            Initial::Normal(deviation),
        )?;
        let bias = match bias {
            true => {
                Some(builder.parameter(format!("{name}.bias"), vec![size[0]], Initial::Zeros)?)
            }
            false => None,
        };
        Ok(Self {
            bias,
            bits: builder.bits,
            ..Self::from_weight(name, weight, Precision::F32)
        })
    }

    /// Builds a layer with a bias whose fresh weight and bias are `initial`.
    ///
    /// # Errors
    /// When the source lacks a weight.
    pub fn build_as(
        builder: &mut Builder,
        name: &str,
        size: [usize; 2],
        initial: [Initial; 2],
    ) -> Result<Self> {
        let [weight, bias] = initial;
        let weight = builder.linear(format!("{name}.weight"), size.to_vec(), weight)?;
        let bias = Some(builder.parameter(format!("{name}.bias"), vec![size[0]], bias)?);
        Ok(Self {
            bias,
            bits: builder.bits,
            ..Self::from_weight(name, weight, Precision::F32)
        })
    }

    /// A layer without bias over an existing weight `[out, in]`.
    pub fn from_weight(name: &str, weight: Parameter, precision: Precision) -> Self {
        Self {
            name: name.to_owned(),
            weight,
            bias: None,
            adapters: LinearAdapters::default(),
            precision,
            bits: None,
        }
    }

    /// Our name of the layer, such as `blocks.0.mixer.query`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Output and input width.
    pub fn size(&self) -> [usize; 2] {
        [self.weight.shape()[0], self.weight.shape()[1]]
    }

    /// `x`: `[.., in]`; returns `[.., out]`.
    pub fn forward<const D: usize>(&self, x: impl Into<Recomputable<D>>) -> Tensor<D> {
        let [y] = Self::forward_all([self], x);
        y
    }

    /// Several layers on one input, which is prepared once for all of them. All outputs must take part in what is
    /// differentiated.
    pub fn forward_all<const N: usize, const D: usize>(
        layers: [&Self; N],
        x: impl Into<Recomputable<D>>,
    ) -> [Tensor<D>; N] {
        Self::forward_beside(0, 0, layers, x).0
    }

    /// As [`Self::forward_all`], for an input that so many `others` and `maps` read too, with the group in which they have to leave
    /// their parts of its gradient, see [`Group::beside`].
    pub fn forward_beside<const N: usize, const D: usize>(
        others: usize,
        maps: usize,
        layers: [&Self; N],
        x: impl Into<Recomputable<D>>,
    ) -> ([Tensor<D>; N], Group) {
        let x = x.into();
        let together = layers.iter().filter(|layer| !layer.is_apart()).count();
        let readers = Group::beside(others, together + maps);
        let outputs = layers.map(|layer| {
            let group = if layer.is_apart() {
                Group::new(1)
            } else {
                readers.clone()
            };
            layer.forward_in(x.clone(), group, layer.bias())
        });
        (outputs, readers)
    }

    /// As [`Self::forward`] of a layer whose input these read too; it is one of their maps unless it is apart, see
    /// [`Self::is_apart`].
    pub(super) fn forward_among<const D: usize>(
        &self,
        readers: &Group,
        x: impl Into<Recomputable<D>>,
    ) -> Tensor<D> {
        self.forward_in(x.into(), readers.clone(), self.bias())
    }

    /// As [`Self::forward`], without adding the bias.
    pub fn forward_without_bias<const D: usize>(&self, x: impl Into<Recomputable<D>>) -> Tensor<D> {
        self.forward_in(x.into(), Group::new(1), None)
    }

    /// Whether an active adapter adds the same to every output, so that no weight computes as the map does.
    pub(super) fn adds_a_bias(&self) -> bool {
        let biased = |own: &LowRank| own.bias.is_some();
        self.adapters
            .active()
            .any(|one| one.low_rank().is_some_and(biased))
    }

    /// The weight with what the active adapters add to it, `[out, in]`, where they add no bias.
    pub fn adapted_weight(&self) -> Tensor<2> {
        let weight = match self.bits {
            Some(_) => self.effective().into_tensor(&self.weight.device()),
            None => self.weight.value::<2>(),
        };
        let product = |own: &&LowRank| own.is_product();
        let active = self.adapters.active();
        let products: Option<Vec<_>> = active.map(|one| one.low_rank().filter(product)).collect();
        match products {
            Some(adapters) => adapters.into_iter().fold(weight, |sum, adapter| {
                let [down, up] = adapter.factors();
                sum + up.matmul(down) * adapter.scale
            }),
            // What the map makes of unit vectors.
            None => {
                let units = Tensor::<2>::eye(self.size()[1], &weight.device());
                self.forward_without_bias(units).transpose()
            }
        }
    }

    /// The bias, `[out]`.
    pub fn bias(&self) -> Option<Tensor<1>> {
        self.bias.as_ref().map(Parameter::value)
    }

    /// Whether any adapter is active.
    pub fn is_adapted(&self) -> bool {
        self.adapters.is_active()
    }

    /// The only active adapter, where it is low-rank, reads all of the input and the weight is frozen: the fused form gives the weight
    /// no gradient.
    fn fused(&self) -> Option<&LowRank> {
        let mut active = self.adapters.active();
        match (active.next(), active.next()) {
            (Some(one), None) if !self.weight.is_trainable() && self.bits.is_none() => {
                one.low_rank().filter(|adapter| adapter.is_plain())
            }
            _ => None,
        }
    }

    /// Whether the product has a group of its own, because adapters see it, or its input is rounded.
    pub(super) fn is_apart(&self) -> bool {
        self.bits.is_some() || self.is_adapted() && self.fused().is_none()
    }

    /// The weight as it multiplies: as it is, or what it is rounded to. No gradient passes the rounding here.
    fn effective(&self) -> Weight<2> {
        let rounded = self.bits.and_then(|bits| self.weight.packed(bits));
        rounded.map_or_else(
            || self.weight.weight(),
            |packed| Weight::Stored(packed.clone()),
        )
    }

    /// The packed weight, where it is rounded and not trained.
    fn packed(&self, bits: WeightBits) -> Option<&Stored> {
        let frozen = !self.weight.is_trainable();
        frozen.then(|| self.weight.packed(bits)).flatten()
    }

    /// The product with the base's weight alone.
    fn product<const D: usize>(&self, x: Recomputable<D>) -> Tensor<D> {
        let Some(bits) = self.bits else {
            return linear(x, self.weight.weight::<2>(), None, self.precision);
        };
        match self.packed(bits) {
            Some(packed) => packed_linear(x, packed, self.precision),
            None => bit_linear(x, self.weight.value(), bits, self.precision),
        }
    }

    fn forward_in<const D: usize>(
        &self,
        x: Recomputable<D>,
        group: Group,
        bias: Option<Tensor<1>>,
    ) -> Tensor<D> {
        if input_statistics::are_recorded() {
            input_statistics::record(&self.name, x.clone().into_tensor());
        }
        let weight = || self.weight.weight::<2>();
        let y = match self.fused() {
            Some(adapter) => {
                let factors = adapter.factors();
                group.low_rank_linear(x, weight(), factors, adapter.scale, self.precision)
            }
            None if self.is_adapted() => self.adapted(x),
            None if self.bits.is_some() => self.product(x),
            None => return group.linear(x, weight(), bias, self.precision),
        };
        match bias {
            Some(bias) => y + bias.unsqueeze(),
            None => y,
        }
    }

    /// The product with what the active adapters add, without the bias.
    fn adapted<const D: usize>(&self, x: Recomputable<D>) -> Tensor<D> {
        let product = self.product(x.clone());
        let (shape, rows) = (
            product.dims(),
            product.dims().iter().rev().skip(1).product(),
        );
        let flat = |x: Tensor<D>, width| x.reshape([rows, width]);
        let [outputs, inputs] = self.size();
        let pass = LinearPass {
            input: flat(x.into_tensor(), inputs),
            product: flat(product.clone(), outputs),
            bias: self.bias(),
            weight: &|| self.effective(),
            precision: self.precision,
        };
        match self.adapters.addition(&pass) {
            Some(addition) => product + addition.reshape(shape),
            None => product,
        }
    }
}

impl Parameters for Linear {
    fn visit<'a>(&'a self, visitor: &mut dyn FnMut(&'a Parameter)) {
        self.weight.visit(visitor);
        self.bias.visit(visitor);
        self.adapters.visit(visitor);
    }

    fn visit_mut(&mut self, visitor: &mut dyn FnMut(&mut Parameter)) {
        self.weight.visit_mut(visitor);
        self.bias.visit_mut(visitor);
        self.adapters.visit_mut(visitor);
    }

    fn visit_linears_mut(&mut self, visitor: &mut dyn FnMut(LinearMapMut<'_>)) {
        visitor(LinearMapMut {
            name: self.name.clone(),
            rows: 0..self.weight.shape()[0],
            expert: None,
            bias: self.bias.as_mut(),
            adapters: &mut self.adapters,
            precision: &mut self.precision,
            bits: self.bits,
            weight: &mut self.weight,
        });
    }

    fn visit_linears<'a>(&'a self, visitor: &mut dyn FnMut(LinearMap<'a>)) {
        visitor(LinearMap {
            name: self.name.clone(),
            weight: self.weight.name(),
            rows: 0..self.weight.shape()[0],
            inputs: self.weight.shape()[1],
            expert: None,
            adapters: &self.adapters,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, Tensor};

    #[test]
    fn merging_gives_the_worked_example() {
        let device = Device::flex();
        let parameter = |name: &str, shape: [usize; 2], values: &[f32]| {
            Parameter::new(name, shape.to_vec(), Tensor::from_floats(values, &device))
        };
        let weight = parameter("w", [2, 3], &[1.0, 0.0, 0.0, 0.0, 1.0, 0.0]);
        let mut linear = Linear::from_weight("layer", weight, Precision::F32);
        let down = parameter("a", [1, 3], &[1.0, 2.0, 0.0]);
        let low_rank = LowRank::new([down, parameter("b", [2, 1], &[0.5, 1.0])], 2.0);
        linear.adapters.attach("default", Box::new(low_rank));
        let x = Tensor::<2>::from_floats([[1.0, -1.0, 3.0]], &device);
        let adapted = linear.forward(x.clone());
        linear.visit_linears_mut(&mut |map| map.merge().unwrap());
        assert!(!linear.is_adapted());
        assert_eq!(linear.weight.to_vec(), [2.0, 2.0, 0.0, 2.0, 5.0, 0.0]);
        let gap = (linear.forward(x) - adapted)
            .abs()
            .max()
            .into_scalar::<f32>();
        assert!(gap < 1e-6);
    }
}
