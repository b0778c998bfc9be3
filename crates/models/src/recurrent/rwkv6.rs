//! RWKV-5 "Eagle" and RWKV-6 "Finch" (arXiv 2404.05892, section 4): linear attention with a matrix as state and a decay for
//! every channel.
//!
//! `r, k, v, g = W_r x_r, W_k x_k, W_v x_v, W_g x_g`; `W_o (norm_heads(wkv(r, k, v, w)) silu(g))`. In Eagle the mixes
//! `x_m = x_t mu_m + x_{t-1} (1 - mu_m)` and the decay `w = exp(-exp(d))` are the same for all tokens. In Finch both depend on
//! the token: with `e = x_{t-1} - x_t`, `x_m = x_t + e (mu_m + tanh((x_t + e mu_x) A)_m B_m)` and
//! `w = exp(-exp(d + tanh(x_w C) D))`.

use burn::tensor::Tensor;
use espalier_kernels::{
    activation::{Activation, activate, gated},
    linear::add_bias,
    recomputable::Recomputable,
    recurrent::wkv6::{Wkv6, wkv6},
};
use serde::{Deserialize, Serialize};

use super::{
    RecurrentState, Shapes,
    rwkv::{self, Between, HeadNorm, LowRank, Pairs, Share},
};
use crate::{
    Result,
    layers::{Builder, linear::Linear},
    parameter::{Parameter, parameters},
    source::Initial,
    stack::Context,
};

/// The sizes of an RWKV-5 or RWKV-6 layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rwkv6Spec {
    /// Heads; their channels together are the model's width.
    pub heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// What makes mixes and decays depend on the token (Finch); in Eagle they do not.
    pub dynamic: Option<DynamicSpec>,
}

/// The ranks of Finch's maps from tokens to mixes and decays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DynamicSpec {
    /// Rank for each of the five mixes.
    pub mix_rank: usize,
    /// Rank for the decays.
    pub decay_rank: usize,
}

/// What is mixed in Finch, in the order of the stacked maps.
const MIXES: [&str; 5] = [
    "mix_decay",
    "mix_key",
    "mix_value",
    "mix_receptance",
    "mix_gate",
];

impl Rwkv6Spec {
    /// Names and shapes of the parameters.
    pub fn parameters(&self, width: usize) -> Shapes {
        let heads = vec![self.heads, self.head_dim];
        let mut list: Shapes = Vec::new();
        match self.dynamic {
            None => {
                list.extend(MIXES[1..].iter().map(|name| (*name, vec![1, 1, width])));
                list.push(("decay", heads.clone()));
            }
            Some(DynamicSpec {
                mix_rank,
                decay_rank,
            }) => {
                list.push(("mix", vec![1, 1, width]));
                list.extend(MIXES.iter().map(|name| (*name, vec![1, 1, width])));
                list.push((
                    "mix_down.weight",
                    vec![mix_rank.saturating_mul(MIXES.len()), width],
                ));
                list.push(("mix_up", vec![MIXES.len(), mix_rank, width]));
                list.push(("decay", vec![1, 1, width]));
                list.push(("decay_down.weight", vec![decay_rank, width]));
                list.push(("decay_up.weight", vec![width, decay_rank]));
            }
        }
        list.push(("bonus", heads));
        let maps = [
            "receptance.weight",
            "key.weight",
            "value.weight",
            "gate.weight",
        ];
        list.extend(maps.map(|name| (name, vec![width, width])));
        list.extend(["norm.weight", "norm.bias"].map(|name| (name, vec![width])));
        list.push(("output.weight", vec![width, width]));
        list
    }
}

/// The mixer.
#[derive(Debug, Clone)]
pub struct Rwkv6 {
    spec: Rwkv6Spec,
    /// For keys, values, receptances and gates.
    mixes: [Parameter; 4],
    dynamic: Option<Dynamic>,
    /// `[heads, head_dim]`, or `[1, 1, width]` in Finch.
    decay: Parameter,
    bonus: Parameter,
    receptance: Linear,
    key: Linear,
    value: Linear,
    gate: Linear,
    norm: HeadNorm,
    output: Linear,
}

parameters!(Rwkv6: mixes, dynamic, decay, bonus, receptance, key, value, gate, norm, output);

/// What Finch has besides.
#[derive(Debug, Clone)]
struct Dynamic {
    mix: Parameter,
    mix_decay: Parameter,
    mix_down: Linear,
    /// `[5, rank, width]`.
    mix_up: Parameter,
    decay: LowRank,
}

parameters!(Dynamic: mix, mix_decay, mix_down, mix_up, decay);

/// Bound of a fresh map out of a narrow middle.
const NARROW: Initial = Initial::Uniform(0.01);

impl Rwkv6 {
    /// Builds the layer under `name`.
    ///
    /// # Errors
    /// When the source lacks a weight.
    pub fn build(
        builder: &mut Builder,
        name: &str,
        width: usize,
        spec: &Rwkv6Spec,
    ) -> Result<Self> {
        let part = |part: &str| format!("{name}.{part}");
        let finch = spec.dynamic.is_some();
        // Eagle's weights are the share of the current token, Finch's of the one before.
        let share = |of_current: f64| if finch { 1.0 - of_current } else { of_current };
        let keep = |at: rwkv::Place| share(at.along.powf(at.rest));
        let value = |at: rwkv::Place| share(at.along.powf(at.rest) + 0.3 * at.depth);
        let half = |at: rwkv::Place| share(at.along.powf(0.5 * at.rest));
        let mixes = [
            rwkv::channels(builder, part("mix_key"), width, keep)?,
            rwkv::channels(builder, part("mix_value"), width, value)?,
            rwkv::channels(builder, part("mix_receptance"), width, half)?,
            rwkv::channels(builder, part("mix_gate"), width, half)?,
        ];
        let dynamic = match spec.dynamic {
            None => None,
            Some(DynamicSpec {
                mix_rank,
                decay_rank,
            }) => {
                let rows = MIXES.len() * mix_rank;
                let mut mix_down =
                    rwkv::map(builder, &part("mix_down"), [rows, width], Initial::Zeros)?;
                mix_down.weight = mix_down.weight.undecayed();
                let mix_up = builder.parameter(
                    part("mix_up"),
                    vec![MIXES.len(), mix_rank, width],
                    NARROW,
                )?;
                Some(Dynamic {
                    mix: rwkv::channels(builder, part("mix"), width, keep)?,
                    mix_decay: rwkv::channels(builder, part("mix_decay"), width, keep)?,
                    mix_down,
                    mix_up: mix_up.undecayed(),
                    decay: LowRank::build(
                        builder,
                        &part("decay"),
                        [width, decay_rank],
                        Between::Tanh,
                        NARROW,
                    )?,
                })
            }
        };
        let heads = vec![spec.heads, spec.head_dim];
        let decay = if finch {
            vec![1, 1, width]
        } else {
            heads.clone()
        };
        let square = [width, width];
        let depth = ((1 + builder.layer) as f64 / builder.layers.max(1) as f64).powf(0.7);
        Ok(Self {
            spec: spec.clone(),
            mixes,
            dynamic,
            decay: rwkv::weights(builder, part("decay"), decay, |at| {
                -6.0 + 5.0 * at.across.powf(0.7 + 1.3 * at.depth)
            })?,
            bonus: rwkv::weights(builder, part("bonus"), heads, |at| {
                at.depth * (1.0 - at.across) + 0.1 * at.zigzag()
            })?,
            receptance: rwkv::map(
                builder,
                &part("receptance"),
                square,
                Initial::Orthogonal(1.0),
            )?,
            key: rwkv::map(builder, &part("key"), square, Initial::Orthogonal(0.1))?,
            value: rwkv::map(builder, &part("value"), square, Initial::Orthogonal(1.0))?,
            gate: rwkv::map(builder, &part("gate"), square, Initial::Orthogonal(0.1))?,
            norm: HeadNorm::build(builder, &part("norm"), width, spec.heads, depth)?,
            output: rwkv::map(builder, &part("output"), square, Initial::Zeros)?,
        })
    }

    /// `x`: `[batch, time, width]`; the same shape comes back.
    pub fn forward(
        &self,
        x: Recomputable<3>,
        context: &Context,
        mut state: Option<&mut RecurrentState>,
    ) -> Tensor<3> {
        let x = context.without_padding(x.into_tensor());
        let [batch, _, width] = x.dims();
        let Rwkv6Spec {
            heads, head_dim, ..
        } = self.spec;
        let ([key, value, receptance, gate], decay) = match &self.dynamic {
            None => {
                let pairs = Pairs::new(x, Share::Current, &mut state);
                (
                    pairs.by(self.mixes.each_ref()),
                    self.decay.value::<2>().reshape([1, 1, width]),
                )
            }
            Some(dynamic) => {
                let pairs = Pairs::new(x, Share::Previous, &mut state);
                let (mixes, decay) = dynamic.forward(&pairs, &self.mixes);
                (
                    mixes,
                    add_bias(decay, self.decay.value::<3>().reshape([width])),
                )
            }
        };
        let (y, last) = wkv6(Wkv6 {
            receptance: self.receptance.forward(receptance),
            key: self.key.forward(key),
            value: self.value.forward(value),
            decay,
            bonus: self.bonus.value(),
            state: state
                .as_deref()
                .and_then(|state| state.get("memory", [batch, heads, head_dim, head_dim])),
        });
        if let Some(state) = state {
            state.set("memory", last);
        }
        let gate = self.gate.forward(gate);
        self.output.forward(gated(
            Activation::Silu,
            gate,
            self.norm.forward(y),
            self.output.precision,
        ))
    }
}

impl Dynamic {
    /// What keys, values, receptances and gates are made of, and what is added to the decay.
    fn forward(&self, pairs: &Pairs, mixes: &[Parameter; 4]) -> ([Tensor<3>; 4], Tensor<3>) {
        let [mixed] = pairs.by([&self.mix]);
        let narrow = activate(Activation::Tanh, self.mix_down.forward(mixed));
        let [key, value, receptance, gate] = mixes.each_ref().map(|weight| weight.value::<3>());
        let shared = Tensor::cat(
            vec![self.mix_decay.value(), key, value, receptance, gate],
            1,
        );
        let width = self.mix_up.shape()[2];
        let shared = shared.reshape([MIXES.len(), width]);
        let [decay, key, value, receptance, gate] =
            pairs.dynamic(shared, narrow, self.mix_up.value(), self.mix_down.precision);
        ([key, value, receptance, gate], self.decay.forward(decay))
    }
}
