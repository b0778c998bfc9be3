//! One residual block: a sequence mixer and a channel mixer, each behind its norm.

use std::sync::Arc;

use burn::tensor::Tensor;
use espalier_kernels::{
    checkpoint::{Segment, Tracked, is_supported, recomputed},
    norm::residual::add,
    recomputable::Recomputable,
};

use super::{
    Builder, attention::Attention, attention_experts::AttentionExperts, channel::Channel,
    cross_attention::CrossAttention, depth::Depth, latent_attention::LatentAttention, norm::Norm,
};
use crate::{
    Result,
    auxiliary_losses::{SideOutput, SideSpec, Sides},
    parameter::{Parameters, parameters},
    recurrent::{Recurrent, RecurrentState},
    spec::{BlockSpec, MixerSpec, NormSpec, Residual},
    stack::Context,
    state::{BlockState, MixerState},
};

/// A mixer and a channel mixer, joined as the spec's [`Residual`] says.
#[derive(Debug, Clone)]
pub struct Block {
    residual: Residual,
    residual_scale: f64,
    depth: Option<Depth>,
    mixer_norm: Option<Norm>,
    mixer: Mixer,
    mixer_output_norm: Option<Norm>,
    cross: Option<Cross>,
    channel_norm: Option<Norm>,
    channel: Option<Channel>,
    channel_output_norm: Option<Norm>,
}

parameters!(Block: depth, mixer_norm, mixer, mixer_output_norm, cross, channel_norm, channel, channel_output_norm);

/// Attention to the encoder's output, with its norm.
#[derive(Debug, Clone)]
struct Cross {
    norm: Norm,
    attention: CrossAttention,
}

parameters!(Cross: norm, attention);

/// What mixes along time. A new mixer adds a variant here and its state in [`MixerState`].
#[derive(Debug, Clone)]
#[allow(
    clippy::large_enum_variant,
    reason = "there is one for each block, and none is moved about"
)]
pub enum Mixer {
    /// Softmax attention.
    Attention(Attention),
    /// Softmax attention whose queries and outputs are experts.
    AttentionExperts(AttentionExperts),
    /// Softmax attention whose keys and values are made of a latent.
    LatentAttention(LatentAttention),
    /// A memory that does not grow.
    Recurrent(Recurrent),
}

parameters!(enum Mixer: Attention, AttentionExperts, LatentAttention, Recurrent);

impl Block {
    /// Builds `{name}.mixer_norm`, `{name}.mixer`, `{name}.channel_norm`, `{name}.channel`, the norms over their outputs, and,
    /// where the spec has it, `{name}.cross` with its norm.
    ///
    /// # Errors
    /// When the source lacks a weight.
    pub fn build(
        builder: &mut Builder,
        name: &str,
        width: usize,
        spec: &BlockSpec,
    ) -> Result<Self> {
        let depth = match &spec.routing {
            Some(routing) => Some(Depth::build(
                builder,
                &format!("{name}.depth"),
                width,
                routing,
                &spec.mixer,
            )?),
            None => None,
        };
        let mixer_norm = spec
            .mixer_norm
            .map(|kind| Norm::build(builder, &format!("{name}.mixer_norm"), width, kind))
            .transpose()?;
        let mixer = match &spec.mixer {
            MixerSpec::Attention(attention) => Mixer::Attention(Attention::build(
                builder,
                &format!("{name}.mixer"),
                width,
                attention,
            )?),
            MixerSpec::AttentionExperts(attention) => Mixer::AttentionExperts(
                AttentionExperts::build(builder, &format!("{name}.mixer"), width, attention)?,
            ),
            MixerSpec::LatentAttention(attention) => Mixer::LatentAttention(
                LatentAttention::build(builder, &format!("{name}.mixer"), width, attention)?,
            ),
            MixerSpec::Recurrent(spec) => Mixer::Recurrent(Recurrent::build(
                builder,
                &format!("{name}.mixer"),
                width,
                spec,
            )?),
        };
        let mut norm = |part: &str, spec: Option<NormSpec>| {
            spec.map(|spec| Norm::build(builder, &format!("{name}.{part}"), width, spec))
                .transpose()
        };
        let mixer_output_norm = norm("mixer_output_norm", spec.mixer_output_norm)?;
        let channel_norm = norm("channel_norm", spec.channel_norm)?;
        let channel_output_norm = norm("channel_output_norm", spec.channel_output_norm)?;
        let channel = Channel::build(builder, &format!("{name}.channel"), width, &spec.channel)?;
        let cross = match &spec.cross {
            Some(cross) => Some(Cross {
                norm: Norm::build(builder, &format!("{name}.cross_norm"), width, cross.norm)?,
                attention: CrossAttention::build(
                    builder,
                    &format!("{name}.cross"),
                    width,
                    &cross.attention,
                )?,
            }),
            None => None,
        };
        Ok(Self {
            residual: spec.residual,
            residual_scale: spec.residual_scale,
            depth,
            mixer_norm,
            mixer,
            mixer_output_norm,
            cross,
            channel_norm,
            channel,
            channel_output_norm,
        })
    }

    /// `x`: `[batch, time, width]`; the same shape comes back. What routers say on the way is added to `sides`. Where
    /// `recompute` is set and there is no state, the backward computes again what it needs.
    pub fn forward(
        &self,
        x: Tensor<3>,
        context: &Context,
        state: Option<&mut BlockState>,
        recompute: bool,
        sides: &mut Sides,
    ) -> Tensor<3> {
        let mut all =
            |x: Tensor<3>, context: &Context, state: Option<&mut BlockState>, sides: &mut Sides| {
                match recompute && state.is_none() && is_supported(&x) {
                    true => self.forward_recomputed(x, context, sides),
                    false => self.forward_all(x, context, state, sides),
                }
            };
        match &self.depth {
            None => all(x, context, state, sides),
            Some(depth) => depth.forward(x, context, state, sides, &mut all),
        }
    }

    /// The mixer, where it is recurrent.
    pub fn recurrent(&self) -> Option<&Recurrent> {
        match &self.mixer {
            Mixer::Recurrent(layer) => Some(layer),
            Mixer::Attention(_) | Mixer::AttentionExperts(_) | Mixer::LatentAttention(_) => None,
        }
    }

    /// The same for change.
    pub fn recurrent_mut(&mut self) -> Option<&mut Recurrent> {
        match &mut self.mixer {
            Mixer::Recurrent(layer) => Some(layer),
            Mixer::Attention(_) | Mixer::AttentionExperts(_) | Mixer::LatentAttention(_) => None,
        }
    }

    /// What the block says of all the tokens that pass through it.
    fn sides(&self) -> Vec<SideSpec> {
        self.mixer
            .side()
            .into_iter()
            .chain(self.channel.as_ref().and_then(Channel::side))
            .collect()
    }

    /// All tokens pass.
    fn forward_all(
        &self,
        x: Tensor<3>,
        context: &Context,
        state: Option<&mut BlockState>,
        sides: &mut Sides,
    ) -> Tensor<3> {
        let (mixer, source, remembered) = match state {
            Some(state) => (
                Some(&mut state.mixer),
                Some(&mut state.source),
                Some(&mut state.channel),
            ),
            None => (None, None, None),
        };
        let cross = |x: Recomputable<3>| match (&self.cross, &context.memory) {
            (Some(cross), Some(memory)) => Some((
                &cross.norm,
                dropped(
                    cross.attention.forward(x, memory, context, source),
                    context,
                    2,
                ),
            )),
            _ => None,
        };
        if matches!(self.residual, Residual::PostNorm | Residual::OutputNorm) {
            return self.forward_norm_after(x, context, (mixer, remembered), cross, sides);
        }
        let (mut x, normed) = match &self.mixer_norm {
            Some(norm) => norm.forward_beside(x),
            None => (x.clone(), x.into()),
        };
        let is_normed = self.residual == Residual::NormedStream;
        if is_normed {
            x = normed.clone().into_tensor();
        }
        let beside = (self.residual == Residual::Parallel).then(|| match &self.channel_norm {
            Some(norm) => {
                let (stream, beside) = norm.forward_beside(x.clone());
                x = stream;
                beside
            }
            None => normed.clone(),
        });
        let mixed = optional(
            &self.mixer_output_norm,
            self.mixer.forward(normed, context, mixer, sides),
        );
        let mut mixed = self.scaled(dropped(mixed, context, 0));
        let Some(channel) = &self.channel else {
            return add(x, mixed);
        };
        if let Some(norm) = self.cross.as_ref().map(|cross| &cross.norm) {
            let (sum, normed) = norm.forward_sum(x.clone(), mixed.clone());
            if let Some((_, seen)) = cross(normed) {
                (x, mixed) = (sum, seen);
            }
        }
        let (x, inner) = match (beside, &self.channel_norm) {
            (None, Some(norm)) => norm.forward_sum(x, mixed),
            (beside, _) => {
                let x = add(x, mixed);
                (x.clone(), beside.unwrap_or_else(|| x.into()))
            }
        };
        let x = match is_normed {
            true => inner.clone().into_tensor(),
            false => x,
        };
        let inner = channel.forward(inner, context, remembered, sides);
        let inner = dropped(optional(&self.channel_output_norm, inner), context, 1);
        add(x, self.scaled(inner))
    }

    /// What a part adds, times the spec's factor.
    fn scaled(&self, x: Tensor<3>) -> Tensor<3> {
        match self.residual_scale {
            1.0 => x,
            scale => x * scale,
        }
    }

    /// `x = norm(x + mixer(x))` or `x = x + norm(mixer(x))`, and so on for the other parts.
    fn forward_norm_after<'a>(
        &self,
        x: Tensor<3>,
        context: &Context,
        (state, beside): (Option<&mut MixerState>, Option<&mut RecurrentState>),
        cross: impl FnOnce(Recomputable<3>) -> Option<(&'a Norm, Tensor<3>)>,
        sides: &mut Sides,
    ) -> Tensor<3> {
        let sum = |norm: Option<&Norm>, x: Tensor<3>, y: Tensor<3>| match (norm, self.residual) {
            (None, _) => add(x, self.scaled(y)),
            (Some(norm), Residual::OutputNorm) => add(x, self.scaled(norm.forward(y))),
            (Some(norm), _) => norm.forward_sum(x, self.scaled(y)).1.into_tensor(),
        };
        let mixed = dropped(
            self.mixer.forward(x.clone().into(), context, state, sides),
            context,
            0,
        );
        let mut x = sum(self.mixer_norm.as_ref(), x, mixed);
        if let Some((norm, seen)) = cross(x.clone().into()) {
            x = sum(Some(norm), x, seen);
        }
        let Some(channel) = &self.channel else {
            return x;
        };
        let inner = dropped(
            channel.forward(x.clone().into(), context, beside, sides),
            context,
            1,
        );
        sum(self.channel_norm.as_ref(), x, inner)
    }

    /// As [`Block::forward_all`] without state; what the backward needs is computed again when it runs.
    fn forward_recomputed(&self, x: Tensor<3>, context: &Context, sides: &mut Sides) -> Tensor<3> {
        let width = x.dims()[2];
        let mut block = self.clone();
        let mut trained = Vec::new();
        block.visit_mut(&mut |parameter| {
            trained.push(parameter.is_trainable());
            parameter.set_trainable(false);
        });
        let shared = context.shared();
        let plain = shared.clone().map(|values| values.map(Tensor::inner));
        let segment = BlockSegment {
            block,
            trained,
            context: context.with_shared(plain),
        };
        let output = recomputed(x, shared, leaves(self), Arc::new(segment));
        let specs = self.sides();
        if specs.is_empty() {
            return output;
        }
        let mut start = width;
        for spec in specs {
            let values = output.clone().narrow(2, start, spec.channels());
            start += spec.channels();
            sides.outputs.push(SideOutput::new(spec, values, context));
        }
        output.narrow(2, 0, width)
    }
}

/// The norm, where there is one.
fn optional(norm: &Option<Norm>, x: Tensor<3>) -> Tensor<3> {
    match norm {
        Some(norm) => norm.forward(x),
        None => x,
    }
}

/// What a part adds, with dropout where the pass has it.
fn dropped(x: Tensor<3>, context: &Context, part: u64) -> Tensor<3> {
    match context.dropout {
        Some(dropout) => dropout.of(part).forward(x),
        None => x,
    }
}

/// A block that keeps its input alone for the backward.
#[derive(Debug)]
struct BlockSegment {
    /// Outside autodiff.
    block: Block,
    trained: Vec<bool>,
    context: Context,
}

impl BlockSegment {
    /// The output, with the side outputs behind its channels.
    fn run(block: &Block, x: Tensor<3>, context: &Context) -> Tensor<3> {
        let mut sides = Sides::default();
        let y = block.forward_all(x, context, None, &mut sides);
        match sides.outputs.is_empty() {
            true => y,
            false => Tensor::cat(
                std::iter::once(y)
                    .chain(sides.outputs.into_iter().map(|side| side.values))
                    .collect(),
                2,
            ),
        }
    }
}

impl Segment for BlockSegment {
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        Self::run(&self.block, x, &self.context)
    }

    fn tracked(&self, x: Tensor<3>, wanted: [bool; 2]) -> Tracked {
        let (mut block, mut trained) = (self.block.clone(), self.trained.iter());
        block.visit_mut(&mut |parameter| parameter.set_trainable(trained.next() == Some(&true)));
        let [memory, bias] = self.context.shared();
        let leaf = |values: Option<Tensor<1>>, wanted| {
            values
                .filter(|_| wanted)
                .map(|v| v.autodiff().require_grad())
        };
        let shared = [leaf(memory, wanted[0]), leaf(bias, wanted[1])];
        let output = Self::run(&block, x, &self.context.with_shared(shared.clone()));
        Tracked {
            output,
            leaves: leaves(&block),
            shared,
        }
    }
}

/// The trained parameters of a block.
fn leaves(block: &Block) -> Vec<Tensor<1>> {
    let mut leaves = Vec::new();
    block.visit(&mut |parameter| {
        if parameter.is_trainable() {
            leaves.extend(parameter.leaf().cloned());
        }
    });
    leaves
}

impl Mixer {
    fn side(&self) -> Option<SideSpec> {
        match self {
            Self::Attention(_) | Self::LatentAttention(_) | Self::Recurrent(_) => None,
            Self::AttentionExperts(attention) => Some(attention.side()),
        }
    }

    fn forward(
        &self,
        x: Recomputable<3>,
        context: &Context,
        state: Option<&mut MixerState>,
        sides: &mut Sides,
    ) -> Tensor<3> {
        let cache = |state: Option<_>| state.and_then(MixerState::key_values);
        match self {
            Self::Attention(attention) => attention.forward(x, context, cache(state)),
            Self::AttentionExperts(attention) => attention.forward(x, context, cache(state), sides),
            Self::LatentAttention(attention) => attention.forward(x, context, cache(state)),
            Self::Recurrent(layer) => {
                layer.forward(x, context, state.and_then(MixerState::recurrent), sides)
            }
        }
    }
}
