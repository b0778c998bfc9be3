//! `espalier generate`: texts that continue prompts, or answer them.

use std::path::{Path, PathBuf};
use std::time::Instant;

use espalier_data::record::Message;
use espalier_engine::{
    decode::Finish,
    text::{GeneratedText, TextModel, TextOptions},
};
use espalier_kernels::linear::Precision;
use espalier_models::rounded_cache::CacheFormat;
use espalier_models::state_file::Prefix;
use espalier_train::quantise::QuantiseOptions;
use serde_json::json;

use super::{
    Context,
    lines::Texts,
    published::{Beams, FILE, LENGTH_PENALTY, is_length_penalty},
    sampling::SamplingArgs,
};
use crate::{Error, Result, memory, model_path, stages::model::beyond_context, units};

/// Prompts that are computed together.
const BATCH: usize = 16;

/// Continue or answer prompts.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  espalier generate MODEL 'Once upon a time' --max-new-tokens 100 --temperature 0.8
  espalier generate MODEL --chat --file questions.txt --json > answers.jsonl
  espalier generate MODEL \"$(cat book.txt)\" --save-state book.state
  espalier generate MODEL ' The moral is' --from-state book.state")]
pub struct GenerateArgs {
    /// A model folder, an adapter folder, or a run's output
    pub model: PathBuf,
    /// The prompts
    #[arg(value_name = "PROMPT")]
    pub prompts: Vec<String>,
    /// Further prompts, one a line
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Put each prompt as a question, in the model's chat template
    #[arg(long)]
    pub chat: bool,
    /// The system message of `--chat`
    #[arg(long, value_name = "TEXT", requires = "chat")]
    pub system: Option<String>,
    /// End a text before this string; may be given several times
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
    /// Follow this many continuations side by side instead of drawing tokens [default: the model's own, else 1]
    #[arg(long, value_name = "N")]
    pub beams: Option<usize>,
    /// With several beams: above 1 favours long texts, below 1 short ones [default: the model's own, else 1]
    #[arg(long, value_name = "NUMBER")]
    pub length_penalty: Option<f64>,
    /// Read the prompt, write what the model remembers of it to FILE, and generate nothing
    #[arg(long, value_name = "FILE", conflicts_with_all = ["chat", "beams", "from_state"])]
    pub save_state: Option<PathBuf>,
    /// Go on behind the text whose memory `--save-state` wrote to FILE
    #[arg(long, value_name = "FILE", conflicts_with_all = ["chat", "beams"])]
    pub from_state: Option<PathBuf>,
    /// Round the linear maps of the (base) model's blocks to four bits: nf4 or fp4
    #[arg(long, value_name = "NAME")]
    pub quantise: Option<QuantiseOptions>,
    /// The arithmetic of products with many rows: f32 or bf16, which is faster where the processor multiplies it
    #[arg(long, value_name = "NAME", default_value_t = Precision::F32)]
    pub precision: Precision,
    /// How keys and values are remembered: f32, bf16 or q8_0
    #[arg(long, value_name = "FORMAT", default_value_t = CacheFormat::F32)]
    pub cache: CacheFormat,
    /// How tokens are drawn.
    #[command(flatten)]
    pub sampling: SamplingArgs,
}

/// Generates for every prompt.
///
/// # Errors
/// When the model cannot be loaded, there are no prompts, or a prompt does not fit the model.
pub fn run(args: &GenerateArgs, context: &Context) -> Result<()> {
    let given = prompts(args)?;
    let prompts = &given.all;
    args.check()?;
    let mut opened =
        model_path::open_quantised_text_model(&args.model, args.quantise, &context.device)?;
    opened.text.model.set_precision(args.precision);
    opened.text.model.set_cache_format(args.cache)?;
    let mut settings = args.sampling.settings(&opened.base)?;
    args.sampling
        .fit(&mut settings.sampler, &opened.text.tokenizer)?;
    context
        .terminal
        .notes(opened.remarks.iter().chain(&settings.remarks));
    let beams = args.beams(&settings.beams, context);
    let options = TextOptions {
        max_new_tokens: args.sampling.max_new_tokens,
        sampler: settings.sampler,
        stops: [settings.stops, args.stop.clone()].concat(),
    };
    let encoded = prompts
        .iter()
        .map(|prompt| encode(&opened.text, prompt, args))
        .collect::<Result<Vec<_>>>()?;
    if let Some(place) = encoded.iter().position(Vec::is_empty) {
        return Err(Error::Work(format!(
            "{}: the prompt is empty, and this model puts no token of its own before a text, so there is nothing to go on from",
            given.place(place)
        )));
    }
    if let Some(path) = &args.save_state {
        return save_state(&opened.text, &encoded, path, context);
    }
    if let Some(path) = &args.from_state {
        let prefix = Prefix::load(&opened.text.model, path)?;
        let longest = go_on(&opened.text, &prefix, prompts, &encoded, &options, context)?;
        say_context(&opened.text, longest, context);
        return Ok(());
    }
    let longest = match (&prompts[..], context.json) {
        _ if beams.count > 1 => search(&opened.text, prompts, &encoded, &options, beams, context),
        ([_], false) => stream(&opened.text, &encoded[0], &options, context),
        _ => generate_all(&opened.text, prompts, &encoded, &options, context),
    }?;
    say_context(&opened.text, longest, context);
    Ok(())
}

/// Tells once of a text that became longer than what the model was made for.
fn say_context(text: &TextModel, longest: usize, context: &Context) {
    if let Some(remark) = beyond_context(text.model.spec(), longest) {
        context.terminal.note(&remark);
    }
}

/// Tokens of the longest text that the model had before it: prompt and continuation, which an encoder-decoder has apart.
fn extent(text: &TextModel, prompt: usize, generated: &GeneratedText) -> usize {
    match text.model.spec().encoder {
        Some(_) => prompt.max(generated.tokens),
        None => prompt + generated.tokens,
    }
}

impl GenerateArgs {
    /// What is wrong whatever the model is.
    fn check(&self) -> Result<()> {
        if self.stop.iter().any(String::is_empty) {
            return Err(Error::usage(
                "--stop '': every text has an empty one; give the text to stop at, or leave it out",
            ));
        }
        if let Some(penalty) = self.length_penalty.filter(|p| !is_length_penalty(*p)) {
            return Err(Error::usage(format!(
                "--length-penalty {penalty}: expected {LENGTH_PENALTY}"
            )));
        }
        match self.beams {
            None | Some(1) => Ok(()),
            Some(0) => Err(Error::usage("--beams 0: expected at least 1")),
            // Beams follow the likeliest continuations, so that nothing is drawn.
            Some(_) => match self.sampling.drawing() {
                Some(option) => Err(Error::usage(format!(
                    "{option} says how tokens are drawn, and --beams draws none; leave one of them out"
                ))),
                None => match self.sampling.one_by_one() {
                    Some(option) => Err(Error::usage(format!(
                        "{option} is not there for --beams; leave one of them out"
                    ))),
                    None => Ok(()),
                },
            },
        }
    }

    /// The beams that were asked for, or else the model's own, which give way to options that say how tokens are drawn.
    fn beams(&self, own: &Beams, context: &Context) -> Beams {
        let alone = self.sampling.drawing().is_some()
            || self.sampling.one_by_one().is_some()
            || self.save_state.is_some()
            || self.from_state.is_some();
        let count = self.beams.unwrap_or(if alone { 1 } else { own.count });
        if self.beams.is_none() && count > 1 {
            context.terminal.note(&format!(
                "(follows {count} beams, as the model's {FILE} says; `--beams 1` follows one)"
            ));
        }
        Beams {
            count,
            length_penalty: self.length_penalty.unwrap_or(own.length_penalty),
            ..*own
        }
    }
}

/// Why a text ended, in a word.
pub fn finish_name(finish: Finish) -> &'static str {
    match finish {
        Finish::End => "end",
        Finish::Stopped => "stop",
        Finish::Length => "length",
        Finish::Context => "context",
    }
}

fn prompts(args: &GenerateArgs) -> Result<Texts> {
    let prompts = Texts::gather(&args.prompts, args.file.as_deref())?;
    if prompts.all.is_empty() {
        return Err(Error::Usage(
            "there is no prompt; give one after the model, or `--file prompts.txt`".into(),
        ));
    }
    Ok(prompts)
}

fn encode(model: &TextModel, prompt: &str, args: &GenerateArgs) -> Result<Vec<u32>> {
    if !args.chat {
        // Behind a text no other one begins.
        return Ok(model
            .tokenizer
            .encode_ids(prompt, args.from_state.is_none())?);
    }
    let system = args.system.as_deref().map(Message::system);
    let messages: Vec<Message> = system.into_iter().chain([Message::user(prompt)]).collect();
    Ok(model.chat_prompt(&messages)?)
}

/// Lets the model read the only prompt, and keeps what it remembers.
fn save_state(
    text: &TextModel,
    encoded: &[Vec<u32>],
    path: &Path,
    context: &Context,
) -> Result<()> {
    let [ids] = encoded else {
        return Err(Error::Usage(
            "--save-state takes one prompt; give its lines as one argument".into(),
        ));
    };
    let prefix = Prefix::read(&text.model, ids)?;
    prefix.save(&text.model, path)?;
    let bytes = 4 * prefix.size() as u64;
    if context.json {
        return context.terminal.json(
            &json!({ "state": path.to_string_lossy(), "tokens": ids.len(), "bytes": bytes }),
        );
    }
    let size = units::bytes(bytes);
    context.terminal.line(&format!(
        "{}: {} tokens, remembered in {size}",
        path.display(),
        ids.len()
    ))
}

/// Each prompt behind a text that was read before. As all that follow, returns the tokens of the longest text.
fn go_on(
    text: &TextModel,
    prefix: &Prefix,
    prompts: &[String],
    encoded: &[Vec<u32>],
    options: &TextOptions,
    context: &Context,
) -> Result<usize> {
    let mut longest = 0;
    for (index, (prompt, ids)) in prompts.iter().zip(encoded).enumerate() {
        let started = Instant::now();
        let generated = text.generate_after(Some(prefix), ids, options, &mut |_| true)?;
        longest = longest.max(extent(text, prefix.ids.len() + ids.len(), &generated));
        show(
            index,
            prompt,
            ids.len(),
            &generated,
            started.elapsed().as_secs_f64(),
            context,
        )?;
    }
    Ok(longest)
}

/// One text, shown while it is made.
fn stream(
    model: &TextModel,
    prompt: &[u32],
    options: &TextOptions,
    context: &Context,
) -> Result<usize> {
    let (start, mut unwritten) = (Instant::now(), None);
    let generated = model.generate(prompt, options, &mut |piece| {
        if unwritten.is_none() {
            unwritten = context.terminal.foreign(piece).err();
        }
        unwritten.is_none()
    })?;
    if let Some(error) = unwritten {
        return Err(error);
    }
    context.terminal.line("")?;
    let (tokens, finish) = (generated.tokens, finish_name(generated.finish));
    let rate = units::rate(tokens as f64 / start.elapsed().as_secs_f64());
    context.terminal.note(&format!(
        "({tokens} tokens, {rate} a second; ended by {finish})"
    ));
    Ok(extent(model, prompt.len(), &generated))
}

/// Many texts, a batch at a time; what a prompt gets does not depend on how they fall into batches.
fn generate_all(
    model: &TextModel,
    prompts: &[String],
    encoded: &[Vec<u32>],
    options: &TextOptions,
    context: &Context,
) -> Result<usize> {
    let progress = context.terminal.progress(prompts.len() as u64, "generate");
    let start = Instant::now();
    let (mut tokens, mut longest) = (0, 0);
    for first in (0..prompts.len()).step_by(BATCH) {
        let last = prompts.len().min(first + BATCH);
        let mut options = options.clone();
        options.sampler.seed = options.sampler.seed.wrapping_add(first as u64);
        let batch_start = Instant::now();
        let generated = model.generate_batch(&encoded[first..last], &options)?;
        let seconds = batch_start.elapsed().as_secs_f64();
        tokens += generated.iter().map(|text| text.tokens).sum::<usize>();
        for (index, text) in (first..last).zip(&generated) {
            longest = longest.max(extent(model, encoded[index].len(), text));
            progress.suspend(|| {
                show(
                    index,
                    &prompts[index],
                    encoded[index].len(),
                    text,
                    seconds,
                    context,
                )
            })?;
        }
        progress.set(last as u64, "");
    }
    let rate = units::rate(tokens as f64 / start.elapsed().as_secs_f64());
    progress.finish(&format!("{tokens} tokens, {rate} a second"));
    Ok(longest)
}

/// Whether there can be so many continuations, and room for what each remembers of the prompt and for its logits.
fn check_room(
    text: &TextModel,
    encoded: &[Vec<u32>],
    beams: usize,
    context: &Context,
) -> Result<()> {
    let spec = text.model.spec();
    if beams > spec.vocabulary {
        return Err(Error::usage(format!(
            "--beams {beams}: expected at most {}, the tokens of the vocabulary",
            spec.vocabulary
        )));
    }
    let longest = encoded.iter().map(Vec::len).max().unwrap_or(0);
    let remembered = longest as f64 * spec.cache_per_token() as f64 + spec.state_size() as f64;
    let bytes = beams as f64 * (remembered + 8.0 * spec.vocabulary as f64);
    let asked = format!("--beams {beams}: to follow so many continuations");
    memory::check(asked, bytes, "choose fewer", &context.device)
}

/// The best continuation of every prompt by beam search.
fn search(
    text: &TextModel,
    prompts: &[String],
    encoded: &[Vec<u32>],
    options: &TextOptions,
    beams: Beams,
    context: &Context,
) -> Result<usize> {
    check_room(text, encoded, beams.count, context)?;
    let Beams {
        count,
        length_penalty,
        early_stopping,
    } = beams;
    let mut longest = 0;
    for (index, (prompt, ids)) in prompts.iter().zip(encoded).enumerate() {
        let started = Instant::now();
        let generated = text.search(ids, options, count, length_penalty, early_stopping)?;
        longest = longest.max(extent(text, ids.len(), &generated));
        show(
            index,
            prompt,
            ids.len(),
            &generated,
            started.elapsed().as_secs_f64(),
            context,
        )?;
    }
    Ok(longest)
}

fn show(
    index: usize,
    prompt: &str,
    prompt_tokens: usize,
    text: &GeneratedText,
    batch_seconds: f64,
    context: &Context,
) -> Result<()> {
    let terminal = &context.terminal;
    if context.json {
        return terminal.json(&json!({
            "prompt": prompt, "text": text.text, "prompt_tokens": prompt_tokens, "tokens": text.tokens,
            "finish": finish_name(text.finish), "tokens_per_second": text.tokens as f64 / batch_seconds,
        }));
    }
    terminal.line(&terminal.faint(&format!(
        "[{}] {}",
        index + 1,
        crate::terminal::harmless(prompt)
    )))?;
    terminal.foreign(&text.text)?;
    terminal.line("\n")
}
