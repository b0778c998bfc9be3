//! `espalier quickstart`: the whole life of a small model in one command, without a network.

mod size;

use std::{path::PathBuf, time::Instant};

use serde_json::Value;

use self::size::{Choice, SHORT_STEPS, Size, Speed, holds_more_than_short};
use super::{Context, open_page, run::say_summary};
use crate::{
    Error, Result,
    recipe::{Recipe, document},
    stages::{self, Voice, kinds::Kind},
    units,
    voice::TerminalVoice,
};

/// The recipe that the quickstart runs; a reader finds it in `recipes/quickstart.toml`.
const RECIPE: &str = include_str!("../../../../recipes/quickstart.toml");

/// Grow, tune and align a small model on this machine, measure each step, and write a report.
///
/// Needs no network and no arguments. Interrupted, the same command goes on where it stopped.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  espalier quickstart\n  espalier chat runs/quickstart")]
pub struct QuickstartArgs {
    /// The run's folder.
    #[arg(long, default_value = "runs/quickstart")]
    pub output: PathBuf,
    /// Seed of weights, data order and sampled answers.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Size of the model; chosen by a measurement of two seconds when absent.
    #[arg(long, value_enum)]
    pub size: Option<Size>,
    /// A few steps of each stage: shows that everything works, teaches nothing.
    #[arg(long)]
    pub short: bool,
    /// Open the report when done.
    #[arg(long)]
    pub open: bool,
}

/// Runs the command.
///
/// # Errors
/// When a stage fails, or the disk is full.
pub fn run(args: &QuickstartArgs, context: &Context) -> Result<()> {
    if args.short && holds_more_than_short(&args.output) {
        return Err(Error::usage(format!(
            "`{}` holds a whole run, which `--short` would replace; give another folder, as in `--output runs/short`",
            args.output.display()
        )));
    }
    let started = Instant::now();
    let mut voice = TerminalVoice::new(context.terminal);
    let recipe = recipe(args, choice(args, context, &mut voice))?;
    let results = stages::run(&recipe, &context.device, &mut voice)?;
    if context.json {
        return context.terminal.json(&results);
    }
    say_summary(&recipe, &results, context)?;
    for line in times(&recipe, &results, started.elapsed().as_secs_f64()) {
        context.terminal.line(&line)?;
    }
    for line in farewell(args, &results) {
        context.terminal.line(&line)?;
    }
    match args.open {
        true => open_page(&args.output.join("report.html")),
        false => Ok(()),
    }
}

/// The size and arithmetic of a run that was begun before, else those that this machine's speed asks for.
fn choice(args: &QuickstartArgs, context: &Context, voice: &mut dyn Voice) -> Choice {
    let begun = Choice::of_run(&args.output);
    if let Some(begun) = begun.filter(|begun| args.size.is_none_or(|size| size == begun.size)) {
        return begun;
    }
    let speed = Speed::measure(&context.device);
    let measured = speed.choice();
    let choice = Choice {
        size: args.size.unwrap_or(measured.size),
        ..measured
    };
    let (f32, bf16) = (speed.f32, speed.bf16);
    voice.say(&format!(
        "this machine multiplies at {f32:.0} GFLOP/s in f32 and {bf16:.0} in bf16: {}, {}",
        choice.size, choice.precision
    ));
    choice
}

fn recipe(args: &QuickstartArgs, choice: Choice) -> Result<Recipe> {
    let mut recipe: Recipe = document::parse(RECIPE, "quickstart.toml", &choice.size.overrides())?;
    recipe.output = args.output.clone();
    for stage in &mut recipe.stage {
        if let Kind::Train(train) = &mut stage.kind {
            train.options.seed = args.seed;
            train.options.precision = choice.precision;
            if args.short {
                train.options.steps = Some(SHORT_STEPS);
                let more = train.new.iter_mut().flat_map(|new| &mut new.tokenizer_data);
                train
                    .data
                    .iter_mut()
                    .chain(more)
                    .for_each(|data| data.limit = Some(64));
            }
        }
        if let Kind::Evaluate(evaluate) = &mut stage.kind {
            evaluate.seed = args.seed;
            if args.short {
                evaluate.limit = Some(8.0);
                let sources = [
                    &mut evaluate.data,
                    &mut evaluate.baseline,
                    &mut evaluate.preferences,
                ];
                sources
                    .into_iter()
                    .flatten()
                    .for_each(|data| data.limit = Some(16));
            }
        }
    }
    Ok(recipe)
}

/// The task on which instruction following is measured.
const TASK: &str = "sentence/2";

/// How long each stage took; of a stage that was done before, how long it took then.
fn times(recipe: &Recipe, results: &Value, total: f64) -> Vec<String> {
    let took = |name: &str| {
        results[name]["stage_seconds"]
            .as_f64()
            .map_or("-".into(), units::duration)
    };
    let line = |name: &str, time: String| format!("{name:<22}{time:>14}");
    let mut lines: Vec<String> = recipe
        .stage
        .iter()
        .map(|stage| line(&stage.name, took(&stage.name)))
        .collect();
    lines.push(line("all together", units::duration(total)));
    lines
}

/// Sample conversations, and what to do next.
fn farewell(args: &QuickstartArgs, results: &Value) -> Vec<String> {
    let mut lines = vec![String::new()];
    let samples = results["evaluate-aligned"]["tasks"][TASK]["samples"].as_array();
    for sample in samples.into_iter().flatten().take(2) {
        lines.push(format!(
            "user       {}",
            sample["prompt"].as_str().unwrap_or_default()
        ));
        lines.push(format!(
            "assistant  {}",
            sample["answer"].as_str().unwrap_or_default()
        ));
        lines.push(String::new());
    }
    let output = args.output.display();
    lines.push(format!("report             {output}/report.html"));
    lines.push(format!("talk to it         espalier chat {output}"));
    lines.push(
        "your own model     espalier train --model FOLDER --data FILE.jsonl --adapter lora --output runs/mine".into(),
    );
    lines
}
