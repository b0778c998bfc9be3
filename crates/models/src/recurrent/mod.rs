//! Mixers whose memory does not grow with the sequence: a spec, a layer and a file for each.
//!
//! A new one adds its file and a variant here. What it remembers between decoding steps is a [`RecurrentState`]; padding and
//! packed rows are dealt with by [`Context::without_padding`] and by `unpacked_rows.rs`, so that a layer sees one text in a row.

pub mod bigs;
pub mod first_state;
pub mod mamba;
pub mod mamba2;
pub mod rg_lru;
mod rwkv;
pub mod rwkv4;
pub mod rwkv6;
pub mod rwkv7;
pub mod rwkv_channel;
pub mod state;
mod unpacked_rows;

use burn::tensor::Tensor;
use espalier_kernels::recomputable::Recomputable;
use serde::{Deserialize, Serialize};

pub use self::{
    bigs::{Bigs, BigsSpec},
    first_state::FirstState,
    mamba::{Mamba, MambaSpec},
    mamba2::{Mamba2, Mamba2Spec},
    rg_lru::{RgLruBlock, RgLruSpec},
    rwkv::Share,
    rwkv_channel::{RwkvChannel, RwkvChannelSpec},
    rwkv4::{Rwkv4, Rwkv4Spec},
    rwkv6::{DynamicSpec, Rwkv6, Rwkv6Spec},
    rwkv7::{Rwkv7, Rwkv7Spec},
    state::RecurrentState,
};
use crate::{
    Result, adapter::attachments::Attachments, auxiliary_losses::Sides, layers::Builder,
    parameter::parameters, stack::Context,
};

/// The names, within the layer, and shapes of a layer's parameters.
pub type Shapes = Vec<(&'static str, Vec<usize>)>;

/// What a recurrent mixer is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecurrentSpec {
    /// Mamba's selective state space.
    Mamba(MambaSpec),
    /// Mamba-2's state space with one decay a head.
    Mamba2(Mamba2Spec),
    /// Griffin's gated linear recurrence.
    RgLru(RgLruSpec),
    /// BiGS's state spaces in both directions.
    Bigs(BigsSpec),
    /// RWKV-4's average.
    Rwkv4(Rwkv4Spec),
    /// RWKV-5's and RWKV-6's linear attention.
    Rwkv6(Rwkv6Spec),
    /// RWKV-7's delta rule.
    Rwkv7(Rwkv7Spec),
}

impl RecurrentSpec {
    /// Names and shapes of the parameters, in the order of computation.
    pub fn parameters(&self, width: usize) -> Shapes {
        match self {
            Self::Mamba(spec) => spec.parameters(width),
            Self::Mamba2(spec) => spec.parameters(width),
            Self::RgLru(spec) => spec.parameters(width),
            Self::Bigs(spec) => spec.parameters(width),
            Self::Rwkv4(spec) => spec.parameters(width),
            Self::Rwkv6(spec) => spec.parameters(width),
            Self::Rwkv7(spec) => spec.parameters(width),
        }
    }

    /// Numbers that a sequence leaves behind, however long it is.
    pub fn state_size(&self, width: usize) -> usize {
        match self {
            Self::Mamba(spec) => spec.inner * (spec.states + spec.taps - 1),
            Self::Mamba2(spec) => spec.inner() * spec.states + spec.convolved() * (spec.taps - 1),
            Self::RgLru(spec) => spec.inner * spec.taps,
            // It sees whole texts alone.
            Self::Bigs(_) => 0,
            Self::Rwkv4(spec) => width + 3 * spec.inner,
            Self::Rwkv6(spec) => width * (1 + spec.head_dim),
            Self::Rwkv7(spec) => width * (1 + spec.head_dim),
        }
    }

    /// Numbers that a token leaves for the backward pass.
    pub fn kept(&self) -> usize {
        match self {
            Self::Mamba(spec) => 5 * spec.inner + spec.rank + 2 * spec.states,
            Self::Mamba2(spec) => 3 * spec.inner() + 2 * spec.convolved() + 2 * spec.heads,
            Self::RgLru(spec) => 7 * spec.inner,
            Self::Bigs(spec) => 11 * spec.inner,
            Self::Rwkv4(spec) => 12 * spec.inner,
            Self::Rwkv6(spec) => {
                (17 + if spec.dynamic.is_some() { 16 } else { 0 }) * spec.heads * spec.head_dim
            }
            Self::Rwkv7(spec) => 40 * spec.heads * spec.head_dim,
        }
    }

    /// Multiplications of a token besides those by weights.
    pub fn products(&self) -> usize {
        match self {
            Self::Mamba(spec) => spec.inner * (3 * spec.states + spec.taps),
            Self::Mamba2(spec) => 3 * spec.inner() * spec.states + spec.convolved() * spec.taps,
            Self::RgLru(spec) => spec.inner * (spec.taps + 4),
            Self::Bigs(spec) => 2 * spec.inner * spec.modes,
            Self::Rwkv4(spec) => 8 * spec.inner,
            Self::Rwkv6(spec) => 4 * spec.heads * spec.head_dim * spec.head_dim,
            Self::Rwkv7(spec) => 5 * spec.heads * spec.head_dim * spec.head_dim,
        }
    }

    /// The mixer in words.
    pub fn describe(&self) -> String {
        match self {
            Self::Mamba(spec) => format!(
                "Mamba {} x {} states, convolution {}",
                spec.inner, spec.states, spec.taps
            ),
            Self::Mamba2(spec) => format!(
                "Mamba-2 {} heads of {} x {} states, convolution {}",
                spec.heads, spec.head_dim, spec.states, spec.taps
            ),
            Self::RgLru(spec) => format!(
                "RG-LRU {} in {} heads, convolution {}",
                spec.inner, spec.heads, spec.taps
            ),
            Self::Bigs(spec) => {
                let directions = if spec.both {
                    "two directions"
                } else {
                    "one direction"
                };
                format!(
                    "state spaces of {} modes in {directions}, gated {}",
                    spec.modes, spec.inner
                )
            }
            Self::Rwkv4(spec) => format!("RWKV-4, {} averages", spec.inner),
            Self::Rwkv6(spec) => {
                let number = if spec.dynamic.is_some() { 6 } else { 5 };
                format!(
                    "RWKV-{number}, {} heads of {1} x {1} states",
                    spec.heads, spec.head_dim
                )
            }
            Self::Rwkv7(spec) => format!(
                "RWKV-7, {} heads of {1} x {1} states",
                spec.heads, spec.head_dim
            ),
        }
    }
}

/// A recurrent mixer, and the states from which it starts where adapters have trained them; active ones are summed.
#[derive(Debug, Clone)]
pub struct Recurrent {
    layer: Layer,
    first: Attachments<FirstState>,
}

parameters!(Recurrent: layer, first);

/// The layer itself.
#[derive(Debug, Clone)]
#[allow(
    clippy::large_enum_variant,
    reason = "there is one for each block, and none is moved about"
)]
enum Layer {
    Mamba(Mamba),
    Mamba2(Mamba2),
    RgLru(RgLruBlock),
    Bigs(Bigs),
    Rwkv4(Rwkv4),
    Rwkv6(Rwkv6),
    Rwkv7(Rwkv7),
}

parameters!(enum Layer: Mamba, Mamba2, RgLru, Bigs, Rwkv4, Rwkv6, Rwkv7);

impl Recurrent {
    /// Builds what `spec` describes under `name`.
    ///
    /// # Errors
    /// When the source lacks a weight.
    pub fn build(
        builder: &mut Builder,
        name: &str,
        width: usize,
        spec: &RecurrentSpec,
    ) -> Result<Self> {
        let layer = match spec {
            RecurrentSpec::Mamba(spec) => Layer::Mamba(Mamba::build(builder, name, width, spec)?),
            RecurrentSpec::Mamba2(spec) => {
                Layer::Mamba2(Mamba2::build(builder, name, width, spec)?)
            }
            RecurrentSpec::RgLru(spec) => {
                Layer::RgLru(RgLruBlock::build(builder, name, width, spec)?)
            }
            RecurrentSpec::Bigs(spec) => Layer::Bigs(Bigs::build(builder, name, width, spec)?),
            RecurrentSpec::Rwkv4(spec) => Layer::Rwkv4(Rwkv4::build(builder, name, width, spec)?),
            RecurrentSpec::Rwkv6(spec) => Layer::Rwkv6(Rwkv6::build(builder, name, width, spec)?),
            RecurrentSpec::Rwkv7(spec) => Layer::Rwkv7(Rwkv7::build(builder, name, width, spec)?),
        };
        Ok(Self {
            layer,
            first: Attachments::default(),
        })
    }

    /// The states from which texts start, by adapters; they start from zeros without an active one.
    pub fn first_states(&self) -> &Attachments<FirstState> {
        &self.first
    }

    /// The same for change.
    pub fn first_states_mut(&mut self) -> &mut Attachments<FirstState> {
        &mut self.first
    }

    /// `x`: `[batch, time, width]`; the same shape comes back. Texts that share rows do not see one another.
    pub fn forward(
        &self,
        x: Recomputable<3>,
        context: &Context,
        state: Option<&mut RecurrentState>,
        sides: &mut Sides,
    ) -> Tensor<3> {
        unpacked_rows::each_text(x, context, |x, context| {
            if !self.first.is_active() {
                return self.layer.forward(x, context, state, sides);
            }
            let (batch, mut own) = (context.tokens.batch, RecurrentState::default());
            let state = state.unwrap_or(&mut own);
            if state.is_empty() {
                *state = FirstState::rows(self.first.active(), batch);
            }
            self.layer.forward(x, context, Some(state), sides)
        })
    }
}

impl Layer {
    fn forward(
        &self,
        x: Recomputable<3>,
        context: &Context,
        state: Option<&mut RecurrentState>,
        sides: &mut Sides,
    ) -> Tensor<3> {
        match self {
            Self::Mamba(layer) => layer.forward(x, context, state),
            Self::Mamba2(layer) => layer.forward(x, context, state),
            Self::RgLru(layer) => layer.forward(x, context, state),
            Self::Bigs(layer) => layer.forward(x, context),
            Self::Rwkv4(layer) => layer.forward(x, context, state),
            Self::Rwkv6(layer) => layer.forward(x, context, state),
            Self::Rwkv7(layer) => layer.forward(x, context, state, sides),
        }
    }
}
