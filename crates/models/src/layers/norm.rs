//! The norm of a block.

use burn::tensor::Tensor;
use espalier_kernels::norm::{layer_norm, rms_norm};

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
        let weight = builder.parameter(format!("{name}.weight"), vec![width], Initial::Ones)?;
        let bias = match spec {
            NormSpec::LayerNorm { .. } => {
                Some(builder.parameter(format!("{name}.bias"), vec![width], Initial::Zeros)?)
            }
            NormSpec::RmsNorm { .. } => None,
        };
        Ok(Self { spec, weight, bias })
    }

    /// `x`: `[.., width]`; the same shape comes back.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        match (self.spec, &self.bias) {
            (NormSpec::LayerNorm { epsilon }, Some(bias)) => layer_norm(x, self.weight.value(), bias.value(), epsilon),
            (NormSpec::LayerNorm { epsilon } | NormSpec::RmsNorm { epsilon }, _) => {
                rms_norm(x, self.weight.value(), epsilon)
            }
        }
    }
}
