//! Mamba (arXiv 2312.00752): a gated state space whose step size, input and output maps depend on the token.
//!
//! `u, z = W_in x`; `u = silu(conv(u))`; `r, B, C = W_x u`; `dt = softplus(W_dt r + b_dt)`; `A = -exp(A_log)`; the scan of
//! section 3.3; `W_out (y silu(z))`. Jamba (arXiv 2403.19887) and Falcon-Mamba (2410.05355) put norms over `r`, `B` and `C`.

use burn::tensor::Tensor;
use espalier_kernels::{
    activation::{Activation, gated},
    recomputable::Recomputable,
    recurrent::{
        causal_convolution::causal_convolution,
        selective_scan::{SelectiveScan, selective_scan},
    },
};
use serde::{Deserialize, Serialize};

use super::{RecurrentState, Shapes};
use crate::{
    Result,
    layers::{Builder, linear::Linear, norm::Norm},
    parameter::{Parameter, parameters},
    source::Initial,
    spec::NormSpec,
    stack::Context,
};

/// The sizes of a Mamba layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MambaSpec {
    /// Channels of the scan, `E`.
    pub inner: usize,
    /// Numbers of state for each channel, `N`.
    pub states: usize,
    /// Width from which step sizes are made, `R`.
    pub rank: usize,
    /// Taps of the convolution.
    pub taps: usize,
    /// A bias of the convolution.
    pub convolution_bias: bool,
    /// Biases of the projections in and out.
    pub bias: bool,
    /// The norm over what makes step sizes, inputs and outputs (Jamba, Falcon-Mamba).
    pub norm: Option<NormSpec>,
}

impl MambaSpec {
    /// Names and shapes of the parameters.
    pub fn parameters(&self, width: usize) -> Shapes {
        let (inner, states) = (self.inner, self.states);
        let mut list: Shapes = vec![("input.weight", vec![inner, width])];
        list.extend(self.bias.then(|| ("input.bias", vec![inner])));
        list.push(("gate.weight", vec![inner, width]));
        list.extend(self.bias.then(|| ("gate.bias", vec![inner])));
        list.push(("convolution.weight", vec![inner, 1, self.taps]));
        list.extend(
            self.convolution_bias
                .then(|| ("convolution.bias", vec![inner])),
        );
        list.push((
            "selection.weight",
            vec![self.rank.saturating_add(states.saturating_mul(2)), inner],
        ));
        if self.norm.is_some_and(NormSpec::has_weight) {
            let norms = [
                ("step_norm.weight", self.rank),
                ("b_norm.weight", states),
                ("c_norm.weight", states),
            ];
            list.extend(norms.map(|(name, size)| (name, vec![size])));
        }
        list.push(("step.weight", vec![inner, self.rank]));
        list.push(("step.bias", vec![inner]));
        list.push(("a_log", vec![inner, states]));
        list.push(("skip", vec![inner]));
        list.push(("output.weight", vec![width, inner]));
        list.extend(self.bias.then(|| ("output.bias", vec![width])));
        list
    }
}

/// Bounds of fresh step sizes (section 3.6).
const STEPS: [f64; 2] = [0.001, 0.1];

/// How a bias of step sizes starts: so that their softplus is spread evenly, in the logarithm, between the bounds.
pub(super) const STEP_BIAS: Initial = Initial::Draw(|random| {
    let step = (STEPS[0].ln() + random.f() * (STEPS[1] / STEPS[0]).ln())
        .exp()
        .max(1e-4);
    inverse_softplus(step)
});

/// The number whose softplus is `y`.
fn inverse_softplus(y: f64) -> f64 {
    y + (-(-y).exp_m1()).ln()
}

/// The mixer.
#[derive(Debug, Clone)]
pub struct Mamba {
    spec: MambaSpec,
    input: Linear,
    gate: Linear,
    convolution: Convolution,
    selection: Linear,
    norms: Vec<Norm>,
    step: Linear,
    a_log: Parameter,
    skip: Parameter,
    output: Linear,
}

parameters!(Mamba: input, gate, convolution, selection, norms, step, a_log, skip, output);

/// A short causal convolution, one filter a channel.
#[derive(Debug, Clone)]
pub(super) struct Convolution {
    weight: Parameter,
    bias: Option<Parameter>,
    silu: bool,
}

parameters!(Convolution: weight, bias);

impl Convolution {
    /// Builds `{name}.weight` `[width, 1, taps]` and, where asked, `{name}.bias`; `silu` follows it where set.
    pub fn build(
        builder: &mut Builder,
        name: &str,
        [width, taps]: [usize; 2],
        bias: bool,
        silu: bool,
        initial: Initial,
    ) -> Result<Self> {
        let weight = builder.parameter(format!("{name}.weight"), vec![width, 1, taps], initial)?;
        let bias = match bias {
            true => Some(builder.parameter(format!("{name}.bias"), vec![width], Initial::Zeros)?),
            false => None,
        };
        Ok(Self { weight, bias, silu })
    }

    /// `x`: `[batch, time, width]`; the same shape comes back. The state is its part `convolution`.
    pub fn forward(&self, x: Tensor<3>, state: &mut Option<&mut RecurrentState>) -> Tensor<3> {
        let ([batch, _, width], taps) = (x.dims(), self.weight.shape()[2]);
        let weight = self.weight.value::<3>().reshape([width, taps]);
        let before = state
            .as_deref()
            .and_then(|state| state.get("convolution", [batch, taps - 1, width]));
        let (y, last) = causal_convolution(
            x,
            weight,
            self.bias.as_ref().map(Parameter::value),
            before,
            self.silu,
        );
        if let Some(state) = state {
            state.set("convolution", last);
        }
        y
    }
}

impl Mamba {
    /// Builds the layer under `name`.
    ///
    /// # Errors
    /// When the source lacks a weight.
    pub fn build(
        builder: &mut Builder,
        name: &str,
        width: usize,
        spec: &MambaSpec,
    ) -> Result<Self> {
        let (deviation, residual) = (builder.deviation, builder.residual_deviation);
        let (inner, states) = (spec.inner, spec.states);
        let part = |part: &str| format!("{name}.{part}");
        let input = Linear::build(
            builder,
            &part("input"),
            [inner, width],
            spec.bias,
            deviation,
        )?;
        let gate = Linear::build(builder, &part("gate"), [inner, width], spec.bias, deviation)?;
        let even = Initial::Uniform((spec.taps as f64).powf(-0.5));
        let size = [inner, spec.taps];
        let convolution = Convolution::build(
            builder,
            &part("convolution"),
            size,
            spec.convolution_bias,
            true,
            even,
        )?;
        let selection = Linear::build(
            builder,
            &part("selection"),
            [spec.rank + 2 * states, inner],
            false,
            deviation,
        )?;
        let mut norms = Vec::new();
        if let Some(kind) = spec.norm {
            for (norm, size) in [
                ("step_norm", spec.rank),
                ("b_norm", states),
                ("c_norm", states),
            ] {
                norms.push(Norm::build(builder, &part(norm), size, kind)?);
            }
        }
        let step_weight = Initial::Uniform((spec.rank as f64).powf(-0.5));
        let step = Linear::build_as(
            builder,
            &part("step"),
            [inner, spec.rank],
            [step_weight, STEP_BIAS],
        )?;
        let counted = (0..inner * states)
            .map(|i| ((i % states + 1) as f32).ln())
            .collect();
        let a_log = builder
            .parameter(part("a_log"), vec![inner, states], Initial::Values(counted))?
            .undecayed();
        let skip = builder.parameter(part("skip"), vec![inner], Initial::Ones)?;
        let output = Linear::build(
            builder,
            &part("output"),
            [width, inner],
            spec.bias,
            residual,
        )?;
        Ok(Self {
            spec: spec.clone(),
            input,
            gate,
            convolution,
            selection,
            norms,
            step,
            a_log,
            skip,
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
        let [u, gate] = Linear::forward_all([&self.input, &self.gate], x);
        let u = self
            .convolution
            .forward(context.without_padding(u), &mut state);
        let u = context.without_padding(u);
        let [batch, _, inner] = u.dims();
        let ([selected], readers) = Linear::forward_beside(1, 0, [&self.selection], u.clone());
        let [rank, b, c] = self.parts(selected);
        let scan = SelectiveScan {
            x: u,
            step: self.step.forward_without_bias(rank),
            step_bias: self.step.bias(),
            transition: self.a_log.value::<2>().exp().neg(),
            input: b,
            output: c,
            skip: self.skip.value(),
            state: state
                .as_deref()
                .and_then(|state| state.get("scan", [batch, self.spec.states, inner])),
            readers: Some(readers),
        };
        let (y, last) = selective_scan(scan);
        if let Some(state) = state {
            state.set("scan", last);
        }
        self.output
            .forward(gated(Activation::Silu, gate, y, self.output.precision))
    }

    /// What step sizes are made of, `B` and `C`.
    fn parts(&self, selected: Tensor<3>) -> [Tensor<3>; 3] {
        let (rank, states) = (self.spec.rank, self.spec.states);
        let parts = [(0, rank), (rank, states), (rank + states, states)];
        let parts = parts.map(|(start, count)| selected.clone().narrow(2, start, count));
        match &self.norms[..] {
            [step, b, c] => {
                let [x, y, z] = parts;
                [step.forward(x), b.forward(y), c.forward(z)]
            }
            _ => parts,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_comes_back_from_its_bias() {
        for step in [1e-4, 0.001, 0.02, 0.1, 3.0] {
            let back = inverse_softplus(step).exp().ln_1p();
            assert!((back - step).abs() < 1e-7, "{step} {back}");
        }
    }
}
