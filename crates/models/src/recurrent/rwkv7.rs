//! RWKV-7 "Goose" (arXiv 2503.14456, section 3): linear attention that removes what it rewrites, a generalised delta rule.
//!
//! With `x_m = x_t + (x_{t-1} - x_t) mu_m`: `r, k, v = W_r x_r, W_k x_k, W_v x_v`; `ln w = -exp(-1/2) sigmoid(w_0 + tanh(x_w A) B)`;
//! the rate `a = sigmoid(a_0 + x_a C D)`; `g = sigmoid(x_g E) F`. Blocks after the first mix `v` with the first block's. The
//! removed key is `n = k k_k`, of length one in each head, and `k` becomes `k (1 + (a - 1) k_a)`. The state is
//! `S diag(w) - (S n) (n a)^T + v k^T`, and the output `W_o ((norm_heads(S r) + (sum r k r_k) v) g)`.

use burn::tensor::Tensor;
use espalier_kernels::{
    activation::{Activation, activate},
    recomputable::Recomputable,
    recurrent::wkv7::{Wkv7, wkv7},
};
use serde::{Deserialize, Serialize};

use super::{
    RecurrentState, Shapes,
    rwkv::{self, Between, HeadNorm, LowRank, Pairs, Place, Share},
};
use crate::{
    Result,
    auxiliary_losses::Sides,
    layers::{Builder, linear::Linear},
    parameter::{Parameter, parameters},
    source::Initial,
    stack::Context,
};

/// The sizes of an RWKV-7 layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rwkv7Spec {
    /// Heads; their channels together are the model's width.
    pub heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// Rank of the map to decays.
    pub decay_rank: usize,
    /// Rank of the map to rates.
    pub rate_rank: usize,
    /// Rank of the map to shares of the first block's values; the first block has none.
    pub value_rank: Option<usize>,
    /// Rank of the map to gates.
    pub gate_rank: usize,
}

const MIXES: [&str; 6] = [
    "mix_receptance",
    "mix_decay",
    "mix_key",
    "mix_value",
    "mix_rate",
    "mix_gate",
];

impl Rwkv7Spec {
    /// Names and shapes of the parameters.
    pub fn parameters(&self, width: usize) -> Shapes {
        let mut list: Shapes = MIXES.map(|name| (name, vec![1, 1, width])).to_vec();
        let mut narrow = |names: [&'static str; 3], rank: usize| {
            list.push((names[0], vec![1, 1, width]));
            list.push((names[1], vec![rank, width]));
            list.push((names[2], vec![width, rank]));
        };
        narrow(
            ["decay", "decay_down.weight", "decay_up.weight"],
            self.decay_rank,
        );
        narrow(
            ["rate", "rate_down.weight", "rate_up.weight"],
            self.rate_rank,
        );
        if let Some(rank) = self.value_rank {
            narrow(["first", "first_down.weight", "first_up.weight"], rank);
        }
        list.push(("gate_down.weight", vec![self.gate_rank, width]));
        list.push(("gate_up.weight", vec![width, self.gate_rank]));
        list.extend(["removed", "written"].map(|name| (name, vec![1, 1, width])));
        list.push(("bonus", vec![self.heads, self.head_dim]));
        let maps = ["receptance.weight", "key.weight", "value.weight"];
        list.extend(maps.map(|name| (name, vec![width, width])));
        list.extend(["norm.weight", "norm.bias"].map(|name| (name, vec![width])));
        list.push(("output.weight", vec![width, width]));
        list
    }
}

/// A weight for every channel and what a narrow map adds to it.
#[derive(Debug, Clone)]
struct Dynamic {
    base: Parameter,
    map: LowRank,
}

parameters!(Dynamic: base, map);

impl Dynamic {
    fn build(
        builder: &mut Builder,
        name: &str,
        size: [usize; 2],
        between: Between,
        initial: impl Fn(Place) -> f64,
    ) -> Result<Self> {
        let base = rwkv::channels(builder, name.to_owned(), size[0], initial)?;
        Ok(Self {
            base,
            map: LowRank::build(builder, name, size, between, narrow(size))?,
        })
    }

    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        self.map.forward(x) + self.base.value::<3>()
    }
}

/// A fresh map out of a narrow middle.
fn narrow([width, rank]: [usize; 2]) -> Initial {
    Initial::Orthogonal(0.1 * (rank as f64 / width as f64).max(1.0).sqrt())
}

/// The mixer.
#[derive(Debug, Clone)]
pub struct Rwkv7 {
    heads: usize,
    mixes: [Parameter; 6],
    decay: Dynamic,
    rate: Dynamic,
    first: Option<Dynamic>,
    gate: LowRank,
    /// `k_k`: what is removed, relative to the key.
    removed: Parameter,
    /// `k_a`: how much the rate counts in what is written.
    written: Parameter,
    bonus: Parameter,
    receptance: Linear,
    key: Linear,
    value: Linear,
    norm: HeadNorm,
    output: Linear,
}

parameters!(Rwkv7: mixes, decay, rate, first, gate, removed, written, bonus, receptance, key, value, norm, output);

impl Rwkv7 {
    /// Builds the layer under `name`.
    ///
    /// # Errors
    /// When the source lacks a weight.
    pub fn build(
        builder: &mut Builder,
        name: &str,
        width: usize,
        spec: &Rwkv7Spec,
    ) -> Result<Self> {
        let part = |part: &str| format!("{name}.{part}");
        let powers = [0.2, 0.9, 0.7, 0.7, 0.9, 0.2];
        let mut mix = |number: usize| {
            let power = powers[number];
            rwkv::channels(builder, part(MIXES[number]), width, |at| {
                1.0 - at.along.powf(power * at.rest)
            })
        };
        let mixes = [mix(0)?, mix(1)?, mix(2)?, mix(3)?, mix(4)?, mix(5)?];
        let head = spec.head_dim;
        // Within its head a channel stands between -1 and 1; squares keep the sign.
        let bent = move |at: Place| {
            let middle = (head as f64 - 1.0) / 2.0;
            let z = ((at.channel % head) as f64 - middle) / middle.max(0.5);
            z * z.abs()
        };
        let linear = |at: Place| at.across - 0.5;
        let decay = Dynamic::build(
            builder,
            &part("decay"),
            [width, spec.decay_rank],
            Between::Tanh,
            |at| -6.0 + 6.0 * at.across.powf(1.0 + at.depth.powf(0.3)) + 0.5 + 2.5 * bent(at),
        )?;
        let rate = Dynamic::build(
            builder,
            &part("rate"),
            [width, spec.rate_rank],
            Between::Nothing,
            |at| -0.19 + 0.3 * bent(at) + 0.4 * linear(at),
        )?;
        let first = spec.value_rank.map(|rank| {
            Dynamic::build(
                builder,
                &part("first"),
                [width, rank],
                Between::Nothing,
                |at| 0.73 - 0.4 * linear(at),
            )
        });
        let first = first.transpose()?;
        let gate_size = [width, spec.gate_rank];
        let gate = LowRank::build(
            builder,
            &part("gate"),
            gate_size,
            Between::Sigmoid,
            narrow(gate_size),
        )?;
        let (square, bound) = ([width, width], (width as f64).powf(-0.5));
        let depth = ((1 + builder.layer) as f64 / builder.layers.max(1) as f64).powf(0.7);
        Ok(Self {
            heads: spec.heads,
            mixes,
            decay,
            rate,
            first,
            gate,
            removed: rwkv::channels(builder, part("removed"), width, |at| {
                0.71 - 0.1 * linear(at)
            })?,
            written: rwkv::channels(builder, part("written"), width, |_| 1.02)?,
            bonus: rwkv::weights(builder, part("bonus"), vec![spec.heads, head], |_| -0.04)?,
            receptance: rwkv::map(
                builder,
                &part("receptance"),
                square,
                Initial::Uniform(0.5 * bound),
            )?,
            key: rwkv::map(
                builder,
                &part("key"),
                square,
                Initial::Uniform(0.05 * bound),
            )?,
            value: rwkv::map(
                builder,
                &part("value"),
                square,
                Initial::Uniform(0.5 * bound),
            )?,
            norm: HeadNorm::build(builder, &part("norm"), width, spec.heads, depth)?,
            output: rwkv::map(builder, &part("output"), square, Initial::Zeros)?,
        })
    }

    /// `x`: `[batch, time, width]`; the same shape comes back. The first block's values go through `sides`.
    pub fn forward(
        &self,
        x: Recomputable<3>,
        context: &Context,
        mut state: Option<&mut RecurrentState>,
        sides: &mut Sides,
    ) -> Tensor<3> {
        let x = context.without_padding(x.into_tensor());
        let ([batch, time, width], heads) = (x.dims(), self.heads);
        let head = width / heads;
        let pairs = Pairs::new(x, Share::Previous, &mut state);
        let [receptance, decay, key, value, rate, gate] = pairs.by(self.mixes.each_ref());
        let gate = self.gate.forward(gate);
        let rate = activate(Activation::Sigmoid, self.rate.forward(rate));
        let log_decay = activate(Activation::Sigmoid, self.decay.forward(decay)) * -(-0.5f64).exp();
        let receptance = self.receptance.forward(receptance);
        let key = self.key.forward(key);
        let value = self.values(value, sides);
        let removed = self.directions(key.clone() * self.removed.value::<3>());
        let key = key.clone() + key * (rate.clone() - 1.0) * self.written.value::<3>();
        let (y, last) = wkv7(Wkv7 {
            receptance: receptance.clone(),
            log_decay,
            key: key.clone(),
            value: value.clone(),
            removal: -removed.clone(),
            replacement: removed * rate,
            heads,
            state: state
                .as_deref()
                .and_then(|state| state.get("memory", [batch, heads, head, head])),
        });
        if let Some(state) = state {
            state.set("memory", last);
        }
        let by_head = |x: Tensor<3>| x.reshape([batch, time, heads, head]);
        let seen = (by_head(receptance * key) * self.bonus.value::<2>().unsqueeze()).sum_dim(3);
        let now = (by_head(value) * seen).reshape([batch, time, width]);
        self.output.forward((self.norm.forward(y) + now) * gate)
    }

    /// The values, mixed with the first block's. `x`: what they are made of.
    fn values(&self, x: Tensor<3>, sides: &mut Sides) -> Tensor<3> {
        let value = self.value.forward(x.clone());
        match (&self.first, &sides.first_value) {
            (Some(first), Some(first_value)) => {
                value.clone()
                    + (first_value.clone() - value)
                        * activate(Activation::Sigmoid, first.forward(x))
            }
            _ => {
                sides.first_value = Some(value.clone());
                value
            }
        }
    }

    /// `x` with heads of length one.
    fn directions(&self, x: Tensor<3>) -> Tensor<3> {
        let [batch, time, width] = x.dims();
        let x = x.reshape([batch, time, self.heads, width / self.heads]);
        // Where a head is zero it stays so, and its gradient is.
        let length = (x.clone() * x.clone()).sum_dim(3).clamp_min(1e-24).sqrt();
        (x / length).reshape([batch, time, width])
    }
}
