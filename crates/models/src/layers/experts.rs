//! Sparse mixture of experts (arXiv 1701.06538; Switch, 2101.03961; Mixtral, 2401.04088): a router sends every token
//! through a few of many feed-forward layers.
//!
//! `p = softmax(x W_r^T)` over all experts, `y = sum w_e E_e(x)` over the `k` largest, with `w` equal to `p` (Switch) or to
//! `p` divided by its sum over the chosen (Mixtral). Recipe: `experts.toml`.

use std::sync::Arc;

use burn::tensor::Tensor;
use espalier_kernels::{
    activation::{activate, gated},
    experts::{Form, Routing, expert_feed_forward},
    linear::{Group, add_bias},
};

use super::{Builder, expert_linear::ExpertLinear, router::Router};
use crate::{
    Result,
    auxiliary_losses::{SideSpec, Sides},
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
    up: ExpertLinear,
    down: ExpertLinear,
    bias: Option<Parameter>,
}

parameters!(Experts: router, up, down, bias);

impl Experts {
    /// Builds `{name}.router`, `{name}.experts.up.weight` `[experts, inner, width]` (with a gate `[experts, 2 inner, width]`,
    /// gates first), `{name}.experts.down.weight` `[experts, width, inner]` and, where the spec has one, `{name}.bias`.
    ///
    /// # Errors
    /// When the source lacks a weight.
    pub fn build(
        builder: &mut Builder,
        name: &str,
        width: usize,
        spec: &ExpertsSpec,
    ) -> Result<Self> {
        let router = Router::build(builder, &format!("{name}.router"), width, &spec.router)?;
        let (experts, inner) = (spec.router.experts, spec.expert.inner);
        let rows = if spec.gated { 2 * inner } else { inner };
        let (deviation, residual) = (builder.deviation, builder.residual_deviation);
        let name_of = |part: &str| format!("{name}.experts.{part}");
        let up = ExpertLinear::build(
            builder,
            &name_of("up"),
            [experts, rows, width],
            rows / inner.max(1),
            deviation,
        )?;
        let down = ExpertLinear::build(
            builder,
            &name_of("down"),
            [experts, width, inner],
            1,
            residual,
        )?;
        let bias = match spec.output_bias {
            true => Some(builder.parameter(format!("{name}.bias"), vec![width], Initial::Zeros)?),
            false => None,
        };
        Ok(Self {
            spec: spec.clone(),
            router,
            up,
            down,
            bias,
        })
    }

    /// What the layer says of tokens of so many parts.
    pub fn side(&self, parts: usize) -> SideSpec {
        self.router.side(parts)
    }

    /// `x`: `[batch, time, width]`; the same shape comes back.
    pub fn forward(&self, x: Tensor<3>, context: &Context, sides: &mut Sides) -> Tensor<3> {
        let [batch, time, width] = x.dims();
        let y = self.forward_rows(
            x.reshape([batch * time, width]),
            [batch, time],
            context,
            sides,
        );
        y.reshape([batch, time, width])
    }

    /// `x`: rows of which each of `size` tokens has equally many, `[rows, width]`; the same shape comes back.
    pub fn forward_rows(
        &self,
        x: Tensor<2>,
        size: [usize; 2],
        context: &Context,
        sides: &mut Sides,
    ) -> Tensor<2> {
        let readers = Group::beside(1, 1);
        let (routing, weights) = self
            .router
            .forward(x.clone(), &readers, size, context, sides);
        let form = Form {
            activation: self.spec.expert.activation,
            gated: self.spec.gated,
            precision: context.precision,
        };
        let y = match self.up.is_adapted() || self.down.is_adapted() {
            true => self.by_parts(x, weights, &routing, form, readers),
            false => expert_feed_forward(
                x,
                weights,
                self.up.weight(),
                self.down.weight(),
                &routing,
                form,
                Some(readers),
            ),
        };
        match &self.bias {
            Some(bias) => add_bias(y, bias.value()),
            None => y,
        }
    }

    /// The same with adapters, one linear map after the other.
    fn by_parts(
        &self,
        x: Tensor<2>,
        weights: Tensor<2>,
        routing: &Arc<Routing>,
        form: Form,
        readers: Group,
    ) -> Tensor<2> {
        let inner = self.up.forward(x, routing, [1, 1], readers);
        let hidden = match form.gated {
            true => {
                let half = inner.dims()[1] / 2;
                let (gate, up) = (
                    inner.clone().narrow(1, 0, half),
                    inner.narrow(1, half, half),
                );
                gated(form.activation, gate, up, form.precision).into_tensor()
            }
            false => activate(form.activation, inner),
        };
        self.down.summed(hidden, weights, routing, 1)
    }
}
