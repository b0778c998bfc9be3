//! The norm of a block.

use burn::tensor::{Device, Tensor};
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
    width: usize,
    device: Device,
    weight: Option<Parameter>,
    bias: Option<Parameter>,
}

parameters!(Norm: weight, bias);

impl Norm {
    /// Builds `{name}.weight` and `{name}.bias`, both `[width]`, where the kind has them.
    ///
    /// # Errors
    /// When the source lacks a weight.
    pub fn build(builder: &mut Builder, name: &str, width: usize, spec: NormSpec) -> Result<Self> {
        let initial = match spec {
            NormSpec::RmsNorm { from_one: true, .. }
            | NormSpec::LayerNorm { from_one: true, .. } => Initial::Zeros,
            _ => Initial::Ones,
        };
        let mut parameter = |part: &str, wanted: bool, initial: Initial| {
            wanted
                .then(|| builder.parameter(format!("{name}.{part}"), vec![width], initial))
                .transpose()
        };
        let weight = parameter("weight", spec.has_weight(), initial)?;
        let bias = parameter("bias", spec.has_bias(), Initial::Zeros)?;
        Ok(Self {
            spec,
            width,
            device: builder.device.clone(),
            weight,
            bias,
        })
    }

    /// A norm of this kind whose weight is one.
    pub fn plain(width: usize, spec: NormSpec, device: &Device) -> Self {
        let spec = match spec {
            NormSpec::RmsNorm { epsilon, .. } | NormSpec::Scaled { epsilon } => {
                NormSpec::Scaled { epsilon }
            }
            _ => NormSpec::Standardised {
                epsilon: spec.epsilon(),
            },
        };
        Self {
            spec,
            width,
            device: device.clone(),
            weight: None,
            bias: None,
        }
    }

    /// The factors `[width]`.
    fn factors(&self) -> Tensor<1> {
        let one_less = matches!(
            self.spec,
            NormSpec::RmsNorm { from_one: true, .. } | NormSpec::LayerNorm { from_one: true, .. }
        );
        match &self.weight {
            None => Tensor::ones([self.width], &self.device),
            Some(weight) if one_less => weight.value::<1>() + 1.0,
            Some(weight) => weight.value(),
        }
    }

    fn offsets(&self) -> Tensor<1> {
        let none = || Tensor::zeros([self.width], &self.device);
        self.bias.as_ref().map_or_else(none, |bias| bias.value())
    }

    /// `x + y` and its norm, in one pass. `x`, `y`: `[.., width]`.
    pub fn forward_sum<const D: usize>(
        &self,
        x: Tensor<D>,
        y: Tensor<D>,
    ) -> (Tensor<D>, Recomputable<D>) {
        match self.spec {
            NormSpec::LayerNorm { epsilon, .. } | NormSpec::Standardised { epsilon } => {
                add_layer_norm(x, y, self.factors(), self.offsets(), epsilon)
            }
            NormSpec::RmsNorm { epsilon, .. } | NormSpec::Scaled { epsilon } => {
                add_rms_norm(x, y, self.factors(), epsilon)
            }
        }
    }

    /// `x` as it goes on, and its norm for linear maps, which then need not keep it. `x`: `[.., width]`.
    pub fn forward_beside<const D: usize>(&self, x: Tensor<D>) -> (Tensor<D>, Recomputable<D>) {
        match self.spec {
            NormSpec::LayerNorm { epsilon, .. } | NormSpec::Standardised { epsilon } => {
                layer_norm_beside(x, self.factors(), self.offsets(), epsilon)
            }
            NormSpec::RmsNorm { epsilon, .. } | NormSpec::Scaled { epsilon } => {
                rms_norm_beside(x, self.factors(), epsilon)
            }
        }
    }

    /// `x`: `[.., width]`; the same shape comes back.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        match self.spec {
            NormSpec::LayerNorm { epsilon, .. } | NormSpec::Standardised { epsilon } => {
                layer_norm(x, self.factors(), self.offsets(), epsilon)
            }
            NormSpec::RmsNorm { epsilon, .. } | NormSpec::Scaled { epsilon } => {
                rms_norm(x, self.factors(), epsilon)
            }
        }
    }
}
