//! The speed of generation: prefill and decoding, on random tokens.
//!
//! Prefill is the forward pass of the prompts with the logits of their last tokens only. Decoding is what generating `new`
//! tokens takes beyond that, for the `new - 1` tokens after the first. Medians of three runs after one that is not counted;
//! end-of-sequence tokens are forbidden, so that every run makes the same number of tokens.

use std::path::Path;
use std::time::Instant;

use espalier_data::worlds::random::Random;
use espalier_engine::{
    decode::{DecodeOptions, decode},
    sampler::SamplerOptions,
};
use espalier_models::{
    model::{Input, LanguageModel},
    state::SequenceState,
};
use serde_json::json;

use super::display;
use crate::cli::Context;
use crate::{Error, Result, memory, model_path, units};

/// Runs that are counted.
const RUNS: usize = 3;

/// What is measured.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Benchmark")]
pub struct BenchmarkArgs {
    /// Measure speed and memory on random tokens instead
    #[arg(long, conflicts_with_all = ["chat", "stop"])]
    pub benchmark: bool,
    /// Tokens of each prompt
    #[arg(long, value_name = "COUNT", default_value_t = 512, requires = "benchmark")]
    pub prompt_tokens: usize,
    /// Tokens generated for each prompt
    #[arg(long, value_name = "COUNT", default_value_t = 128, requires = "benchmark")]
    pub new_tokens: usize,
    /// Prompts computed together
    #[arg(long, value_name = "COUNT", default_value_t = 1, requires = "benchmark")]
    pub batch: usize,
}

/// Measures and prints.
///
/// # Errors
/// When the model cannot be loaded, or has no room for so many tokens.
pub fn run(path: &Path, args: &BenchmarkArgs, context: &Context) -> Result<()> {
    if args.prompt_tokens == 0 || args.new_tokens < 2 || args.batch == 0 {
        let expected = "expected at least 1 prompt token, 2 new tokens and a batch of 1";
        return Err(Error::Usage(format!("`--benchmark`: {expected}")));
    }
    let mut loaded = model_path::load_model(path, &context.device)?;
    loaded.model.merge_adapters();
    let model = loaded.model.frozen();
    check_room(&model, args)?;
    let prompts = prompts(&model, args);
    let progress = context.terminal.progress(2 * (RUNS as u64 + 1), "benchmark");
    let done = std::cell::Cell::new(0);
    let tick = |what: &str| {
        done.set(done.get() + 1);
        progress.set(done.get(), what);
    };
    let prefill = median_seconds(&mut || prefill(&model, &prompts), &|| tick("prefill"))?;
    let full = median_seconds(&mut || generate(&model, &prompts, args.new_tokens), &|| tick("prefill and decoding"))?;
    progress.finish(&format!("{RUNS} runs of each, after one to warm up"));
    show(path, args, prefill, full, context)
}

fn check_room(model: &LanguageModel, args: &BenchmarkArgs) -> Result<()> {
    let (needed, spec) = (args.prompt_tokens + args.new_tokens, model.spec());
    match spec.learned_positions {
        Some(rows) if needed > rows => Err(Error::Usage(format!(
            "`--prompt-tokens` and `--new-tokens` make {needed} tokens but the model has {rows} positions; ask for fewer"
        ))),
        _ => Ok(()),
    }
}

/// Random tokens without the first three, which are special in most vocabularies.
fn prompts(model: &LanguageModel, args: &BenchmarkArgs) -> Vec<Vec<u32>> {
    let mut random = Random::new(0);
    let (first, vocabulary) = (3.min(model.spec().vocabulary - 1), model.spec().vocabulary);
    let mut token = || first as u32 + (random.f() * (vocabulary - first) as f64) as u32;
    (0..args.batch).map(|_| (0..args.prompt_tokens).map(|_| token()).collect()).collect()
}

fn median_seconds(work: &mut dyn FnMut() -> Result<()>, tick: &dyn Fn()) -> Result<f64> {
    let mut seconds = Vec::with_capacity(RUNS);
    for run in 0..=RUNS {
        let start = Instant::now();
        work()?;
        if run > 0 {
            seconds.push(start.elapsed().as_secs_f64());
        }
        tick();
    }
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[RUNS / 2])
}

fn prefill(model: &LanguageModel, prompts: &[Vec<u32>]) -> Result<()> {
    let mut state = SequenceState::new(model.spec());
    let hidden = model.hidden(&Input::rows(prompts)?, Some(&mut state))?;
    let [batch, time, width] = hidden.dims();
    // Reading the numbers makes sure that they were computed.
    model.head(hidden.narrow(1, time - 1, 1).reshape([batch, width])).into_data();
    Ok(())
}

fn generate(model: &LanguageModel, prompts: &[Vec<u32>], new_tokens: usize) -> Result<()> {
    let options = DecodeOptions {
        max_new_tokens: new_tokens,
        sampler: SamplerOptions { temperature: 0.0, ..SamplerOptions::default() },
        end: Vec::new(),
        forbidden: model.spec().eos.clone(),
    };
    decode(model, prompts, &options, &mut |_, _| true)?;
    Ok(())
}

fn show(path: &Path, args: &BenchmarkArgs, prefill: f64, full: f64, context: &Context) -> Result<()> {
    let (batch, prompt, new) = (args.batch, args.prompt_tokens, args.new_tokens);
    let prefill_rate = (batch * prompt) as f64 / prefill;
    let decode_rate = (batch * (new - 1)) as f64 / (full - prefill).max(1e-9);
    let peak = memory::peak_bytes();
    if context.json {
        return context.terminal.json(&json!({
            "peer": "espalier", "job": "generate", "model": display(path), "precision": "f32",
            "batch": batch, "prompt": prompt, "new": new,
            "prefill_tokens_per_second": rounded(prefill_rate), "decode_tokens_per_second": rounded(decode_rate),
            "peak_rss_mib": peak.map(|bytes| bytes >> 20),
        }));
    }
    context.terminal.facts(&[
        ("work", format!("{batch} x {prompt} prompt tokens, {new} new tokens each, f32")),
        ("prefill", format!("{} tokens a second", units::rate(prefill_rate))),
        ("decode", format!("{} tokens a second", units::rate(decode_rate))),
        ("peak memory", peak.map_or("unknown on this system".into(), units::bytes)),
    ])
}

fn rounded(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}
