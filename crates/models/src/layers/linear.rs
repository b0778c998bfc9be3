//! The linear layer: a weight and at most one adapter.

use std::ops::Range;

use burn::tensor::Tensor;
use espalier_kernels::{
    linear::{Group, Precision, linear},
    recomputable::Recomputable,
};

use super::Builder;
use crate::{
    Result,
    parameter::{Parameter, Parameters, parameters},
    source::Initial,
};

/// `y = x W^T + b`, plus the adapter where there is one.
#[derive(Debug, Clone)]
pub struct Linear {
    name: String,
    /// `[out, in]`.
    pub weight: Parameter,
    /// `[out]`.
    pub bias: Option<Parameter>,
    /// A low-rank addition to the weight.
    pub adapter: Option<LowRank>,
    /// The arithmetic of the layer's products.
    pub precision: Precision,
}

/// LoRA (arXiv 2106.09685): `W + scale * B A`, with `A` (`down`) `[rank, in]` and `B` (`up`) `[out, rank]`.
#[derive(Debug, Clone)]
pub struct LowRank {
    /// `A`, `[rank, in]`.
    pub down: Parameter,
    /// `B`, `[out, rank]`.
    pub up: Parameter,
    /// `alpha / rank`, or `alpha / sqrt(rank)` for rsLoRA.
    pub scale: f64,
}

parameters!(LowRank: down, up);

/// A linear map as adapters see it: a layer, or a part of one expert's matrix in a stack.
#[derive(Debug, Clone)]
pub struct LinearMap<'a> {
    /// Our name of the map, such as `blocks.0.mixer.query`.
    pub name: String,
    /// The weight that holds it.
    pub weight: &'a str,
    /// Its rows of the weight, counted over all axes but the last.
    pub rows: Range<usize>,
    /// Whose it is, in a stack.
    pub expert: Option<usize>,
    /// What is added to it.
    pub adapter: Option<&'a LowRank>,
}

/// As [`LinearMap`], for change.
#[derive(Debug)]
pub struct LinearMapMut<'a> {
    /// Our name of the map.
    pub name: String,
    /// What is added to it.
    pub adapter: &'a mut Option<LowRank>,
    /// The arithmetic of its products.
    pub precision: &'a mut Precision,
    /// The weight that holds it.
    pub(super) weight: &'a mut Parameter,
    /// Its rows of the weight.
    pub(super) rows: Range<usize>,
}

impl LinearMapMut<'_> {
    /// Output and input width.
    pub fn size(&self) -> [usize; 2] {
        [
            self.rows.len(),
            self.weight.shape().last().copied().unwrap_or(0),
        ]
    }

    /// Adds the adapter into the weight, in f32, and removes it.
    pub fn merge(self) {
        let [outputs, inputs] = self.size();
        if let Some(adapter) = self.adapter.take() {
            let delta = adapter
                .up
                .value::<2>()
                .inner()
                .matmul(adapter.down.value::<2>().inner())
                * adapter.scale;
            let place = self.rows.start * inputs..self.rows.end * inputs;
            self.weight.update(|flat| {
                let sum = flat.clone().slice([place.clone()]) + delta.reshape([outputs * inputs]);
                flat.slice_assign([place], sum)
            });
        }
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
        let weight = builder.weight(
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
        let weight = builder.weight(format!("{name}.weight"), size.to_vec(), weight)?;
        let bias = Some(builder.parameter(format!("{name}.bias"), vec![size[0]], bias)?);
        Ok(Self {
            bias,
            ..Self::from_weight(name, weight, Precision::F32)
        })
    }

    /// A layer without bias over an existing weight `[out, in]`.
    pub fn from_weight(name: &str, weight: Parameter, precision: Precision) -> Self {
        Self {
            name: name.to_owned(),
            weight,
            bias: None,
            adapter: None,
            precision,
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
        let together = layers.iter().filter(|layer| !layer.trains_both()).count();
        let readers = Group::beside(others, together + maps);
        let outputs = layers.map(|layer| {
            let group = if layer.trains_both() {
                Group::new(1)
            } else {
                readers.clone()
            };
            layer.forward_in(x.clone(), group, layer.bias())
        });
        (outputs, readers)
    }

    /// As [`Self::forward`], without adding the bias.
    pub fn forward_without_bias<const D: usize>(&self, x: impl Into<Recomputable<D>>) -> Tensor<D> {
        self.forward_in(x.into(), Group::new(1), None)
    }

    /// The bias, `[out]`.
    pub fn bias(&self) -> Option<Tensor<1>> {
        self.bias.as_ref().map(Parameter::value)
    }

    /// Whether the weight is trained beside its adapter; the fused form gives the weight no gradient.
    fn trains_both(&self) -> bool {
        self.adapter.is_some() && self.weight.is_trainable()
    }

    fn forward_in<const D: usize>(
        &self,
        x: Recomputable<D>,
        group: Group,
        bias: Option<Tensor<1>>,
    ) -> Tensor<D> {
        let weight = self.weight.weight::<2>();
        let y = match &self.adapter {
            None => return group.linear(x, weight, bias, self.precision),
            Some(adapter) if self.trains_both() => {
                linear(x.clone(), weight, None, self.precision) + adapter.forward(x, self.precision)
            }
            Some(adapter) => {
                let factors = [adapter.down.value(), adapter.up.value()];
                group.low_rank_linear(x, weight, factors, adapter.scale, self.precision)
            }
        };
        match bias {
            Some(bias) => y + bias.unsqueeze(),
            None => y,
        }
    }
}

impl LowRank {
    fn forward<const D: usize>(&self, x: Recomputable<D>, precision: Precision) -> Tensor<D> {
        let narrow = linear(x, self.down.value(), None, precision) * self.scale;
        linear(narrow, self.up.value(), None, precision)
    }
}

impl Parameters for Linear {
    fn visit<'a>(&'a self, visitor: &mut dyn FnMut(&'a Parameter)) {
        self.weight.visit(visitor);
        self.bias.visit(visitor);
        self.adapter.visit(visitor);
    }

    fn visit_mut(&mut self, visitor: &mut dyn FnMut(&mut Parameter)) {
        self.weight.visit_mut(visitor);
        self.bias.visit_mut(visitor);
        self.adapter.visit_mut(visitor);
    }

    fn visit_linears_mut(&mut self, visitor: &mut dyn FnMut(LinearMapMut<'_>)) {
        visitor(LinearMapMut {
            name: self.name.clone(),
            rows: 0..self.weight.shape()[0],
            adapter: &mut self.adapter,
            precision: &mut self.precision,
            weight: &mut self.weight,
        });
    }

    fn visit_linears<'a>(&'a self, visitor: &mut dyn FnMut(LinearMap<'a>)) {
        visitor(LinearMap {
            name: self.name.clone(),
            weight: self.weight.name(),
            rows: 0..self.weight.shape()[0],
            expert: None,
            adapter: self.adapter.as_ref(),
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
        linear.adapter = Some(LowRank {
            down,
            up: parameter("b", [2, 1], &[0.5, 1.0]),
            scale: 2.0,
        });
        let x = Tensor::<2>::from_floats([[1.0, -1.0, 3.0]], &device);
        let adapted = linear.forward(x.clone());
        linear.visit_linears_mut(&mut |map| map.merge());
        assert_eq!(linear.weight.to_vec(), [2.0, 2.0, 0.0, 2.0, 5.0, 0.0]);
        let gap = (linear.forward(x) - adapted)
            .abs()
            .max()
            .into_scalar::<f32>();
        assert!(gap < 1e-6);
    }
}
