//! The plan of a run: what it will cost, said before it starts.
//!
//! Tokens are counted on the run's own batches, all of them in a short run; answers of the policy count as long as they may be. Memory counts weights, gradients, the optimiser's
//! state and the activations of one batch; time counts six operations a parameter and token (four where only an adapter is
//! trained), padding included, and the passes of references besides, at the speed of a matrix product of the model's size on this machine. Both are estimates to be
//! compared with what the run then used. Samples count as what they take; reading them is over when the plan is made.

use std::{collections::BTreeMap, time::Instant};

use burn::tensor::{Device, Distribution, Tensor};
use espalier_data::{packing::Row, random::Random};
use espalier_kernels::linear::{Precision, linear};
use espalier_models::{
    model::{Input, LanguageModel},
    parameter::Parameters,
    spec::{ChannelSpec, ExpertsSpec, MixerSpec, ModelSpec, PositionSpec},
};

use crate::{
    Error, Result,
    batch::Sample,
    objectives::{Growth, Objective},
    options::TrainOptions,
    order::Order,
    token_count::TokenCount,
    trainer::random_of_batch,
};

/// The plan.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Parameters in all.
    pub parameters: u64,
    /// Parameters that are trained.
    pub trainable: u64,
    /// Examples or packed rows.
    pub samples: usize,
    /// Optimiser steps.
    pub steps: usize,
    /// Tokens of all steps.
    pub tokens: TokenCount,
    /// Estimated peak memory in bytes.
    pub memory: u64,
    /// The part of it that grows with the rows of a batch.
    pub activations: u64,
    /// Bytes of the samples, which are in memory already.
    pub data: u64,
    /// Rows of the largest batch, and tokens of the longest sample.
    pub largest_batch: [usize; 2],
    /// Estimated seconds.
    pub seconds: f64,
}

/// Share of the matrix product's speed that a whole training step reaches in practice.
const STEP_EFFICIENCY: f64 = 0.6;
/// Logits that the cross-entropy computes at once, unless that are few rows.
const LOGITS_AT_ONCE: usize = 1 << 22;

/// Steps whose batches are counted; a longer run has the same mean.
const COUNTED_STEPS: usize = 1000;

/// Plans a run of `model` on `samples`.
///
/// # Errors
/// When an option makes no sense, or a sample does not fit the objective.
pub fn plan(
    model: &LanguageModel,
    objective: &dyn Objective,
    samples: &[Sample],
    options: &TrainOptions,
) -> Result<Plan> {
    let steps = options.total_steps(samples.len())?;
    let count = |trained: bool| {
        model
            .parameters()
            .iter()
            .filter(|p| !trained || p.is_trainable())
            .map(|p| p.len() as u64)
            .sum::<u64>()
    };
    let (parameters, trainable) = (count(false), count(true));
    let tokens = count_tokens(model, objective, samples, options, steps)?;
    let longest = samples.iter().map(Sample::tokens).max().unwrap_or(0);
    // No batch reaches into the next pass.
    let rows = options.batch.min(samples.len());
    let (rows, longest) = match objective.growth() {
        Some(growth) => {
            let prompts = samples.iter().map(prompt_length).max().unwrap_or(0);
            let as_they_are = if growth.share < 1.0 { longest } else { 0 };
            let grown = prompts + growth.tokens;
            (rows * growth.rows, grown.max(as_they_are))
        }
        None => (rows, longest),
    };
    let activations =
        activation_bytes(model.spec(), longest * rows, options.gradient_checkpointing);
    let optimiser = options.optimiser.build(options);
    let mut state = 0;
    model.visit(&mut |p| {
        if p.is_trainable() {
            state += optimiser.bytes(p);
            if options.average.is_some() {
                state += 4 * p.len() as u64;
            }
        }
    });
    let held: usize = model.parameters().iter().map(|p| p.bytes()).sum();
    let memory = held as u64
        + gradient_bytes(model, options)
        + state
        + activations
        + objective.kept_bytes(model);
    let passes = if trainable < parameters { 4.0 } else { 6.0 };
    let passes = if options.gradient_checkpointing {
        passes + 2.0
    } else {
        passes
    };
    let speed = matrix_speed(
        model.device(),
        options.precision,
        [(longest * rows).clamp(1, 2048), model.spec().width],
    );
    let operations = passes * model.spec().active_parameter_count() * tokens.read() as f64;
    let others = objective.other_passes(model);
    let all: usize = samples.iter().map(Sample::tokens).sum();
    let besides = others.once * all as f64 + others.each * tokens.read() as f64;
    let seconds = (operations + besides) / (speed * STEP_EFFICIENCY);
    Ok(Plan {
        parameters,
        trainable,
        samples: samples.len(),
        steps,
        tokens,
        memory,
        activations,
        data: samples.iter().map(sample_bytes).sum(),
        largest_batch: [rows, longest],
        seconds,
    })
}

/// Bytes that a sample's rows take, without its columns.
fn sample_bytes(sample: &Sample) -> u64 {
    let row = |row: &Row| {
        let numbers = row.ids.capacity() + row.positions.capacity() + row.segments.capacity();
        size_of::<Row>() + size_of::<u32>() * numbers + row.targets.capacity()
    };
    (size_of::<Sample>() + sample.rows.iter().map(row).sum::<usize>()) as u64
}

/// Bytes of the gradients that exist at once.
fn gradient_bytes(model: &LanguageModel, options: &TrainOptions) -> u64 {
    let (mut all, mut blocks) = (0, BTreeMap::<String, u64>::new());
    for parameter in model.parameters().iter().filter(|p| p.is_trainable()) {
        let bytes = 4 * parameter.len() as u64;
        let name = parameter.name();
        let (before, inside) = name.split_once("blocks.").unwrap_or(("", ""));
        match inside.split_once('.').filter(|_| options.release_gradients) {
            Some((number, _)) => {
                *blocks.entry(format!("{before}{number}")).or_default() += bytes;
            }
            None => all += bytes,
        }
    }
    all + blocks.into_values().max().unwrap_or(0)
}

/// Bytes of what the forward pass of so many tokens keeps for the backward pass, all in f32, and of the logits that exist at once.
pub fn activation_bytes(spec: &ModelSpec, tokens: usize, recomputed: bool) -> u64 {
    let block = |block: &espalier_models::spec::BlockSpec| {
        let heads = match &block.mixer {
            MixerSpec::Attention(attention) => {
                attention.head_dim * (attention.heads + attention.kv_heads)
            }
            MixerSpec::AttentionExperts(attention) => {
                attention.head_dim * attention.kv_heads * (attention.router.active + 1)
            }
            MixerSpec::LatentAttention(attention) => attention.expanded(),
            MixerSpec::Recurrent(recurrent) => recurrent.kept() / 2,
        };
        // Experts keep their inner rows alone.
        let experts = |spec: &ExpertsSpec| {
            spec.router.active * spec.expert.inner * if spec.gated { 2 } else { 1 }
        };
        let channel = match &block.channel {
            ChannelSpec::Mlp(mlp) => 2 * mlp.inner,
            ChannelSpec::GatedMlp(mlp) => 3 * mlp.inner,
            ChannelSpec::SparseExperts(spec) => experts(spec),
            ChannelSpec::MultiHeadExperts(spec) => spec.heads * experts(&spec.experts),
            ChannelSpec::Rwkv(layer) => 2 * layer.inner + 4 * spec.width,
            ChannelSpec::None => 0,
        };
        // Two norms and what they read, the attention's inputs and output, the channel's.
        4 * spec.width + 2 * heads + channel
    };
    let blocks = spec.blocks.iter().map(block);
    let kept = match recomputed {
        true => spec.blocks.len() * spec.width + blocks.max().unwrap_or(0),
        false => blocks.sum(),
    };
    let logits = LOGITS_AT_ONCE
        .max(256 * spec.vocabulary)
        .min(tokens.saturating_mul(spec.vocabulary));
    let numbers = tokens
        .saturating_mul(kept + 2 * spec.width)
        .saturating_add(logits);
    4u64.saturating_mul(numbers as u64)
}

/// The tokens of `steps` steps, on batches as the trainer makes them.
fn count_tokens(
    model: &LanguageModel,
    objective: &dyn Objective,
    samples: &[Sample],
    options: &TrainOptions,
    steps: usize,
) -> Result<TokenCount> {
    let counted = steps.min(COUNTED_STEPS);
    let mut order = Order::of(samples, options);
    let mut tokens = TokenCount::default();
    for step in 0..counted {
        for (micro, numbers) in order.step(step).iter().enumerate() {
            let of_batch: Vec<&Sample> = numbers.iter().map(|i| &samples[*i]).collect();
            let as_they_are = || -> Result<TokenCount> {
                let mut random = random_of_batch(options, step, micro);
                let batch = objective.collate(model, &of_batch, &mut random)?;
                Ok(batch.tokens.count())
            };
            match objective.growth() {
                None => tokens += as_they_are()?,
                Some(growth) => {
                    tokens += answered(&of_batch, growth).scaled(growth.share);
                    if growth.share < 1.0 {
                        tokens += as_they_are()?.scaled(1.0 - growth.share);
                    }
                }
            }
        }
    }
    Ok(match counted == steps {
        true => tokens,
        false => tokens.scaled(steps as f64 / counted as f64),
    })
}

/// The tokens of prompts with the longest answers; that answers are shorter, nobody can know before.
fn answered(prompts: &[&Sample], growth: Growth) -> TokenCount {
    let written = (prompts.len() * growth.rows * growth.tokens) as u64;
    let read: usize = prompts.iter().map(|prompt| prompt_length(prompt)).sum();
    TokenCount {
        real: (read * growth.rows) as u64 + written,
        learned: written,
        padding: 0,
    }
}

/// Tokens of a sample's prompt, which the policy answers: all of it where nothing else is said.
fn prompt_length(sample: &Sample) -> usize {
    sample.rows.iter().map(Row::prompt_length).sum()
}

/// Whether every sample lies within the positions that the model has learned, with the longest answer where the policy answers it.
///
/// # Errors
/// When some are longer; the error says how many, and the length that fits.
pub fn check_lengths(
    model: &LanguageModel,
    objective: &dyn Objective,
    samples: &[Sample],
) -> Result<()> {
    let limit = |positions: Option<PositionSpec>| positions.and_then(PositionSpec::learned);
    let spec = model.spec();
    let own = limit(spec.positions);
    let of_source = spec
        .encoder
        .as_ref()
        .and_then(|encoder| limit(encoder.positions));
    let Some(shortest) = own.into_iter().chain(of_source).min() else {
        return Ok(());
    };
    let growth = objective.growth();
    if let Some(growth) = growth {
        check_grown(samples, growth, shortest)?;
    }
    if growth.is_some_and(|growth| growth.share == 1.0) {
        return Ok(());
    }
    let beyond = |sample: &Sample| -> Result<bool> {
        // What an objective makes of a sample is seldom longer than the sample, and never by much.
        let longest = sample.rows.iter().map(longest_text).max().unwrap_or(0);
        if 2 * longest <= shortest {
            return Ok(false);
        }
        let batch = objective.collate(model, &[sample], &mut Random::new(0))?;
        let source = batch.tokens.input.source.as_deref();
        let exceeds = |input: &Input, limit: Option<usize>| {
            limit.is_some_and(|limit| last_position(input) >= limit)
        };
        Ok(exceeds(&batch.tokens.input, own) || source.is_some_and(|s| exceeds(s, of_source)))
    };
    let mut long = Vec::new();
    for sample in samples {
        if beyond(sample)? {
            long.push(sample.rows.iter().map(longest_text).max().unwrap_or(0));
        }
    }
    match long.iter().max() {
        None => Ok(()),
        Some(longest) => Err(Error::Option {
            key: "length",
            reason: format!(
                "{} of {} samples are longer than the {shortest} positions that the model has learned, the longest has {longest} \
                 tokens; set `length = {shortest}`, which keeps their beginning, or shorten them",
                long.len(),
                samples.len(),
            ),
        }),
    }
}

/// Whether every prompt with the longest answer has no more than `limit` tokens.
fn check_grown(samples: &[Sample], growth: Growth, limit: usize) -> Result<()> {
    let lengths = samples
        .iter()
        .map(|sample| prompt_length(sample) + growth.tokens);
    let long: Vec<usize> = lengths.filter(|length| *length > limit).collect();
    match long.iter().max() {
        None => Ok(()),
        Some(longest) => Err(Error::Option {
            key: growth.key,
            reason: format!(
                "{} of {} prompts go with an answer of {} tokens beyond the {limit} positions that the model has learned, the longest \
                 to {longest}; lower it, or `length`",
                long.len(),
                samples.len(),
                growth.tokens,
            ),
        }),
    }
}

/// Tokens of the longest text of a row.
fn longest_text(row: &Row) -> usize {
    row.positions
        .iter()
        .max()
        .map_or(0, |last| *last as usize + 1)
}

/// The last position that an input asks for.
fn last_position(input: &Input) -> usize {
    match &input.positions {
        Some(positions) => positions.iter().max().map_or(0, |last| *last as usize),
        None => input.time().saturating_sub(1),
    }
}

/// Floating-point operations a second of a product of `[rows, width]` with a square matrix, measured in a few hundredths of a
/// second.
pub fn matrix_speed(device: &Device, precision: Precision, [rows, width]: [usize; 2]) -> f64 {
    let device = device.clone().inner();
    let matrix = |rows| Tensor::<2>::random([rows, width], Distribution::Default, &device);
    let (a, b) = (matrix(rows), matrix(width));
    let multiply = || linear(a.clone(), b.clone(), None, precision).into_data();
    multiply();
    let started = Instant::now();
    let mut count = 0;
    while started.elapsed().as_secs_f64() < 0.05 {
        multiply();
        count += 1;
    }
    f64::from(count) * 2.0 * (rows * width * width) as f64 / started.elapsed().as_secs_f64()
}
