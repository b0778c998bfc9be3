//! Sparse mixture of experts (arXiv 1701.06538; Switch, 2101.03961; Mixtral, 2401.04088): a router sends every token
//! through a few of many feed-forward layers.
//!
//! `p = softmax(x W_r^T)` over all experts, `y = sum w_e E_e(x)` over the `k` largest, with `w` equal to `p` (Switch) or to
//! `p` divided by its sum over the chosen (Mixtral). Recipe: `experts.toml`.

use std::sync::Arc;

use burn::tensor::Tensor;
use espalier_kernels::{
    activation::{Activation, activate, gated},
    experts::{Form, Routing, expert_feed_forward},
    linear::{Group, add_bias},
};

use super::{
    Builder, channel::FeedForward, expert_linear::ExpertLinear, linear::Linear, router::Router,
};
use crate::{
    Result,
    auxiliary_losses::{SideSpec, Sides},
    parameter::{Parameter, parameters},
    source::Initial,
    spec::{ExpertsSpec, SharedExpertSpec},
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
    shared: Option<SharedExpert>,
}

parameters!(Experts: router, up, down, bias, shared);

/// The expert that all tokens pass through.
#[derive(Debug, Clone)]
struct SharedExpert {
    layer: FeedForward,
    /// A linear map whose logistic function multiplies the output.
    weigher: Option<Linear>,
}

parameters!(SharedExpert: layer, weigher);

impl SharedExpert {
    fn build(
        builder: &mut Builder,
        name: &str,
        width: usize,
        spec: &SharedExpertSpec,
        gated: bool,
    ) -> Result<Self> {
        let layer = FeedForward::build(builder, name, width, &spec.expert, gated)?;
        let (weigher, deviation) = (format!("{name}.weigher"), builder.deviation);
        let weigher = spec
            .weighed
            .then(|| Linear::build(builder, &weigher, [1, width], false, deviation))
            .transpose()?;
        Ok(Self { layer, weigher })
    }

    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let y = self.layer.forward(x.clone().into());
        match &self.weigher {
            Some(weigher) => activate(Activation::Sigmoid, weigher.forward(x)) * y,
            None => y,
        }
    }
}

impl Experts {
    /// Builds `{name}.router`, `{name}.experts.up.weight` `[experts, inner, width]` (with a gate `[experts, 2 inner, width]`,
    /// gates first), `{name}.experts.down.weight` `[experts, width, inner]` and, where the spec has them, `{name}.bias` and the
    /// layer `{name}.shared` with `{name}.shared.weigher`.
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
        let shared_name = format!("{name}.shared");
        let shared = spec
            .shared
            .as_ref()
            .map(|shared| SharedExpert::build(builder, &shared_name, width, shared, spec.gated))
            .transpose()?;
        Ok(Self {
            spec: spec.clone(),
            router,
            up,
            down,
            bias,
            shared,
        })
    }

    /// What the layer says of tokens of so many parts.
    pub fn side(&self, parts: usize) -> SideSpec {
        self.router.side(parts)
    }

    /// `x`: `[batch, time, width]`; the same shape comes back.
    pub fn forward(&self, x: Tensor<3>, context: &Context, sides: &mut Sides) -> Tensor<3> {
        let [batch, time, width] = x.dims();
        let shared = self.shared.as_ref().map(|expert| expert.forward(x.clone()));
        let y = self.forward_rows(
            x.reshape([batch * time, width]),
            [batch, time],
            context,
            sides,
        );
        let y = y.reshape([batch, time, width]);
        match shared {
            Some(shared) => y + shared,
            None => y,
        }
    }

    /// `x`: rows of which each of `size` tokens has equally many, `[rows, width]`; the same shape comes back.
    pub fn forward_rows(
        &self,
        x: Tensor<2>,
        size: [usize; 2],
        context: &Context,
        sides: &mut Sides,
    ) -> Tensor<2> {
        let readers = Group::beside(1, self.router.readers());
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
