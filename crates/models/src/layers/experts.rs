//! Sparse mixture of experts (arXiv 1701.06538; Switch, 2101.03961; Mixtral, 2401.04088): a router sends every token
//! through a few of many feed-forward layers.
//!
//! `p = softmax(x W_r^T)` over all experts, `y = sum w_e E_e(x)` over the `k` largest, with `w` equal to `p` (Switch) or to
//! `p` divided by its sum over the chosen (Mixtral). Recipe: `experts.toml`.

use std::sync::Arc;

use burn::tensor::{IndexingUpdateOp, Int, Tensor, TensorData};
use espalier_kernels::{
    activation::{Activation, activate, gated},
    embedding::embedding,
    experts::{Form, Routing, expert_feed_forward},
    linear::{Group, add_bias},
};

use super::{
    Builder, channel::FeedForward, clamped_gate::clamped, expert_linear::ExpertLinear,
    linear::Linear, router::Router,
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
    biases: Option<Biases>,
    bias: Option<Parameter>,
    shared: Option<SharedExpert>,
}

parameters!(Experts: router, up, down, biases, bias, shared);

/// Biases of every expert's two matrices, `[experts, out]`.
#[derive(Debug, Clone)]
struct Biases {
    up: Parameter,
    down: Parameter,
}

parameters!(Biases: up, down);

impl Biases {
    /// What the experts of all slots add to their first product, `[slots, rows]`.
    fn of_slots(&self, routing: &Routing) -> Tensor<2> {
        embedding(self.up.value::<2>(), routing.chosen())
    }

    /// What they add to the weighted sums, `[tokens, width]`.
    fn of_tokens(&self, weights: Tensor<2>, routing: &Routing) -> Tensor<2> {
        let (device, size) = (weights.device(), weights.dims());
        let chosen = routing.chosen().iter().map(|expert| *expert as i32);
        let chosen = TensorData::new(chosen.collect::<Vec<_>>(), size);
        let chosen = Tensor::<2, Int>::from_data(chosen, &device.clone().inner());
        let shares = Tensor::zeros([size[0], routing.experts()], &device);
        let shares = shares.scatter(1, chosen, weights, IndexingUpdateOp::Add);
        shares.matmul(self.down.value())
    }
}

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
    /// gates first), `{name}.experts.down.weight` `[experts, width, inner]` and, where the spec has them, the biases of both,
    /// `{name}.bias` and the layer `{name}.shared` with `{name}.shared.weigher`.
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
        // Rows that take turns are one part.
        let parts = if spec.gated && spec.clamped.is_none() {
            2
        } else {
            1
        };
        let up = ExpertLinear::build(
            builder,
            &name_of("up"),
            [experts, rows, width],
            parts,
            deviation,
        )?;
        let down = ExpertLinear::build(
            builder,
            &name_of("down"),
            [experts, width, inner],
            1,
            residual,
        )?;
        let mut biases = |part: &str, rows: usize| {
            let name = name_of(&format!("{part}.bias"));
            let biases = builder.parameter(name, vec![experts, rows], Initial::Zeros)?;
            Result::Ok(biases.undecayed())
        };
        let biases = match spec.expert.bias {
            true => Some(Biases {
                up: biases("up", rows)?,
                down: biases("down", width)?,
            }),
            false => None,
        };
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
            biases,
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
        let plain = self.biases.is_none() && self.spec.clamped.is_none();
        let y = match !plain || self.up.is_adapted() || self.down.is_adapted() {
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

    /// The same with adapters, biases or another gate, one linear map after the other. All slots have room: experts with biases have
    /// no capacity.
    fn by_parts(
        &self,
        x: Tensor<2>,
        weights: Tensor<2>,
        routing: &Arc<Routing>,
        form: Form,
        readers: Group,
    ) -> Tensor<2> {
        let inner = self.up.forward(x, routing, [1, 1], readers);
        let inner = match &self.biases {
            Some(biases) => inner + biases.of_slots(routing),
            None => inner,
        };
        let hidden = match (form.gated, self.spec.clamped) {
            (_, Some(gate)) => clamped(inner, gate),
            (true, None) => {
                let half = inner.dims()[1] / 2;
                let (gate, up) = (
                    inner.clone().narrow(1, 0, half),
                    inner.narrow(1, half, half),
                );
                gated(form.activation, gate, up, form.precision).into_tensor()
            }
            (false, None) => activate(form.activation, inner),
        };
        let y = self.down.summed(hidden, weights.clone(), routing, 1);
        match &self.biases {
            Some(biases) => y + biases.of_tokens(weights, routing),
            None => y,
        }
    }
}
