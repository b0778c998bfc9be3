//! `espalier probe ruler`: the thirteen tasks at several lengths, their means, and the effective length.

use std::path::PathBuf;

use espalier_data::tokenizer::Tokenizer;
use espalier_evaluate::{
    report::{Chart, HeatMap, Highlight, Section, Series, Table},
    ruler::{
        self, Options, Sample, TASKS, Task, score,
        sources::Sources,
        summary::{Summary, THRESHOLD},
    },
};
use serde_json::{Map, Value, json};

use super::{
    Asking, Context,
    asked::{Asked, save},
    check_counts, grouped, write_report,
};
use crate::{Error, Result, model_path::resolve_model};

/// RULER: thirteen tasks of retrieval, tracing, counting and questions, at exact lengths; the effective length.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  espalier probe ruler MODEL --lengths 1024,4096,16384 --samples 50
  espalier probe ruler MODEL --lengths 4096 --tasks niah_single_1,vt --chat --save answers
  espalier probe ruler MODEL --lengths 4096 --prompts-only --save prompts --data RULER/scripts/data/synthetic/json")]
pub struct RulerArgs {
    #[command(flatten)]
    asking: Asking,
    /// Tokens of prompt and answer
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "1024,4096",
        value_name = "TOKENS,..."
    )]
    lengths: Vec<usize>,
    /// Tasks; all thirteen when absent
    #[arg(long, value_delimiter = ',', value_name = "NAME,...")]
    tasks: Vec<String>,
    /// Prompts of each task and length; the published number is 500
    #[arg(long, default_value_t = 20, value_name = "COUNT")]
    samples: usize,
    /// Seed of the prompts; the published one is 42
    #[arg(long, default_value_t = 42, value_name = "NUMBER")]
    seed: u64,
    /// A folder with the authors' essays and documents; made-up ones when absent
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
    /// The score in percent that a length must exceed to be effective
    #[arg(long, default_value_t = THRESHOLD, value_name = "PERCENT")]
    threshold: f64,
    /// Write the prompts and ask nobody; of the model's folder, the tokenizer is enough
    #[arg(long, requires = "save", conflicts_with_all = ["report", "chat"])]
    prompts_only: bool,
}

impl RulerArgs {
    fn tasks(&self) -> Result<Vec<&'static Task>> {
        let named = self.tasks.iter().map(|name| ruler::task(name));
        let named: Vec<&Task> = named
            .collect::<Result<_, _>>()
            .map_err(|error| Error::usage(error.to_string()))?;
        Ok(match named.is_empty() {
            true => TASKS.iter().collect(),
            false => named,
        })
    }

    fn sources(&self) -> Sources {
        self.data
            .as_deref()
            .map_or_else(Sources::generated, Sources::folder)
    }

    fn options(&self, length: usize, template: &[String; 2]) -> Options {
        Options {
            length,
            samples: self.samples,
            seed: self.seed,
            template: template.clone(),
        }
    }
}

/// Runs the command.
///
/// # Errors
/// When the model, a task or a file is not there, or a length is too short.
pub fn run(args: &RulerArgs, context: &Context) -> Result<()> {
    check_counts(&args.lengths, args.samples)?;
    let tasks = args.tasks()?;
    if args.prompts_only {
        return prompts(args, &tasks, context);
    }
    let asked = Asked::open(&args.asking, context)?;
    asked.warn(args.lengths.iter().copied().max().unwrap_or(0), context);
    // scores[task][length]
    let mut scores = vec![vec![f64::NAN; args.lengths.len()]; tasks.len()];
    for (column, length) in args.lengths.iter().enumerate() {
        for (row, task) in tasks.iter().enumerate() {
            scores[row][column] = measure(args, &asked, task, *length, context)?;
        }
    }
    tell(args, &tasks, &scores, context)
}

fn measure(
    args: &RulerArgs,
    asked: &Asked,
    task: &Task,
    length: usize,
    context: &Context,
) -> Result<f64> {
    let options = args.options(length, &asked.template);
    let samples = ruler::samples(task, &options, &args.sources(), &|text| asked.count(text))?;
    let prompts: Vec<String> = samples.iter().map(Sample::prompt).collect();
    let label = format!("{} at {}", task.name, grouped(length));
    let answers = asked.answers(&label, &prompts, task.answer_tokens, context)?;
    let pairs = samples.iter().zip(&answers);
    let scores: Vec<f64> = pairs
        .clone()
        .map(|(sample, answer)| task.metric.score(answer, &sample.outputs))
        .collect();
    let line = |(sample, answer): (&Sample, &String)| {
        let mut line = sample.to_json();
        line["pred"] = answer.as_str().into();
        line["others"] = json!({ "id": sample.index });
        line
    };
    let file = format!("{length}/{}.jsonl", task.name);
    save(args.asking.save.as_deref(), &file, pairs.map(line))?;
    Ok(score::percent(&scores))
}

/// Prompts alone, in the folders of the authors' generators.
fn prompts(args: &RulerArgs, tasks: &[&Task], context: &Context) -> Result<()> {
    let path = &args.asking.model;
    let folder = match Tokenizer::file_in(path) {
        Some(_) => path.clone(),
        None => resolve_model(path)?,
    };
    let tokenizer = Tokenizer::load(&folder)?;
    let count = |text: &str| Ok(tokenizer.encode_ids(text, false)?.len());
    for length in &args.lengths {
        for task in tasks {
            let options = args.options(*length, &Default::default());
            let samples = ruler::samples(task, &options, &args.sources(), &count)?;
            let file = format!("{length}/{}/validation.jsonl", task.name);
            save(
                args.asking.save.as_deref(),
                &file,
                samples.iter().map(Sample::to_json),
            )?;
            context.terminal.note(&format!(
                "{} at {}: {} prompts",
                task.name,
                grouped(*length),
                samples.len()
            ));
        }
    }
    match context.json {
        true => context
            .terminal
            .json(&json!({ "prompts": args.samples, "lengths": args.lengths })),
        false => Ok(()),
    }
}

fn tell(args: &RulerArgs, tasks: &[&Task], scores: &[Vec<f64>], context: &Context) -> Result<()> {
    let mean =
        |column: usize| scores.iter().map(|row| row[column]).sum::<f64>() / scores.len() as f64;
    let means = args.lengths.iter().copied().enumerate();
    let summary = Summary::new(
        means
            .map(|(column, length)| (length, mean(column)))
            .collect(),
    );
    let effective = summary.effective_length(args.threshold);
    if context.json {
        let of = |(task, row): (&&Task, &Vec<f64>)| {
            let row: Map<String, Value> = args
                .lengths
                .iter()
                .map(usize::to_string)
                .zip(row.iter().map(|score| json!(score)))
                .collect();
            (task.name.to_owned(), Value::Object(row))
        };
        context.terminal.json(&json!({
            "tasks": tasks.iter().zip(scores).map(of).collect::<Map<_, _>>(),
            "scores": summary.scores,
            "mean": summary.mean(),
            "increasing": summary.increasing(),
            "decreasing": summary.decreasing(),
            "effective_length": effective,
            "threshold": args.threshold,
            "samples": args.samples,
            "seed": args.seed,
            "data": args.sources().name(),
        }))?;
    }
    let cards = cards(args, tasks, &summary, effective);
    let table = table(args, tasks, scores, &summary, effective);
    if !context.json {
        context.terminal.line(table.text().trim_end())?;
    }
    let points = summary
        .scores
        .iter()
        .map(|(length, score)| (*length as f64, *score));
    let chart = Chart {
        title: "Mean of the tasks by length".to_owned(),
        x_label: "tokens".to_owned(),
        y_label: "score in percent".to_owned(),
        series: vec![Series {
            name: "mean".to_owned(),
            points: points.collect(),
        }],
        ..Chart::default()
    };
    write_report(
        &args.asking,
        "RULER",
        vec![
            Section::Highlights(cards),
            Section::HeatMap(picture(args, tasks, scores)),
            Section::Chart(chart),
            Section::Details {
                title: "All scores".to_owned(),
                sections: vec![Section::Table(table)],
            },
        ],
    )
}

/// What a reader asks first: how far the model reads, and how well.
fn cards(
    args: &RulerArgs,
    tasks: &[&Task],
    summary: &Summary,
    effective: Option<usize>,
) -> Vec<Highlight> {
    let card = |name: &str, value: String, note: String| Highlight {
        name: name.to_owned(),
        value,
        note,
        better: None,
    };
    vec![
        card(
            "effective length",
            effective.map_or_else(|| "none".to_owned(), grouped),
            match effective {
                Some(_) => format!("tokens; the longest with a mean above {}", args.threshold),
                None => format!("no length has a mean above {}", args.threshold),
            },
        ),
        card(
            "mean of all lengths",
            format!("{:.1}", summary.mean()),
            format!(
                "longer texts counting more {:.1}, shorter ones {:.1}",
                summary.increasing(),
                summary.decreasing()
            ),
        ),
        card(
            "prompts",
            grouped(args.samples * tasks.len() * args.lengths.len()),
            format!("{} tasks, {} lengths", tasks.len(), args.lengths.len()),
        ),
    ]
}

/// The scores by task and length.
fn picture(args: &RulerArgs, tasks: &[&Task], scores: &[Vec<f64>]) -> HeatMap {
    let share = |row: &Vec<f64>| row.iter().map(|score| score / 100.0).collect();
    HeatMap {
        title: "Scores by task and length, in percent".to_owned(),
        x_label: "tokens of prompt and answer".to_owned(),
        y_label: "task".to_owned(),
        columns: args.lengths.iter().map(|length| grouped(*length)).collect(),
        rows: tasks.iter().map(|task| task.name.to_owned()).collect(),
        scores: scores.iter().map(share).collect(),
    }
}

fn table(
    args: &RulerArgs,
    tasks: &[&Task],
    scores: &[Vec<f64>],
    summary: &Summary,
    effective: Option<usize>,
) -> Table {
    let cell = |score: f64| format!("{score:.1}");
    let mut rows: Vec<Vec<String>> = Vec::new();
    for (task, row) in tasks.iter().zip(scores) {
        rows.push(
            [task.name.to_owned()]
                .into_iter()
                .chain(row.iter().copied().map(cell))
                .collect(),
        );
    }
    let at = |length: &usize| {
        summary
            .scores
            .iter()
            .find(|(other, _)| other == length)
            .map_or(f64::NAN, |(_, score)| *score)
    };
    rows.push(
        ["mean".to_owned()]
            .into_iter()
            .chain(args.lengths.iter().map(at).map(cell))
            .collect(),
    );
    let effective = effective.map_or_else(
        || format!("no length exceeds {}", args.threshold),
        |length| {
            format!(
                "effective length {} (above {})",
                grouped(length),
                args.threshold
            )
        },
    );
    Table {
        title: String::new(),
        note: format!(
            "{effective}; mean {:.1}, longer texts counting more {:.1}, shorter ones {:.1}; {} prompts each, essays and documents: {}",
            summary.mean(),
            summary.increasing(),
            summary.decreasing(),
            args.samples,
            args.sources().name()
        ),
        columns: ["task".to_owned()]
            .into_iter()
            .chain(args.lengths.iter().map(|length| grouped(*length)))
            .collect(),
        rows,
    }
}
