//! `espalier trace`: what a model computes on given tokens, for whoever ports a model and checks it.

use espalier_kernels::backward::backward;
use espalier_kernels::readback::ReadFloats;
use std::{collections::HashMap, path::PathBuf};

use burn::tensor::{Gradients, Tensor};
use clap::builder::RangedU64ValueParser;
use espalier_engine::{
    decode::{DecodeOptions, decode},
    rules::Rules,
    sampler::SamplerOptions,
};
use espalier_kernels::embedding::embedding;
use espalier_models::{
    checkpoint::{Dtype, TensorFile, TensorPlan, TensorWriter},
    folder::{self, LoadedModel},
    layout::stored_tensors,
    model::{Input, LanguageModel},
    parameter::Parameter,
    recurrent::RecurrentState,
    stack::Forward,
    state::SequenceState,
    taps::Unobserved,
};

use serde_json::{Map, Value, json};

use super::Context;
use crate::{Error, Result};

/// Write logits, loss, gradients and a greedy continuation of given token ids.
///
/// INPUT holds `input_ids` [batch, time], or `[time]` for a single row, and, where wanted, `attention_mask` (0 marks padding) and `labels` (-100 is not
/// asked for; labels are the ids when absent). An encoder-decoder reads the ids as its source and needs labels. OUTPUT gets
/// `logits`, `loss` (mean next-token cross-entropy, and the weighted losses of routers where the model adds them, which also
/// come by name: `aux_loss`), with
/// --gradients `grad.<tensor>` under the checkpoint's names and layouts, with --generate `generated` (row 0 and N greedy
/// tokens, end-of-sequence forbidden), with --states what recurrent layers remember behind row 0: `state.0`, `state.1`, ..., block by
/// block, a mixer's parts before the channel's. Of a bidirectional model it gets `last_hidden_state`, `mean_pooled`, of one with
/// a pooler `pooler_output`, and of one with a head `logits` and, of labels that stand where they are asked for, `loss`. A classifier gives
/// its scores as `logits`; its labels are classes or numbers, one for each row or token.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  espalier trace path/to/model input.safetensors output.safetensors --gradients --generate 12"
)]
pub struct TraceArgs {
    /// A model or adapter folder.
    pub model: PathBuf,
    /// Token ids.
    pub input: PathBuf,
    /// Where the results go.
    pub output: PathBuf,
    /// Write the gradient of the loss for every parameter.
    #[arg(long)]
    pub gradients: bool,
    /// Write the greedy continuation of row 0 by this many tokens.
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(0..=MOST_TOKENS))]
    pub generate: Option<usize>,
    /// Write what recurrent layers remember behind row 0.
    #[arg(long)]
    pub states: bool,
}

/// Most tokens of a continuation, which stands whole in the output.
const MOST_TOKENS: u64 = 1 << 16;

/// A tensor to be written.
type Written = (String, Vec<usize>, Dtype, Vec<f32>);

/// Runs the command.
///
/// # Errors
/// When a file is missing or damaged, or an id is outside the vocabulary.
pub fn run(args: &TraceArgs, context: &Context) -> Result<()> {
    let mut loaded = folder::load(&args.model, &context.device)?;
    context.terminal.notes(&loaded.remarks);
    let mut request = Request::read(&args.input)?;
    if loaded.model.spec().headless && args.generate.is_some() {
        let reason = "--generate: this model has no head over a vocabulary and does not generate";
        return Err(Error::Usage(reason.into()));
    }
    if loaded.model.spec().classifier.is_some() {
        if args.gradients {
            mark(&mut loaded);
        }
        return write(
            args,
            classified(&loaded, &request, args.gradients)?,
            context,
        );
    }
    if loaded.model.spec().bidirectional {
        return write(args, read_both_ways(&mut loaded, request, args)?, context);
    }
    if args.gradients {
        mark(&mut loaded);
    }
    if let Some(encoder) = &loaded.model.spec().encoder {
        let start = (!encoder.starts_with_last).then_some(encoder.decoder_start);
        request = request.into_translation(start, loaded.model.spec().pad.unwrap_or(0))?;
    }
    request.check_lengths(&args.input)?;
    let Forward { hidden, sides } = loaded
        .model
        .forward(&request.input, None, &mut Unobserved)?;
    let auxiliary = loaded.model.auxiliary_losses(&sides.outputs);
    request.check_labels(loaded.model.spec().vocabulary)?;
    let [batch, time, _] = hidden.dims();
    let logits = loaded.model.head(hidden.clone()).inner();
    let vocabulary = logits.dims()[2];
    let mut loss = request.loss(&loaded.model, hidden)?;
    if let Some(total) = auxiliary.total() {
        loss = loss + total;
    }
    let mut written: Vec<Written> = vec![
        (
            "logits".into(),
            vec![batch, time, vocabulary],
            Dtype::F32,
            values(logits.reshape([batch * time * vocabulary])),
        ),
        (
            "loss".into(),
            vec![],
            Dtype::F32,
            values(loss.clone().inner()),
        ),
    ];
    let auxiliary = auxiliary.losses.into_iter();
    written.extend(auxiliary.map(|loss| {
        (
            loss.name.to_owned(),
            vec![],
            Dtype::F32,
            values(loss.value.inner()),
        )
    }));
    if args.gradients {
        written.extend(gradients(
            &loaded,
            &backward(loss).map_err(espalier_train::Error::from)?,
        )?);
    }
    if let Some(count) = args.generate {
        written.push(generated(&loaded, &request, count)?);
    }
    if args.states {
        written.extend(states(&loaded, &request)?);
    }
    if request.is_row {
        written[0].1.remove(0);
    }
    write(args, written, context)
}

/// What a model that reads both ways gives: hidden states, and of a head over masked tokens logits and the loss of the labels.
fn read_both_ways(
    loaded: &mut LoadedModel,
    mut request: Request,
    args: &TraceArgs,
) -> Result<Vec<Written>> {
    let has_loss = request.has_labels && !loaded.model.spec().headless;
    if args.generate.is_some() || args.states || args.gradients && !has_loss {
        let reason = "a model that reads both ways does not generate, remembers nothing, and has a loss where it has a head and `labels` are given";
        return Err(Error::Usage(format!(
            "{reason}; leave --generate, --states and --gradients out"
        )));
    }
    if args.gradients {
        mark(loaded);
    }
    // Its padding stands where it stands.
    (request.input.positions, request.aligned) = (None, true);
    let model = &loaded.model;
    let hidden = model.hidden(&request.input, None)?;
    let mut written = encoded(hidden.clone().inner(), &request.mask);
    if let Some(pooled) = model.pooled(hidden.clone()) {
        written.push(tensor("pooler_output", pooled));
    }
    if model.spec().headless {
        return Ok(written);
    }
    written.push(tensor("logits", model.head(hidden.clone())));
    if has_loss {
        request.check_lengths(&args.input)?;
        request.check_labels(model.spec().vocabulary)?;
        let loss = request.loss(model, hidden)?;
        written.push((
            "loss".into(),
            vec![],
            Dtype::F32,
            values(loss.clone().inner()),
        ));
        if args.gradients {
            let found = backward(loss).map_err(espalier_train::Error::from)?;
            written.extend(gradients(loaded, &found)?);
        }
    }
    Ok(written)
}

/// The scores of classes, and the loss of the labels.
fn classified(
    loaded: &LoadedModel,
    request: &Request,
    wants_gradients: bool,
) -> Result<Vec<Written>> {
    let model = &loaded.model;
    let mut input = request.input.clone();
    if model.spec().bidirectional {
        input.positions = None;
    }
    let hidden = model.hidden(&input, None)?;
    let [batch, time, _] = hidden.dims();
    let scores = model.class_scores(hidden, &input)?;
    let [rows, labels] = scores.dims();
    let shape = match rows == batch {
        true => vec![rows, labels],
        false => vec![batch, time, labels],
    };
    let mut written = vec![(
        "logits".to_owned(),
        shape,
        Dtype::F32,
        values(scores.clone().inner().reshape([rows * labels])),
    )];
    if !request.has_labels {
        return match wants_gradients {
            true => Err(Error::work("--gradients: the loss needs `labels`")),
            false => Ok(written),
        };
    }
    let loss = model.class_loss(scores, &request.numbers)?;
    written.push((
        "loss".into(),
        vec![],
        Dtype::F32,
        values(loss.clone().inner()),
    ));
    if wants_gradients {
        let found = backward(loss).map_err(espalier_train::Error::from)?;
        written.extend(gradients(loaded, &found)?);
    }
    Ok(written)
}

/// A tensor under a name.
fn tensor<const D: usize>(name: &str, tensor: Tensor<D>) -> Written {
    let shape = tensor.dims().to_vec();
    let size = shape.iter().product::<usize>();
    let values = values(tensor.inner().reshape([size]));
    (name.into(), shape, Dtype::F32, values)
}

/// What an encoder gives: hidden states, and their mean over the real tokens of each row.
fn encoded(hidden: Tensor<3>, mask: &[bool]) -> Vec<Written> {
    let [batch, time, width] = hidden.dims();
    let hidden = values(hidden.reshape([batch * time * width]));
    let mut pooled = vec![0.0; batch * width];
    for (row, pooled) in pooled.chunks_mut(width).enumerate() {
        let real: Vec<usize> = (row * time..(row + 1) * time)
            .filter(|i| mask[*i])
            .collect();
        for i in &real {
            pooled
                .iter_mut()
                .zip(&hidden[i * width..(i + 1) * width])
                .for_each(|(sum, value)| *sum += value);
        }
        pooled
            .iter_mut()
            .for_each(|sum| *sum /= real.len().max(1) as f32);
    }
    vec![
        (
            "last_hidden_state".into(),
            vec![batch, time, width],
            Dtype::F32,
            hidden,
        ),
        ("mean_pooled".into(), vec![batch, width], Dtype::F32, pooled),
    ]
}

/// Everything is trained, or of an adapted model what its adapter trains.
fn mark(loaded: &mut LoadedModel) {
    match &loaded.adapter {
        Some(adapter) => adapter.mark_trainable(&mut loaded.model),
        None => loaded.model.set_trainable(|_| true),
    }
}

fn gradients(loaded: &LoadedModel, gradients: &Gradients) -> Result<Vec<Written>> {
    let family = loaded.family()?;
    let tensors = match &loaded.adapter {
        Some(adapter) => adapter.tensors(&loaded.model, family),
        None => stored_tensors(&loaded.model, family),
    };
    // A parameter that the loss does not reach has gradient zero.
    let gradient = |p: &Parameter| {
        p.leaf()
            .and_then(|leaf| leaf.grad(gradients))
            .unwrap_or_else(|| p.flat().zeros_like())
    };
    let trained = |t: &espalier_models::layout::StoredTensor| !t.is_fixed();
    let one = |t: espalier_models::layout::StoredTensor| {
        let gradient = t.assemble(&gradient);
        (format!("grad.{}", t.name), t.shape, Dtype::F32, gradient)
    };
    Ok(tensors.into_iter().filter(trained).map(one).collect())
}

fn generated(loaded: &LoadedModel, request: &Request, count: usize) -> Result<Written> {
    let prompt = request.first_row();
    let options = DecodeOptions {
        max_new_tokens: count,
        sampler: SamplerOptions {
            temperature: 0.0,
            rules: Rules::without(&loaded.model.spec().eos),
            ..SamplerOptions::default()
        },
        end: Vec::new(),
    };
    let model = loaded.model.frozen();
    let new = decode(
        &model,
        std::slice::from_ref(&prompt),
        &options,
        &mut |_, _| true,
    )?;
    let start = match &model.spec().encoder {
        Some(encoder) => vec![encoder.decoder_start],
        None => prompt,
    };
    let ids: Vec<f32> = start
        .iter()
        .chain(&new[0].ids)
        .map(|id| *id as f32)
        .collect();
    Ok(("generated".into(), vec![1, ids.len()], Dtype::I64, ids))
}

/// The parts of every recurrent block's state behind the first row.
fn states(loaded: &LoadedModel, request: &Request) -> Result<Vec<Written>> {
    let spec = loaded.model.spec();
    let mut state = SequenceState::new(spec);
    if spec.encoder.is_some()
        || (0..spec.blocks.len()).all(|block| state.recurrent(block).is_none())
    {
        return Err(Error::Usage(
            "--states: the model has no recurrent layers".into(),
        ));
    }
    loaded
        .model
        .frozen()
        .hidden(&Input::rows(&[request.first_row()])?, Some(&mut state))?;
    let parts = (0..spec.blocks.len())
        .filter_map(|block| state.recurrent(block))
        .flatten()
        .flat_map(RecurrentState::parts);
    let written = parts.enumerate().map(|(number, (_, part))| {
        let size = part.dims().iter().product();
        (
            format!("state.{number}"),
            vec![size],
            Dtype::F32,
            values(part.clone().reshape([size])),
        )
    });
    Ok(written.collect())
}

fn values(tensor: Tensor<1>) -> Vec<f32> {
    tensor.floats()
}

/// Writes the tensors; what was written is said as JSON where that is asked for.
fn write(args: &TraceArgs, written: Vec<Written>, context: &Context) -> Result<()> {
    let plan = |(name, shape, dtype, _): &Written| TensorPlan {
        name: name.clone(),
        dtype: *dtype,
        shape: shape.clone(),
    };
    let plans = written.iter().map(plan).collect();
    let shapes: Map<String, Value> = written
        .iter()
        .map(|(name, shape, ..)| (name.clone(), json!(shape)))
        .collect();
    let mut by_name: HashMap<String, Vec<f32>> = written
        .into_iter()
        .map(|(name, .., values)| (name, values))
        .collect();
    TensorWriter::new(plans)?.write_file(&args.output, |name| {
        Ok(by_name.remove(name).unwrap_or_default())
    })?;
    match context.json {
        true => context
            .terminal
            .json(&json!({ "output": args.output.to_string_lossy(), "tensors": shapes })),
        false => Ok(()),
    }
}

/// The tokens that the user asks about.
struct Request {
    input: Input,
    /// 1 for tokens, 0 for padding, `[batch * time]`.
    mask: Vec<bool>,
    labels: Vec<i64>,
    /// The labels as they are, for classes and numbers.
    numbers: Vec<f32>,
    /// Whether labels were given.
    has_labels: bool,
    /// Whether the labels stand where they are predicted, rather than one token later.
    aligned: bool,
    /// Whether the ids were given as a row, not as a batch.
    is_row: bool,
}

impl Request {
    fn read(path: &std::path::Path) -> Result<Self> {
        let file = TensorFile::open(path)?;
        let wrong = |reason: &str| Error::work(format!("{}: {reason}", path.display()));
        let shape = file.info("input_ids").map(|info| info.shape.clone());
        let (batch, time) = match shape.as_deref() {
            Some([batch, time]) => (*batch, *time),
            Some([time]) => (1, *time),
            _ => return Err(wrong("needs `input_ids` of shape [batch, time] or [time]")),
        };
        let is_row = shape.is_some_and(|shape| shape.len() == 1);
        let ids = file.read_i64("input_ids")?;
        let id = |id: &i64| {
            u32::try_from(*id).map_err(|_| wrong(&format!("token id {id} is out of range")))
        };
        let optional = |name: &str| file.info(name).map(|_| file.read_i64(name)).transpose();
        let mask: Option<Vec<bool>> =
            optional("attention_mask")?.map(|m| m.iter().map(|v| *v != 0).collect());
        if mask.as_ref().is_some_and(|mask| mask.len() != batch * time) {
            return Err(wrong("`attention_mask` needs the shape of `input_ids`"));
        }
        let (given, numbers) = labels(&file)?;
        let has_labels = file.info("labels").is_some();
        let labels = if has_labels { given } else { ids.clone() };
        let mut input = Input {
            ids: ids.iter().map(id).collect::<Result<_>>()?,
            batch,
            ..Input::default()
        };
        if let Some(mask) = &mask {
            input.positions = Some(mask.chunks(time.max(1)).flat_map(positions).collect());
            input.segments = Some(mask.iter().map(|real| u32::from(*real)).collect());
        }
        Ok(Self {
            input,
            mask: mask.unwrap_or_else(|| vec![true; batch * time]),
            labels,
            numbers,
            has_labels,
            aligned: false,
            is_row,
        })
    }

    /// The ids as a source, and the labels, shifted right, as what the decoder reads.
    /// The decoder starts with `start`, or with the last of a row's labels. What is not asked for (-100) is read as padding, as in
    /// the reference.
    fn into_translation(mut self, start: Option<u32>, pad: u32) -> Result<Self> {
        let batch = self.input.batch;
        if self.labels.is_empty() || !self.labels.len().is_multiple_of(batch) {
            return Err(Error::work(
                "an encoder-decoder needs `labels` of shape [batch, target time]",
            ));
        }
        let time = self.labels.len() / batch;
        let shifted = |row: &[i64]| -> Vec<u32> {
            let read = |label: &i64| u32::try_from(*label).unwrap_or(pad);
            let last = || row.iter().map(read).rfind(|id| *id != pad);
            std::iter::once(start.or_else(last).unwrap_or(pad))
                .chain(row[..time - 1].iter().map(read))
                .collect()
        };
        let ids = self.labels.chunks(time).flat_map(shifted).collect();
        let source = Input {
            positions: None,
            ..std::mem::take(&mut self.input)
        };
        self.input = Input {
            ids,
            batch,
            source: Some(Box::new(source)),
            ..Input::default()
        };
        Ok(Self {
            aligned: true,
            ..self
        })
    }

    fn check_lengths(&self, path: &std::path::Path) -> Result<()> {
        match self.labels.len() == self.input.ids.len() {
            true => Ok(()),
            false => Err(Error::work(format!(
                "{}: `labels` needs the shape of `input_ids`",
                path.display()
            ))),
        }
    }

    /// The mean cross-entropy of what is asked for, from hidden states `[batch, time, width]`.
    fn loss(&self, model: &LanguageModel, hidden: Tensor<3>) -> Result<Tensor<1>> {
        let [batch, time, width] = hidden.dims();
        let (predictors, targets) = self.predictions();
        let chosen = embedding(hidden.reshape([batch * time, width]), &predictors);
        let count = targets.len().max(1) as f64;
        Ok(model.cross_entropy(chosen, &targets)? / count)
    }

    fn check_labels(&self, vocabulary: usize) -> Result<()> {
        match self
            .labels
            .iter()
            .find(|label| **label >= vocabulary as i64)
        {
            Some(label) => Err(Error::work(format!(
                "label {label} is outside the vocabulary of {vocabulary}"
            ))),
            None => Ok(()),
        }
    }

    /// Flat indices of predicting positions, and the tokens they predict. As in the reference, only `labels` decide.
    fn predictions(&self) -> (Vec<u32>, Vec<u32>) {
        let time = self.input.time();
        let asked = |i: &usize| (self.aligned || !i.is_multiple_of(time)) && self.labels[*i] >= 0;
        let before = u32::from(!self.aligned);
        (0..self.labels.len())
            .filter(asked)
            .map(|i| (i as u32 - before, self.labels[i] as u32))
            .unzip()
    }

    /// Row 0 of what the model is given, without its padding.
    fn first_row(&self) -> Vec<u32> {
        let given = self.input.source.as_deref().unwrap_or(&self.input);
        (0..given.time())
            .filter(|t| self.mask[*t])
            .map(|t| given.ids[t])
            .collect()
    }
}

/// The labels as integers, where they are, and as numbers.
fn labels(file: &TensorFile) -> Result<(Vec<i64>, Vec<f32>)> {
    let Some(info) = file.info("labels") else {
        return Ok(Default::default());
    };
    if matches!(info.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
        return Ok((Vec::new(), file.read_f32("labels", None)?));
    }
    let whole = file.read_i64("labels")?;
    let numbers = whole.iter().map(|label| *label as f32).collect();
    Ok((whole, numbers))
}

/// Positions count real tokens; padding stands at position 0.
fn positions(mask: &[bool]) -> Vec<u32> {
    let mut seen = 0;
    let position = |real: &bool| {
        seen += u32::from(*real);
        seen.saturating_sub(1)
    };
    mask.iter().map(position).collect()
}
