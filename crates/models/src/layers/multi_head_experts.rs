//! Multi-head mixture of experts (arXiv 2404.15045): every token is cut into sub-tokens that are routed one by one, so that
//! it reaches many more experts.
//!
//! `z = x W_mh + b`, cut into `h` contiguous parts of `width / h` channels; each part passes through experts of its own;
//! `y = merged W_merge + b`. Recipe: `experts.toml`.

use burn::tensor::Tensor;

use super::{Builder, experts::Experts, linear::Linear};
use crate::{
    Result,
    auxiliary_losses::{SideSpec, Sides},
    parameter::parameters,
    spec::MultiHeadExpertsSpec,
    stack::Context,
};

/// Experts for parts of tokens.
#[derive(Debug, Clone)]
pub struct MultiHeadExperts {
    heads: usize,
    multi_head: Linear,
    experts: Experts,
    merge: Linear,
}

parameters!(MultiHeadExperts: multi_head, experts, merge);

impl MultiHeadExperts {
    /// Builds `{name}.multi_head`, the experts and `{name}.merge`. The two maps start Xavier-like, the first one smaller by
    /// the root of two, as in the paper's code.
    ///
    /// # Errors
    /// When the source lacks a weight.
    pub fn build(
        builder: &mut Builder,
        name: &str,
        width: usize,
        spec: &MultiHeadExpertsSpec,
    ) -> Result<Self> {
        // The deviation of a Xavier-uniform matrix of equal sides: sqrt(2 / (in + out)).
        let xavier = (width.max(1) as f64).powf(-0.5);
        let multi_head = Linear::build(
            builder,
            &format!("{name}.multi_head"),
            [width, width],
            true,
            xavier * 0.5f64.sqrt(),
        )?;
        let experts = Experts::build(builder, name, width / spec.heads, &spec.experts)?;
        let merge = Linear::build(
            builder,
            &format!("{name}.merge"),
            [width, width],
            true,
            xavier,
        )?;
        Ok(Self {
            heads: spec.heads,
            multi_head,
            experts,
            merge,
        })
    }

    /// What the layer says of tokens.
    pub fn side(&self) -> SideSpec {
        self.experts.side(self.heads)
    }

    /// `x`: `[batch, time, width]`; the same shape comes back.
    pub fn forward(&self, x: Tensor<3>, context: &Context, sides: &mut Sides) -> Tensor<3> {
        let [batch, time, width] = x.dims();
        let parts = self
            .multi_head
            .forward(x)
            .reshape([batch * time * self.heads, width / self.heads]);
        let mixed = self
            .experts
            .forward_rows(parts, [batch, time], context, sides);
        self.merge.forward(mixed.reshape([batch, time, width]))
    }
}
