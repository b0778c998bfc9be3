//! The speed of generation: prefill and decoding, on random tokens.
//!
//! Prefill is the forward pass of the prompts with the logits of their last tokens only. Decoding is what generating `new`
//! tokens takes beyond that, for the `new - 1` tokens after the first. Medians of three runs after one that is not counted;
//! end-of-sequence tokens are forbidden, so that every run makes the same number of tokens.

use std::path::PathBuf;
use std::time::Instant;

use espalier_engine::{
    decode::{DecodeOptions, decode},
    sampler::SamplerOptions,
};
use espalier_models::{
    model::{Input, LanguageModel},
    state::SequenceState,
};

use super::{Figures, median, random_tokens};
use crate::cli::Context;
use crate::{Error, Result, model_path};

/// Runs that are counted.
const RUNS: usize = 3;

/// What is measured.
#[derive(Debug, clap::Args)]
pub struct GenerateArgs {
    /// A model folder, an adapter folder, or a run's output
    pub model: PathBuf,
    /// Tokens of each prompt
    #[arg(long, value_name = "COUNT", default_value_t = 512)]
    pub prompt: usize,
    /// Tokens generated for each prompt
    #[arg(long, value_name = "COUNT", default_value_t = 128)]
    pub new: usize,
    /// Prompts computed together
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    pub batch: usize,
}

/// Measures and prints.
///
/// # Errors
/// When the model cannot be loaded, or has no room for so many tokens.
pub fn run(args: &GenerateArgs, context: &Context) -> Result<()> {
    if args.prompt == 0 || args.new < 2 || args.batch == 0 {
        return Err(Error::Usage("expected at least 1 prompt token, 2 new tokens and a batch of 1".into()));
    }
    let mut loaded = model_path::load_model(&args.model, &context.device)?;
    loaded.model.merge_adapters();
    let model = loaded.model.frozen();
    check_room(&model, args)?;
    let prompts = random_tokens(model.spec().vocabulary, args.batch, args.prompt);
    let progress = context.terminal.progress(2 * (RUNS as u64 + 1), "benchmark");
    let done = std::cell::Cell::new(0);
    let tick = |what: &str| {
        done.set(done.get() + 1);
        progress.set(done.get(), what);
    };
    let prefill = median_seconds(&mut || prefill(&model, &prompts), &|| tick("prefill"))?;
    let full = median_seconds(&mut || generate(&model, &prompts, args.new), &|| tick("prefill and decoding"))?;
    progress.finish(&format!("{RUNS} runs of each, after one to warm up"));
    show(args, prefill, full, context)
}

fn check_room(model: &LanguageModel, args: &GenerateArgs) -> Result<()> {
    let (needed, spec) = (args.prompt + args.new, model.spec());
    match spec.learned_positions() {
        Some(rows) if needed > rows => Err(Error::Usage(format!(
            "`--prompt` and `--new` make {needed} tokens but the model has {rows} positions; ask for fewer"
        ))),
        _ => Ok(()),
    }
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
    Ok(median(&seconds))
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

fn show(args: &GenerateArgs, prefill: f64, full: f64, context: &Context) -> Result<()> {
    let decoding = (full - prefill).max(1e-9);
    let sizes = vec![
        ("batch", args.batch.into()),
        ("prompt", args.prompt.into()),
        ("new", args.new.into()),
        ("precision", "f32".into()),
    ];
    let measured = vec![
        ("prefill_tokens_per_second", "", (args.batch * args.prompt) as f64 / prefill),
        ("decode_tokens_per_second", "", (args.batch * (args.new - 1)) as f64 / decoding),
    ];
    Figures { job: "generate", model: Some(&args.model), sizes, measured }.show(context)
}
