//! BiGS (arXiv 2212.10544): a text is read by two state spaces, one in each direction, whose readings are multiplied.
//!
//! `V = gelu(W_v x)`; `a = W_a S4D(gelu(W_f x))`; `b` the same of the text turned around; `W_o (gelu(W (a b)) V)`. The state
//! spaces are fixed convolutions with one kernel for all channels (S4D, arXiv 2206.11893).

use std::f64::consts::PI;

use burn::tensor::Tensor;
use espalier_kernels::{
    activation::{Activation, activate, gated},
    recomputable::Recomputable,
    recurrent::s4d::{S4d, s4d},
};
use serde::{Deserialize, Serialize};

use super::Shapes;
use crate::{
    Result,
    layers::{Builder, linear::Linear},
    parameter::{Parameter, parameters},
    source::Initial,
    stack::Context,
};

/// The sizes of a BiGS layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BigsSpec {
    /// Width of what is gated.
    pub inner: usize,
    /// Oscillations of each state space.
    pub modes: usize,
    /// Whether the text is read backward too.
    pub both: bool,
    /// The nonlinearity.
    pub activation: Activation,
}

impl BigsSpec {
    /// Names and shapes of the parameters.
    pub fn parameters(&self, width: usize) -> Shapes {
        let mut list: Shapes = Vec::new();
        let mut project = |names: [&'static str; 2], rows: usize, columns: usize| {
            list.extend([(names[0], vec![rows, columns]), (names[1], vec![rows])]);
        };
        project(["value.weight", "value.bias"], self.inner, width);
        project(["forward.weight", "forward.bias"], width, width);
        project(["forward_mixed.weight", "forward_mixed.bias"], width, width);
        if self.both {
            project(["backward.weight", "backward.bias"], width, width);
            project(
                ["backward_mixed.weight", "backward_mixed.bias"],
                width,
                width,
            );
        }
        project(["gate.weight", "gate.bias"], self.inner, width);
        project(["output.weight", "output.bias"], width, self.inner);
        const FORWARD: [&str; 5] = [
            "forward_space.real",
            "forward_space.imaginary",
            "forward_space.output",
            "forward_space.log_step",
            "forward_space.skip",
        ];
        const BACKWARD: [&str; 5] = [
            "backward_space.real",
            "backward_space.imaginary",
            "backward_space.output",
            "backward_space.log_step",
            "backward_space.skip",
        ];
        let shapes = [
            vec![self.modes],
            vec![self.modes],
            vec![self.modes, 2],
            vec![1],
            vec![1],
        ];
        list.extend(FORWARD.into_iter().zip(shapes.clone()));
        list.extend(BACKWARD.into_iter().zip(shapes).filter(|_| self.both));
        list
    }
}

/// Bounds of a fresh step.
const STEPS: [f64; 2] = [0.01, 1.0];

/// A state space, `[modes]` real and imaginary parts and what is read of them.
#[derive(Debug, Clone)]
struct Space {
    real: Parameter,
    imaginary: Parameter,
    output: Parameter,
    log_step: Parameter,
    skip: Parameter,
}

parameters!(Space: real, imaginary, output, log_step, skip);

impl Space {
    fn build(builder: &mut Builder, name: &str, modes: usize) -> Result<Self> {
        let mut part = |part: &str, shape, initial| {
            builder.parameter(format!("{name}.{part}"), shape, initial)
        };
        let angles = (0..modes).map(|n| (PI * n as f64) as f32).collect();
        let step = Initial::Draw(|random| STEPS[0].ln() + random.f() * (STEPS[1] / STEPS[0]).ln());
        Ok(Self {
            real: part("real", vec![modes], Initial::Values(vec![-0.5; modes]))?,
            imaginary: part("imaginary", vec![modes], Initial::Values(angles))?,
            output: part("output", vec![modes, 2], Initial::Normal(0.5f64.sqrt()))?.undecayed(),
            log_step: part("log_step", vec![1], step)?,
            skip: part("skip", vec![1], Initial::Ones)?,
        })
    }

    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let inputs = S4d {
            x,
            real: self.real.value(),
            imaginary: self.imaginary.value(),
            output: self.output.value(),
            log_step: self.log_step.value(),
            skip: self.skip.value(),
            state: None,
        };
        s4d(inputs).0
    }
}

/// One direction.
#[derive(Debug, Clone)]
struct Direction {
    input: Linear,
    mixed: Linear,
    space: Space,
}

parameters!(Direction: input, mixed, space);

impl Direction {
    fn build(
        builder: &mut Builder,
        name: &str,
        direction: &str,
        width: usize,
        modes: usize,
    ) -> Result<Self> {
        let deviation = builder.deviation;
        let mut dense = |part: &str| {
            Linear::build(
                builder,
                &format!("{name}.{direction}{part}"),
                [width, width],
                true,
                deviation,
            )
        };
        let (input, mixed) = (dense("")?, dense("_mixed")?);
        Ok(Self {
            input,
            mixed,
            space: Space::build(builder, &format!("{name}.{direction}_space"), modes)?,
        })
    }
}

/// The mixer.
#[derive(Debug, Clone)]
pub struct Bigs {
    activation: Activation,
    value: Linear,
    forward: Direction,
    backward: Option<Direction>,
    gate: Linear,
    output: Linear,
}

parameters!(Bigs: value, forward, backward, gate, output);

impl Bigs {
    /// Builds the layer under `name`.
    ///
    /// # Errors
    /// When the source lacks a weight.
    pub fn build(builder: &mut Builder, name: &str, width: usize, spec: &BigsSpec) -> Result<Self> {
        let (deviation, residual) = (builder.deviation, builder.residual_deviation);
        let value = Linear::build(
            builder,
            &format!("{name}.value"),
            [spec.inner, width],
            true,
            deviation,
        )?;
        let forward = Direction::build(builder, name, "forward", width, spec.modes)?;
        let backward = match spec.both {
            true => Some(Direction::build(
                builder, name, "backward", width, spec.modes,
            )?),
            false => None,
        };
        let gate = Linear::build(
            builder,
            &format!("{name}.gate"),
            [spec.inner, width],
            true,
            deviation,
        )?;
        let output = Linear::build(
            builder,
            &format!("{name}.output"),
            [width, spec.inner],
            true,
            residual,
        )?;
        Ok(Self {
            activation: spec.activation,
            value,
            forward,
            backward,
            gate,
            output,
        })
    }

    /// `x`: `[batch, time, width]`; the same shape comes back.
    pub fn forward(&self, x: Recomputable<3>, context: &Context) -> Tensor<3> {
        let input = |x| context.text_alone(activate(self.activation, x));
        let (value, mixed) = match &self.backward {
            None => {
                let [value, forward] = Linear::forward_all([&self.value, &self.forward.input], x);
                (
                    value,
                    self.forward
                        .mixed
                        .forward(self.forward.space.forward(input(forward))),
                )
            }
            Some(direction) => {
                let layers = [&self.value, &self.forward.input, &direction.input];
                let [value, forward, backward] = Linear::forward_all(layers, x);
                let forward = self
                    .forward
                    .mixed
                    .forward(self.forward.space.forward(input(forward)));
                // The dense layers see each token alone, so that turning around the state space's view is enough.
                let backward = direction.space.forward(input(backward).flip([1])).flip([1]);
                (value, forward * direction.mixed.forward(backward))
            }
        };
        let value = activate(self.activation, value);
        self.output.forward(gated(
            self.activation,
            self.gate.forward(mixed),
            value,
            self.output.precision,
        ))
    }
}
