//! The speed of generation: prefill and decoding, on random tokens.
//!
//! Prefill ends with the first token of every row, decoding takes from there to the last. Medians of three runs after one
//! that is not counted; end-of-sequence tokens are forbidden, so that every run makes the same number of tokens.

use std::path::PathBuf;
use std::time::Instant;

use espalier_engine::{
    decode::{DecodeOptions, decode},
    rules::Rules,
    sampler::SamplerOptions,
};
use espalier_models::model::LanguageModel;

use super::{Figures, median, random_tokens};
use crate::cli::Context;
use crate::{Error, Result, memory, model_path};

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
        return Err(Error::Usage(
            "expected at least 1 prompt token, 2 new tokens and a batch of 1".into(),
        ));
    }
    let mut loaded = model_path::load_model(&args.model, &context.device)?;
    loaded.model.merge_what_can_be();
    let model = loaded.model.frozen();
    check_room(&model, args, context)?;
    let prompts = random_tokens(model.spec().vocabulary, args.batch, args.prompt);
    let progress = context.terminal.progress(RUNS as u64 + 1, "benchmark");
    let mut seconds = [Vec::new(), Vec::new()];
    for run in 0..=RUNS {
        let measured = generate(&model, &prompts, args.new)?;
        if run > 0 {
            seconds
                .iter_mut()
                .zip(measured)
                .for_each(|(all, one)| all.push(one));
        }
        progress.set(run as u64 + 1, "");
    }
    progress.finish(&format!("{RUNS} runs, after one to warm up"));
    show(args, seconds.map(|all| median(&all)), context)
}

fn check_room(model: &LanguageModel, args: &GenerateArgs, context: &Context) -> Result<()> {
    let (needed, spec) = (args.prompt.saturating_add(args.new), model.spec());
    let tokens = args.batch as f64 * needed as f64;
    let bytes = tokens * (spec.cache_per_token() as f64 + 4.0 * 4.0 * spec.width as f64);
    let asked = format!(
        "`--batch` {} of `--prompt` {} tokens",
        args.batch, args.prompt
    );
    memory::check(asked, bytes, "ask for less", &context.device)?;
    match spec.learned_positions() {
        Some(rows) if needed > rows => Err(Error::Usage(format!(
            "`--prompt` and `--new` make {needed} tokens but the model has {rows} positions; ask for fewer"
        ))),
        _ => Ok(()),
    }
}

/// Seconds of the prefill and of decoding.
fn generate(model: &LanguageModel, prompts: &[Vec<u32>], new_tokens: usize) -> Result<[f64; 2]> {
    let options = DecodeOptions {
        max_new_tokens: new_tokens,
        sampler: SamplerOptions {
            temperature: 0.0,
            rules: Rules::without(&model.spec().eos),
            ..SamplerOptions::default()
        },
        end: Vec::new(),
    };
    let (start, mut first, mut count) = (Instant::now(), None, 0);
    decode(model, prompts, &options, &mut |_, _| {
        count += 1;
        if count == prompts.len() {
            first = Some(start.elapsed().as_secs_f64());
        }
        true
    })?;
    let (whole, prefill) = (start.elapsed().as_secs_f64(), first.unwrap_or_default());
    Ok([prefill, whole - prefill])
}

fn show(args: &GenerateArgs, [prefill, decoding]: [f64; 2], context: &Context) -> Result<()> {
    let sizes = vec![
        ("batch", args.batch.into()),
        ("prompt", args.prompt.into()),
        ("new", args.new.into()),
        ("precision", "f32".into()),
    ];
    let measured = vec![
        (
            "prefill_tokens_per_second",
            "",
            (args.batch * args.prompt) as f64 / prefill,
        ),
        (
            "decode_tokens_per_second",
            "",
            (args.batch * (args.new - 1)) as f64 / decoding.max(1e-9),
        ),
    ];
    Figures {
        job: "generate",
        model: Some(&args.model),
        sizes,
        measured,
    }
    .show(context)
}
