//! The recurrent block of Griffin (arXiv 2402.19427, section 2.4): a gated linear recurrence behind a short convolution.
//!
//! `y = gelu(W_y x)`; `u = conv(W_x x)`; `h = RG-LRU(u)`; `W_out (h y)`. The gates of the recurrence are linear maps of `u`
//! within each head.

use burn::tensor::Tensor;
use espalier_kernels::{
    activation::{Activation, gated},
    recomputable::Recomputable,
    recurrent::rg_lru::{RgLru, rg_lru},
};
use serde::{Deserialize, Serialize};

use super::{RecurrentState, Shapes, mamba::Convolution};
use crate::{
    Result,
    layers::{Builder, linear::Linear},
    parameter::{Parameter, parameters},
    source::Initial,
    stack::Context,
};

/// The sizes of a recurrent block.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RgLruSpec {
    /// Channels of the recurrence.
    pub inner: usize,
    /// Heads, within which the gates look.
    pub heads: usize,
    /// Taps of the convolution.
    pub taps: usize,
    /// The nonlinearity of the branch beside the recurrence.
    pub activation: Activation,
    /// A fresh gate's variance, times the width of a head.
    pub gate_variance: f64,
}

impl RgLruSpec {
    /// Names and shapes of the parameters.
    pub fn parameters(&self, width: usize) -> Shapes {
        let (inner, heads) = (self.inner, self.heads);
        let head = inner / heads.max(1);
        vec![
            ("branch.weight", vec![inner, width]),
            ("branch.bias", vec![inner]),
            ("input.weight", vec![inner, width]),
            ("input.bias", vec![inner]),
            ("convolution.weight", vec![inner, 1, self.taps]),
            ("convolution.bias", vec![inner]),
            ("input_gate.weight", vec![heads, head, head]),
            ("input_gate.bias", vec![heads, head]),
            ("recurrence_gate.weight", vec![heads, head, head]),
            ("recurrence_gate.bias", vec![heads, head]),
            ("decay", vec![inner]),
            ("output.weight", vec![width, inner]),
            ("output.bias", vec![width]),
        ]
    }
}

/// Bounds within which the decay of a fresh channel lies while its gate is open.
const DECAYS: [f64; 2] = [0.9, 0.999];

/// The parameter whose softplus is minus the logarithm of a decay, whose square is even between the bounds' squares.
const DECAY: Initial = Initial::Draw(|random| {
    let square = DECAYS[0].powi(2) + random.f() * (DECAYS[1].powi(2) - DECAYS[0].powi(2));
    (-0.5 * square.ln()).exp_m1().ln()
});

/// Deviation of a fresh tap, times the root of their number.
const TAP: f64 = 0.1;

/// The mixer.
#[derive(Debug, Clone)]
pub struct RgLruBlock {
    activation: Activation,
    branch: Linear,
    input: Linear,
    convolution: Convolution,
    input_gate: Gate,
    recurrence_gate: Gate,
    decay: Parameter,
    output: Linear,
}

parameters!(RgLruBlock: branch, input, convolution, input_gate, recurrence_gate, decay, output);

/// A linear map within each head, `[heads, in, out]`.
#[derive(Debug, Clone)]
struct Gate {
    weight: Parameter,
    bias: Parameter,
}

parameters!(Gate: weight, bias);

impl Gate {
    fn build(
        builder: &mut Builder,
        name: &str,
        [heads, width]: [usize; 2],
        variance: f64,
    ) -> Result<Self> {
        let normal = Initial::Normal((variance / width as f64).sqrt());
        let weight = builder
            .parameter(format!("{name}.weight"), vec![heads, width, width], normal)?
            .undecayed();
        let bias = builder
            .parameter(format!("{name}.bias"), vec![heads, width], Initial::Zeros)?
            .undecayed();
        Ok(Self { weight, bias })
    }

    /// `x`: `[batch, time, heads * width]`; the same shape comes back.
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let [batch, time, inner] = x.dims();
        let [heads, width] = [self.bias.shape()[0], self.bias.shape()[1]];
        let rows = x.reshape([batch * time, heads, width]).swap_dims(0, 1);
        let y = rows.matmul(self.weight.value::<3>()).swap_dims(0, 1)
            + self.bias.value::<2>().unsqueeze();
        y.reshape([batch, time, inner])
    }
}

impl RgLruBlock {
    /// Builds the block under `name`.
    ///
    /// # Errors
    /// When the source lacks a weight.
    pub fn build(
        builder: &mut Builder,
        name: &str,
        width: usize,
        spec: &RgLruSpec,
    ) -> Result<Self> {
        let part = |part: &str| format!("{name}.{part}");
        let (inner, residual) = (spec.inner, builder.residual_deviation);
        let into = (width as f64).powf(-0.5);
        let branch = Linear::build(builder, &part("branch"), [inner, width], true, into)?;
        let input = Linear::build(builder, &part("input"), [inner, width], true, into)?;
        let tap = Initial::Normal(TAP / (spec.taps as f64).sqrt());
        let convolution = Convolution::build(
            builder,
            &part("convolution"),
            [inner, spec.taps],
            true,
            false,
            tap,
        )?;
        let size = [spec.heads, inner / spec.heads];
        let input_gate = Gate::build(builder, &part("input_gate"), size, spec.gate_variance)?;
        let recurrence_gate =
            Gate::build(builder, &part("recurrence_gate"), size, spec.gate_variance)?;
        let decay = builder.parameter(part("decay"), vec![inner], DECAY)?;
        let output = Linear::build(builder, &part("output"), [width, inner], true, residual)?;
        let activation = spec.activation;
        Ok(Self {
            activation,
            branch,
            input,
            convolution,
            input_gate,
            recurrence_gate,
            decay,
            output,
        })
    }

    /// `x`: `[batch, time, width]`; the same shape comes back.
    pub fn forward(
        &self,
        x: Recomputable<3>,
        context: &Context,
        mut state: Option<&mut RecurrentState>,
    ) -> Tensor<3> {
        let [branch, u] = Linear::forward_all([&self.branch, &self.input], x);
        let u = self
            .convolution
            .forward(context.without_padding(u), &mut state);
        let [batch, _, inner] = u.dims();
        let starts = context.starts();
        let unit = RgLru {
            recurrence_gate: self.recurrence_gate.forward(u.clone()),
            input_gate: self.input_gate.forward(u.clone()),
            x: u,
            decay: self.decay.value(),
            state: state
                .as_deref()
                .and_then(|state| state.get("recurrence", [batch, inner])),
            starts: starts.as_deref(),
        };
        let (h, last) = rg_lru(unit);
        if let Some(state) = state {
            state.set("recurrence", last);
        }
        self.output
            .forward(gated(self.activation, branch, h, self.output.precision))
    }
}
