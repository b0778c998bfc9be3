//! How figures and answers are shown: in words, as bars, as samples with right and wrong marked.

use espalier_evaluate::{
    report::{Bar, Bars, Conversation, Highlight},
    results::{Figure, GroupResult, TaskResult},
    tasks::Task,
};
use serde_json::Value;

/// Wrong answers of each task on a page, and right ones.
const SHOWN: [usize; 2] = [20, 5];

/// Longest text of a sample on a page, in characters.
const LONGEST_SHOWN: usize = 2000;

/// A figure for readers: shares in per cent, with the 95% interval.
pub fn figure(figure: &Figure) -> String {
    let Figure {
        value, low, high, ..
    } = figure;
    match figure.is_share {
        true => share(*value, *low, *high),
        false => format!("{value:.4} ({low:.4}-{high:.4})"),
    }
}

/// A share with its interval: `83.4 % (79.9-86.4)`.
pub fn share(value: f64, low: f64, high: f64) -> String {
    format!(
        "{:.1} % ({:.1}-{:.1})",
        100.0 * value,
        100.0 * low,
        100.0 * high
    )
}

/// Metric and way of reading, as results name them: without `none`.
pub fn figure_name(figure: &Figure) -> String {
    match figure.filter.as_str() {
        "none" => figure.metric.clone(),
        filter => format!("{},{filter}", figure.metric),
    }
}

/// Cards above the table.
const MOST_CARDS: usize = 6;

/// The first figure of each group and task, large; groups take the place of their tasks where there are many.
pub fn cards(results: &[TaskResult], groups: &[GroupResult]) -> Vec<Highlight> {
    let own = results.iter().map(|result| {
        let note = format!("{} items", result.items);
        (&result.alias, result.figures.first(), note)
    });
    let groups = groups.iter().map(|group| {
        let note = format!("{} tasks", group.tasks.len());
        (&group.group, group.figures.first(), note)
    });
    let found = groups.chain(own).filter_map(|(name, first, note)| {
        let first = first?;
        let value = match first.is_share {
            true => format!("{:.1} %", 100.0 * first.value),
            false => format!("{:.4}", first.value),
        };
        let words = figure(first);
        let range = words.split_once('(').map_or("", |(_, range)| range);
        Some(Highlight {
            name: format!("{name}: {}", figure_name(first).replace(',', ", ")),
            value,
            note: format!("95% interval {}, {note}", range.trim_end_matches(')')),
            better: None,
        })
    });
    found.take(MOST_CARDS).collect()
}

/// Shares as bars, groups before their tasks.
pub fn bars(results: &[TaskResult], groups: &[GroupResult]) -> Option<Bars> {
    let own = results
        .iter()
        .map(|result| (&result.alias, &result.figures));
    let groups = groups.iter().map(|group| (&group.group, &group.figures));
    let shares = groups.chain(own).flat_map(|(name, figures)| {
        let shares = figures.iter().filter(|figure| figure.is_share);
        shares.map(move |figure| (name, figure))
    });
    let bar = |(name, found): (&String, &Figure)| Bar {
        name: format!("{name}: {}", figure_name(found).replace(',', ", ")),
        value: found.value,
        low: found.low,
        high: found.high,
        text: figure(found),
        series: 0,
    };
    let bars: Vec<Bar> = shares.map(bar).collect();
    (!bars.is_empty()).then(|| Bars {
        title: "Shares with their 95% intervals".into(),
        note: String::new(),
        bars,
    })
}

/// The metric of a task whose marks say right or wrong.
pub fn deciding_metric(task: &Task) -> Option<&str> {
    let metric = task.metrics.iter().find(|metric| metric.is_verdict())?;
    Some(&metric.name)
}

/// Whether a sample is right by a metric: of several ways of reading, where one of them finds it so.
pub fn verdict(sample: &Value, metric: &str) -> Option<bool> {
    let marks = sample["marks"].as_object()?.iter();
    let own = marks.filter(|(key, _)| key.split_once(',').is_some_and(|(name, _)| name == metric));
    let best = own.filter_map(|(_, mark)| mark.as_f64()).reduce(f64::max);
    best.map(|mark| mark >= 0.5)
}

/// Wrong answers to look at, then some right ones.
pub fn conversations(task: &Task, samples: &[Value]) -> Vec<Conversation> {
    let Some(metric) = deciding_metric(task) else {
        return Vec::new();
    };
    let mut all = Vec::new();
    for (right, count) in [false, true].into_iter().zip(SHOWN) {
        let chosen = samples
            .iter()
            .filter(|sample| verdict(sample, metric) == Some(right))
            .take(count);
        all.extend(chosen.map(|sample| conversation(&task.alias, sample, right)));
    }
    all
}

fn conversation(task: &str, sample: &Value, right: bool) -> Conversation {
    let mut turns = vec![
        ("prompt".to_owned(), question(sample)),
        ("assistant".to_owned(), answer(sample)),
    ];
    let readings = sample["filtered"].as_array().into_iter().flatten();
    let read: Vec<String> = readings
        .filter_map(|texts| texts.get(0).map(text))
        .collect();
    if read.iter().any(|read| *read != answer(sample)) {
        turns.push(("read as".to_owned(), read.join(" | ")));
    }
    turns.push(("expected".to_owned(), expected(sample)));
    Conversation {
        title: format!("{task}: item {}", sample["doc_id"]),
        turns,
        verdict: Some(right),
    }
}

/// What was asked: of a world the question by itself, else the whole prompt, or its end.
pub fn question(sample: &Value) -> String {
    let own = &sample["doc"]["prompt"];
    let is_world = own.is_string() && sample["doc"]["solution"].is_string();
    text(if is_world { own } else { &sample["prompt"] })
}

/// The right answers.
pub fn expected(sample: &Value) -> String {
    let texts = sample["target"].as_array().into_iter().flatten().map(text);
    texts.collect::<Vec<_>>().join(" | ")
}

/// What the model said: its first text, or the texts by likelihood.
pub fn answer(sample: &Value) -> String {
    if let Some(text) = sample.pointer("/response/texts/0").and_then(Value::as_str) {
        return cut(text);
    }
    let scores = sample
        .pointer("/response/likelihoods")
        .and_then(Value::as_array);
    let scores = scores
        .into_iter()
        .flatten()
        .filter_map(|score| score["log_probability"].as_f64());
    let texts = sample.pointer("/arguments/2").cloned().unwrap_or_default();
    let name = |number: usize| {
        texts
            .get(number)
            .or(Some(&texts))
            .and_then(Value::as_str)
            .unwrap_or("")
            .to_owned()
    };
    let mut ranked: Vec<(f64, String)> = scores
        .enumerate()
        .map(|(number, score)| (score, name(number)))
        .collect();
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0));
    let lines: Vec<String> = ranked
        .iter()
        .map(|(score, text)| format!("{score:.3}  {}", cut(text)))
        .collect();
    lines.join("\n")
}

fn text(value: &Value) -> String {
    cut(value.as_str().unwrap_or_default())
}

fn cut(text: &str) -> String {
    let count = text.chars().count();
    if count <= LONGEST_SHOWN {
        return text.to_owned();
    }
    // The end of a prompt is what is asked.
    let end: String = text.chars().skip(count - LONGEST_SHOWN).collect();
    format!("… {end}")
}
