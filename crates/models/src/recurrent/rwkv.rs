//! What the layers of all RWKV generations share: the mix with the token before, norms within heads, low-rank maps, and how
//! fresh weights start.

use burn::tensor::Tensor;
use espalier_kernels::{
    activation::{Activation, activate},
    linear::Precision,
    norm::group_norm,
    recurrent::{dynamic_mix::dynamic_mixes, last_steps, token_mix::token_mixes},
};
use serde::{Deserialize, Serialize};

use super::RecurrentState;
use crate::{
    Result,
    layers::{Builder, linear::Linear},
    parameter::{Parameter, parameters},
    source::Initial,
};

/// What a mixing weight is the share of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Share {
    /// The current token: `x_t mu + x_{t-1} (1 - mu)` (RWKV-4 and 5).
    Current,
    /// The token before: `x_t + (x_{t-1} - x_t) mu` (RWKV-6 and 7).
    Previous,
}

/// Tokens, each to be mixed with the one before it.
pub(super) struct Pairs {
    x: Tensor<3>,
    /// The token before the first, `[batch, width]`; zeros where absent.
    before: Option<Tensor<2>>,
    share: Share,
}

impl Pairs {
    /// Of `x`, `[batch, time, width]`, whose last token is remembered.
    pub fn new(x: Tensor<3>, share: Share, state: &mut Option<&mut RecurrentState>) -> Self {
        let [batch, _, width] = x.dims();
        let before = state
            .as_deref()
            .and_then(|state| state.get("shift", [batch, width]));
        if let Some(state) = state {
            state.set("shift", last_steps(x.clone(), 1));
        }
        Self { x, before, share }
    }

    /// The mixes by weights of `[1, 1, width]`.
    fn mixed<const N: usize>(&self, weights: [Tensor<3>; N]) -> [Tensor<3>; N] {
        let of_previous = weights.map(|weight| match self.share {
            Share::Current => weight.neg() + 1.0,
            Share::Previous => weight,
        });
        token_mixes(self.x.clone(), self.before.clone(), of_previous)
    }

    /// The mixes by weights that depend on the token, see [`dynamic_mixes`].
    pub fn dynamic<const N: usize>(
        &self,
        shared: Tensor<2>,
        narrow: Tensor<3>,
        up: Tensor<3>,
        precision: Precision,
    ) -> [Tensor<3>; N] {
        dynamic_mixes(
            self.x.clone(),
            self.before.clone(),
            shared,
            narrow,
            up,
            precision,
        )
    }

    /// The mixes by parameters.
    pub fn by<const N: usize>(&self, weights: [&Parameter; N]) -> [Tensor<3>; N] {
        self.mixed(weights.map(Parameter::value))
    }
}

/// A norm within each head, with weights for every channel (GroupNorm).
#[derive(Debug, Clone)]
pub(super) struct HeadNorm {
    heads: usize,
    weight: Parameter,
    bias: Parameter,
}

parameters!(HeadNorm: weight, bias);

/// `1e-5` for a head that was divided by 8, as the authors write it.
const HEAD_EPSILON: f64 = 64e-5;

impl HeadNorm {
    /// Builds `{name}.weight` and `{name}.bias`, both `[width]`.
    pub fn build(
        builder: &mut Builder,
        name: &str,
        width: usize,
        heads: usize,
        weight: f64,
    ) -> Result<Self> {
        let weight = Initial::Values(vec![weight as f32; width]);
        let weight = builder.parameter(format!("{name}.weight"), vec![width], weight)?;
        let bias = builder.parameter(format!("{name}.bias"), vec![width], Initial::Zeros)?;
        Ok(Self {
            heads,
            weight,
            bias,
        })
    }

    /// `x`: `[batch, time, width]`; the same shape comes back.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        group_norm(
            x,
            self.weight.value(),
            self.bias.value(),
            self.heads,
            HEAD_EPSILON,
        )
    }
}

/// What stands between the two maps of a [`LowRank`].
#[derive(Debug, Clone, Copy)]
pub(super) enum Between {
    /// Nothing.
    Nothing,
    /// `tanh`.
    Tanh,
    /// The logistic function.
    Sigmoid,
}

/// `f(x A^T) B^T` through a narrow middle.
#[derive(Debug, Clone)]
pub(super) struct LowRank {
    between: Between,
    down: Linear,
    up: Linear,
}

parameters!(LowRank: down, up);

impl LowRank {
    /// Builds `{name}_down.weight` `[rank, width]`, which starts at zero, and `{name}_up.weight` `[width, rank]`.
    pub fn build(
        builder: &mut Builder,
        name: &str,
        [width, rank]: [usize; 2],
        between: Between,
        initial: Initial,
    ) -> Result<Self> {
        let mut down = map(
            builder,
            &format!("{name}_down"),
            [rank, width],
            Initial::Zeros,
        )?;
        let mut up = map(builder, &format!("{name}_up"), [width, rank], initial)?;
        // The authors decay full matrices alone.
        down.weight = down.weight.undecayed();
        up.weight = up.weight.undecayed();
        Ok(Self { between, down, up })
    }

    /// `x`: `[batch, time, width]`; the same shape comes back.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let narrow = self.down.forward(x);
        self.up.forward(match self.between {
            Between::Nothing => narrow,
            Between::Tanh => activate(Activation::Tanh, narrow),
            Between::Sigmoid => activate(Activation::Sigmoid, narrow),
        })
    }
}

/// A linear map without bias whose fresh weight is `initial`.
pub(super) fn map(
    builder: &mut Builder,
    name: &str,
    size: [usize; 2],
    initial: Initial,
) -> Result<Linear> {
    let weight = builder.linear(format!("{name}.weight"), size.to_vec(), initial)?;
    Ok(Linear::from_weight(name, weight, Precision::F32))
}

/// A weight for every channel, `[1, 1, width]`, that does not decay; `initial` tells a fresh one from its [`Place`].
pub(super) fn channels(
    builder: &mut Builder,
    name: String,
    width: usize,
    initial: impl Fn(Place) -> f64,
) -> Result<Parameter> {
    weights(builder, name, vec![1, 1, width], initial)
}

/// As [`channels`] in any shape.
pub(super) fn weights(
    builder: &mut Builder,
    name: String,
    shape: Vec<usize>,
    initial: impl Fn(Place) -> f64,
) -> Result<Parameter> {
    let count = shape.iter().product();
    let values = (0..count)
        .map(|channel| initial(Place::new(builder, channel, count)) as f32)
        .collect();
    Ok(builder
        .parameter(name, shape, Initial::Values(values))?
        .undecayed())
}

/// Where a weight stands, on which its fresh value depends.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// The channel.
    pub channel: usize,
    /// From 0 in the first block to 1 in the last.
    pub depth: f64,
    /// From 1 in the first block to almost 0 in the last.
    pub rest: f64,
    /// From 0 at the first channel to almost 1 at the last.
    pub along: f64,
    /// From 0 at the first channel to 1 at the last.
    pub across: f64,
}

impl Place {
    fn new(builder: &Builder, channel: usize, channels: usize) -> Self {
        let (layer, layers) = (builder.layer as f64, builder.layers as f64);
        Self {
            channel,
            depth: layer / (layers - 1.0).max(1.0),
            rest: 1.0 - layer / layers.max(1.0),
            along: channel as f64 / channels.max(1) as f64,
            across: channel as f64 / (channels as f64 - 1.0).max(1.0),
        }
    }

    /// -1, 0, 1 by turns.
    pub fn zigzag(self) -> f64 {
        ((self.channel + 1) % 3) as f64 - 1.0
    }
}
