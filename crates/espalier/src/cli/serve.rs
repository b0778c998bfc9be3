//! `espalier serve`: models over HTTP, as OpenAI's clients speak it.

use std::{io::Write, path::PathBuf, time::Duration};

use clap::builder::RangedU64ValueParser;
use espalier_engine::{
    sampler::SamplerOptions, scheduler::Options, sentence_transformers::SentenceTransformer,
};
use espalier_kernels::linear::Precision;
use espalier_models::families::Config as ModelConfig;
use espalier_serve::{Config, Limits, Model, Server};
use espalier_train::quantise::QuantiseOptions;

use super::{
    Context,
    published::{FILE, Published},
};
use crate::{
    Error, Result, interrupt,
    memory::{self, MachineMemory},
    model_path, units,
};

/// The share of free memory that keys and values may take where nothing is said.
const MEMORY_SHARE: u64 = 4;

/// The variable that holds a key.
const KEY: &str = "ESPALIER_API_KEY";

/// Serve models over HTTP: OpenAI's interface, and a page to chat with them.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  espalier serve runs/quickstart
  espalier serve small=path/to/model tuned=runs/mine --port 9000 --api-key \"$KEY\"
  curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{\"messages\": [{\"role\": \"user\", \"content\": \"Hello\"}], \"stream\": true}'

Paths: / (the page), /v1/chat/completions, /v1/completions, /v1/embeddings, /v1/models, /tokenize, /detokenize, /health, /metrics.
Ctrl-C finishes what is under way and ends; a second one ends at once.")]
pub struct ServeArgs {
    /// Model folders, adapter folders or runs' outputs, each as FOLDER or NAME=FOLDER
    #[arg(required = true, value_name = "MODEL")]
    pub models: Vec<String>,
    /// Where to listen; 0.0.0.0 serves other machines too
    #[arg(long, default_value = "127.0.0.1")]
    pub host: String,
    /// The port; 0 takes one that is free
    #[arg(long, default_value_t = 8000)]
    pub port: u16,
    /// A key that requests must give; several may be given. The variable ESPALIER_API_KEY holds one that no list of processes shows
    #[arg(long, value_name = "KEY")]
    pub api_key: Vec<String>,
    /// Memory for keys, values and states of each model, such as 2GiB [default: a quarter of what is free, for all]
    #[arg(long, value_name = "SIZE", value_parser = memory::parse_limit)]
    pub cache: Option<u64>,
    /// Most answers of a model that are computed together
    #[arg(long, value_name = "COUNT", default_value_t = 32, value_parser = RangedU64ValueParser::<usize>::new().range(1..=1024))]
    pub rows: usize,
    /// Most tokens of prompts that are read between two steps of the answers
    #[arg(long, value_name = "COUNT", default_value_t = 256, value_parser = RangedU64ValueParser::<usize>::new().range(1..=1 << 20))]
    pub chunk: usize,
    /// Most tokens of a text, prompt and answer together [default: the model's context]
    #[arg(long, value_name = "COUNT", value_parser = RangedU64ValueParser::<usize>::new().range(1..=1 << 30))]
    pub context: Option<usize>,
    /// Most tokens of an answer
    #[arg(long, value_name = "COUNT", default_value_t = 4096, value_parser = RangedU64ValueParser::<usize>::new().range(1..=1 << 20))]
    pub max_new_tokens: usize,
    /// Most answers that are made or wait; more requests are refused with 429
    #[arg(long, value_name = "COUNT", default_value_t = 256, value_parser = RangedU64ValueParser::<usize>::new().range(1..=1 << 20))]
    pub queue: usize,
    /// Most bytes of a request
    #[arg(long, value_name = "SIZE", default_value = "8MiB", value_parser = memory::parse_limit)]
    pub body: u64,
    /// Longest time for an answer, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub timeout: u64,
    /// Read every prompt anew, and keep nothing of earlier ones
    #[arg(long)]
    pub no_prefix_cache: bool,
    /// The arithmetic of products: f32 or bf16
    #[arg(long, value_name = "NAME", default_value = "f32")]
    pub precision: Precision,
    /// Round the linear maps of the (base) models' blocks to four bits: nf4 or fp4
    #[arg(long, value_name = "NAME")]
    pub quantise: Option<QuantiseOptions>,
    /// A line of JSON on standard error for every request, without what is said in it
    #[arg(long)]
    pub log: bool,
}

/// Loads the models and serves them until it is told to end.
///
/// # Errors
/// When a model cannot be loaded, or the address cannot be listened at.
pub fn run(args: &ServeArgs, context: &Context) -> Result<()> {
    let models = args
        .models
        .iter()
        .map(|argument| load(argument, args, context))
        .collect::<Result<Vec<_>>>()?;
    let names: Vec<String> = models.iter().map(|model| model.name.clone()).collect();
    let share = || MachineMemory::look().free / MEMORY_SHARE / models.len().max(1) as u64;
    let log = args.log;
    let keys = keys(args)?;
    let open = keys.is_empty();
    let config = Config {
        scheduler: Options {
            memory: args.cache.unwrap_or_else(share),
            rows: args.rows,
            chunk: args.chunk,
            context: args.context.unwrap_or(usize::MAX),
            prefix_cache: !args.no_prefix_cache,
        },
        limits: Limits {
            body: usize::try_from(args.body).unwrap_or(usize::MAX),
            in_flight: args.queue,
            output: args.max_new_tokens,
            answer: Duration::from_secs(args.timeout),
            ..Limits::default()
        },
        keys,
        log: Box::new(move |line| {
            if log {
                // A line that cannot be written must not stop the work.
                let _ = writeln!(std::io::stderr(), "{line}");
            }
        }),
        models,
    };
    let cache = units::bytes(config.scheduler.memory);
    let host = match args.host.contains(':') && !args.host.starts_with('[') {
        true => format!("[{}]", args.host),
        false => args.host.clone(),
    };
    let server = Server::listen(config, &format!("{host}:{}", args.port)).map_err(refused)?;
    let address = server.address();
    let terminal = &context.terminal;
    terminal.note(&format!(
        "serving {} at http://{address} (interface at /v1, keys and values {cache} a model); Ctrl-C ends",
        names.join(", ")
    ));
    if !address.ip().is_loopback() && open {
        terminal.note("note: other machines can reach this address, and no key is asked for; `--api-key` sets one");
    }
    if context.json {
        let models = serde_json::json!({"address": address.to_string(), "models": names});
        terminal.json(&models)?;
    }
    let _attentive = interrupt::attentive();
    server.run(interrupt::requested).map_err(refused)?;
    terminal.note("ended; what was under way is finished");
    Ok(())
}

/// The keys of the command line and of the environment.
fn keys(args: &ServeArgs) -> Result<Vec<String>> {
    let mut keys = args.api_key.clone();
    keys.extend(std::env::var(KEY).ok());
    match keys.iter().any(|key| key.trim().is_empty()) {
        true => Err(Error::usage(format!(
            "an API key is empty; give `--api-key` or {KEY} some letters, or leave it out"
        ))),
        false => Ok(keys),
    }
}

fn refused(error: espalier_serve::Error) -> Error {
    match error {
        espalier_serve::Error::TwiceNamed(_) => Error::usage(error.to_string()),
        other => Error::Work(other.to_string()),
    }
}

/// A model with its name: what stands before `=`, or the folder's.
fn load(argument: &str, args: &ServeArgs, context: &Context) -> Result<Model> {
    let (name, path) = match argument.split_once('=') {
        Some((name, path)) if !name.is_empty() && !name.contains('/') => {
            (Some(name.to_owned()), PathBuf::from(path))
        }
        _ => (None, PathBuf::from(argument)),
    };
    let mut opened = model_path::open_quantised_text_model(&path, args.quantise, &context.device)?;
    let published = Published::read(&opened.base)?;
    context
        .terminal
        .notes(opened.remarks.iter().chain(&published.remarks));
    opened.text.model.set_precision(args.precision);
    let embedder = match SentenceTransformer::load(&opened.folder)? {
        Some(own) => Some(own),
        None => SentenceTransformer::load(&opened.base)?,
    };
    let folder = path.canonicalize().unwrap_or(path);
    let own_name = folder.file_name().unwrap_or_default().to_string_lossy();
    Ok(Model {
        name: name.unwrap_or_else(|| own_name.into_owned()),
        sampler: sampler(&opened.base, published.sampler)?,
        stops: published.stops,
        text: opened.text,
        embedder,
    })
}

/// What requests leave open: the model's own settings, and else OpenAI's, which are the model's own distribution.
fn sampler(base: &std::path::Path, published: SamplerOptions) -> Result<SamplerOptions> {
    let path = base.join(FILE);
    let config = match path.is_file() {
        true => Some(ModelConfig::load(&path)?),
        false => None,
    };
    let says = |keys: &[&str]| {
        let config = config.as_ref();
        let said =
            |config: &ModelConfig, key: &str| config.get(key).is_some_and(|value| !value.is_null());
        config.is_some_and(|config| keys.iter().any(|key| said(config, key)))
    };
    let usual = SamplerOptions::default();
    Ok(SamplerOptions {
        temperature: match says(&["temperature", "do_sample"]) {
            true => published.temperature,
            false => usual.temperature,
        },
        top_p: match says(&["top_p"]) {
            true => published.top_p,
            false => usual.top_p,
        },
        ..published
    })
}
