//! The report of a run: curves of its training stages, tables of its figures, samples.

use espalier_evaluate::{
    curves::read_metrics,
    report::{Chart, Conversation, Report, Section, Table},
};
use espalier_train::{metrics, objectives::registry::Registered};
use serde_json::{Map, Value};

use super::stage_folder;
use crate::{Result, recipe::Recipe};

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
pub fn charts(name: &str, objective: Registered, log: &std::path::Path) -> Result<Vec<Section>> {
    let logged = read_metrics(log).map_err(espalier_evaluate::Error::from)?;
    let mut charts: Vec<Chart> = Vec::new();
    for metric in metrics::descriptions(objective.metrics) {
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
    Ok(charts.into_iter().map(Section::Chart).collect())
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
