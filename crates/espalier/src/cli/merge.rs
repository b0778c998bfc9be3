//! `espalier merge`: several models become one, by a recipe of mergekit.

use std::path::{Path, PathBuf};

use espalier_evaluate::report::{HeatMap, Report, Section};
use espalier_surgery::merge::{self, Options, Summary, recipe};
use serde_json::json;

use super::Context;
use crate::{Error, Result, interrupt, memory, model_path, units};

/// The picture of what the merge changed.
const REPORT: &str = "merge.html";

/// Merge models into one, tensor by tensor, by a recipe in mergekit's YAML.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  espalier merge ties.yaml merged
  espalier merge ties.yaml merged --memory 1.5GiB --json")]
pub struct MergeArgs {
    /// The recipe: mergekit's YAML, with several documents where merges use each other's output
    #[arg(value_name = "RECIPE.yaml")]
    pub recipe: PathBuf,
    /// The folder of the merged model, which must not be there yet
    pub out: PathBuf,
    /// Stay below this much memory, such as `1.5GiB`
    #[arg(long, value_name = "SIZE", value_parser = memory::parse_limit)]
    pub memory: Option<u64>,
    /// The start of what is drawn at random by `dare_*` and `della*`
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Largest weight file
    #[arg(long, value_name = "SIZE", value_parser = memory::parse_limit, default_value = "5GiB")]
    pub out_shard_size: u64,
}

/// Merges.
///
/// # Errors
/// When the recipe is wrong, the models do not fit each other, or a file cannot be read or written.
pub fn run(args: &MergeArgs, context: &Context) -> Result<()> {
    let documents = recipe::read(&args.recipe)?;
    let terminal = &context.terminal;
    let options = Options {
        resolve: &|path| model_path::resolve_model(path).map_err(|error| error.to_string()),
        memory: args.memory,
        seed: args.seed,
        shard_bytes: args.out_shard_size,
        progress: &|_, _| (),
        stop: &|| interrupt::requested(),
        finish: &|summary, folder| {
            let written = report(summary, &args.out).write(&folder.join(REPORT));
            written.map_err(|error| error.to_string())
        },
    };
    let attentive = interrupt::attentive();
    let merged = merge::merge(&documents, &args.out, &options);
    drop(attentive);
    if merged.is_err() && interrupt::requested() {
        let words = "stopped; nothing was left, and the same command starts again";
        return Err(Error::Interrupted(words.into()));
    }
    let summary = merged?;
    terminal.notes(&summary.remarks);
    let (near, far) = extremes(&summary);
    if context.json {
        return terminal.json(&json!({
            "method": summary.method,
            "parameters": summary.parameters,
            "folder": args.out,
            "differences": summary.differences.iter().map(|d| json!({"tensor": d.tensor, "relative": relative(d.distance, d.length)})).collect::<Vec<_>>(),
        }));
    }
    terminal.line(&format!(
        "{}: {} parameters by {}; tensors differ from the base by {:.1} to {:.1} % of its length ({REPORT})",
        args.out.display(),
        units::count(summary.parameters),
        summary.method,
        100.0 * near,
        100.0 * far
    ))
}

/// Lengths of a difference and of what it is from, given squared, as a share.
fn relative(distance: f64, length: f64) -> f64 {
    match distance > 0.0 {
        true => (distance / length).sqrt(),
        false => 0.0,
    }
}

fn extremes(summary: &Summary) -> (f64, f64) {
    let shares = summary
        .differences
        .iter()
        .map(|d| relative(d.distance, d.length));
    shares.fold((f64::INFINITY, 0.0), |(near, far), share| {
        (share.min(near), share.max(far))
    })
}

/// How far the merge is from the base, by block and by part of the block.
pub fn report(summary: &Summary, out: &Path) -> Report {
    let mut columns: Vec<String> = Vec::new();
    let mut rows: Vec<Option<usize>> = Vec::new();
    for difference in &summary.differences {
        let (row, column) = (difference.block, part(&difference.tensor, difference.block));
        if !columns.contains(&column) {
            columns.push(column);
        }
        if !rows.contains(&row) {
            rows.push(row);
        }
    }
    rows.sort();
    let score = |row: &Option<usize>, column: &String| {
        let within = summary.differences.iter();
        let within = within.filter(|d| d.block == *row && part(&d.tensor, d.block) == *column);
        let (distance, length) = within.fold((f64::NAN, f64::NAN), |(a, b), d| {
            (a.max(0.0) + d.distance, b.max(0.0) + d.length)
        });
        match distance.is_nan() {
            true => f64::NAN,
            false => relative(distance, length).min(1.0),
        }
    };
    let name = |row: &Option<usize>| row.map_or("outside".into(), |block| format!("block {block}"));
    let map = HeatMap {
        title: "Difference from the base, as a share of its length".into(),
        x_label: "part".into(),
        y_label: "block".into(),
        scores: rows
            .iter()
            .map(|row| columns.iter().map(|column| score(row, column)).collect())
            .collect(),
        rows: rows.iter().map(name).collect(),
        columns,
    };
    let title = out
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    Report {
        title,
        subtitle: format!("Merged by {}", summary.method),
        facts: vec![("Parameters".into(), units::count(summary.parameters))],
        sections: vec![Section::HeatMap(map)],
    }
}

/// The part of a model that a tensor belongs to: in a block what its name has behind the number, up to the next dot.
fn part(tensor: &str, block: Option<usize>) -> String {
    let names = tensor
        .split('.')
        .filter(|name| *name != "weight" && *name != "bias");
    let names: Vec<&str> = names.collect();
    let first = match block {
        Some(block) => names
            .iter()
            .position(|name| *name == block.to_string())
            .map_or(0, |at| at + 1),
        None => names.len().saturating_sub(1),
    };
    let name = names.get(first).or(names.last()).copied().unwrap_or(tensor);
    name.to_owned()
}

impl From<espalier_surgery::Error> for Error {
    fn from(error: espalier_surgery::Error) -> Self {
        match error {
            espalier_surgery::Error::Model(error) => Self::Model(error),
            error if error.is_usage() => Self::Usage(error.to_string()),
            error => Self::Work(error.to_string()),
        }
    }
}
