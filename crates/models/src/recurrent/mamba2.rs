//! Mamba-2 (arXiv 2405.21060): one decay for a head, so that the scan is made of matrix products.
//!
//! `z, xBC, dt = W_in x`; `x, B, C = silu(conv(xBC))`; `dt = softplus(dt + b)`, held within limits; the scan of section 6
//! with `A = -exp(A_log)`; `W_out norm(y silu(z))`, the norm within each group of heads.

use burn::tensor::{Tensor, activation::softplus};
use espalier_kernels::{
    activation::{Activation, gated},
    linear::{Precision, add_bias},
    norm::rms_norm,
    recomputable::Recomputable,
    recurrent::ssd::{Ssd, ssd},
};
use serde::{Deserialize, Serialize};

use super::{
    RecurrentState, Shapes,
    mamba::{Convolution, STEP_BIAS},
};
use crate::{
    Result,
    layers::{Builder, linear::Linear},
    parameter::{Parameter, parameters},
    source::Initial,
    stack::Context,
};

/// The sizes of a Mamba-2 layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Mamba2Spec {
    /// Heads of the scan.
    pub heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// Numbers of state for each channel, `N`.
    pub states: usize,
    /// Groups of heads that share `B` and `C`.
    pub groups: usize,
    /// Taps of the convolution.
    pub taps: usize,
    /// A bias of the convolution.
    pub convolution_bias: bool,
    /// Biases of the projections in and out.
    pub bias: bool,
    /// The least step size.
    pub least_step: f64,
    /// The greatest, where there is one.
    pub greatest_step: Option<f64>,
    /// Added to the mean square by the norm before the output.
    pub epsilon: f64,
}

impl Mamba2Spec {
    /// Channels of the scan, `E`.
    pub fn inner(&self) -> usize {
        self.heads.saturating_mul(self.head_dim)
    }

    /// Channels that pass through the convolution: those of the scan, `B` and `C`.
    pub fn convolved(&self) -> usize {
        self.inner()
            .saturating_add(self.groups.saturating_mul(self.states).saturating_mul(2))
    }

    /// Names and shapes of the parameters.
    pub fn parameters(&self, width: usize) -> Shapes {
        let mut list: Shapes = Vec::new();
        let mut project = |names: [&'static str; 2], rows: usize| {
            list.push((names[0], vec![rows, width]));
            list.extend(self.bias.then(|| (names[1], vec![rows])));
        };
        project(["gate.weight", "gate.bias"], self.inner());
        project(["input.weight", "input.bias"], self.convolved());
        project(["step.weight", "step.bias"], self.heads);
        list.push(("convolution.weight", vec![self.convolved(), 1, self.taps]));
        list.extend(
            self.convolution_bias
                .then(|| ("convolution.bias", vec![self.convolved()])),
        );
        list.extend(["step_bias", "a_log", "skip"].map(|name| (name, vec![self.heads])));
        list.push(("output_norm.weight", vec![self.inner()]));
        list.push(("output.weight", vec![width, self.inner()]));
        list.extend(self.bias.then(|| ("output.bias", vec![width])));
        list
    }
}

/// Bounds of a fresh `A`.
const TRANSITIONS: [f64; 2] = [1.0, 16.0];

/// The mixer.
#[derive(Debug, Clone)]
pub struct Mamba2 {
    spec: Mamba2Spec,
    gate: Linear,
    input: Linear,
    step: Linear,
    convolution: Convolution,
    step_bias: Parameter,
    a_log: Parameter,
    skip: Parameter,
    output_norm: Parameter,
    output: Linear,
}

parameters!(Mamba2: gate, input, step, convolution, step_bias, a_log, skip, output_norm, output);

impl Mamba2 {
    /// Builds the layer under `name`.
    ///
    /// # Errors
    /// When the source lacks a weight.
    pub fn build(
        builder: &mut Builder,
        name: &str,
        width: usize,
        spec: &Mamba2Spec,
    ) -> Result<Self> {
        let (deviation, residual) = (builder.deviation, builder.residual_deviation);
        let part = |part: &str| format!("{name}.{part}");
        let mut project = |name: &str, rows: usize| {
            Linear::build(builder, &part(name), [rows, width], spec.bias, deviation)
        };
        let gate = project("gate", spec.inner())?;
        let input = project("input", spec.convolved())?;
        let step = project("step", spec.heads)?;
        let even = Initial::Uniform((spec.taps as f64).powf(-0.5));
        let size = [spec.convolved(), spec.taps];
        let convolution = Convolution::build(
            builder,
            &part("convolution"),
            size,
            spec.convolution_bias,
            true,
            even,
        )?;
        let step_bias = builder.parameter(part("step_bias"), vec![spec.heads], STEP_BIAS)?;
        let drawn = Initial::Draw(|random| {
            (TRANSITIONS[0] + random.f() * (TRANSITIONS[1] - TRANSITIONS[0])).ln()
        });
        let a_log = builder.parameter(part("a_log"), vec![spec.heads], drawn)?;
        let skip = builder.parameter(part("skip"), vec![spec.heads], Initial::Ones)?;
        let output_norm = builder.parameter(
            part("output_norm.weight"),
            vec![spec.inner()],
            Initial::Ones,
        )?;
        let output = Linear::build(
            builder,
            &part("output"),
            [width, spec.inner()],
            spec.bias,
            residual,
        )?;
        let spec = spec.clone();
        Ok(Self {
            spec,
            gate,
            input,
            step,
            convolution,
            step_bias,
            a_log,
            skip,
            output_norm,
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
        let Mamba2Spec {
            heads,
            head_dim,
            states,
            groups,
            ..
        } = self.spec;
        let [gate, input, step] = Linear::forward_all([&self.gate, &self.input, &self.step], x);
        let mixed = self
            .convolution
            .forward(context.without_padding(input), &mut state);
        let mixed = context.without_padding(mixed);
        let [batch, _, _] = mixed.dims();
        let (inner, shared) = (self.spec.inner(), groups * states);
        let part = |start, count| mixed.clone().narrow(2, start, count);
        let scan = Ssd {
            x: part(0, inner),
            step: self.steps(step),
            transition: self.a_log.value::<1>().exp().neg(),
            input: part(inner, shared),
            output: part(inner + shared, shared),
            skip: self.skip.value(),
            groups,
            state: state
                .as_deref()
                .and_then(|state| state.get("scan", [batch, heads, head_dim, states])),
        };
        let (y, last) = ssd(scan);
        if let Some(state) = state {
            state.set("scan", last);
        }
        self.output.forward(self.normed(y, gate))
    }

    /// Step sizes, from what the projection gives.
    fn steps(&self, x: Tensor<3>) -> Tensor<3> {
        let step = softplus(add_bias(x, self.step_bias.value()), 1.0);
        match self.spec.greatest_step {
            Some(greatest) => step.clamp(self.spec.least_step, greatest),
            None if self.spec.least_step > 0.0 => step.clamp_min(self.spec.least_step),
            None => step,
        }
    }

    /// `norm(y silu(gate))`, the norm within each group.
    fn normed(&self, y: Tensor<3>, gate: Tensor<3>) -> Tensor<3> {
        let [batch, time, inner] = y.dims();
        let groups = self.spec.groups;
        let y = gated(Activation::Silu, gate, y, Precision::F32).into_tensor();
        let weight = self.output_norm.value::<1>();
        if groups == 1 {
            return rms_norm(y, weight, self.spec.epsilon);
        }
        let ones = Tensor::ones([inner / groups], &y.device().inner());
        let y = rms_norm(
            y.reshape([batch, time, groups, inner / groups]),
            ones,
            self.spec.epsilon,
        );
        y.reshape([batch, time, inner]) * weight.unsqueeze()
    }
}
