//! Sparse mixture of experts (arXiv 1701.06538; Switch, 2101.03961; Mixtral, 2401.04088): a router sends every token
//! through a few of many feed-forward layers.
//!
//! `p = softmax(x W_r^T)` over all experts, `y = sum w_e E_e(x)` over the `k` largest, with `w` equal to `p` (Switch) or to
//! `p` divided by its sum over the chosen (Mixtral). Recipe: `experts.toml`.

use burn::tensor::Tensor;
use espalier_kernels::experts::{Form, expert_feed_forward};

use super::{Builder, router::Router};
use crate::{
    Result,
    auxiliary::{SideSpec, Sides},
    parameter::{Parameter, parameters},
    source::Initial,
    spec::ExpertsSpec,
    stack::Context,
};

/// Experts with their router.
#[derive(Debug, Clone)]
pub struct Experts {
    spec: ExpertsSpec,
    router: Router,
    up: Parameter,
    down: Parameter,
    bias: Option<Parameter>,
}

parameters!(Experts: router, up, down, bias);

impl Experts {
    /// Builds `{name}.router`, `{name}.experts.up.weight` `[experts, inner, width]` (with a gate `[experts, 2 inner, width]`,
    /// gates first), `{name}.experts.down.weight` `[experts, width, inner]` and, where the spec has one, `{name}.bias`.
    ///
    /// # Errors
    /// When the source lacks a weight.
    pub fn build(builder: &mut Builder, name: &str, width: usize, spec: &ExpertsSpec) -> Result<Self> {
        let router = Router::build(builder, &format!("{name}.router"), width, &spec.router)?;
        let (experts, inner) = (spec.router.experts, spec.expert.inner);
        let rows = if spec.gated { 2 * inner } else { inner };
        let (deviation, residual) = (builder.deviation, builder.residual_deviation);
        let mut stacked = |part: &str, shape: [usize; 3], deviation| {
            let name = format!("{name}.experts.{part}.weight");
            builder.parameter(name, shape.to_vec(), Initial::Normal(deviation))
        };
        let up = stacked("up", [experts, rows, width], deviation)?;
        let down = stacked("down", [experts, width, inner], residual)?;
        let bias = match spec.output_bias {
            true => Some(builder.parameter(format!("{name}.bias"), vec![width], Initial::Zeros)?),
            false => None,
        };
        Ok(Self { spec: spec.clone(), router, up, down, bias })
    }

    /// What the layer says of tokens of so many parts.
    pub fn side(&self, parts: usize) -> SideSpec {
        self.router.side(parts)
    }

    /// `x`: `[batch, time, width]`; the same shape comes back.
    pub fn forward(&self, x: Tensor<3>, context: &Context, sides: &mut Sides) -> Tensor<3> {
        let [batch, time, width] = x.dims();
        let y = self.forward_rows(x.reshape([batch * time, width]), [batch, time], context, sides);
        y.reshape([batch, time, width])
    }

    /// `x`: rows of which each of `size` tokens has equally many, `[rows, width]`; the same shape comes back.
    pub fn forward_rows(&self, x: Tensor<2>, size: [usize; 2], context: &Context, sides: &mut Sides) -> Tensor<2> {
        let (routing, weights) = self.router.forward(x.clone(), size, context, sides);
        let form =
            Form { activation: self.spec.expert.activation, gated: self.spec.gated, precision: context.precision };
        let y = expert_feed_forward(x, weights, self.up.value(), self.down.value(), &routing, form);
        match &self.bias {
            Some(bias) => y + bias.value::<1>().unsqueeze(),
            None => y,
        }
    }
}
