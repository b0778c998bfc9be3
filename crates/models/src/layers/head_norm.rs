//! The norm of queries or keys: over each head, or over all of them together.

use burn::tensor::Tensor;

use super::{Builder, norm::Norm};
use crate::{
    Result,
    parameter::{Parameter, parameters},
    source::Initial,
    spec::{NormExtent, NormSpec},
};

/// A norm over heads.
#[derive(Debug, Clone)]
pub struct HeadNorm {
    extent: NormExtent,
    norm: Norm,
    /// The weights of heads that have their own, `[heads, head_dim]`.
    weight: Option<Parameter>,
}

parameters!(HeadNorm: norm, weight);

impl HeadNorm {
    /// Builds `{name}.weight` as [`NormExtent`] says, for `heads` of width `head_dim`, and a bias where the kind has one.
    ///
    /// # Errors
    /// When the source lacks a weight.
    pub fn build(
        builder: &mut Builder,
        name: &str,
        [heads, head_dim]: [usize; 2],
        spec: NormSpec,
        extent: NormExtent,
    ) -> Result<Self> {
        let (norm, weight) = match extent {
            NormExtent::Head => (Norm::build(builder, name, head_dim, spec)?, None),
            NormExtent::AllHeads => (Norm::build(builder, name, heads * head_dim, spec)?, None),
            NormExtent::OwnHead => {
                let name = format!("{name}.weight");
                let weight = builder.parameter(name, vec![heads, head_dim], Initial::Ones)?;
                (Norm::plain(head_dim, spec, &builder.device), Some(weight))
            }
        };
        Ok(Self {
            extent,
            norm,
            weight,
        })
    }

    /// `x`: `[batch, time, heads, head_dim]`; the same shape comes back.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let [batch, time, heads, head_dim] = x.dims();
        let normed = match self.extent {
            NormExtent::AllHeads => {
                let joined: Tensor<3> = x.reshape([batch, time, heads * head_dim]);
                self.norm
                    .forward(joined)
                    .reshape([batch, time, heads, head_dim])
            }
            NormExtent::Head | NormExtent::OwnHead => self.norm.forward(x),
        };
        match &self.weight {
            Some(weight) => normed * weight.value::<2>().reshape([1, 1, heads, head_dim]),
            None => normed,
        }
    }
}
