//! The command line: global options, one file for each verb, and what becomes of errors.

pub mod bench;
pub mod chat;
pub mod convert;
pub mod data;
pub mod doctor;
pub mod embed;
pub mod eval;
pub mod families;
pub mod generate;
pub mod inspect;
pub mod lines;
pub mod merge;
pub mod probe;
pub mod published;
pub mod quantize;
pub mod quickstart;
pub mod run;
pub mod sampling;
pub mod serve;
pub mod trace;
pub mod train;
pub mod verify;

use std::io::Write;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::Device;
use clap::{Arg, Command, CommandFactory, FromArgMatches, Parser, Subcommand, error::ErrorKind};
use espalier_kernels::{allocator, memory_map, simd};

use crate::{Error, Result, device, interrupt, memory, terminal::Terminal};

/// What every verb is given besides its arguments.
#[derive(Debug, Clone)]
pub struct Context {
    /// Whether results are written as JSON.
    pub json: bool,
    /// Whether progress and remarks are left out.
    pub quiet: bool,
    /// Where tensors live.
    pub device: Device,
    /// Where output goes.
    pub terminal: Terminal,
}

/// Train, tune, align, evaluate and talk to language models: one program, no Python.
#[derive(Debug, Parser)]
#[command(
    name = "espalier",
    version,
    arg_required_else_help = true,
    infer_subcommands = false
)]
#[command(
    after_help = "Example:\n  espalier quickstart                  the whole life of a small model\n  espalier train --help                a verb's options, with an example"
)]
struct Cli {
    /// Write results as JSON on standard output, errors too.
    #[arg(long, global = true)]
    json: bool,
    /// Where to compute: `cpu`, or `cuda:0`, `vulkan:0`, ... where the program was built with that feature.
    #[arg(long, global = true, default_value = "cpu", value_name = "DEVICE")]
    device: String,
    /// No progress and no remarks; results and errors only.
    #[arg(long, short, global = true)]
    quiet: bool,
    /// Refuse what is estimated to take more memory than this, such as `64GiB`, or `none`; all of this machine's when absent.
    #[arg(long, global = true, value_name = "SIZE", value_parser = memory::parse_limit)]
    memory_limit: Option<u64>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Quickstart(quickstart::QuickstartArgs),
    Run(run::RunArgs),
    Train(train::TrainArgs),
    Chat(chat::ChatArgs),
    Generate(generate::GenerateArgs),
    Embed(embed::EmbedArgs),
    Serve(serve::ServeArgs),
    Eval(eval::EvalArgs),
    Probe(probe::ProbeArgs),
    Merge(merge::MergeArgs),
    Data(data::DataArgs),
    Families(families::FamiliesArgs),
    Inspect(inspect::InspectArgs),
    Trace(trace::TraceArgs),
    Quantize(quantize::QuantizeArgs),
    Convert(convert::ConvertArgs),
    Verify(verify::VerifyArgs),
    Bench(bench::BenchArgs),
    Doctor(doctor::DoctorArgs),
}

impl Verb {
    fn run(&self, context: &Context) -> Result<()> {
        match self {
            Self::Quickstart(args) => quickstart::run(args, context),
            Self::Run(args) => run::run(args, context),
            Self::Train(args) => train::run(args, context),
            Self::Chat(args) => chat::run(args, context),
            Self::Generate(args) => generate::run(args, context),
            Self::Embed(args) => embed::run(args, context),
            Self::Serve(args) => serve::run(args, context),
            Self::Eval(args) => eval::run(args, context),
            Self::Probe(args) => probe::run(args, context),
            Self::Merge(args) => merge::run(args, context),
            Self::Data(args) => data::run(args, context),
            Self::Families(args) => families::run(args, context),
            Self::Inspect(args) => inspect::run(args, context),
            Self::Trace(args) => trace::run(args, context),
            Self::Quantize(args) => quantize::run(args, context),
            Self::Convert(args) => convert::run(args, context),
            Self::Verify(args) => verify::run(args, context),
            Self::Bench(args) => bench::run(args, context),
            Self::Doctor(args) => doctor::run(args, context),
        }
    }
}

/// Runs the command of the process's arguments and gives its exit code.
pub fn main() -> ExitCode {
    let matches = forgiving(Cli::command()).try_get_matches();
    let cli = match matches.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    let bug = record_panics();
    match panic::catch_unwind(AssertUnwindSafe(|| execute(&cli))) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => report(&error, cli.json),
        Err(_) => report_bug(
            &bug.lock().unwrap_or_else(PoisonError::into_inner),
            cli.json,
        ),
    }
}

/// The command with options that take negative numbers for what they are: wrong values, mostly, and not unknown options.
fn forgiving(command: Command) -> Command {
    let option = |argument: Arg| {
        let takes = argument.get_action().takes_values() && !argument.is_positional();
        match takes {
            true => argument.allow_negative_numbers(true),
            false => argument,
        }
    };
    command.mut_args(option).mut_subcommands(forgiving)
}

/// The variable by which the user bounds the threads.
const THREADS: &str = "RAYON_NUM_THREADS";

/// Most threads for each processor core: more of them only wait for each other.
const MOST_THREADS: usize = 8;

/// Refuses numbers of threads that no machine of this size can start in time.
fn check_threads() -> Result<()> {
    let Ok(text) = std::env::var(THREADS) else {
        return Ok(());
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let most = (MOST_THREADS * cores).max(64);
    match text.trim().parse::<usize>() {
        Ok(threads) if threads <= most => Ok(()),
        _ => Err(Error::usage(format!(
            "{THREADS}={text}: expected a number up to {most}, for this machine has {cores} cores; 0 takes as many as there are"
        ))),
    }
}

fn execute(cli: &Cli) -> Result<()> {
    interrupt::listen()?;
    check_threads()?;
    memory_map::explain_lost_pages()?;
    simd::asked_level().map_err(|error| Error::usage(error.to_string()))?;
    if let Some(bytes) = cli.memory_limit {
        memory::set_limit(bytes);
    }
    allocator::keep_freed_memory();
    if matches!(&cli.verb, Verb::Bench(args) if args.trains_in_threads()) {
        allocator::share_one_arena();
    }
    // This thread becomes one of the workers, so that it computes instead of waiting for them. An error means that the
    // pool exists already, which is as good.
    let _ = rayon::ThreadPoolBuilder::new()
        .use_current_thread()
        .build_global();
    let device = device::parse(&cli.device)?;
    let terminal = Terminal::new(cli.quiet);
    cli.verb.run(&Context {
        json: cli.json,
        quiet: cli.quiet,
        device,
        terminal,
    })
}

/// Help and version as asked for; wrong arguments with the parser's own advice.
fn refuse(error: &clap::Error) -> ExitCode {
    let json = std::env::args_os().any(|argument| argument == "--json");
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let printed = error.print().and_then(|()| std::io::stdout().flush());
            printed.map_or_else(|error| report(&error.into(), json), |()| ExitCode::SUCCESS)
        }
        _ if json => report(&Error::Usage(first_paragraph(&error.to_string())), true),
        _ => {
            let _ = error.print();
            ExitCode::from(2)
        }
    }
}

fn first_paragraph(text: &str) -> String {
    let text = text.strip_prefix("error: ").unwrap_or(text);
    text.split("\n\n")
        .next()
        .unwrap_or(text)
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

/// Tells of an error. The message may go unread, as after `| head`; the exit code stands all the same.
fn report(error: &Error, json: bool) -> ExitCode {
    if !error.is_closed_pipe() {
        let _ = match json {
            true => writeln!(std::io::stdout(), "{}", error.to_json()),
            false => writeln!(std::io::stderr(), "error: {error}"),
        };
    }
    ExitCode::from(error.exit_code())
}

/// Panics are kept for [`report_bug`] instead of being printed: some are caught on the way, and then were none.
fn record_panics() -> Arc<Mutex<String>> {
    let last = Arc::new(Mutex::new(String::new()));
    let slot = Arc::clone(&last);
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |information| {
        let place = information
            .location()
            .map(|place| format!(" at {}:{}", place.file(), place.line()));
        let message = information
            .payload_as_str()
            .unwrap_or("a panic without words");
        let text = format!("{message}{}", place.unwrap_or_default());
        *slot.lock().unwrap_or_else(PoisonError::into_inner) =
            text.split_whitespace().collect::<Vec<_>>().join(" ");
        if std::env::var_os("RUST_BACKTRACE").is_some() {
            usual(information);
        }
    }));
    last
}

fn report_bug(what: &str, json: bool) -> ExitCode {
    let message = format!(
        "this is a bug of espalier ({what}); please report it with the command that shows it"
    );
    let _ = match json {
        true => writeln!(
            std::io::stdout(),
            "{}",
            serde_json::json!({"error": {"kind": "bug", "code": 101, "message": message}})
        ),
        false => writeln!(std::io::stderr(), "error: {message}"),
    };
    ExitCode::from(101)
}

/// Opens a page in the user's browser.
///
/// # Errors
/// When no program opens pages; the message says where it is.
pub(crate) fn open_page(page: &Path) -> Result<()> {
    let opener = if cfg!(target_os = "macos") {
        "open"
    } else {
        "xdg-open"
    };
    let started = std::process::Command::new(opener).arg(page).status();
    match started {
        Ok(status) if status.success() => Ok(()),
        _ => Err(Error::work(format!(
            "`{opener}` cannot open the page; it is {}",
            page.display()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        forgiving(Cli::command()).debug_assert();
    }

    #[test]
    fn the_parsers_advice_fits_one_line() {
        let error = Cli::try_parse_from(["espalier", "chat", "m", "--top-q", "1"]).unwrap_err();
        assert_eq!(
            first_paragraph(&error.to_string()),
            "unexpected argument '--top-q' found"
        );
    }
}
