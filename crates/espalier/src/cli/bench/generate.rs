//! The speed of generation: prefill and decoding, on random tokens.
//!
//! Prefill ends with the first token of every row, decoding takes from there to the last. Medians of three runs after one
//! that is not counted; end-of-sequence tokens are forbidden, so that every run makes the same number of tokens.
//!
//! Decoding reads every weight once for a token, so that the memory bounds it. Bytes a token are those of all weights but the table of tokens,
//! of which a row is read, and of half of what the text leaves in the cache; of experts those that a token passes through.

use std::path::PathBuf;
use std::time::Instant;

use espalier_engine::{
    decode::{DecodeOptions, decode},
    rules::Rules,
    sampler::SamplerOptions,
};
use espalier_kernels::{bandwidth::memory_bandwidth, linear::Precision};
use espalier_models::{
    model::LanguageModel, parameter::Parameters, rounded_cache::CacheFormat, spec::ChannelSpec,
};

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
    /// The arithmetic of products with many rows: f32 or bf16, which is faster where the processor multiplies it
    #[arg(long, value_name = "NAME", default_value_t = Precision::F32)]
    pub precision: Precision,
    /// How keys and values are remembered: f32, bf16 or q8_0
    #[arg(long, value_name = "FORMAT", default_value_t = CacheFormat::F32)]
    pub cache: CacheFormat,
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
    loaded.model.set_precision(args.precision);
    loaded.model.set_cache_format(args.cache)?;
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
    let format = format(&model);
    let traffic = Traffic {
        token: bytes_a_token(&model, args),
        memory: memory_bandwidth(),
    };
    show(
        args,
        seconds.map(|all| median(&all)),
        &format,
        traffic,
        context,
    )
}

/// What decoding reads, in bytes.
struct Traffic {
    /// For a token.
    token: f64,
    /// That the memory gives in a second.
    memory: f64,
}

fn bytes_a_token(model: &LanguageModel, args: &GenerateArgs) -> f64 {
    let spec = model.spec();
    let share = spec.blocks.iter().find_map(|block| match &block.channel {
        ChannelSpec::SparseExperts(experts) => {
            let router = &experts.router;
            Some(router.active as f64 / router.experts.max(1) as f64)
        }
        _ => None,
    });
    let mut weights = 0.0;
    model.visit(&mut |parameter| {
        let is_table = parameter.name() == "embedding.weight" && !spec.tied_head;
        let is_stack = parameter.shape().len() == 3;
        weights += match (is_table, share.filter(|_| is_stack)) {
            (true, _) => 0.0,
            (false, share) => parameter.bytes() as f64 * share.unwrap_or(1.0),
        };
    });
    let remembered = args.prompt as f64 + args.new as f64 / 2.0;
    weights / args.batch as f64 + remembered * spec.cache_per_token() as f64
}

/// The format that most numbers of the weights have.
fn format(model: &LanguageModel) -> String {
    let mut counts = std::collections::BTreeMap::<&str, usize>::new();
    model.visit(&mut |parameter| {
        let name = parameter
            .as_stored()
            .map_or("f32", |stored| stored.format().name());
        *counts.entry(name).or_default() += parameter.len();
    });
    let most = counts.into_iter().max_by_key(|(_, count)| *count);
    most.map_or("f32", |(name, _)| name).to_owned()
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

fn show(
    args: &GenerateArgs,
    [prefill, decoding]: [f64; 2],
    format: &str,
    traffic: Traffic,
    context: &Context,
) -> Result<()> {
    let rate = (args.new - 1) as f64 / decoding.max(1e-9);
    let sizes = vec![
        ("batch", args.batch.into()),
        ("prompt", args.prompt.into()),
        ("new", args.new.into()),
        ("precision", args.precision.to_string().into()),
        ("weights", format.into()),
        ("cache", args.cache.to_string().into()),
    ];
    let measured = vec![
        (
            "prefill_tokens_per_second",
            "",
            (args.batch * args.prompt) as f64 / prefill,
        ),
        ("decode_tokens_per_second", "", args.batch as f64 * rate),
        ("mib_a_token", "", traffic.token / f64::from(1 << 20)),
        ("memory_gb_per_second", "", traffic.memory / 1e9),
        (
            "share_of_memory_bandwidth",
            "",
            args.batch as f64 * rate * traffic.token / traffic.memory,
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
