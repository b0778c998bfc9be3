//! Steps of training, by the trainer itself: one fixed batch of random tokens, again and again.

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use espalier_data::encode::{Example, Pair};
use espalier_kernels::linear::Precision;
use espalier_models::{
    folder::LoadedModel,
    model::LanguageModel,
    spec::{BlockSpec, MixerSpec, ModelSpec},
};
use espalier_train::{
    adapters::{AdapterOptions, lora::LoraOptions},
    batch::Sample,
    objectives::{
        Objective, ObjectiveOptions, masked::MaskingOptions, preference::dpo::DpoOptions,
        symbols::Symbols,
    },
    options::TrainOptions,
    plan::activation_bytes,
    quantise::QuantiseOptions,
    trainer::{self, Event, Run},
};

use super::{
    Figures, median, random_tokens,
    turns::{Turn, Turns},
};
use crate::{Error, Result, cli::Context, memory, model_path};

/// The size of a step.
#[derive(Debug, clap::Args)]
pub struct TrainArgs {
    /// A model folder
    pub model: PathBuf,
    /// Rows of a batch
    #[arg(long, default_value_t = 8)]
    pub batch: usize,
    /// Tokens of a row
    #[arg(long, default_value_t = 256)]
    pub length: usize,
    /// Arithmetic of the matrix products: f32 or bf16
    #[arg(long, default_value_t = Precision::F32)]
    pub precision: Precision,
    /// Compute each block a second time in the backward instead of keeping its inner values
    #[arg(long)]
    pub gradient_checkpointing: bool,
    /// Steps that are counted, after two that are not
    #[arg(long, default_value_t = 5, value_parser = super::number_of_runs())]
    pub runs: usize,
    /// Another model folder, whose steps alternate with those of the first; may be repeated
    #[arg(long, value_name = "MODEL")]
    pub against: Vec<PathBuf>,
}

/// The size of a LoRA step.
#[derive(Debug, clap::Args)]
pub struct LoraArgs {
    /// Model and sizes.
    #[command(flatten)]
    pub step: TrainArgs,
    /// Rank of the adapters
    #[arg(long, default_value_t = 16)]
    pub rank: usize,
    /// Round the linear maps of the base's blocks to four bits: nf4 or fp4
    #[arg(long, value_name = "NAME")]
    pub quantise: Option<QuantiseOptions>,
}

/// The size of a DPO step.
#[derive(Debug, clap::Args)]
pub struct DpoArgs {
    /// A model folder
    pub model: PathBuf,
    /// Pairs of a batch; the second half of each row is the answer
    #[arg(long, default_value_t = 4)]
    pub pairs: usize,
    /// Tokens of a row
    #[arg(long, default_value_t = 256)]
    pub length: usize,
    /// Arithmetic of the matrix products: f32 or bf16
    #[arg(long, default_value_t = Precision::F32)]
    pub precision: Precision,
    /// Compute each block a second time in the backward instead of keeping its inner values
    #[arg(long)]
    pub gradient_checkpointing: bool,
    /// Steps that are counted, after two that are not
    #[arg(long, default_value_t = 5, value_parser = super::number_of_runs())]
    pub runs: usize,
}

/// Steps before those that are counted: the first one makes the optimiser's memory.
const WARM_UP: usize = 2;

/// A step of full fine-tuning.
///
/// # Errors
/// When a model cannot be loaded or the sizes do not fit it.
pub fn train(args: &TrainArgs, context: &Context) -> Result<()> {
    let models: Vec<&PathBuf> = std::iter::once(&args.model).chain(&args.against).collect();
    let turns = Turns::new(models.len());
    let one = |number: usize| {
        let turn = turns.enter(number);
        let mut loaded = load(models[number], args.length, context)?;
        loaded.model.set_trainable(|_| true);
        let work = Work::new(loaded.model.spec(), args.length, 3.0, 7.0);
        Ok((measure_rows(loaded.model, args, context, &turn)?, work))
    };
    let found = match models.len() {
        1 => vec![one(0)?],
        // Each in a thread of its own, so that none has the memory of the main thread to itself.
        count => std::thread::scope(|scope| {
            let one = &one;
            let threads: Vec<_> = (0..count)
                .map(|number| scope.spawn(move || one(number)))
                .collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
                thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            threads.into_iter().map(join).collect::<Result<Vec<_>>>()
        })?,
    };
    let Some(((steps, work), others)) = found.split_first() else {
        return Ok(());
    };
    show("train_step", args, vec![], steps, *work, context)?;
    for (path, (other, other_work)) in args.against.iter().zip(others) {
        let ratios: Vec<f64> = other
            .iter()
            .zip(steps)
            .map(|(other, step)| other.seconds / step.seconds)
            .collect();
        let ratio = median(&ratios);
        let mut measured = measured(args.batch * args.length, other, *other_work);
        measured.push(("times_the_first", "", ratio));
        measured.push((
            "times_the_first_per_operation",
            "",
            ratio * work.per_token / other_work.per_token,
        ));
        Figures {
            job: "train_step",
            model: Some(path),
            sizes: sizes(args),
            measured,
        }
        .show(context)?;
    }
    Ok(())
}

/// A LoRA step on every linear layer but the head.
///
/// # Errors
/// As [`train`].
pub fn lora(args: &LoraArgs, context: &Context) -> Result<()> {
    let mut loaded = load_quantised(&args.step.model, args.step.length, args.quantise, context)?;
    let base: usize = loaded.model.parameters().iter().map(|p| p.bytes()).sum();
    let options = LoraOptions {
        rank: args.rank,
        ..LoraOptions::default()
    };
    let family = loaded.family()?;
    AdapterOptions::Lora(options).attach(&mut loaded.model, family, 0)?;
    // No gradients of the frozen weights; the adapters' own products are not counted.
    let work = Work::new(loaded.model.spec(), args.step.length, 2.0, 7.0);
    if !args.step.against.is_empty() {
        return Err(Error::Usage(
            "`--against` compares full steps: use it with `bench train`".into(),
        ));
    }
    let turns = Turns::new(1);
    let steps = measure_rows(loaded.model, &args.step, context, &turns.enter(0))?;
    show(
        "lora_step",
        &args.step,
        vec![
            ("rank", args.rank.into()),
            (
                "quantise",
                args.quantise.map_or("-", QuantiseOptions::name).into(),
            ),
            ("base_bytes", base.into()),
        ],
        &steps,
        work,
        context,
    )
}

/// A DPO step. The trainer computes the reference's forward once for all; here it is counted in every step, as in tools
/// that compute it there.
///
/// # Errors
/// As [`train`].
pub fn dpo(args: &DpoArgs, context: &Context) -> Result<()> {
    let mut loaded = load(&args.model, args.length, context)?;
    loaded.model.set_trainable(|_| true);
    let rows = 2usize.saturating_mul(args.pairs);
    let asked = format!(
        "`--pairs` {} of `--length` {} tokens",
        args.pairs, args.length
    );
    check_room(asked, &loaded.model, rows, args.length, context)?;
    let rows = random_tokens(loaded.model.spec().vocabulary, rows, args.length);
    let example = |row: &Vec<u32>| {
        let targets = (0..args.length).map(|t| t >= args.length / 2).collect();
        Example::new(row.clone(), targets)
    };
    let pair = |both: &[Vec<u32>]| Pair {
        margin: 0.0,
        chosen: example(&both[0]),
        rejected: example(&both[1]),
    };
    let samples: Vec<Sample> = rows
        .chunks_exact(2)
        .map(|both| Sample::pair(&pair(both)))
        .collect();
    let mut objective = ObjectiveOptions::Dpo(DpoOptions::default()).build(&Symbols::default())?;
    loaded.model.set_precision(args.precision);
    // The reference's forward, and the policy's forward and backward; the head's part is smaller, as half of the tokens
    // are answers.
    let work = Work::new(loaded.model.spec(), args.length, 4.0, 9.0);
    let mut reference = Vec::with_capacity(args.runs);
    for run in 0..=args.runs {
        let started = Instant::now();
        objective.prepare(&loaded.model, &mut samples.clone())?;
        if run > 0 {
            reference.push(started.elapsed().as_secs_f64());
        }
    }
    let size = Size {
        batch: args.pairs,
        length: args.length,
        runs: args.runs,
        precision: args.precision,
        gradient_checkpointing: args.gradient_checkpointing,
    };
    let turns = Turns::new(1);
    let mut steps = measure(
        loaded.model,
        objective.as_mut(),
        samples,
        &size,
        context,
        &turns.enter(0),
    )?;
    steps
        .iter_mut()
        .for_each(|step| step.seconds += median(&reference));
    let sizes = vec![
        ("pairs", args.pairs.into()),
        ("length", args.length.into()),
        ("precision", args.precision.to_string().into()),
        ("gradient_checkpointing", args.gradient_checkpointing.into()),
    ];
    let measured = measured(2 * args.pairs * args.length, &steps, work);
    Figures {
        job: "dpo_step",
        model: Some(&args.model),
        sizes,
        measured,
    }
    .show(context)
}

fn load(path: &Path, length: usize, context: &Context) -> Result<LoadedModel> {
    load_quantised(path, length, None, context)
}

fn load_quantised(
    path: &Path,
    length: usize,
    quantise: Option<QuantiseOptions>,
    context: &Context,
) -> Result<LoadedModel> {
    let loaded = model_path::load_quantised_model(path, quantise, &context.device)?;
    match loaded.model.spec().learned_positions() {
        Some(rows) if length > rows => Err(Error::Usage(format!(
            "`--length` is {length} but the model has {rows} positions; ask for fewer"
        ))),
        _ => Ok(loaded),
    }
}

/// Whether a forward pass of so many rows has room, by the plan's estimate.
fn check_room(
    asked: String,
    model: &LanguageModel,
    rows: usize,
    length: usize,
    context: &Context,
) -> Result<()> {
    let bytes = activation_bytes(model.spec(), rows.saturating_mul(length), true);
    memory::check(asked, bytes as f64, "ask for less", &context.device)
}

/// Decoders predict the next token, encoders masked ones, and of an encoder-decoder's row the first half is the source.
fn measure_rows(
    model: LanguageModel,
    args: &TrainArgs,
    context: &Context,
    turn: &Turn<'_>,
) -> Result<Vec<Step>> {
    let asked = format!(
        "`--batch` {} of `--length` {} tokens",
        args.batch, args.length
    );
    check_room(asked, &model, args.batch, args.length, context)?;
    let spec = model.spec();
    let rows = random_tokens(spec.vocabulary, args.batch, args.length);
    let source = if spec.encoder.is_some() {
        args.length / 2
    } else {
        0
    };
    let sample = |ids: Vec<u32>| {
        let targets = (0..ids.len()).map(|t| t >= source).collect();
        Sample::example(&Example::new(ids, targets))
    };
    let samples = rows.into_iter().map(sample).collect();
    let options = match (&spec.encoder, spec.bidirectional) {
        (Some(_), _) => ObjectiveOptions::Seq2seq(Default::default()),
        (None, true) => ObjectiveOptions::Mlm(MaskingOptions {
            probability: MASKED,
            ..MaskingOptions::default()
        }),
        (None, false) => ObjectiveOptions::Pretrain(Default::default()),
    };
    let decoder_start = spec.encoder.as_ref().map(|encoder| encoder.decoder_start);
    let symbols = Symbols {
        mask: Some(0),
        vocabulary: spec.vocabulary,
        decoder_start,
        ..Symbols::default()
    };
    let mut objective = options.build(&symbols)?;
    let TrainArgs {
        batch,
        length,
        runs,
        precision,
        gradient_checkpointing,
        ..
    } = *args;
    let size = Size {
        batch,
        length,
        runs,
        precision,
        gradient_checkpointing,
    };
    measure(model, objective.as_mut(), samples, &size, context, turn)
}

/// Share of an encoder's tokens that are masked and pass the head.
const MASKED: f64 = 0.15;

/// How much is measured, and how it is computed.
struct Size {
    /// Rows, or pairs.
    batch: usize,
    length: usize,
    runs: usize,
    precision: Precision,
    gradient_checkpointing: bool,
}

/// A counted step.
struct Step {
    seconds: f64,
    /// What a large product reached right after it, in GFLOP/s: a machine that is shared changes its speed within minutes.
    peak: f64,
}

/// Products of which the middle one is the peak beside a step.
const PRODUCTS: usize = 3;

/// Every counted step, each in a turn of its own.
fn measure(
    model: LanguageModel,
    objective: &mut dyn Objective,
    samples: Vec<Sample>,
    size: &Size,
    context: &Context,
    turn: &Turn<'_>,
) -> Result<Vec<Step>> {
    let Size {
        batch,
        length,
        runs,
        precision,
        gradient_checkpointing,
    } = *size;
    if batch == 0 || length < 2 || runs == 0 {
        return Err(Error::Usage(
            "expected at least 1 row or pair, 2 tokens and 1 run".into(),
        ));
    }
    let options = TrainOptions {
        steps: Some(WARM_UP + runs),
        batch,
        length,
        precision,
        gradient_checkpointing,
        learning_rate: 1e-4,
        checkpoint_every: 0,
        ..TrainOptions::default()
    };
    let name = format!("espalier-bench-{}-{}", std::process::id(), turn.number());
    let folder = std::env::temp_dir().join(name);
    let run = Run {
        model,
        objective,
        samples,
        validation: Vec::new(),
        options,
        folder: folder.clone(),
        fingerprint: "bench".into(),
        interrupted: || false,
    };
    let mut steps = Vec::with_capacity(WARM_UP + runs);
    let mut started = Instant::now();
    let outcome = trainer::train(run, &mut |event| {
        if let Event::Step { .. } = event {
            let seconds = started.elapsed().as_secs_f64();
            steps.push(Step {
                seconds,
                peak: super::operators::peak(&context.device, PRODUCTS, precision),
            });
            turn.pass();
            started = Instant::now();
        }
    });
    // What the trainer left behind is of no use; failing to remove it does no harm.
    let _ = std::fs::remove_dir_all(&folder);
    outcome?;
    Ok(steps.split_off(WARM_UP.min(steps.len())))
}

/// The floating-point operations of a step, by the token.
#[derive(Debug, Clone, Copy)]
struct Work {
    per_token: f64,
}

impl Work {
    /// `passes` over every matrix of the model, each a multiplication and an addition a weight, and `products` between
    /// queries and keys (or weights and values), of which the causal half counts.
    fn new(spec: &ModelSpec, length: usize, passes: f64, products: f64) -> Self {
        // Of an encoder-decoder's tokens half pass the encoder and half the decoder.
        let (share, length) = if spec.encoder.is_some() {
            (0.5, length / 2)
        } else {
            (1.0, length)
        };
        let matrix = |(name, shape): &(String, Vec<usize>)| match shape[..] {
            [] | [_] => 0.0,
            _ if name.starts_with("blocks.") || name.starts_with("encoder.blocks.") => {
                spec.share_of_tokens(name) * shape.iter().map(|axis| *axis as f64).product::<f64>()
            }
            _ => 0.0,
        };
        let head =
            (spec.vocabulary * spec.width) as f64 * if spec.bidirectional { MASKED } else { 1.0 };
        let matrices = share * (spec.parameters().iter().map(matrix).sum::<f64>() + head);
        let all = length as f64;
        let half = (all + 1.0) / 2.0;
        let decoder = if spec.bidirectional { all } else { half };
        let stack = |blocks: &[BlockSpec], keys: f64| {
            blocks
                .iter()
                .map(|block| pairs(block, keys, all))
                .sum::<f64>()
        };
        let encoder = spec
            .encoder
            .as_ref()
            .map_or(0.0, |encoder| stack(&encoder.blocks, all));
        let pairs = share * (stack(&spec.blocks, decoder) + encoder);
        Self {
            per_token: 2.0 * (passes * matrices + products * pairs),
        }
    }
}

/// Products between queries and keys for a token of a block, with `keys` keys before each query on average, and `source`
/// tokens to read where the block sees an encoder.
fn pairs(block: &BlockSpec, keys: f64, source: f64) -> f64 {
    let queries = match &block.mixer {
        MixerSpec::Attention(attention) => attention.heads * attention.head_dim,
        MixerSpec::AttentionExperts(attention) => {
            attention.router.active * attention.kv_heads * attention.head_dim
        }
        // Scores are products of keys, what is mixed is values.
        MixerSpec::LatentAttention(attention) => attention.expanded() / 2,
        MixerSpec::Recurrent(recurrent) => return recurrent.products() as f64,
    };
    // A routed block has fewer queries, and each of them fewer keys.
    let share = block.routing.map_or(1.0, |routing| routing.capacity);
    let cross = block
        .cross
        .as_ref()
        .map_or(0, |cross| cross.attention.heads * cross.attention.head_dim);
    share * share * queries as f64 * keys + cross as f64 * source
}

fn sizes(args: &TrainArgs) -> Vec<(&'static str, serde_json::Value)> {
    vec![
        ("batch", args.batch.into()),
        ("length", args.length.into()),
        ("precision", args.precision.to_string().into()),
        ("gradient_checkpointing", args.gradient_checkpointing.into()),
    ]
}

fn show(
    job: &str,
    args: &TrainArgs,
    more: Vec<(&'static str, serde_json::Value)>,
    steps: &[Step],
    work: Work,
    context: &Context,
) -> Result<()> {
    let mut sizes = sizes(args);
    sizes.extend(more);
    let measured = measured(args.batch * args.length, steps, work);
    Figures {
        job,
        model: Some(&args.model),
        sizes,
        measured,
    }
    .show(context)
}

/// Speed, time, operations and their share of what a large product reached beside each step.
fn measured(tokens: usize, steps: &[Step], work: Work) -> Vec<(&'static str, &'static str, f64)> {
    let seconds: Vec<f64> = steps.iter().map(|step| step.seconds).collect();
    let middle = median(&seconds);
    let least = seconds.iter().copied().fold(f64::INFINITY, f64::min);
    let most = seconds.iter().copied().fold(0.0, f64::max);
    let operations = work.per_token * tokens as f64 * 1e-9;
    let peaks: Vec<f64> = steps.iter().map(|step| step.peak).collect();
    let shares: Vec<f64> = steps
        .iter()
        .map(|step| operations / step.seconds / step.peak)
        .collect();
    vec![
        ("tokens_per_second", "", tokens as f64 / middle),
        ("seconds", "s", middle),
        ("seconds_min", "s", least),
        ("seconds_max", "s", most),
        ("gflops", "GFLOP/s", operations / middle),
        ("peak_gflops", "GFLOP/s", median(&peaks)),
        ("share_of_peak", "", median(&shares)),
    ]
}
