//! Channel mixers: plain and gated feed-forward layers (GLU variants, arXiv 2002.05202).

use burn::tensor::Tensor;
use espalier_kernels::{
    activation::{Activation, Precision, activate, gated},
    recomputable::Recomputable,
};

use super::{
    Builder, experts::Experts, linear::Linear, multi_head_experts::MultiHeadExperts, norm::Norm,
};
use crate::{
    Result,
    auxiliary_losses::{SideSpec, Sides},
    parameter::parameters,
    recurrent::{RecurrentState, RwkvChannel},
    spec::{ChannelSpec, MlpSpec},
    stack::Context,
};

/// What mixes along width.
#[derive(Debug, Clone)]
#[allow(
    clippy::large_enum_variant,
    reason = "there is one for each block, and none is moved about"
)]
pub enum Channel {
    /// One layer for all tokens.
    FeedForward(FeedForward),
    /// A few of many for each token.
    Experts(Experts),
    /// A few of many for each part of a token.
    MultiHeadExperts(MultiHeadExperts),
    /// A layer that sees the token before.
    Rwkv(RwkvChannel),
}

parameters!(enum Channel: FeedForward, Experts, MultiHeadExperts, Rwkv);

impl Channel {
    /// Builds what `spec` describes, if anything.
    ///
    /// # Errors
    /// When the source lacks a weight.
    pub fn build(
        builder: &mut Builder,
        name: &str,
        width: usize,
        spec: &ChannelSpec,
    ) -> Result<Option<Self>> {
        Ok(Some(match spec {
            ChannelSpec::Mlp(mlp) => {
                Self::FeedForward(FeedForward::build(builder, name, width, mlp, false)?)
            }
            ChannelSpec::GatedMlp(mlp) => {
                Self::FeedForward(FeedForward::build(builder, name, width, mlp, true)?)
            }
            ChannelSpec::SparseExperts(experts) => {
                Self::Experts(Experts::build(builder, name, width, experts)?)
            }
            ChannelSpec::MultiHeadExperts(spec) => {
                Self::MultiHeadExperts(MultiHeadExperts::build(builder, name, width, spec)?)
            }
            ChannelSpec::Rwkv(spec) => Self::Rwkv(RwkvChannel::build(builder, name, width, spec)?),
            ChannelSpec::None => return Ok(None),
        }))
    }

    /// What the layer says of tokens besides its output.
    pub fn side(&self) -> Option<SideSpec> {
        match self {
            Self::FeedForward(_) | Self::Rwkv(_) => None,
            Self::Experts(experts) => Some(experts.side(1)),
            Self::MultiHeadExperts(experts) => Some(experts.side()),
        }
    }

    /// `x`: `[batch, time, width]`; the same shape comes back. `state` is of those that see the token before.
    pub fn forward(
        &self,
        x: Recomputable<3>,
        context: &Context,
        state: Option<&mut RecurrentState>,
        sides: &mut Sides,
    ) -> Tensor<3> {
        match self {
            Self::FeedForward(layer) => layer.forward(x),
            Self::Experts(experts) => experts.forward(x.into_tensor(), context, sides),
            Self::MultiHeadExperts(experts) => experts.forward(x.into_tensor(), context, sides),
            Self::Rwkv(layer) => layer.forward(x, context, state),
        }
    }
}

/// `down(activation(up(x)))`, or with a gate `down(activation(gate(x)) * up(x))`.
#[derive(Debug, Clone)]
pub struct FeedForward {
    activation: Activation,
    gate: Option<Linear>,
    up: Linear,
    down: Linear,
    sub_norm: Option<Norm>,
}

parameters!(FeedForward: gate, up, down, sub_norm);

impl FeedForward {
    /// Builds `{name}.gate` (if gated), `{name}.up`, `{name}.down` and, where the spec has it, `{name}.sub_norm`.
    ///
    /// # Errors
    /// When the source lacks a weight.
    pub fn build(
        builder: &mut Builder,
        name: &str,
        width: usize,
        mlp: &MlpSpec,
        gated: bool,
    ) -> Result<Self> {
        let (inward, outward) = ([mlp.inner, width], [width, mlp.inner]);
        let (deviation, residual) = (builder.deviation, builder.residual_deviation);
        let gate = match gated {
            true => Some(Linear::build(
                builder,
                &format!("{name}.gate"),
                inward,
                mlp.bias,
                deviation,
            )?),
            false => None,
        };
        let up = Linear::build(builder, &format!("{name}.up"), inward, mlp.bias, deviation)?;
        let down = Linear::build(
            builder,
            &format!("{name}.down"),
            outward,
            mlp.bias,
            residual,
        )?;
        let sub_norm = mlp
            .sub_norm
            .map(|kind| Norm::build(builder, &format!("{name}.sub_norm"), mlp.inner, kind))
            .transpose()?;
        Ok(Self {
            activation: mlp.activation,
            gate,
            up,
            down,
            sub_norm,
        })
    }

    /// `x`: `[batch, time, width]`; the same shape comes back.
    pub fn forward(&self, x: Recomputable<3>) -> Tensor<3> {
        let inner = match &self.gate {
            Some(gate) => {
                let [gate, up] = Linear::forward_all([gate, &self.up], x);
                let precision = self.gate_precision();
                gated(self.activation, gate, up, precision)
            }
            None => activate(self.activation, self.up.forward(x)).into(),
        };
        self.down.forward(match &self.sub_norm {
            Some(norm) => norm.forward(inner.into_tensor()).into(),
            None => inner,
        })
    }

    /// A gate is rounded to what the map behind it reads; a map that rounds by itself reads it as it is, and so does a norm.
    fn gate_precision(&self) -> Precision {
        match self.down.bits.is_some() || self.sub_norm.is_some() {
            true => Precision::F32,
            false => self.down.precision,
        }
    }
}
