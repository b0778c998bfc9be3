//! The norm of a block.

use burn::tensor::Tensor;
use espalier_kernels::norm::{
    layer_norm,
    residual::{add_layer_norm, add_rms_norm, layer_norm_beside, rms_norm_beside},
    rms_norm,
};
use espalier_kernels::recomputable::Recomputable;

use super::Builder;
use crate::{
    Result,
    parameter::{Parameter, parameters},
    source::Initial,
    spec::NormSpec,
};

/// LayerNorm or RMSNorm over the last axis.
#[derive(Debug, Clone)]
pub struct Norm {
    spec: NormSpec,
    weight: Parameter,
    bias: Option<Parameter>,
}

parameters!(Norm: weight, bias);

impl Norm {
    /// Builds `{name}.weight` and, for LayerNorm, `{name}.bias`, both `[width]`.
    ///
    /// # Errors
    /// When the source lacks a weight.
    pub fn build(builder: &mut Builder, name: &str, width: usize, spec: NormSpec) -> Result<Self> {
        let initial = match spec {
            NormSpec::RmsNorm { from_one: true, .. } => Initial::Zeros,
            _ => Initial::Ones,
        };
        let weight = builder.parameter(format!("{name}.weight"), vec![width], initial)?;
        let bias = match spec.has_bias() {
            true => Some(builder.parameter(format!("{name}.bias"), vec![width], Initial::Zeros)?),
            false => None,
        };
        Ok(Self { spec, weight, bias })
    }

    /// `x + y` and its norm, in one pass. `x`, `y`: `[.., width]`.
    pub fn forward_sum<const D: usize>(
        &self,
        x: Tensor<D>,
        y: Tensor<D>,
    ) -> (Tensor<D>, Recomputable<D>) {
        let weight = self.weight.value::<1>();
        match self.spec {
            NormSpec::LayerNorm { epsilon, .. } => {
                add_layer_norm(x, y, weight.clone(), self.bias_or_zero(&weight), epsilon)
            }
            NormSpec::RmsNorm { epsilon, from_one } => {
                add_rms_norm(x, y, if from_one { weight + 1.0 } else { weight }, epsilon)
            }
        }
    }

    fn bias_or_zero(&self, weight: &Tensor<1>) -> Tensor<1> {
        let none = || Tensor::zeros(weight.dims(), &weight.device().inner());
        self.bias.as_ref().map_or_else(none, |bias| bias.value())
    }

    /// `x` as it goes on, and its norm for linear maps, which then need not keep it. `x`: `[.., width]`.
    pub fn forward_beside<const D: usize>(&self, x: Tensor<D>) -> (Tensor<D>, Recomputable<D>) {
        let weight = self.weight.value::<1>();
        match self.spec {
            NormSpec::LayerNorm { epsilon, .. } => {
                layer_norm_beside(x, weight.clone(), self.bias_or_zero(&weight), epsilon)
            }
            NormSpec::RmsNorm { epsilon, from_one } => {
                rms_norm_beside(x, if from_one { weight + 1.0 } else { weight }, epsilon)
            }
        }
    }

    /// `x`: `[.., width]`; the same shape comes back.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let weight = self.weight.value::<1>();
        match self.spec {
            NormSpec::LayerNorm { epsilon, .. } => {
                layer_norm(x, weight.clone(), self.bias_or_zero(&weight), epsilon)
            }
            NormSpec::RmsNorm { epsilon, from_one } => {
                rms_norm(x, if from_one { weight + 1.0 } else { weight }, epsilon)
            }
        }
    }
}
