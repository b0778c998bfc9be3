//! `espalier generate`: texts that continue prompts, or answer them.

use std::path::{Path, PathBuf};
use std::time::Instant;

use espalier_data::record::Message;
use espalier_engine::{
    decode::Finish,
    text::{GeneratedText, TextModel, TextOptions},
};
use espalier_models::state_file::Prefix;
use espalier_train::quantise::QuantiseOptions;
use serde_json::json;

use super::{
    Context,
    inspect::describe::{cache_per_token, state_size},
    lines::Texts,
    sampling::SamplingArgs,
};
use crate::{Error, Result, memory, model_path, units};

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
    /// Follow this many continuations side by side instead of drawing tokens
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub beams: usize,
    /// With `--beams`: above 1 favours long texts, below 1 short ones
    #[arg(long, default_value_t = 1.0)]
    pub length_penalty: f64,
    /// Read the prompt, write what the model remembers of it to FILE, and generate nothing
    #[arg(long, value_name = "FILE", conflicts_with_all = ["chat", "beams", "from_state"])]
    pub save_state: Option<PathBuf>,
    /// Go on behind the text whose memory `--save-state` wrote to FILE
    #[arg(long, value_name = "FILE", conflicts_with_all = ["chat", "beams"])]
    pub from_state: Option<PathBuf>,
    /// Round the linear maps of the (base) model's blocks to four bits: nf4 or fp4
    #[arg(long, value_name = "NAME")]
    pub quantise: Option<QuantiseOptions>,
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
    if args.beams != 1 {
        args.check_beams()?;
    }
    let opened =
        model_path::open_quantised_text_model(&args.model, args.quantise, &context.device)?;
    super::say_remarks(&opened.remarks);
    let sampler = args.sampling.options(&opened.base)?;
    let options = TextOptions {
        max_new_tokens: args.sampling.max_new_tokens,
        sampler,
        stops: args.stop.clone(),
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
        return go_on(&opened.text, &prefix, prompts, &encoded, &options, context);
    }
    if args.beams > 1 {
        return search(&opened.text, prompts, &encoded, &options, args, context);
    }
    match (&prompts[..], context.json) {
        ([_], false) => stream(&opened.text, &encoded[0], &options, context),
        _ => generate_all(&opened.text, prompts, &encoded, &options, context),
    }
}

impl GenerateArgs {
    /// Beams follow the likeliest continuations, so that nothing is drawn.
    fn check_beams(&self) -> Result<()> {
        if self.beams == 0 {
            return Err(Error::usage("--beams 0: expected at least 1"));
        }
        match self.sampling.drawing() {
            Some(option) => Err(Error::usage(format!(
                "{option} says how tokens are drawn, and --beams draws none; leave one of them out"
            ))),
            None => Ok(()),
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

/// Each prompt behind a text that was read before.
fn go_on(
    text: &TextModel,
    prefix: &Prefix,
    prompts: &[String],
    encoded: &[Vec<u32>],
    options: &TextOptions,
    context: &Context,
) -> Result<()> {
    for (index, (prompt, ids)) in prompts.iter().zip(encoded).enumerate() {
        let started = Instant::now();
        let generated = text.generate_after(Some(prefix), ids, options, &mut |_| true)?;
        show(
            index,
            prompt,
            ids.len(),
            &generated,
            started.elapsed().as_secs_f64(),
            context,
        )?;
    }
    Ok(())
}

/// One text, shown while it is made.
fn stream(
    model: &TextModel,
    prompt: &[u32],
    options: &TextOptions,
    context: &Context,
) -> Result<()> {
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
    Ok(())
}

/// Many texts, a batch at a time; what a prompt gets does not depend on how they fall into batches.
fn generate_all(
    model: &TextModel,
    prompts: &[String],
    encoded: &[Vec<u32>],
    options: &TextOptions,
    context: &Context,
) -> Result<()> {
    let progress = context.terminal.progress(prompts.len() as u64, "generate");
    let start = Instant::now();
    let mut tokens = 0;
    for first in (0..prompts.len()).step_by(BATCH) {
        let last = prompts.len().min(first + BATCH);
        let mut options = options.clone();
        options.sampler.seed = options.sampler.seed.wrapping_add(first as u64);
        let batch_start = Instant::now();
        let generated = model.generate_batch(&encoded[first..last], &options)?;
        let seconds = batch_start.elapsed().as_secs_f64();
        tokens += generated.iter().map(|text| text.tokens).sum::<usize>();
        for (index, text) in (first..last).zip(&generated) {
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
    Ok(())
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
    let remembered = longest as f64 * cache_per_token(spec) as f64 + state_size(spec) as f64;
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
    args: &GenerateArgs,
    context: &Context,
) -> Result<()> {
    check_room(text, encoded, args.beams, context)?;
    for (index, (prompt, ids)) in prompts.iter().zip(encoded).enumerate() {
        let started = Instant::now();
        let generated = text.search(ids, options, args.beams, args.length_penalty)?;
        show(
            index,
            prompt,
            ids.len(),
            &generated,
            started.elapsed().as_secs_f64(),
            context,
        )?;
    }
    Ok(())
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
