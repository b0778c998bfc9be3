//! RWKV-4 (arXiv 2305.13048, section 3.1): an average of values whose weights decay with distance.
//!
//! `k, v, r = W_k x_k, W_v x_v, W_r x_r`, where `x_m = x_t mu_m + x_{t-1} (1 - mu_m)`; `W_o (sigmoid(r) wkv(k, v))`.

use burn::tensor::Tensor;
use espalier_kernels::{
    activation::{Activation, gated},
    recomputable::Recomputable,
    recurrent::wkv4::{Wkv4, wkv4},
};
use serde::{Deserialize, Serialize};

use super::{
    RecurrentState, Shapes,
    rwkv::{self, Pairs, Share},
};
use crate::{
    Result,
    layers::{Builder, linear::Linear},
    parameter::{Parameter, parameters},
    source::Initial,
    stack::Context,
};

/// The sizes of an RWKV-4 layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rwkv4Spec {
    /// Channels of the average.
    pub inner: usize,
}

impl Rwkv4Spec {
    /// Names and shapes of the parameters.
    pub fn parameters(&self, width: usize) -> Shapes {
        let inner = self.inner;
        let mut list: Shapes = ["mix_key", "mix_value", "mix_receptance"]
            .map(|name| (name, vec![1, 1, width]))
            .to_vec();
        list.extend(
            ["key.weight", "value.weight", "receptance.weight"]
                .map(|name| (name, vec![inner, width])),
        );
        list.extend(["decay", "bonus"].map(|name| (name, vec![inner])));
        list.push(("output.weight", vec![width, inner]));
        list
    }
}

/// The key of a token that is not to be seen; finite, as the operator asks for.
const UNSEEN: f64 = -1e30;

/// The mixer.
#[derive(Debug, Clone)]
pub struct Rwkv4 {
    mix_key: Parameter,
    mix_value: Parameter,
    mix_receptance: Parameter,
    key: Linear,
    value: Linear,
    receptance: Linear,
    decay: Parameter,
    bonus: Parameter,
    output: Linear,
}

parameters!(Rwkv4: mix_key, mix_value, mix_receptance, key, value, receptance, decay, bonus, output);

impl Rwkv4 {
    /// Builds the layer under `name`.
    ///
    /// # Errors
    /// When the source lacks a weight.
    pub fn build(
        builder: &mut Builder,
        name: &str,
        width: usize,
        spec: &Rwkv4Spec,
    ) -> Result<Self> {
        let part = |part: &str| format!("{name}.{part}");
        let inner = spec.inner;
        Ok(Self {
            mix_key: rwkv::channels(builder, part("mix_key"), width, |at| at.along.powf(at.rest))?,
            mix_value: rwkv::channels(builder, part("mix_value"), width, |at| {
                at.along.powf(at.rest) + 0.3 * at.depth
            })?,
            mix_receptance: rwkv::channels(builder, part("mix_receptance"), width, |at| {
                at.along.powf(0.5 * at.rest)
            })?,
            key: rwkv::map(
                builder,
                &part("key"),
                [inner, width],
                Initial::Orthogonal(0.1),
            )?,
            value: rwkv::map(
                builder,
                &part("value"),
                [inner, width],
                Initial::Orthogonal(1.0),
            )?,
            receptance: rwkv::map(
                builder,
                &part("receptance"),
                [inner, width],
                Initial::Orthogonal(1.0),
            )?,
            decay: rwkv::weights(builder, part("decay"), vec![inner], |at| {
                -5.0 + 8.0 * at.across.powf(0.7 + 1.3 * at.depth)
            })?,
            bonus: rwkv::weights(builder, part("bonus"), vec![inner], |at| {
                0.3f64.ln() + 0.5 * at.zigzag()
            })?,
            output: rwkv::map(builder, &part("output"), [width, inner], Initial::Zeros)?,
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
        let batch = x.dims()[0];
        let pairs = Pairs::new(x, Share::Current, &mut state);
        let [key, value, receptance] =
            pairs.by([&self.mix_key, &self.mix_value, &self.mix_receptance]);
        let inner = self.decay.len();
        // Padding would count in the average, as a token that says nothing does.
        let key = context.instead_of_padding(self.key.forward(key), UNSEEN);
        let (y, last) = wkv4(Wkv4 {
            key,
            value: self.value.forward(value),
            decay: self.decay.value(),
            bonus: self.bonus.value(),
            state: state
                .as_deref()
                .and_then(|state| state.get("average", [batch, 3, inner])),
        });
        if let Some(state) = state {
            state.set("average", last);
        }
        let receptance = self.receptance.forward(receptance);
        self.output.forward(gated(
            Activation::Sigmoid,
            receptance,
            y,
            self.output.precision,
        ))
    }
}
