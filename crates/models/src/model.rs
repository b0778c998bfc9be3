//! The one model: embedding, encoder where there is one, decoder, head.

use std::{collections::HashSet, sync::Arc};

use burn::tensor::{Device, Tensor};
use espalier_data::random::fnv;
use espalier_kernels::{attention::Mask, linear::Precision};

mod head;
mod through_head;

pub use self::through_head::Rated;
pub use crate::input::Input;
use crate::{
    Error, Result,
    adapter::saved_modules::SavedModules,
    auxiliary_losses::{AuxiliaryLosses, SideOutput, auxiliary_losses},
    context::real_tokens,
    families::one_bit,
    layers::{
        Builder, classifier::Classifier, embedding::Embedding, head_transform::HeadTransform,
        linear::Linear,
    },
    parameter::{Parameter, Parameters, parameters},
    recurrent::Recurrent,
    rounded_cache::CacheFormat,
    source::{Initial, ParameterSource},
    spec::ModelSpec,
    stack::{Forward, Memory, Mode, Stack},
    state::SequenceState,
    taps::{Observer, Unobserved},
};

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
    embedding: Embedding,
    encoder: Option<Stack>,
    decoder: Stack,
    pooler: Option<Linear>,
    next_sentence: Option<Linear>,
    head_transform: Option<HeadTransform>,
    classifier: Option<Classifier>,
    /// The head, where it is not the embedding.
    head: Option<Linear>,
    /// The bias of a head that is the embedding, or was when it was built, or of one that its file stores as no row.
    head_bias: Option<Parameter>,
    precision: Precision,
    cache: CacheFormat,
    gradient_checkpointing: bool,
    label_smoothing: f64,
    training: bool,
    saved_modules: SavedModules,
}

parameters!(LanguageModel: embedding, encoder, decoder, pooler, next_sentence, head_transform, classifier, head, head_bias);

impl LanguageModel {
    /// Builds the model that `spec` describes with the weights of `source`.
    ///
    /// # Errors
    /// When the source lacks a weight or has it in another shape.
    pub fn build(
        spec: ModelSpec,
        source: &mut dyn ParameterSource,
        device: &Device,
    ) -> Result<Self> {
        one_bit::check(&spec)?;
        let deviation = spec.initializer_range;
        let residual_deviation = deviation / (2.0 * spec.blocks.len().max(1) as f64).sqrt();
        let device = device.clone().inner();
        let (layer, layers) = (0, spec.blocks.len());
        let mut builder = Builder {
            source,
            device: device.clone(),
            deviation,
            residual_deviation,
            layer,
            layers,
            bits: None,
        };
        let (width, outer, normal) = (
            spec.width,
            spec.outer_width(),
            Initial::Normal(spec.embedding_range.unwrap_or(deviation)),
        );
        let embedding = builder.weight(
            "embedding.weight".into(),
            vec![spec.vocabulary, outer],
            normal,
        )?;
        let embedding = Embedding::new(embedding);
        let spec = Arc::new(spec);
        let encoder = spec
            .encoder
            .as_ref()
            .map(|_| Stack::build(&mut builder, &spec, true))
            .transpose()?;
        let decoder = Stack::build(&mut builder, &spec, false)?;
        let dense = |builder: &mut Builder, name: &str, rows: usize, wanted: bool| {
            wanted
                .then(|| Linear::build(builder, name, [rows, width], true, deviation))
                .transpose()
        };
        let pooler = dense(&mut builder, "pooler", width, spec.pooler)?;
        let next_sentence = dense(&mut builder, "next_sentence", 2, spec.next_sentence)?;
        let head_transform = spec
            .head_transform
            .map(|kind| HeadTransform::build(&mut builder, [outer, width], kind))
            .transpose()?;
        let classifier = spec
            .classifier
            .map(|kind| Classifier::build(&mut builder, spec.hidden_width(), kind))
            .transpose()?;
        let own_head = !spec.tied_head && !spec.headless;
        let bias_in_head = own_head && spec.head_bias && spec.head_bias_shape().len() == 1;
        let head = match own_head {
            true => Some(Linear::build(
                &mut builder,
                "head",
                [spec.vocabulary, outer],
                bias_in_head,
                deviation,
            )?),
            false => None,
        };
        let head_bias = match spec.head_bias && !bias_in_head && !spec.headless {
            true => Some(builder.parameter(
                "head.bias".into(),
                spec.head_bias_shape(),
                Initial::Zeros,
            )?),
            false => None,
        };
        let head_bias = head_bias.map(|bias| {
            if spec.head_bias_fixed {
                bias.fixed()
            } else {
                bias
            }
        });
        Ok(Self {
            spec,
            device,
            embedding,
            encoder,
            decoder,
            pooler,
            next_sentence,
            head_transform,
            classifier,
            head,
            head_bias,
            precision: Precision::F32,
            cache: CacheFormat::F32,
            gradient_checkpointing: false,
            label_smoothing: 0.0,
            training: false,
            saved_modules: SavedModules::default(),
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
        let memory = self.memory(input, state.as_deref_mut())?;
        self.decoder
            .forward(&self.embedding, input, state, memory, self.mode(), observer)
    }

    /// The losses and measures that follow from what the blocks' routers said.
    pub fn auxiliary_losses(&self, sides: &[SideOutput]) -> AuxiliaryLosses {
        auxiliary_losses(sides, self.spec.router_losses)
    }

    /// The encoder's output for a source, `[batch, time, width]`; of a model without encoder its hidden states.
    ///
    /// # Errors
    /// When a token id or a position is outside the model's tables.
    pub fn encode(&self, source: &Input) -> Result<Tensor<3>> {
        let Some(encoder) = &self.encoder else {
            return self.hidden(source, None);
        };
        self.check(source)?;
        Ok(encoder
            .forward(
                &self.embedding,
                source,
                None,
                None,
                self.mode(),
                &mut Unobserved,
            )?
            .hidden)
    }

    /// BERT's pooled state of every row, `[batch, width]`, where the model has a pooler: `tanh` of a dense layer over the
    /// first token.
    pub fn pooled(&self, hidden: Tensor<3>) -> Option<Tensor<2>> {
        let [batch, _, width] = hidden.dims();
        let first = hidden.narrow(1, 0, 1).reshape([batch, width]);
        self.pooler
            .as_ref()
            .map(|pooler| pooler.forward(first).tanh())
    }

    fn mode(&self) -> Mode {
        Mode {
            precision: self.precision,
            gradient_checkpointing: self.gradient_checkpointing,
            training: self.training,
        }
    }

    /// What the decoder sees of the source: encoded now, or remembered by the state.
    fn memory(&self, input: &Input, state: Option<&mut SequenceState>) -> Result<Option<Memory>> {
        let cross = |time, seen: &[(u32, u32)]| Mask::cross(input.time(), time, seen);
        match (&self.encoder, &input.source) {
            (None, None) => Ok(None),
            (None, Some(_)) => Err(Error::Invalid(
                "this model has no encoder; it reads no source".into(),
            )),
            (Some(_), Some(source)) if source.batch != input.batch => Err(Error::Invalid(format!(
                "{} sources for {} rows",
                source.batch, input.batch
            ))),
            (Some(_), Some(source)) => {
                let hidden = self.encode(source)?;
                let whole = || vec![(0, source.time() as u32)];
                let seen =
                    real_tokens(source.segments.as_deref(), source.batch).unwrap_or_else(whole);
                let mask = cross(source.time(), &seen);
                if let Some(state) = state {
                    state.source = Some((source.time(), seen));
                }
                Ok(Some(Memory {
                    hidden: Some(hidden),
                    mask,
                }))
            }
            (Some(_), None) => match state.and_then(|state| state.source.as_ref()) {
                Some((time, seen)) => Ok(Some(Memory {
                    hidden: None,
                    mask: cross(*time, seen),
                })),
                None => Err(Error::Invalid(
                    "an encoder-decoder needs a source to read".into(),
                )),
            },
        }
    }

    /// The scores of classes that the model gives the texts or tokens of `input`, whose hidden states are `hidden`
    /// `[batch, time, width]`: `[batch, labels]` or `[batch * time, labels]`.
    ///
    /// # Errors
    /// When the model does not classify.
    pub fn class_scores(&self, hidden: Tensor<3>, input: &Input) -> Result<Tensor<2>> {
        let reason = || Error::Invalid("this model has no classifier".into());
        let classifier = self.classifier.as_ref().ok_or_else(reason)?;
        Ok(classifier.forward(hidden, input, self.spec.pad))
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
        copy.set_adapter_dropout(None);
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

    /// The state before the first token, which remembers keys and values as was asked.
    pub fn fresh_state(&self) -> SequenceState {
        SequenceState::new(&self.spec).in_format(self.cache)
    }

    /// Lets fresh states remember keys and values in this format.
    ///
    /// # Errors
    /// When the model's cannot be remembered so.
    pub fn set_cache_format(&mut self, format: CacheFormat) -> Result<()> {
        format.check(&self.spec)?;
        self.cache = format;
        Ok(())
    }

    /// Sets the arithmetic of all matrix products, forward and backward. Weights, sums and everything else stay f32.
    pub fn set_precision(&mut self, precision: Precision) {
        self.precision = precision;
        self.visit_linears_mut(&mut |linear| *linear.precision = precision);
    }

    /// Whether each block's inner values are computed again in the backward instead of being kept: the memory of training
    /// falls to one hidden state a block, for a third more work.
    ///
    /// # Errors
    /// When blocks see values of the first block (RWKV-7).
    pub fn set_gradient_checkpointing(&mut self, on: bool) -> Result<()> {
        if on
            && !(self
                .encoder
                .iter()
                .chain([&self.decoder])
                .all(Stack::has_independent_blocks))
        {
            let reason = "blocks that see the first block's values cannot be run again one by one";
            return Err(Error::Invalid(format!(
                "{reason}; leave gradient checkpointing off for this model"
            )));
        }
        self.gradient_checkpointing = on;
        Ok(())
    }

    /// Sets the share of every target's weight that all tokens get alike in the cross-entropy of training.
    pub fn set_label_smoothing(&mut self, share: f64) {
        self.label_smoothing = share;
    }

    /// Sets the tokens at which generation ends.
    pub fn set_end_tokens(&mut self, ends: Vec<u32>) {
        Arc::make_mut(&mut self.spec).eos = ends;
    }

    /// Whether the model works as in training, where that differs.
    pub fn is_training(&self) -> bool {
        self.training
    }

    /// Sets whether the model works as in training, where that differs: capacities of experts, the choice of depths,
    /// the z-loss, smoothed labels.
    pub fn set_training(&mut self, on: bool) {
        self.training = on;
    }

    /// Draws anew what is dropped of the inputs of adapters, or of what they make of hidden states, in training, where they say that
    /// something is; nothing is dropped from then on when absent.
    pub fn set_adapter_dropout(&mut self, seed: Option<u64>) {
        self.visit_linears_mut(&mut |map| {
            let place = fnv(&map.name);
            for part in map.adapters.parts_mut() {
                part.set_dropout(seed.map(|seed| seed ^ place));
            }
        });
        for stack in self.stacks_mut() {
            stack.interventions_mut().set_dropout(seed);
        }
    }

    /// The largest share that an active adapter drops in training of its inputs, or of what it makes of hidden states.
    pub fn adapter_dropout(&self) -> f64 {
        let mut largest = 0.0f64;
        self.visit_linears(&mut |map| {
            for part in map.adapters.active() {
                largest = largest.max(part.dropout());
            }
        });
        let stacks = self.stacks().map(|stack| stack.interventions().dropout());
        stacks.fold(largest, f64::max)
    }

    /// Whether each block's inner values are computed again in the backward.
    pub fn has_gradient_checkpointing(&self) -> bool {
        self.gradient_checkpointing
    }

    /// Gives the model a head of its own where it was tied to the embedding, and returns the head.
    pub fn untied_head(&mut self) -> &mut Linear {
        Arc::make_mut(&mut self.spec).tied_head = false;
        let (embedding, precision) = (&self.embedding, self.precision);
        self.head.get_or_insert_with(|| {
            let mut weight = embedding.weight.clone().renamed("head.weight");
            weight.set_trainable(false);
            Linear::from_weight("head", weight, precision)
        })
    }

    /// The table of tokens, and what adapters do to it.
    pub fn embedding(&self) -> &Embedding {
        &self.embedding
    }

    /// The same for change.
    pub(crate) fn embedding_mut(&mut self) -> &mut Embedding {
        &mut self.embedding
    }

    /// The encoder, where there is one, and the decoder.
    pub fn stacks(&self) -> impl Iterator<Item = &Stack> {
        self.encoder.iter().chain([&self.decoder])
    }

    /// The same for change.
    pub fn stacks_mut(&mut self) -> impl Iterator<Item = &mut Stack> {
        self.encoder.iter_mut().chain([&mut self.decoder])
    }

    /// The decoder; of a model without encoder its only stack.
    pub fn decoder(&self) -> &Stack {
        &self.decoder
    }

    /// The same for change.
    pub fn decoder_mut(&mut self) -> &mut Stack {
        &mut self.decoder
    }

    /// The recurrent mixers of the decoder, each with the number of its block.
    pub fn recurrent_layers(&self) -> impl Iterator<Item = (usize, &Recurrent)> {
        self.decoder.recurrent_layers()
    }

    /// The same for change.
    pub fn recurrent_layers_mut(&mut self) -> impl Iterator<Item = (usize, &mut Recurrent)> {
        self.decoder.recurrent_layers_mut()
    }

    /// Whether recurrent layers start from trained states. Rows must then not be padded on the left.
    pub fn has_first_states(&self) -> bool {
        self.decoder.has_first_states()
    }

    /// Whether the residual stream is changed on its way by active adapters.
    pub fn has_interventions(&self) -> bool {
        self.stacks().any(|stack| stack.interventions().is_active())
    }

    /// The modules that adapters replace whole.
    pub(crate) fn saved_modules(&self) -> &SavedModules {
        &self.saved_modules
    }

    /// The same for change.
    pub(crate) fn saved_modules_mut(&mut self) -> &mut SavedModules {
        &mut self.saved_modules
    }

    fn check(&self, input: &Input) -> Result<()> {
        let sized =
            |list: &Option<Vec<u32>>| list.as_ref().is_none_or(|l| l.len() == input.ids.len());
        if input.ids.is_empty() || !input.ids.len().is_multiple_of(input.batch.max(1)) {
            return Err(Error::Invalid(
                "a batch needs rows of one length, at least one token long".into(),
            ));
        }
        let lists = [
            &input.positions,
            &input.segments,
            &input.token_types,
            &input.prompts,
        ];
        if !lists.into_iter().all(sized) {
            return Err(Error::Invalid(
                "positions, segments, types and prompts need one entry a token".into(),
            ));
        }
        if input
            .segments
            .as_ref()
            .is_some_and(|s| s.chunks(input.time()).any(|row| !comes_in_runs(row)))
        {
            let reason =
                "the tokens of a segment must stand together: padding belongs to the ends of a row";
            return Err(Error::Invalid(reason.into()));
        }
        let starts_with_padding =
            |segments: &Vec<u32>| segments.chunks(input.time()).any(|row| row[0] == 0);
        if self.has_first_states() && input.segments.as_ref().is_some_and(starts_with_padding) {
            let reason =
                "a model with trained first states reads no padding before a text; pad behind it";
            return Err(Error::Invalid(reason.into()));
        }
        self.check_ids(&input.ids)
    }

    pub(crate) fn check_ids(&self, ids: &[u32]) -> Result<()> {
        match ids.iter().find(|id| **id as usize >= self.spec.vocabulary) {
            Some(id) => Err(Error::Token {
                id: *id,
                vocabulary: self.spec.vocabulary,
            }),
            None => Ok(()),
        }
    }
}

/// Whether no number comes back after another one.
fn comes_in_runs(segments: &[u32]) -> bool {
    let mut seen = HashSet::new();
    segments
        .chunk_by(|a, b| a == b)
        .all(|run| seen.insert(run[0]))
}
