//! The plan of a run: what it will cost, said before it starts.
//!
//! Memory counts weights, gradients, the optimiser's state and the activations of one batch; time counts six operations a parameter
//! and token (four where only an adapter is trained) at the speed of a matrix product on this machine. Both are estimates
//! to be compared with what the run then used.

use std::time::Instant;

use burn::tensor::{Device, Distribution, Tensor};
use espalier_kernels::linear::{Precision, linear};
use espalier_models::{
    model::LanguageModel,
    parameter::Parameters,
    spec::{ChannelSpec, ExpertsSpec, MixerSpec, ModelSpec},
};

use crate::{Result, batch::Sample, options::TrainOptions};

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
    /// Tokens that will be read.
    pub tokens: u64,
    /// Estimated peak memory in bytes.
    pub memory: u64,
    /// Estimated seconds.
    pub seconds: f64,
}

/// Share of the matrix product's speed that a whole training step reaches in practice.
const STEP_EFFICIENCY: f64 = 0.6;
/// Logits that the cross-entropy computes at once, unless that are few rows.
const LOGITS_AT_ONCE: usize = 1 << 22;

/// Plans a run of `model` on `samples`.
///
/// # Errors
/// When an option makes no sense.
pub fn plan(model: &LanguageModel, samples: &[Sample], options: &TrainOptions) -> Result<Plan> {
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
    let mean = samples.iter().map(|s| s.tokens() as f64).sum::<f64>() / samples.len().max(1) as f64;
    let tokens = (mean * (steps * options.examples_per_step()) as f64) as u64;
    let longest = samples.iter().map(Sample::tokens).max().unwrap_or(0);
    let activations = activation_bytes(
        model.spec(),
        longest * options.batch,
        options.gradient_checkpointing,
    );
    let optimiser = options.optimiser.build(options);
    let mut state = 0;
    model.visit(&mut |p| {
        if p.is_trainable() {
            state += optimiser.bytes(p);
        }
    });
    let held: usize = model.parameters().iter().map(|p| p.bytes()).sum();
    let memory = held as u64 + 4 * trainable + state + activations;
    let passes = if trainable < parameters { 4.0 } else { 6.0 };
    let passes = if options.gradient_checkpointing {
        passes + 2.0
    } else {
        passes
    };
    let seconds = passes * model.spec().active_parameter_count() * tokens as f64
        / (matrix_speed(model.device(), options.precision) * STEP_EFFICIENCY);
    Ok(Plan {
        parameters,
        trainable,
        samples: samples.len(),
        steps,
        tokens,
        memory,
        seconds,
    })
}

/// Bytes of what the forward pass keeps for the backward pass, all in f32, and of the logits that exist at once.
fn activation_bytes(spec: &ModelSpec, tokens: usize, recomputed: bool) -> u64 {
    let block = |block: &espalier_models::spec::BlockSpec| {
        let heads = match &block.mixer {
            MixerSpec::Attention(attention) => {
                attention.head_dim * (attention.heads + attention.kv_heads)
            }
            MixerSpec::AttentionExperts(attention) => {
                attention.head_dim * attention.kv_heads * (attention.router.active + 1)
            }
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
        .min(tokens * spec.vocabulary);
    4 * (tokens * (kept + 2 * spec.width) + logits) as u64
}

/// Floating-point operations a second of a matrix product, measured in a few hundredths of a second.
pub fn matrix_speed(device: &Device, precision: Precision) -> f64 {
    let device = device.clone().inner();
    let matrix = || Tensor::<2>::random([512, 512], Distribution::Default, &device);
    let (a, b) = (matrix(), matrix());
    let multiply = || linear(a.clone(), b.clone(), None, precision).into_data();
    multiply();
    let started = Instant::now();
    let mut count = 0;
    while started.elapsed().as_secs_f64() < 0.05 {
        multiply();
        count += 1;
    }
    f64::from(count) * 2.0 * 512f64.powi(3) / started.elapsed().as_secs_f64()
}
