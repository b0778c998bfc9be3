//! The channel mixer of RWKV: a feed-forward layer that sees the token before.
//!
//! `W_v max(0, W_k x_k)^2`, through RWKV-6 times `sigmoid(W_r x_r)`; for the mixes see [`super::rwkv::Share`].

use burn::tensor::Tensor;
use espalier_kernels::{
    activation::{Activation, activate, gated},
    linear::Precision,
    recomputable::Recomputable,
};
use serde::{Deserialize, Serialize};

use super::{
    RecurrentState, Shapes,
    rwkv::{self, Pairs, Share},
    unpacked_rows,
};
use crate::{
    Result,
    layers::{Builder, linear::Linear},
    parameter::{Parameter, parameters},
    source::Initial,
    stack::Context,
};

/// The sizes of a channel mixer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RwkvChannelSpec {
    /// Inner width.
    pub inner: usize,
    /// What mixing weights are the share of.
    pub share: Share,
    /// Whether there is a gate (through RWKV-6).
    pub receptance: bool,
}

impl RwkvChannelSpec {
    /// Names and shapes of the parameters.
    pub fn parameters(&self, width: usize) -> Shapes {
        let mut list: Shapes = vec![("mix_key", vec![1, 1, width])];
        if self.receptance {
            list.push(("mix_receptance", vec![1, 1, width]));
            list.push(("receptance.weight", vec![width, width]));
        }
        list.push(("key.weight", vec![self.inner, width]));
        list.push(("value.weight", vec![width, self.inner]));
        list
    }
}

/// The channel mixer.
#[derive(Debug, Clone)]
pub struct RwkvChannel {
    share: Share,
    mix_key: Parameter,
    gate: Option<Gate>,
    key: Linear,
    value: Linear,
}

parameters!(RwkvChannel: mix_key, gate, key, value);

#[derive(Debug, Clone)]
struct Gate {
    mix: Parameter,
    map: Linear,
}

parameters!(Gate: mix, map);

impl RwkvChannel {
    /// Builds the layer under `name`.
    ///
    /// # Errors
    /// When the source lacks a weight.
    pub fn build(
        builder: &mut Builder,
        name: &str,
        width: usize,
        spec: &RwkvChannelSpec,
    ) -> Result<Self> {
        let part = |part: &str| format!("{name}.{part}");
        let (share, gated) = (spec.share, spec.receptance);
        let mix = |at: rwkv::Place| match (share, gated) {
            (Share::Current, _) => at.along.powf(at.rest),
            (Share::Previous, true) => 1.0 - at.along.powf(at.rest.powi(3)),
            (Share::Previous, false) => 1.0 - at.along.powf(at.rest.powi(4)),
        };
        let gate = match gated {
            true => Some(Gate {
                mix: rwkv::channels(builder, part("mix_receptance"), width, mix)?,
                map: rwkv::map(builder, &part("receptance"), [width, width], Initial::Zeros)?,
            }),
            false => None,
        };
        let key = match gated {
            true => Initial::Orthogonal(1.0),
            false => Initial::Uniform(0.5 * (width as f64).powf(-0.5)),
        };
        Ok(Self {
            share,
            mix_key: rwkv::channels(builder, part("mix_key"), width, mix)?,
            gate,
            key: rwkv::map(builder, &part("key"), [spec.inner, width], key)?,
            value: rwkv::map(builder, &part("value"), [width, spec.inner], Initial::Zeros)?,
        })
    }

    /// `x`: `[batch, time, width]`; the same shape comes back. Texts that share rows do not see one another.
    pub fn forward(
        &self,
        x: Recomputable<3>,
        context: &Context,
        state: Option<&mut RecurrentState>,
    ) -> Tensor<3> {
        unpacked_rows::each_text(x, context, |x, context| {
            self.forward_texts(x, context, state)
        })
    }

    /// As [`Self::forward`] with one text in a row.
    fn forward_texts(
        &self,
        x: Recomputable<3>,
        context: &Context,
        mut state: Option<&mut RecurrentState>,
    ) -> Tensor<3> {
        let pairs = Pairs::new(
            context.without_padding(x.into_tensor()),
            self.share,
            &mut state,
        );
        let value = |key| {
            self.value
                .forward(activate(Activation::Relu2, self.key.forward(key)))
        };
        match &self.gate {
            Some(gate) => {
                let [key, receptance] = pairs.by([&self.mix_key, &gate.mix]);
                gated(
                    Activation::Sigmoid,
                    gate.map.forward(receptance),
                    value(key),
                    Precision::F32,
                )
                .into_tensor()
            }
            None => {
                let [key] = pairs.by([&self.mix_key]);
                value(key)
            }
        }
    }
}
