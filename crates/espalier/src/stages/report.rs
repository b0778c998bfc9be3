//! The report of a run: what it found, curves of its training stages, samples, and all figures folded away.

mod samples;

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

use super::{stage_folder, summary::summary};
use crate::{Error, Result, recipe::Recipe, units};

/// Charts of a stage that stand among all stages' curves; the others are folded away.
const MAIN_CHARTS: usize = 2;

/// Writes `report.html` into the run's folder: what was found, curves, samples, and folded away all the rest.
///
/// # Errors
/// When a metrics log cannot be read or the disk is full.
pub fn write(recipe: &Recipe, results: &Map<String, Value>) -> Result<()> {
    let summary = summary(recipe, results);
    let mut sections: Vec<Section> = summary.cards().into_iter().collect();
    sections.extend(summary.table().map(Section::Table));
    let bars = summary.bars();
    if !bars.is_empty() {
        sections.push(grid("Side by side", bars));
    }
    sections.extend(comparisons(recipe, results).map(Section::Table));
    let (mut curves, mut folded) = (Vec::new(), Vec::new());
    for (i, stage) in recipe.stage.iter().enumerate() {
        let figures = results.get(&stage.name).cloned().unwrap_or_default();
        let (work, name) = (stage.kind.work(), stage.name.as_str());
        let folder = stage_folder(&recipe.output, i + 1, name);
        let own = work.sections(name, &folder, &figures)?;
        let (charts, others): (Vec<_>, Vec<_>) = own
            .into_iter()
            .partition(|section| matches!(section, Section::Chart(_)));
        let (mut charts, mut dots): (Vec<_>, Vec<_>) = charts.into_iter().partition(is_curve);
        let mut more = charts.split_off(MAIN_CHARTS.min(charts.len()));
        more.append(&mut dots);
        curves.append(&mut charts);
        if !more.is_empty() {
            folded.push(details(
                &format!("More curves of {name}"),
                vec![grid("", more)],
            ));
        }
        if !others.is_empty() {
            folded.push(details(&format!("Answers while {name} learned"), others));
        }
        let figures = Section::Table(table(work.figures(&figures)));
        folded.push(details(&format!("All figures of {name}"), vec![figures]));
    }
    if !curves.is_empty() {
        sections.push(grid("Curves", curves));
    }
    sections.extend(samples::section(recipe, results, &summary.columns)?);
    sections.append(&mut folded);
    sections.extend(written(&recipe.output.join("recipe.toml")));
    let title = recipe.output.file_name().unwrap_or_default();
    let report = Report {
        title: title.to_string_lossy().into_owned(),
        subtitle: [vec![number_of(recipe.stage.len(), "stage")], facts(results)]
            .concat()
            .join(" · "),
        facts: Vec::new(),
        sections,
    };
    Ok(report
        .write(&recipe.output.join("report.html"))
        .map_err(espalier_evaluate::Error::from)?)
}

/// Whether a chart has more to show than single points.
fn is_curve(section: &Section) -> bool {
    let long = |series: &Series| series.points.len() > 1;
    matches!(section, Section::Chart(chart) if chart.series.iter().any(long))
}

fn grid(title: &str, sections: Vec<Section>) -> Section {
    Section::Grid {
        title: title.to_owned(),
        note: String::new(),
        sections,
    }
}

fn details(title: &str, sections: Vec<Section>) -> Section {
    Section::Details {
        title: title.to_owned(),
        sections,
    }
}

/// The recipe as it was run.
fn written(path: &Path) -> Option<Section> {
    Some(Section::Folded {
        title: "The recipe".into(),
        body: fs::read_to_string(path).ok()?,
    })
}

fn number_of(count: usize, what: &str) -> String {
    match count {
        1 => format!("1 {what}"),
        _ => format!("{count} {what}s"),
    }
}

/// What the run took and made: the last model's size, tokens of training, time, memory, and which program it was.
fn facts(results: &Map<String, Value>) -> Vec<String> {
    let all = |key: &'static str| {
        results
            .values()
            .filter_map(move |figures| figures[key].as_f64())
    };
    let parameters = all("parameters").next_back().unwrap_or(0.0);
    let tokens: f64 = all("tokens").sum();
    let seconds: f64 = all("stage_seconds").sum();
    let memory = all("peak_bytes").fold(0.0, f64::max);
    let shown = |value: f64, text: String| (value > 0.0).then_some(text);
    let count =
        |value: f64, what: &str| shown(value, format!("{} {what}", units::count(value as u64)));
    [
        count(parameters, "parameters"),
        count(tokens, "tokens of training"),
        shown(seconds, units::duration(seconds)),
        shown(memory, format!("{} of memory", units::bytes(memory as u64))),
        Some(format!("espalier {}", env!("CARGO_PKG_VERSION"))),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The paired comparisons of all evaluations.
fn comparisons(recipe: &Recipe, results: &Map<String, Value>) -> Option<Table> {
    let mut rows = Vec::new();
    for stage in &recipe.stage {
        let found = &results.get(&stage.name)?["against"];
        for compared in found["comparisons"].as_array().into_iter().flatten() {
            let number = |key: &str| compared[key].as_f64().unwrap_or(f64::NAN);
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let only = compared["only"].as_array();
            let only = only.map(|only| {
                only.iter()
                    .map(Value::to_string)
                    .collect::<Vec<_>>()
                    .join(" / ")
            });
            rows.push(vec![
                format!("{} against {}", stage.name, text(&found["evaluation"])),
                format!(
                    "{}: {}",
                    text(&compared["task"]),
                    text(&compared["figure"]).trim_end_matches(",none")
                ),
                format!(
                    "{:+.3} ({:+.3} to {:+.3})",
                    number("difference"),
                    number("low"),
                    number("high")
                ),
                only.unwrap_or_default(),
                compared["p"]
                    .as_f64()
                    .map(|p| format!("{p:.4}"))
                    .unwrap_or_default(),
            ]);
        }
    }
    (!rows.is_empty()).then(|| Table {
        title: "Item by item".into(),
        note: "Mean difference with its 95% bootstrap interval; items that only this model or only the other has right; the chance of a \
               difference as large by luck (McNemar's exact test)."
            .into(),
        columns: ["", "figure", "difference", "only one right", "p"].map(str::to_owned).to_vec(),
        rows,
    })
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
            let Some(series) = logged.get(&key) else {
                continue;
            };
            let held_out = if key.starts_with("eval_") {
                ", held-out"
            } else {
                ""
            };
            let series = Series {
                name: format!("{}{held_out}", metric.name.replace('_', " ")),
                points: series.points.clone(),
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

fn table(figures: Vec<(String, f64)>) -> Table {
    let row = |(key, value): (String, f64)| {
        let text = human(&key, value);
        vec![key, text]
    };
    Table {
        title: String::new(),
        note: String::new(),
        columns: vec!["figure".into(), "value".into()],
        rows: figures.into_iter().map(row).collect(),
    }
}

/// A figure in the unit that its key tells: bytes, a span of time, a count.
pub fn human(key: &str, value: f64) -> String {
    let last = key.rsplit('.').next().unwrap_or(key);
    let has = |word: &str| last == word || last.ends_with(&format!("_{word}"));
    let whole = value >= 0.0 && value.fract() == 0.0;
    match () {
        () if whole && has("bytes") => units::bytes(value as u64),
        () if value >= 0.0 && has("seconds") => units::duration(value),
        () if whole && value >= 10_000.0 => units::count(value as u64),
        () => plain(value),
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
