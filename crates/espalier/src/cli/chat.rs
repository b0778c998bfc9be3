//! `espalier chat`: a conversation in the terminal, or one line of a pipe after the other.
//!
//! When the context is full the oldest exchange is left out. Ctrl-C stops the answer, and at the prompt the program. Left out:
//! editing of lines.

use std::io::{self, BufRead, IsTerminal, Write};
use std::path::PathBuf;
use std::time::Instant;

use espalier_data::{nearest::suggestion, record::Message};
use espalier_engine::{
    decode::Finish,
    text::{GeneratedText, TextModel, TextOptions},
};
use espalier_kernels::linear::Precision;
use espalier_models::rounded_cache::CacheFormat;
use espalier_train::quantise::QuantiseOptions;
use serde_json::json;

use super::{Context, generate::finish_name, published::FILE, sampling::SamplingArgs};
use crate::{Error, Result, interrupt, model_path, units};

const HELP: &str = "/reset forgets the conversation, /system TEXT sets the system message, /quit or Ctrl-D ends; \
     Ctrl-C stops an answer";
const COMMANDS: [&str; 5] = ["/help", "/quit", "/exit", "/reset", "/system"];

/// Talk to a model.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  espalier chat runs/quickstart
  espalier chat MODEL --system 'Answer in one sentence.' --prompt 'What is an espalier?'
  printf 'Hello\\nGoodbye\\n' | espalier chat MODEL --json

Commands inside: /reset, /system TEXT, /help, /quit (or Ctrl-D).")]
pub struct ChatArgs {
    /// A model folder, an adapter folder, or a run's output
    pub model: PathBuf,
    /// The system message
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// Answer this and exit
    #[arg(long, value_name = "TEXT")]
    pub prompt: Option<String>,
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

/// Loads the model and answers until the input ends.
///
/// # Errors
/// When the model cannot be loaded or has no chat template; when it cannot answer a line of a pipe.
pub fn run(args: &ChatArgs, context: &Context) -> Result<()> {
    let mut opened =
        model_path::open_quantised_text_model(&args.model, args.quantise, &context.device)?;
    opened.text.model.set_precision(args.precision);
    opened.text.model.set_cache_format(args.cache)?;
    if opened.text.tokenizer.template().is_none() {
        let fix = "complete text with `espalier generate`, or tune it on conversations first";
        let folder = opened.folder.display();
        return Err(Error::Work(format!(
            "{folder}: the model has no chat template, so it cannot converse; {fix}"
        )));
    }
    let mut settings = args.sampling.settings(&opened.base)?;
    args.sampling
        .fit(&mut settings.sampler, &opened.text.tokenizer)?;
    context
        .terminal
        .notes(opened.remarks.iter().chain(&settings.remarks));
    if settings.beams.count > 1 {
        context.terminal.note(&format!(
            "note: {}: `num_beams` = {} counts for `espalier generate`; in a conversation one token is drawn at a time",
            opened.base.join(FILE).display(),
            settings.beams.count
        ));
    }
    let options = TextOptions {
        max_new_tokens: args.sampling.max_new_tokens,
        sampler: settings.sampler,
        stops: settings.stops,
    };
    let mut chat = Chat {
        model: opened.text,
        options,
        messages: Vec::new(),
        context,
    };
    chat.reset(args.system.clone());
    match &args.prompt {
        Some(prompt) => {
            chat.answer(prompt)?;
            match interrupt::requested() {
                true => Err(stopped()),
                false => Ok(()),
            }
        }
        None => chat.converse(&opened.folder.display().to_string()),
    }
}

fn stopped() -> Error {
    Error::Interrupted("the answer was stopped".into())
}

/// A conversation under way.
struct Chat<'a> {
    model: TextModel,
    options: TextOptions,
    messages: Vec<Message>,
    context: &'a Context,
}

/// What a line of input asks for.
#[derive(Debug, PartialEq)]
enum Line<'a> {
    Nothing,
    Help,
    Quit,
    Reset,
    System(&'a str),
    Unknown(&'a str),
    Say(&'a str),
}

impl<'a> Line<'a> {
    fn parse(line: &'a str) -> Self {
        let line = line.trim();
        let Some(command) = line.strip_prefix('/') else {
            return if line.is_empty() {
                Self::Nothing
            } else {
                Self::Say(line)
            };
        };
        let (name, rest) = command
            .split_once(char::is_whitespace)
            .unwrap_or((command, ""));
        match name {
            "help" => Self::Help,
            "quit" | "exit" => Self::Quit,
            "reset" => Self::Reset,
            "system" => Self::System(rest.trim()),
            _ => Self::Unknown(name),
        }
    }
}

impl Chat<'_> {
    /// Reads lines until the input ends.
    fn converse(&mut self, name: &str) -> Result<()> {
        let interactive = io::stdin().is_terminal();
        if interactive {
            self.greet(name);
        }
        let mut bytes = Vec::new();
        let mut unanswered = Vec::new();
        for number in 1.. {
            if interactive {
                write!(io::stderr(), "{} ", self.context.terminal.bold_remark(">"))?;
            }
            bytes.clear();
            if io::stdin().lock().read_until(b'\n', &mut bytes)? == 0 {
                break;
            }
            let line = match std::str::from_utf8(&bytes) {
                Ok(line) => line,
                // One bad line is no reason to lose the conversation; it is said even where nothing else is.
                Err(error) => {
                    let place = error.valid_up_to() + 1;
                    writeln!(
                        io::stderr(),
                        "line {number} is skipped: its byte {place} is not UTF-8"
                    )?;
                    continue;
                }
            };
            match self.act(&Line::parse(line)) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) if matches!(error, Error::Stream(_)) || error.is_interruption() => {
                    return Err(error);
                }
                // One line without an answer is no reason to lose the conversation.
                Err(error) => {
                    writeln!(io::stderr(), "error: {error}")?;
                    unanswered.push(number);
                }
            }
        }
        if interactive {
            writeln!(io::stderr())?;
        }
        // The exit code of a pipe says whether everything was answered.
        match unanswered[..] {
            [first, ..] if !interactive => Err(Error::Work(format!(
                "without an answer: {} of the lines, the first of them line {first}",
                unanswered.len()
            ))),
            _ => Ok(()),
        }
    }

    fn greet(&self, name: &str) {
        let spec = self.model.model.spec();
        let (size, window) = (units::count(spec.parameter_count()), spec.context);
        let terminal = &self.context.terminal;
        terminal.note(&format!(
            "{name}: {}, {size} parameters, context of {window} tokens",
            spec.family
        ));
        terminal.note(HELP);
    }

    /// Does what a line asks for; whether to go on.
    fn act(&mut self, line: &Line) -> Result<bool> {
        let terminal = self.context.terminal;
        match line {
            Line::Nothing => {}
            Line::Help => terminal.note(HELP),
            Line::Quit => return Ok(false),
            Line::Reset => {
                let system = self
                    .messages
                    .first()
                    .filter(|message| message.role == "system");
                self.reset(system.map(|message| message.text().into_owned()));
                terminal.note("the conversation starts anew");
            }
            Line::System(text) => {
                self.reset(Some(text.to_string()).filter(|text| !text.is_empty()));
                terminal.note("the conversation starts anew with this system message");
            }
            Line::Unknown(name) => {
                let hint = suggestion(&format!("/{name}"), COMMANDS);
                terminal.note(&format!("no command /{name}{hint}; {HELP}"));
            }
            Line::Say(text) => self.answer(text)?,
        }
        Ok(true)
    }

    fn reset(&mut self, system: Option<String>) {
        self.messages = system.map(Message::system).into_iter().collect();
    }

    /// Answers a message; one that cannot be answered is forgotten.
    fn answer(&mut self, text: &str) -> Result<()> {
        self.check_room(text)?;
        self.messages.push(Message::user(text));
        let answered = self.generate();
        match &answered {
            Ok(generated) => self.messages.push(Message::assistant(&generated.text)),
            Err(_) => _ = self.messages.pop(),
        }
        answered.map(|_| ())
    }

    /// Whether a message fits the context alone, behind the system message: else nothing needs to be forgotten for it.
    fn check_room(&self, text: &str) -> Result<()> {
        let system = self.messages.first();
        let system = system.filter(|message| message.role == "system").cloned();
        let alone: Vec<Message> = system.into_iter().chain([Message::user(text)]).collect();
        let tokens = self.model.chat_prompt(&alone)?.len();
        let window = self.model.model.spec().context;
        match tokens < window {
            true => Ok(()),
            false => Err(Error::Work(format!(
                "the message has {tokens} tokens but the model's context {window}; shorten it"
            ))),
        }
    }

    fn generate(&mut self) -> Result<GeneratedText> {
        let (terminal, json) = (self.context.terminal, self.context.json);
        let prompt = self.fitting_prompt()?;
        let start = Instant::now();
        let mut unwritten = None;
        interrupt::forget();
        let attentive = interrupt::attentive();
        let generated =
            self.model
                .generate(&prompt, &self.turn_options(prompt.len()), &mut |piece| {
                    if !json && unwritten.is_none() {
                        unwritten = terminal.foreign(piece).err();
                    }
                    unwritten.is_none() && !interrupt::requested()
                })?;
        drop(attentive);
        if let Some(error) = unwritten {
            return Err(error);
        }
        let rate = generated.tokens as f64 / start.elapsed().as_secs_f64();
        match json {
            true => terminal.json(&json!({
                "role": "assistant", "content": generated.text, "prompt_tokens": prompt.len(), "tokens": generated.tokens,
                "finish": finish_name(generated.finish), "tokens_per_second": rate,
            }))?,
            false => terminal.line("")?,
        }
        if interrupt::requested() {
            terminal.note("(stopped; Ctrl-C again ends the conversation)");
        }
        if interrupt::is_termination() {
            return Err(stopped());
        }
        if matches!(generated.finish, Finish::Length | Finish::Context) {
            let tokens = generated.tokens;
            terminal.note(&format!(
                "(cut off after {tokens} tokens; --max-new-tokens or the context allows no more)"
            ));
        }
        Ok(generated)
    }

    /// The options with a seed for this turn, so that the same question asked again may be answered otherwise.
    fn turn_options(&self, prompt: usize) -> TextOptions {
        let mut options = self.options.clone();
        options.sampler.seed = options
            .sampler
            .seed
            .wrapping_add(self.messages.len() as u64);
        let room = self
            .model
            .model
            .spec()
            .context
            .saturating_sub(prompt)
            .max(1);
        options.max_new_tokens = options.max_new_tokens.min(room);
        options
    }

    /// The conversation as tokens, without its oldest exchanges where it would leave no room for an answer.
    fn fitting_prompt(&mut self) -> Result<Vec<u32>> {
        let window = self.model.model.spec().context;
        loop {
            let prompt = self.model.chat_prompt(&self.messages)?;
            if prompt.len() + window / 8 < window || !self.forget_oldest() {
                return Ok(prompt);
            }
            self.context
                .terminal
                .note("(the context is full: the oldest exchange is left out from here on)");
        }
    }

    /// Drops the oldest question with its answer; false when only the last question is left.
    fn forget_oldest(&mut self) -> bool {
        let first = usize::from(
            self.messages
                .first()
                .is_some_and(|message| message.role == "system"),
        );
        let can = self.messages.len() >= first + 3;
        if can {
            self.messages.drain(first..first + 2);
        }
        can
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_commands_or_messages() {
        assert_eq!(Line::parse("  \n"), Line::Nothing);
        assert_eq!(Line::parse("hello there\n"), Line::Say("hello there"));
        assert_eq!(
            Line::parse("/system  be brief \n"),
            Line::System("be brief")
        );
        assert_eq!(Line::parse("/exit"), Line::Quit);
        assert_eq!(Line::parse("/rest"), Line::Unknown("rest"));
    }
}
