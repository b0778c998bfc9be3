//! `espalier probe`: how far does a model read? RULER, needles by depth, VaL probing and LongPPL.

mod asked;
mod long_perplexity;
mod needles;
mod ruler;
mod val;

use std::path::PathBuf;

use clap::Subcommand;
use espalier_evaluate::report::{Report, Section};

use super::{Context, open_page};
use crate::{Error, Result};

/// Measure how far a model reads: its effective length, and what it finds at which place.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  espalier probe ruler MODEL --lengths 1024,4096 --samples 20 --report ruler.html
  espalier probe needles MODEL --lengths 512,1024,2048 --report needles.html
  espalier probe val MODEL --length 4096
  espalier probe longppl MODEL --evaluator LONG-MODEL book.txt")]
pub struct ProbeArgs {
    #[command(subcommand)]
    verb: ProbeVerb,
}

#[derive(Debug, Subcommand)]
enum ProbeVerb {
    Ruler(ruler::RulerArgs),
    Needles(needles::NeedlesArgs),
    Val(val::ValArgs),
    Longppl(long_perplexity::LongPerplexityArgs),
}

/// How a model is asked, and what is kept.
#[derive(Debug, clap::Args)]
pub struct Asking {
    /// A model folder, an adapter folder or a run
    pub model: PathBuf,
    /// Ask through the tokenizer's chat template
    #[arg(long)]
    pub chat: bool,
    /// Prompts that are answered at once
    #[arg(long, default_value_t = 1, value_name = "COUNT")]
    pub batch: usize,
    /// Write prompts, expected answers and answers here, a file of JSON lines for each task
    #[arg(long, value_name = "FOLDER")]
    pub save: Option<PathBuf>,
    /// Write a page with the table and the picture
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Open the page when done
    #[arg(long, requires = "report")]
    pub open: bool,
}

/// Runs the command.
///
/// # Errors
/// When a model, a file or a task is not there, or a length is too short.
pub fn run(args: &ProbeArgs, context: &Context) -> Result<()> {
    match &args.verb {
        ProbeVerb::Ruler(args) => ruler::run(args, context),
        ProbeVerb::Needles(args) => needles::run(args, context),
        ProbeVerb::Val(args) => val::run(args, context),
        ProbeVerb::Longppl(args) => long_perplexity::run(args, context),
    }
}

/// Writes the page where one was asked for.
fn write_report(asking: &Asking, title: &str, sections: Vec<Section>) -> Result<()> {
    let Some(path) = &asking.report else {
        return Ok(());
    };
    let report = Report {
        title: title.to_owned(),
        subtitle: asking.model.display().to_string(),
        facts: Vec::new(),
        sections,
    };
    report.write(path).map_err(espalier_evaluate::Error::from)?;
    match asking.open {
        true => open_page(path),
        false => Ok(()),
    }
}

/// Refuses a list without lengths, or a number of none.
fn check_counts(lengths: &[usize], samples: usize) -> Result<()> {
    match lengths.is_empty() || lengths.contains(&0) || samples == 0 {
        true => Err(Error::usage("lengths and samples must be at least 1")),
        false => Ok(()),
    }
}

/// A number with commas between thousands.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let parts = digits.as_bytes().rchunks(3).rev();
    let parts: Vec<String> = parts
        .map(|part| String::from_utf8_lossy(part).into_owned())
        .collect();
    parts.join(",")
}
