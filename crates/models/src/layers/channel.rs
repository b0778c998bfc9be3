//! What mixes along width: plain and gated feed-forward layers (GLU variants, arXiv 2002.05202).

use burn::tensor::Tensor;
use espalier_kernels::{
    activation::{Activation, activate, gated},
    transient::Transient,
};

use super::{Builder, linear::Linear};
use crate::{Result, parameter::parameters, spec::ChannelSpec};

/// `down(activation(up(x)))`, or with a gate `down(activation(gate(x)) * up(x))`.
#[derive(Debug, Clone)]
pub struct FeedForward {
    activation: Activation,
    gate: Option<Linear>,
    up: Linear,
    down: Linear,
}

parameters!(FeedForward: gate, up, down);

impl FeedForward {
    /// Builds `{name}.gate` (if gated), `{name}.up` and `{name}.down`.
    ///
    /// # Errors
    /// When the source lacks a weight.
    pub fn build(builder: &mut Builder, name: &str, width: usize, spec: &ChannelSpec) -> Result<Self> {
        let (gated, mlp) = match spec {
            ChannelSpec::Mlp(mlp) => (false, mlp),
            ChannelSpec::GatedMlp(mlp) => (true, mlp),
        };
        let (inward, outward) = ([mlp.inner, width], [width, mlp.inner]);
        let (deviation, residual) = (builder.deviation, builder.residual_deviation);
        let gate = match gated {
            true => Some(Linear::build(builder, &format!("{name}.gate"), inward, mlp.bias, deviation)?),
            false => None,
        };
        let up = Linear::build(builder, &format!("{name}.up"), inward, mlp.bias, deviation)?;
        let down = Linear::build(builder, &format!("{name}.down"), outward, mlp.bias, residual)?;
        Ok(Self { activation: mlp.activation, gate, up, down })
    }

    /// `x`: `[batch, time, width]`; the same shape comes back.
    pub fn forward(&self, x: Transient<3>) -> Tensor<3> {
        match &self.gate {
            Some(gate) => {
                let [gate, up] = Linear::forward_all([gate, &self.up], x);
                self.down.forward(gated(self.activation, gate, up, self.down.precision))
            }
            None => self.down.forward(activate(self.activation, self.up.forward(x))),
        }
    }
}
