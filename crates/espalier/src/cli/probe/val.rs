//! `espalier probe val`: sentences, functions and entities at every place of a long context.

use std::path::PathBuf;

use espalier_evaluate::{
    report::{HeatMap, Section, Table},
    val_probe::{self, ANSWER_TOKENS, Options, Profile, Sample, Task, pieces::Pieces},
};
use serde_json::{Value, json};

use super::{
    Asking, Context,
    asked::{Asked, save},
    check_counts, grouped, write_report,
};
use crate::Result;

/// What the paper puts around a prompt where there is no chat template.
const INSTRUCTION: [&str; 2] = ["[INST] ", " [/INST]"];

/// VaL probing: what stands at each place of a long context, looking both ways, back and forward.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  espalier probe val MODEL --length 4096 --report val.html
  espalier probe val MODEL --length 32768 --each 50 --chat --data FILM/VaLProbing/pieces")]
pub struct ValArgs {
    #[command(flatten)]
    asking: Asking,
    /// Tokens of prompt and answer; the published number is about 32,000
    #[arg(long, default_value_t = 4096, value_name = "TOKENS")]
    length: usize,
    /// Spans into which the places of a context are put together
    #[arg(long, default_value_t = 16, value_name = "COUNT")]
    spans: usize,
    /// Contexts of each task
    #[arg(long, default_value_t = 4, value_name = "COUNT")]
    sets: usize,
    /// Places of each span and context that are asked about; the published number is all, of which there are 50
    #[arg(long, default_value_t = 1, value_name = "COUNT")]
    each: usize,
    /// Seed of the contexts
    #[arg(long, default_value_t = 0, value_name = "NUMBER")]
    seed: u64,
    /// A folder with the authors' pieces; made-up ones when absent
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
}

/// Runs the command.
///
/// # Errors
/// When the model or a file is not there, or the length is too short.
pub fn run(args: &ValArgs, context: &Context) -> Result<()> {
    check_counts(&[args.length, args.spans, args.sets], args.each)?;
    let mut asked = Asked::open(&args.asking, context)?;
    if !args.asking.chat {
        asked.template = INSTRUCTION.map(str::to_owned);
    }
    asked.warn(args.length, context);
    let profile = |task: Task| Ok((task, measure(args, &asked, task, context)?));
    let profiles = Task::ALL
        .into_iter()
        .map(profile)
        .collect::<Result<Vec<_>>>()?;
    tell(args, &profiles, context)
}

fn measure(args: &ValArgs, asked: &Asked, task: Task, context: &Context) -> Result<Profile> {
    let pieces = args
        .data
        .as_deref()
        .map_or_else(Pieces::generated, Pieces::folder);
    let options = Options {
        length: args.length,
        spans: args.spans,
        sets: args.sets,
        each: args.each,
        seed: args.seed,
    };
    let [before, after] = &asked.template;
    let whole = |prompt: &str| format!("{before}{prompt}{after}");
    let samples = val_probe::samples(task, &options, &pieces, &|text| asked.count(&whole(text)))?;
    let prompts: Vec<String> = samples.iter().map(|sample| whole(&sample.prompt)).collect();
    let label = format!("{} at {}", task.name(), grouped(args.length));
    let answers = asked.answers(&label, &prompts, ANSWER_TOKENS, context)?;
    let pairs = samples.iter().zip(&answers);
    let score = |(sample, answer): (&Sample, &String)| {
        (
            sample.span,
            sample.set,
            task.score(answer, &sample.expected),
        )
    };
    let scores: Vec<(usize, usize, f64)> = pairs.clone().map(score).collect();
    let line = |(sample, answer): (&Sample, &String)| {
        let mut line = sample.to_json();
        line["samples"] = json!([answer]);
        line
    };
    save(
        args.asking.save.as_deref(),
        &format!("{}.jsonl", task.name()),
        pairs.map(line),
    )?;
    Ok(Profile::new(args.spans, &scores))
}

fn tell(args: &ValArgs, profiles: &[(Task, Profile)], context: &Context) -> Result<()> {
    let percent = |score: f64| format!("{:.1}", 100.0 * score);
    let row = |(task, profile): &(Task, Profile)| {
        vec![
            task.name().to_owned(),
            percent(profile.average()),
            percent(profile.gap()),
        ]
    };
    let table = Table {
        title: String::new(),
        note: format!(
            "in percent; {} tokens, {} spans, {} contexts, {} places each",
            grouped(args.length),
            args.spans,
            args.sets,
            args.each
        ),
        columns: ["task", "average", "gap"].map(str::to_owned).to_vec(),
        rows: profiles.iter().map(row).collect(),
    };
    match context.json {
        true => {
            let figures = |(task, profile): &(Task, Profile)| -> Value {
                json!({ "task": task.name(), "average": profile.average(), "gap": profile.gap(), "spans": profile.spans })
            };
            context.terminal.json(&json!({
                "tasks": profiles.iter().map(figures).collect::<Vec<_>>(), "length": args.length, "seed": args.seed,
            }))?;
        }
        false => context.terminal.line(table.text().trim_end())?,
    }
    let map = HeatMap {
        title: "Found by place, in percent".to_owned(),
        x_label: "span of places, from the beginning to the end".to_owned(),
        y_label: "task".to_owned(),
        columns: (1..=args.spans).map(|span| span.to_string()).collect(),
        rows: profiles
            .iter()
            .map(|(task, _)| task.name().to_owned())
            .collect(),
        scores: profiles
            .iter()
            .map(|(_, profile)| profile.spans.clone())
            .collect(),
    };
    write_report(
        &args.asking,
        "VaL probing",
        vec![Section::Table(table), Section::HeatMap(map)],
    )
}
