//! `espalier probe needles`: one needle at every depth of texts of several lengths, as a picture.

use std::path::PathBuf;

use espalier_evaluate::{
    report::{HeatMap, Highlight, Section, Table},
    ruler::{self, Kind, Options, Sample, Task, sources::Sources},
};
use serde_json::json;

use super::{
    Asking, Context,
    asked::{Asked, save},
    check_counts, grouped, write_report,
};
use crate::{Error, Result};

/// The task whose needle is placed.
const TASK: &str = "niah_single_2";

/// Needles in a haystack: one number in essays, by the text's length and the depth at which it stands.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  espalier probe needles MODEL --lengths 512,1024,2048,4096 --report needles.html
  espalier probe needles MODEL --lengths 1024 --depths 0,50,100 --samples 10 --chat")]
pub struct NeedlesArgs {
    #[command(flatten)]
    asking: Asking,
    /// Tokens of prompt and answer
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "1024,2048,4096",
        value_name = "TOKENS,..."
    )]
    lengths: Vec<usize>,
    /// Depths in percent: 0 is the beginning of the text, 100 its end
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "0,10,20,30,40,50,60,70,80,90,100",
        value_name = "PERCENT,..."
    )]
    depths: Vec<f64>,
    /// Prompts of each length and depth
    #[arg(long, default_value_t = 3, value_name = "COUNT")]
    samples: usize,
    /// Seed of the prompts
    #[arg(long, default_value_t = 42, value_name = "NUMBER")]
    seed: u64,
    /// A folder with the authors' essays; stories when absent
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
}

/// Runs the command.
///
/// # Errors
/// When the model or a file is not there, or a length is too short.
pub fn run(args: &NeedlesArgs, context: &Context) -> Result<()> {
    check_counts(&args.lengths, args.samples)?;
    if args.depths.is_empty()
        || !args
            .depths
            .iter()
            .all(|depth| (0.0..=100.0).contains(depth))
    {
        return Err(Error::usage("`--depths` are between 0 and 100"));
    }
    let asked = Asked::open(&args.asking, context)?;
    asked.warn(args.lengths.iter().copied().max().unwrap_or(0), context);
    let mut scores = Vec::with_capacity(args.depths.len());
    for depth in &args.depths {
        let row = args
            .lengths
            .iter()
            .map(|length| measure(args, &asked, *length, *depth, context));
        scores.push(row.collect::<Result<Vec<f64>>>()?);
    }
    tell(args, scores, context)
}

fn measure(
    args: &NeedlesArgs,
    asked: &Asked,
    length: usize,
    depth: f64,
    context: &Context,
) -> Result<f64> {
    let mut task: Task = *ruler::task(TASK)?;
    if let Kind::Needles(needle) = &mut task.kind {
        needle.depth = Some(depth);
    }
    let options = Options {
        length,
        samples: args.samples,
        seed: args.seed,
        template: asked.template.clone(),
    };
    let sources = args
        .data
        .as_deref()
        .map_or_else(Sources::generated, Sources::folder);
    let samples = ruler::samples(&task, &options, &sources, &|text| asked.count(text))?;
    let prompts: Vec<String> = samples.iter().map(Sample::prompt).collect();
    let label = format!("{} tokens, depth {depth} %", grouped(length));
    let answers = asked.answers(&label, &prompts, task.answer_tokens, context)?;
    let pairs = samples.iter().zip(&answers);
    let score = |(sample, answer): (&Sample, &String)| task.metric.score(answer, &sample.outputs);
    let sum: f64 = pairs.clone().map(score).sum();
    let line = |(sample, answer): (&Sample, &String)| {
        let mut line = sample.to_json();
        line["pred"] = answer.as_str().into();
        line["depth"] = depth.into();
        line
    };
    save(
        args.asking.save.as_deref(),
        &format!("{length}/depth-{depth}.jsonl"),
        pairs.map(line),
    )?;
    Ok(sum / samples.len() as f64)
}

fn tell(args: &NeedlesArgs, scores: Vec<Vec<f64>>, context: &Context) -> Result<()> {
    let columns: Vec<String> = args.lengths.iter().map(|length| grouped(*length)).collect();
    let rows: Vec<String> = args
        .depths
        .iter()
        .map(|depth| format!("{depth} %"))
        .collect();
    match context.json {
        true => context.terminal.json(&json!({
            "lengths": args.lengths, "depths": args.depths, "scores": scores, "samples": args.samples, "seed": args.seed,
        }))?,
        false => {
            let cells = |(depth, scores): (&String, &Vec<f64>)| -> Vec<String> {
                let scores = scores.iter().map(|score| format!("{:.0} %", 100.0 * score));
                [depth.clone()].into_iter().chain(scores).collect()
            };
            let table = Table {
                title: "Needles found, by depth and length in tokens".to_owned(),
                columns: ["depth".to_owned()].into_iter().chain(columns.clone()).collect(),
                rows: rows.iter().zip(&scores).map(cells).collect(),
                ..Table::default()
            };
            context.terminal.line(table.text().trim_end())?;
        }
    }
    let cards = cards(args, &scores, &columns);
    let map = HeatMap {
        title: "Needles found, in percent".to_owned(),
        x_label: "length of the text in tokens".to_owned(),
        y_label: "depth of the needle".to_owned(),
        columns,
        rows,
        scores,
    };
    write_report(
        &args.asking,
        "Needles in a haystack",
        vec![Section::Highlights(cards), Section::HeatMap(map)],
    )
}

/// What a reader asks first: how many needles are found, and where they are lost.
fn cards(args: &NeedlesArgs, scores: &[Vec<f64>], lengths: &[String]) -> Vec<Highlight> {
    let places = scores.iter().zip(&args.depths).flat_map(|(row, depth)| {
        let cells = row.iter().zip(lengths);
        cells.map(move |(score, length)| (*score, *depth, length))
    });
    let places: Vec<(f64, f64, &String)> = places.collect();
    let mean = places.iter().map(|(score, ..)| score).sum::<f64>() / places.len().max(1) as f64;
    let card = |name: &str, value: String, note: String| Highlight {
        name: name.to_owned(),
        value,
        note,
        better: None,
    };
    let all = card(
        "needles found",
        format!("{:.1} %", 100.0 * mean),
        format!("{} in each of {} places", args.samples, places.len()),
    );
    let worst = places.iter().min_by(|a, b| a.0.total_cmp(&b.0));
    let worst = worst.map(|(score, depth, length)| {
        card(
            "worst place",
            format!("{:.0} %", 100.0 * score),
            format!("at {length} tokens, depth {depth} %"),
        )
    });
    [Some(all), worst].into_iter().flatten().collect()
}
