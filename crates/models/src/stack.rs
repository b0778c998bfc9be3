//! A stack: embedded tokens with their positions, blocks, and the last norm. A decoder is one, an encoder is one, and an
//! encoder-decoder has two.

use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorData};
use espalier_kernels::{attention::Mask, embedding::embedding, linear::Precision};

pub use crate::context::Context;
use crate::{
    Error, Result,
    adapter::intervention::{Intervention, Interventions},
    auxiliary_losses::Sides,
    context::{Tokens, text_lengths},
    layers::{Builder, block::Block, embedding::Embedding, linear::Linear, norm::Norm},
    model::Input,
    parameter::{Parameter, parameters},
    positions::Positions,
    recurrent::Recurrent,
    relative_position_bias::RelativePositionBias,
    source::Initial,
    spec::{MixerSpec, ModelSpec, ProjectionPlace, RecurrentSpec},
    spec_stack::StackSpec,
    state::SequenceState,
    taps::{Flow, Observer, Site},
    token_places::TokenPlaces,
};

/// The encoder's output, as decoder blocks see it.
#[derive(Debug, Clone)]
pub struct Memory {
    /// `[batch, source time, width]`; absent where each block has cached its keys and values.
    pub hidden: Option<Tensor<3>>,
    /// The real tokens of each row.
    pub mask: Mask,
}

/// How a stack is run.
#[derive(Debug, Clone, Copy, Default)]
pub struct Mode {
    /// The arithmetic of products outside linear layers.
    pub precision: Precision,
    /// Whether blocks are run again in the backward.
    pub gradient_checkpointing: bool,
    /// Whether layers work as in training.
    pub training: bool,
}

/// What a forward pass gives.
#[derive(Debug, Clone)]
pub struct Forward {
    /// Hidden states after the final norm, `[batch, time, width]`, of [`ModelSpec::hidden_width`].
    pub hidden: Tensor<3>,
    /// What the blocks' routers said on the way.
    pub sides: Sides,
}

/// Positions, blocks and the last norm.
#[derive(Debug, Clone)]
pub struct Stack {
    spec: Arc<ModelSpec>,
    is_encoder: bool,
    device: Device,
    positions: Option<Positions>,
    token_types: Option<Parameter>,
    /// One for all blocks, or one for each.
    relative: Vec<RelativePositionBias>,
    embedding_norm: Option<Norm>,
    /// The linear layer from an embedding of another width, before what is added to it.
    projection_before: Option<Linear>,
    /// The same behind what is added to it.
    projection_behind: Option<Linear>,
    /// The numbers of the blocks in the order in which they are run.
    order: Vec<usize>,
    blocks: Vec<Block>,
    final_norm: Option<Norm>,
    /// The linear layer back to the embedding's width.
    output_projection: Option<Linear>,
    interventions: Interventions,
}

parameters!(Stack: projection_before, positions, token_types, relative, embedding_norm, projection_behind, blocks, final_norm, output_projection, interventions);

impl Stack {
    /// Builds the decoder of `spec`, or its encoder, whose parameters begin with `encoder.`.
    ///
    /// # Errors
    /// When the source lacks a weight.
    pub fn build(builder: &mut Builder, spec: &Arc<ModelSpec>, is_encoder: bool) -> Result<Self> {
        let (stack, prefix) = side(spec, is_encoder);
        let width = spec.width;
        let outer = stack.added_width(width);
        let positions = stack
            .positions
            .map(|kind| Positions::build(builder, prefix, outer, kind))
            .transpose()?;
        let normal = Initial::Normal(builder.deviation);
        let token_types = stack
            .token_types
            .map(|rows| {
                builder.weight(
                    format!("{prefix}token_types.weight"),
                    vec![rows, outer],
                    normal,
                )
            })
            .transpose()?;
        let relative = stack
            .relative
            .into_iter()
            .flat_map(|kind| {
                let names = kind.names(prefix, stack.blocks.len());
                names.map(move |name| (name, kind))
            })
            .map(|(name, kind)| {
                RelativePositionBias::build(builder, &name, kind, stack.bidirectional)
            })
            .collect::<Result<_>>()?;
        let norm = |builder: &mut Builder, name: &str, width, kind: Option<_>| {
            kind.map(|kind| Norm::build(builder, &format!("{prefix}{name}"), width, kind))
                .transpose()
        };
        let embedding_norm = norm(builder, "embedding_norm", outer, stack.embedding_norm)?;
        let linear = |builder: &mut Builder, name: &str, size, bias| {
            let deviation = builder.deviation;
            Linear::build(builder, &format!("{prefix}{name}"), size, bias, deviation)
        };
        let embedding_projection = stack
            .embedding_projection
            .map(|spec| {
                let bias = spec.place == ProjectionPlace::BehindPositions;
                let projection =
                    linear(builder, "embedding_projection", [width, spec.width], bias)?;
                Ok::<_, Error>((spec.place, projection))
            })
            .transpose()?;
        let (before, behind) = match embedding_projection {
            Some((ProjectionPlace::BothEnds, projection)) => (Some(projection), None),
            Some((ProjectionPlace::BehindPositions, projection)) => (None, Some(projection)),
            None => (None, None),
        };
        let order = match stack.block_order {
            Some(order) => order.to_vec(),
            None => (0..stack.blocks.len()).collect(),
        };
        if let Some(number) = order.iter().find(|number| **number >= stack.blocks.len()) {
            return Err(Error::Invalid(format!(
                "block {number} is to be run, and there are {}",
                stack.blocks.len()
            )));
        }
        let blocks = stack
            .blocks
            .iter()
            .enumerate()
            .map(|(i, block)| {
                (builder.layer, builder.layers) = (i, stack.blocks.len());
                builder.bits = spec.bits;
                Block::build(builder, &format!("{prefix}blocks.{i}"), width, block)
            })
            .collect::<Result<_>>()?;
        builder.bits = None;
        let final_norm = norm(builder, "final_norm", width, stack.final_norm)?;
        let output_projection = stack
            .leads_back()
            .map(|outer| linear(builder, "output_projection", [outer, width], false))
            .transpose()?;
        let (spec, device) = (spec.clone(), builder.device.clone());
        Ok(Self {
            spec,
            is_encoder,
            device,
            positions,
            token_types,
            relative,
            embedding_norm,
            projection_before: before,
            projection_behind: behind,
            order,
            blocks,
            final_norm,
            output_projection,
            interventions: Interventions::default(),
        })
    }

    /// Hidden states after the final norm, `[batch, time, width]`. `embedding` is the table of tokens.
    ///
    /// # Errors
    /// When a position or a token type is outside the model's tables.
    pub fn forward(
        &self,
        embedding: &Embedding,
        input: &Input,
        mut state: Option<&mut SequenceState>,
        memory: Option<Memory>,
        mode: Mode,
        observer: &mut dyn Observer,
    ) -> Result<Forward> {
        let (tokens, contexts) = self.contexts(input, state.as_deref_mut(), memory, mode);
        let places = self.interventions.is_active().then(|| {
            let remembered = state.as_deref().map(|state| state.prompts(input.time()));
            let prompts = remembered.or_else(|| input.prompts.clone());
            TokenPlaces::new(&tokens, prompts.as_deref())
        });
        let intervene = |site, hidden| match &places {
            Some(places) => self.interventions.forward(site, hidden, places),
            None => hidden,
        };
        let mut sides = Sides::default();
        let embedded = self.embed(embedding, input, &tokens.positions)?;
        let mut flow = observer.observe(Site::Embedding, intervene(Site::Embedding, embedded));
        let runs = self
            .order
            .iter()
            .filter_map(|number| self.blocks.get(*number));
        for (i, (block, context)) in runs.zip(&contexts).enumerate() {
            let hidden = match flow {
                Flow::Continue(hidden) => hidden,
                Flow::Stop(_) => break,
            };
            let memory = state
                .as_deref_mut()
                .and_then(|state| state.blocks.get_mut(i));
            let hidden = block.forward(
                hidden,
                context,
                memory,
                mode.gradient_checkpointing,
                &mut sides,
            );
            flow = observer.observe(Site::Block(i), intervene(Site::Block(i), hidden));
        }
        let (Flow::Continue(hidden) | Flow::Stop(hidden)) = flow;
        let hidden = match &self.final_norm {
            Some(norm) => norm.forward(hidden),
            None => hidden,
        };
        let hidden = project(&self.output_projection, hidden);
        Ok(Forward { hidden, sides })
    }

    /// Adds the intervention of an adapter after the embedding or a block, active, in place of one that this adapter has there.
    ///
    /// # Errors
    /// When there is no such block.
    pub fn intervene(
        &mut self,
        site: Site,
        adapter: &str,
        intervention: Box<dyn Intervention>,
    ) -> Result<()> {
        let count = self.sites();
        if matches!(site, Site::Block(number) if number >= count) {
            return Err(Error::Invalid(format!(
                "no intervention fits {site:?}: the model's blocks are 0 to {}",
                count.saturating_sub(1)
            )));
        }
        self.interventions.attach(site, adapter, intervention);
        Ok(())
    }

    /// How many blocks a hidden state passes, each of which is a [`Site`]; one that is run twice counts twice.
    pub fn sites(&self) -> usize {
        self.order.len()
    }

    /// What adapters change of the residual stream.
    pub fn interventions(&self) -> &Interventions {
        &self.interventions
    }

    /// The same for change.
    pub(crate) fn interventions_mut(&mut self) -> &mut Interventions {
        &mut self.interventions
    }

    /// The recurrent mixers, each with the number of its block.
    pub fn recurrent_layers(&self) -> impl Iterator<Item = (usize, &Recurrent)> {
        self.blocks
            .iter()
            .enumerate()
            .filter_map(|(number, block)| Some((number, block.recurrent()?)))
    }

    /// The same for change.
    pub fn recurrent_layers_mut(&mut self) -> impl Iterator<Item = (usize, &mut Recurrent)> {
        self.blocks
            .iter_mut()
            .enumerate()
            .filter_map(|(number, block)| Some((number, block.recurrent_mut()?)))
    }

    /// Whether a recurrent mixer starts from a trained state.
    pub fn has_first_states(&self) -> bool {
        self.recurrent_layers()
            .any(|(_, layer)| layer.first_states().is_active())
    }

    /// Whether no block sees values of another one besides its output, so that each can be run again in the backward by itself.
    pub fn has_independent_blocks(&self) -> bool {
        let sees_first =
            |mixer: &MixerSpec| matches!(mixer, MixerSpec::Recurrent(RecurrentSpec::Rwkv7(_)));
        !self
            .stack()
            .blocks
            .iter()
            .any(|block| sees_first(&block.mixer))
    }

    fn stack(&self) -> StackSpec<'_> {
        side(&self.spec, self.is_encoder).0
    }

    fn embed(&self, table: &Embedding, input: &Input, positions: &[u32]) -> Result<Tensor<3>> {
        let [batch, time] = [input.batch, input.time()];
        let mut hidden: Tensor<3> = table.rows(&input.ids).reshape([batch, time, table.width()]);
        if let Some(trained) = self.trained_lookups(input) {
            hidden = hidden.clone() * trained.clone() + hidden.detach() * (trained.neg() + 1.0);
        }
        if let Some(noise) = input.noise {
            let width = hidden.dims()[2];
            hidden = hidden + noise.draw(input, width, &self.device);
        }
        if self.spec.embedding_scale != 1.0 {
            hidden = hidden * self.spec.embedding_scale;
        }
        hidden = project(&self.projection_before, hidden);
        if let Some(kinds) = &self.token_types {
            let zeros = || vec![0; input.ids.len()];
            let types = input.token_types.clone().unwrap_or_else(zeros);
            let count = kinds.shape()[0];
            if let Some(kind) = types.iter().find(|kind| **kind as usize >= count) {
                return Err(Error::Invalid(format!(
                    "token type {kind} is outside the model's {count} types"
                )));
            }
            let width = kinds.shape()[1];
            hidden = hidden + embedding(kinds.weight(), &types).reshape([batch, time, width]);
        }
        if let Some(table) = &self.positions {
            hidden = hidden + table.forward(positions, &input.ids, [batch, time], &self.device)?;
        }
        let hidden = match &self.embedding_norm {
            Some(norm) => norm.forward(hidden),
            None => hidden,
        };
        Ok(project(&self.projection_behind, hidden))
    }

    /// 0 where a lookup trains nothing and 1 elsewhere, `[batch, time, 1]`; nothing where all are 1.
    fn trained_lookups(&self, input: &Input) -> Option<Tensor<3>> {
        let pad = self.spec.pad.filter(|_| {
            self.spec
                .encoder
                .as_ref()
                .is_some_and(|encoder| encoder.fixed_padding)
        })?;
        let trained: Vec<f32> = input
            .ids
            .iter()
            .map(|id| if *id == pad { 0.0 } else { 1.0 })
            .collect();
        let shape = [input.batch, input.time(), 1];
        trained
            .contains(&0.0)
            .then(|| Tensor::from_data(TensorData::new(trained, shape), &self.device))
    }

    /// The new tokens, and each block's context. Advances the state's count.
    fn contexts(
        &self,
        input: &Input,
        state: Option<&mut SequenceState>,
        memory: Option<Memory>,
        mode: Mode,
    ) -> (Arc<Tokens>, Vec<Context>) {
        let (batch, time) = (input.batch, input.time());
        let past = state.as_ref().map_or(0, |state| state.length);
        let count_on = || {
            (0..batch)
                .flat_map(|_| (past..past + time).map(|p| p as u32))
                .collect()
        };
        let positions: Vec<u32> = input.positions.clone().unwrap_or_else(count_on);
        let segments = match state {
            Some(state) => state.extend(input),
            None => input.segments.clone(),
        };
        let stack = self.stack();
        let tokens = Arc::new(Tokens {
            batch,
            time,
            past,
            lengths: text_lengths(&positions, segments.as_deref(), batch),
            positions,
            segments,
            bidirectional: stack.bidirectional,
            training: mode.training,
            precision: mode.precision,
            device: self.device.clone(),
        });
        let relative: Vec<Tensor<2>> = self
            .relative
            .iter()
            .map(|relative| relative.forward(time, past + time))
            .collect();
        // The bias of a block: its own, or that of all.
        let bias = |number: usize| relative.get(number).or(relative.first()).cloned();
        let own_biases = relative.len() > 1;
        let mut made: Vec<(&MixerSpec, Context)> = Vec::new();
        let mut contexts = Vec::with_capacity(self.order.len());
        let runs = self
            .order
            .iter()
            .filter_map(|number| Some((*number, stack.blocks.get(*number)?)));
        for (i, (number, block)) in runs.enumerate() {
            let dropout = input
                .dropout
                .map(|dropout| dropout.of(2 * i as u64 + u64::from(self.is_encoder)));
            if let Some((_, known)) = made.iter().find(|(mixer, _)| **mixer == block.mixer) {
                let own = bias(number).filter(|_| own_biases);
                contexts.push(Context {
                    dropout,
                    bias: own.or_else(|| known.bias.clone()),
                    ..known.clone()
                });
                continue;
            }
            let own = tokens.context(&block.mixer);
            let bias = own.bias.clone().or_else(|| bias(number));
            let context = Context {
                bias,
                memory: memory.clone(),
                dropout,
                ..own
            };
            made.push((&block.mixer, context.clone()));
            contexts.push(context);
        }
        (tokens, contexts)
    }
}

/// The linear layer, where there is one.
fn project(projection: &Option<Linear>, hidden: Tensor<3>) -> Tensor<3> {
    match projection {
        Some(projection) => projection.forward(hidden),
        None => hidden,
    }
}

/// The decoder, or the encoder with its prefix.
fn side(spec: &ModelSpec, is_encoder: bool) -> (StackSpec<'_>, &'static str) {
    match &spec.encoder {
        Some(encoder) if is_encoder => (encoder.stack(), "encoder."),
        _ => (spec.stack(), ""),
    }
}
