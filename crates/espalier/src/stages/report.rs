//! The report of a run: curves of its training stages, tables of its figures, samples.

use std::{fs, path::Path};

use espalier_data::readers::Wanted;
use espalier_evaluate::{
    curves::{Metrics, read_metrics},
    report::{Chart, Conversation, Report, Section, Series, Table},
};
use espalier_train::{
    metrics::{self, MetricDescription},
    objectives::{
        online::{DIVERGENCE, MEAN_REWARD},
        registry::Registered,
    },
    rewards,
};
use serde_json::{Map, Value};

use super::stage_folder;
use crate::{Error, Result, recipe::Recipe};

/// Writes `report.html` into the run's folder.
///
/// # Errors
/// When a metrics log cannot be read or the disk is full.
pub fn write(recipe: &Recipe, results: &Map<String, Value>) -> Result<()> {
    let mut sections = Vec::new();
    for (i, stage) in recipe.stage.iter().enumerate() {
        let figures = results.get(&stage.name).cloned().unwrap_or_default();
        let (work, name) = (stage.kind.work(), stage.name.as_str());
        let folder = stage_folder(&recipe.output, i + 1, name);
        sections.push(Section::Table(table(name, work.figures(&figures))));
        sections.extend(work.sections(name, &folder, &figures)?);
    }
    let report = Report {
        title: recipe
            .output
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default(),
        subtitle: format!(
            "{} stages, espalier {}",
            recipe.stage.len(),
            env!("CARGO_PKG_VERSION")
        ),
        facts: Vec::new(),
        sections,
    };
    Ok(report
        .write(&recipe.output.join("report.html"))
        .map_err(espalier_evaluate::Error::from)?)
}

/// The curves of a training stage: the loss, the objective's metrics, what the model says of itself, and the steps'.
///
/// # Errors
/// When the log cannot be read.
pub fn charts(name: &str, objective: Registered, log: &Path) -> Result<Vec<Section>> {
    let logged = read_metrics(log).map_err(espalier_evaluate::Error::from)?;
    let mut charts: Vec<Chart> = Vec::new();
    let numbered = logged.series.iter();
    let numbered: Vec<MetricDescription> = numbered
        .filter_map(|series| rewards::numbered(&series.name))
        .collect();
    for metric in metrics::descriptions(objective.metrics)
        .copied()
        .chain(numbered)
    {
        let title = format!("{name}: {}", metric.chart);
        for key in [metric.name.to_owned(), format!("eval_{}", metric.name)] {
            let Some(series) = logged.get(&key).cloned() else {
                continue;
            };
            match charts.iter_mut().find(|chart| chart.title == title) {
                Some(chart) => chart.series.push(series),
                None => charts.push(Chart {
                    title: title.clone(),
                    x_label: "step".into(),
                    y_label: if metric.share { "share" } else { metric.chart }.into(),
                    log_y: false,
                    series: vec![series],
                }),
            }
        }
    }
    let asks = (objective.wanted == Wanted::Prompts)
        .then(|| against_reward(name, &logged))
        .flatten();
    Ok(asks.into_iter().chain(charts).map(Section::Chart).collect())
}

/// How far the policy has gone from the reference for the reward that it has, a point for each line of the log.
fn against_reward(name: &str, logged: &Metrics) -> Option<Chart> {
    let [distance, reward] = [&DIVERGENCE, &MEAN_REWARD].map(|metric| logged.get(metric.name));
    let (distance, reward) = (&distance?.points, &reward?.points);
    let of_step = |(step, distance): &(f64, f64)| {
        let reward = reward.iter().find(|(other, _)| other == step)?.1;
        Some((*distance, reward))
    };
    let series = Series {
        name: "reward".into(),
        points: distance.iter().filter_map(of_step).collect(),
    };
    Some(Chart {
        title: format!("{name}: reward against distance from the reference"),
        x_label: "KL divergence of an answer in nats".into(),
        y_label: "reward".into(),
        log_y: false,
        series: vec![series],
    })
}

/// Answers that are shown of the first and of the last logged step.
const SHOWN: usize = 4;

/// Some answers of the first and of the last step that a run has logged, with their rewards.
///
/// # Errors
/// When the file cannot be read.
pub fn rollouts(name: &str, samples: &Path) -> Result<Section> {
    let text = fs::read_to_string(samples).map_err(Error::file(samples))?;
    // A killed run may leave its last line torn.
    let lines = text
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok());
    let lines: Vec<Value> = lines.collect();
    let steps: Vec<&[Value]> = lines.chunk_by(|a, b| a["step"] == b["step"]).collect();
    let (first, last) = (steps.first(), steps.iter().skip(1).next_back());
    let of_step = |step: &&[Value]| {
        step.iter()
            .take(SHOWN)
            .map(|line| rollout(name, line))
            .collect()
    };
    let shown: Vec<Vec<Conversation>> = first.into_iter().chain(last).map(of_step).collect();
    Ok(Section::Conversations(shown.concat()))
}

fn rollout(name: &str, line: &Value) -> Conversation {
    let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
    let reward = line["reward"].as_f64().map_or("none".into(), plain);
    Conversation {
        title: format!("{name}, step {}: reward {reward}", line["step"]),
        turns: vec![
            ("user".into(), text("prompt")),
            ("assistant".into(), text("answer")),
        ],
        verdict: None,
    }
}

fn table(name: &str, figures: Vec<(String, f64)>) -> Table {
    let row = |(key, value): (String, f64)| vec![key, plain(value)];
    Table {
        title: name.to_owned(),
        note: String::new(),
        columns: vec!["figure".into(), "value".into()],
        rows: figures.into_iter().map(row).collect(),
    }
}

/// The numbers of a result by dotted key.
pub fn numbers(result: &Value) -> Vec<(String, f64)> {
    let mut all = Vec::new();
    flatten("", result, &mut all);
    all
}

fn flatten(prefix: &str, value: &Value, all: &mut Vec<(String, f64)>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let path = if prefix.is_empty() {
                    key.clone()
                } else {
                    format!("{prefix}.{key}")
                };
                flatten(&path, value, all);
            }
        }
        Value::Number(number) => {
            all.extend(number.as_f64().map(|value| (prefix.to_owned(), value)))
        }
        _ => {}
    }
}

/// A number for readers: whole ones as they are, others with four decimals.
pub fn plain(value: f64) -> String {
    match value.fract() == 0.0 && value.abs() < 1e15 {
        true => format!("{value:.0}"),
        false => format!("{value:.4}"),
    }
}

/// The sampled answers among the figures of an evaluation.
pub fn conversations(name: &str, result: &Value) -> Option<Section> {
    let mut all = Vec::new();
    for (task, figures) in result.get("worlds")?.as_object()? {
        let samples = figures
            .get("samples")
            .and_then(Value::as_array)
            .into_iter()
            .flatten();
        let text = |sample: &Value, key: &str| {
            sample
                .get(key)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        all.extend(samples.map(|sample| Conversation {
            title: format!("{name}: {task}"),
            turns: vec![
                ("user".into(), text(sample, "prompt")),
                ("assistant".into(), text(sample, "answer")),
            ],
            verdict: sample.get("right").and_then(Value::as_bool),
        }));
    }
    Some(Section::Conversations(all))
}
