//! The one decoder: embedding, blocks, norm, head.

use std::{collections::HashSet, sync::Arc};

use burn::tensor::{Device, Tensor};
use espalier_kernels::{
    cross_entropy::{HeadOptions, linear_cross_entropy, linear_log_probabilities, log_probabilities},
    embedding::embedding,
    linear::Precision,
};

pub use crate::context::Context;
use crate::{
    Error, Result,
    auxiliary::{Auxiliary, SideOutput, Sides, auxiliary},
    context::Tokens,
    layers::{Builder, block::Block, linear::Linear, norm::Norm},
    parameter::{Parameter, Parameters, parameters},
    source::{Initial, ParameterSource},
    spec::{MixerSpec, ModelSpec},
    state::SequenceState,
    taps::{Flow, Observer, Site, Unobserved},
};

/// A batch of token ids as the model reads it. All rows have the same length; padding is a matter of segments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    /// Token ids, `[batch * time]`, row by row.
    pub ids: Vec<u32>,
    /// Rows.
    pub batch: usize,
    /// Position of each token, `[batch * time]`; counts on from the state when absent.
    pub positions: Option<Vec<u32>>,
    /// Segment of each token, `[batch * time]`, in runs: tokens see their own segment only. One segment when absent.
    pub segments: Option<Vec<u32>>,
}

impl Input {
    /// Rows of the same length.
    ///
    /// # Errors
    /// When there are no rows, a row is empty or lengths differ.
    pub fn rows(rows: &[Vec<u32>]) -> Result<Self> {
        let time = rows.first().map_or(0, Vec::len);
        if time == 0 || rows.iter().any(|row| row.len() != time) {
            return Err(Error::Invalid("a batch needs rows of one length, at least one token long".into()));
        }
        Ok(Self { ids: rows.concat(), batch: rows.len(), positions: None, segments: None })
    }

    /// Tokens of each row.
    pub fn time(&self) -> usize {
        self.ids.len() / self.batch.max(1)
    }
}

/// A language model of any family.
///
/// ```
/// use burn::tensor::Device;
/// use espalier_models::{model::{Input, LanguageModel}, source::Seed, spec::ModelSpec};
/// let spec = ModelSpec::llama(64, 16, 2, 2, 1, 32, 32);
/// let model = LanguageModel::build(spec, &mut Seed(0), &Device::flex())?;
/// let logits = model.logits(&Input::rows(&[vec![1, 2, 3]])?)?;
/// assert_eq!(logits.dims(), [1, 3, 64]);
/// # Ok::<(), espalier_models::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct LanguageModel {
    spec: Arc<ModelSpec>,
    device: Device,
    embedding: Parameter,
    positions: Option<Parameter>,
    embedding_norm: Option<Norm>,
    blocks: Vec<Block>,
    final_norm: Norm,
    head: Option<Linear>,
    precision: Precision,
    gradient_checkpointing: bool,
    training: bool,
}

/// What a forward pass gives.
#[derive(Debug, Clone)]
pub struct Forward {
    /// Hidden states after the final norm, `[batch, time, width]`.
    pub hidden: Tensor<3>,
    /// What the blocks' routers said on the way.
    pub sides: Sides,
}

parameters!(LanguageModel: embedding, positions, embedding_norm, blocks, final_norm, head);

impl LanguageModel {
    /// Builds the model that `spec` describes with the weights of `source`.
    ///
    /// # Errors
    /// When the source lacks a weight or has it in another shape.
    pub fn build(spec: ModelSpec, source: &mut dyn ParameterSource, device: &Device) -> Result<Self> {
        let deviation = spec.initializer_range;
        let residual_deviation = deviation / (2.0 * spec.blocks.len().max(1) as f64).sqrt();
        let device = device.clone().inner();
        let mut builder = Builder { source, device: device.clone(), deviation, residual_deviation };
        let (width, normal) = (spec.width, Initial::Normal(deviation));
        let embedding = builder.parameter("embedding.weight".into(), vec![spec.vocabulary, width], normal)?;
        let positions = spec
            .learned_positions
            .map(|count| builder.parameter("positions.weight".into(), vec![count, width], normal))
            .transpose()?;
        let embedding_norm =
            spec.embedding_norm.map(|norm| Norm::build(&mut builder, "embedding_norm", width, norm)).transpose()?;
        let build_block = |(i, block)| Block::build(&mut builder, &format!("blocks.{i}"), width, block);
        let blocks = spec.blocks.iter().enumerate().map(build_block).collect::<Result<_>>()?;
        let final_norm = Norm::build(&mut builder, "final_norm", width, spec.final_norm)?;
        let head = match spec.tied_head {
            true => None,
            false => Some(Linear::build(&mut builder, "head", [spec.vocabulary, width], spec.head_bias, deviation)?),
        };
        Ok(Self {
            spec: Arc::new(spec),
            device,
            embedding,
            positions,
            embedding_norm,
            blocks,
            final_norm,
            head,
            precision: Precision::F32,
            gradient_checkpointing: false,
            training: false,
        })
    }

    /// The specification.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Where the weights are.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Hidden states after the final norm, `[batch, time, width]`.
    ///
    /// # Errors
    /// When a token id or a position is outside the model's tables.
    pub fn hidden(&self, input: &Input, state: Option<&mut SequenceState>) -> Result<Tensor<3>> {
        self.hidden_observed(input, state, &mut Unobserved)
    }

    /// As [`LanguageModel::hidden`], with an observer on the way.
    ///
    /// # Errors
    /// When a token id or a position is outside the model's tables.
    pub fn hidden_observed(
        &self,
        input: &Input,
        state: Option<&mut SequenceState>,
        observer: &mut dyn Observer,
    ) -> Result<Tensor<3>> {
        Ok(self.forward(input, state, observer)?.hidden)
    }

    /// As [`LanguageModel::hidden_observed`], with what the blocks' routers said.
    ///
    /// # Errors
    /// When a token id or a position is outside the model's tables.
    pub fn forward(
        &self,
        input: &Input,
        mut state: Option<&mut SequenceState>,
        observer: &mut dyn Observer,
    ) -> Result<Forward> {
        self.check(input)?;
        let (positions, contexts) = self.contexts(input, state.as_deref_mut());
        let mut sides = Sides::new();
        let mut flow = observer.observe(Site::Embedding, self.embed(input, &positions)?);
        for (i, (block, context)) in self.blocks.iter().zip(&contexts).enumerate() {
            let hidden = match flow {
                Flow::Continue(hidden) => hidden,
                Flow::Stop(_) => break,
            };
            let mixer = state.as_deref_mut().and_then(|state| state.mixers.get_mut(i));
            let hidden = block.forward(hidden, context, mixer, self.gradient_checkpointing, &mut sides);
            flow = observer.observe(Site::Block(i), hidden);
        }
        let (Flow::Continue(hidden) | Flow::Stop(hidden)) = flow;
        Ok(Forward { hidden: self.final_norm.forward(hidden), sides })
    }

    /// The losses and measures that follow from what the blocks' routers said.
    pub fn auxiliary(&self, sides: &[SideOutput]) -> Auxiliary {
        auxiliary(sides, self.spec.router_losses)
    }

    /// The head: `[.., width]` to logits `[.., vocabulary]`.
    pub fn head<const D: usize>(&self, hidden: Tensor<D>) -> Tensor<D> {
        let hidden = self.scaled(hidden);
        let logits = match &self.head {
            Some(head) => head.forward(hidden),
            None => Linear::from_weight("head", self.embedding.clone(), self.precision).forward(hidden),
        };
        match self.spec.logit_softcap {
            Some(softcap) => (logits / softcap).tanh() * softcap,
            None => logits,
        }
    }

    /// The negative sum of the log-probabilities of `targets` `[tokens]`, from `hidden` `[tokens, width]`: `[1]`.
    ///
    /// # Errors
    /// When a target is outside the vocabulary.
    pub fn cross_entropy(&self, hidden: Tensor<2>, targets: &[u32]) -> Result<Tensor<1>> {
        self.check_ids(targets)?;
        Ok(match self.plain_head() {
            Some(weight) => linear_cross_entropy(self.scaled(hidden), weight, targets, self.head_options()),
            None => -log_probabilities(self.head(hidden), targets).sum(),
        })
    }

    /// Log-probability of `targets` `[tokens]` as the head sees them from `hidden` `[tokens, width]`: `[tokens]`.
    ///
    /// # Errors
    /// When a target is outside the vocabulary.
    pub fn log_probabilities(&self, hidden: Tensor<2>, targets: &[u32]) -> Result<Tensor<1>> {
        self.check_ids(targets)?;
        Ok(match self.plain_head() {
            Some(weight) => linear_log_probabilities(self.scaled(hidden), weight, targets, self.head_options()),
            None => log_probabilities(self.head(hidden), targets),
        })
    }

    /// Hidden states for the head, whose product is linear: the factor on the logits may as well stand here.
    fn scaled<const D: usize>(&self, hidden: Tensor<D>) -> Tensor<D> {
        if self.spec.logit_scale == 1.0 { hidden } else { hidden * self.spec.logit_scale }
    }

    fn head_options(&self) -> HeadOptions {
        HeadOptions { softcap: self.spec.logit_softcap, precision: self.precision }
    }

    /// The head's weight, where it is all there is to the head.
    fn plain_head(&self) -> Option<Tensor<2>> {
        match &self.head {
            Some(head) if head.bias.is_some() || head.adapter.is_some() => None,
            Some(head) => Some(head.weight.value()),
            None => Some(self.embedding.value()),
        }
    }

    /// Logits of every position, `[batch, time, vocabulary]`.
    ///
    /// # Errors
    /// When a token id or a position is outside the model's tables.
    pub fn logits(&self, input: &Input) -> Result<Tensor<3>> {
        Ok(self.head(self.hidden(input, None)?))
    }

    /// All parameters, in a fixed order.
    pub fn parameters(&self) -> Vec<&Parameter> {
        let mut all = Vec::new();
        self.visit(&mut |parameter| all.push(parameter));
        all
    }

    /// A copy outside autodiff. It shares memory with this model until one of them changes.
    pub fn frozen(&self) -> Self {
        let mut copy = self.clone();
        copy.visit_mut(&mut |parameter| parameter.set_trainable(false));
        copy.gradient_checkpointing = false;
        copy.training = false;
        copy
    }

    /// Marks the parameters that `choose` accepts as trained, all others as not.
    pub fn set_trainable(&mut self, choose: impl Fn(&Parameter) -> bool) {
        self.visit_mut(&mut |parameter| parameter.set_trainable(choose(parameter)));
    }

    /// The arithmetic of the model's matrix products, f32 unless it was set.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Sets the arithmetic of all matrix products, forward and backward. Weights, sums and everything else stay f32.
    pub fn set_precision(&mut self, precision: Precision) {
        self.precision = precision;
        self.visit_linears_mut(&mut |linear| linear.precision = precision);
    }

    /// Whether each block's inner values are computed again in the backward instead of being kept: the memory of training
    /// falls to one hidden state a block, for a third more work.
    pub fn set_gradient_checkpointing(&mut self, on: bool) {
        self.gradient_checkpointing = on;
    }

    /// Whether layers work as in training, where they differ: capacities of experts, the choice of depths.
    pub fn set_training(&mut self, on: bool) {
        self.training = on;
    }

    /// Gives the model a head of its own where it was tied to the embedding, and returns the head.
    pub fn untied_head(&mut self) -> &mut Linear {
        Arc::make_mut(&mut self.spec).tied_head = false;
        let (embedding, precision) = (&self.embedding, self.precision);
        self.head.get_or_insert_with(|| {
            let weight = Parameter::new("head.weight", embedding.shape().to_vec(), embedding.flat());
            Linear::from_weight("head", weight, precision)
        })
    }

    /// Adds all adapters into the weights.
    pub fn merge_adapters(&mut self) {
        self.visit_linears_mut(&mut |linear| linear.merge());
    }

    fn check(&self, input: &Input) -> Result<()> {
        let sized = |list: &Option<Vec<u32>>| list.as_ref().is_none_or(|l| l.len() == input.ids.len());
        if input.ids.is_empty() || !input.ids.len().is_multiple_of(input.batch.max(1)) {
            return Err(Error::Invalid("a batch needs rows of one length, at least one token long".into()));
        }
        if !sized(&input.positions) || !sized(&input.segments) {
            return Err(Error::Invalid("positions and segments need one entry a token".into()));
        }
        if input.segments.as_ref().is_some_and(|s| s.chunks(input.time()).any(|row| !comes_in_runs(row))) {
            let reason = "the tokens of a segment must stand together: padding belongs to the ends of a row";
            return Err(Error::Invalid(reason.into()));
        }
        self.check_ids(&input.ids)
    }

    fn check_ids(&self, ids: &[u32]) -> Result<()> {
        match ids.iter().find(|id| **id as usize >= self.spec.vocabulary) {
            Some(id) => Err(Error::Token { id: *id, vocabulary: self.spec.vocabulary }),
            None => Ok(()),
        }
    }

    fn embed(&self, input: &Input, positions: &[u32]) -> Result<Tensor<3>> {
        let [batch, time] = [input.batch, input.time()];
        let mut hidden = self.rows_of(&self.embedding, &input.ids, [batch, time]);
        if self.spec.embedding_scale != 1.0 {
            hidden = hidden * self.spec.embedding_scale;
        }
        if let Some(norm) = &self.embedding_norm {
            hidden = norm.forward(hidden);
        }
        let Some(table) = &self.positions else { return Ok(hidden) };
        let limit = table.shape()[0];
        match positions.iter().find(|p| **p as usize >= limit) {
            Some(p) => Err(Error::Invalid(format!(
                "position {p} is outside the model's {limit} learned positions; shorten the input"
            ))),
            None => Ok(hidden + self.rows_of(table, positions, [batch, time])),
        }
    }

    fn rows_of(&self, table: &Parameter, rows: &[u32], [batch, time]: [usize; 2]) -> Tensor<3> {
        embedding(table.value(), rows).reshape([batch, time, self.spec.width])
    }

    /// The positions of the new tokens, and each block's context. Advances the state's count.
    fn contexts(&self, input: &Input, state: Option<&mut SequenceState>) -> (Vec<u32>, Vec<Context>) {
        let (batch, time) = (input.batch, input.time());
        let past = state.as_ref().map_or(0, |state| state.length);
        let count_on = || (0..batch).flat_map(|_| (past..past + time).map(|p| p as u32)).collect();
        let positions: Vec<u32> = input.positions.clone().unwrap_or_else(count_on);
        let segments = match state {
            Some(state) => state.extend(input),
            None => input.segments.clone(),
        };
        let tokens = Arc::new(Tokens {
            batch,
            time,
            past,
            longest: positions.iter().max().map_or(0, |last| *last as usize + 1),
            positions: positions.clone(),
            segments,
            bidirectional: self.spec.bidirectional,
            training: self.training,
            precision: self.precision,
            device: self.device.clone(),
        });
        let mut made: Vec<(&MixerSpec, Context)> = Vec::new();
        let mut contexts = Vec::with_capacity(self.spec.blocks.len());
        for block in &self.spec.blocks {
            if let Some((_, known)) = made.iter().find(|(mixer, _)| **mixer == block.mixer) {
                contexts.push(known.clone());
                continue;
            }
            let context = tokens.context(&block.mixer);
            made.push((&block.mixer, context.clone()));
            contexts.push(context);
        }
        (positions, contexts)
    }
}

/// Whether no number comes back after another one.
fn comes_in_runs(segments: &[u32]) -> bool {
    let mut seen = HashSet::new();
    segments.chunk_by(|a, b| a == b).all(|run| seen.insert(run[0]))
}

impl SequenceState {
    /// Counts the new tokens; returns the segments of all positions, where any row has more than one.
    fn extend(&mut self, input: &Input) -> Option<Vec<u32>> {
        let (time, past) = (input.time(), self.length);
        self.length += time;
        if input.segments.is_none() && self.segments.is_empty() {
            return None;
        }
        self.segments.resize(input.batch, vec![1; past]);
        for (row, known) in self.segments.iter_mut().enumerate() {
            match &input.segments {
                Some(new) => known.extend(&new[row * time..(row + 1) * time]),
                None => known.resize(past + time, 1),
            }
        }
        Some(self.segments.concat())
    }
}
