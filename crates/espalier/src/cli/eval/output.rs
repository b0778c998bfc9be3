//! What an evaluation leaves: `results.json`, a file of samples for each task, a page, and a table on the terminal.

use std::path::Path;

use espalier_data::disk::write_whole;
use espalier_evaluate::{
    judge::Verdicts,
    report::{Bar, Bars, Conversation, Report, Section, Table},
    results::{Figure, GroupResult, TaskResult},
    tasks::Task,
};
use serde_json::{Map, Value, json};

use super::{EvalArgs, compare::Compared, tasks::Subject};
use crate::{Error, Result, cli::Context};

/// Wrong answers of each task on the page, and right ones.
const SHOWN: [usize; 2] = [20, 5];

/// Longest text of a sample on the page, in characters.
const LONGEST_SHOWN: usize = 2000;

/// All that was found.
pub(super) struct Found<'a> {
    pub subject: &'a Subject,
    pub args: &'a EvalArgs,
    pub tasks: &'a [Task],
    pub results: &'a [TaskResult],
    pub groups: Vec<GroupResult>,
    pub samples: &'a [Vec<Value>],
    pub comparisons: Vec<Compared>,
    pub against: Option<String>,
    pub verdicts: Option<Verdicts>,
}

impl Found<'_> {
    /// The result, with the keys of lm-evaluation-harness under `results`.
    pub fn to_json(&self) -> Value {
        let mut results = Map::new();
        let tasks = self
            .results
            .iter()
            .map(|result| (&result.task, &result.figures));
        let groups = self
            .groups
            .iter()
            .map(|group| (&group.group, &group.figures));
        for (name, figures) in tasks.chain(groups) {
            let mut keys = Map::new();
            for figure in figures {
                let Figure {
                    metric,
                    filter,
                    value,
                    stderr,
                    ..
                } = figure;
                keys.insert(format!("{metric},{filter}"), json!(value));
                keys.insert(format!("{metric}_stderr,{filter}"), json!(stderr));
            }
            results.insert(name.clone(), Value::Object(keys));
        }
        json!({
            "kind": "evaluate",
            "model": self.subject.name,
            "revision": self.subject.revision,
            "settings": self.subject.settings,
            "shots_seed": self.args.shots_seed,
            "limit": self.args.limit,
            "versions": {"espalier": env!("CARGO_PKG_VERSION")},
            "results": results,
            "tasks": self.results,
            "groups": self.groups,
            "against": self.against,
            "comparisons": self.comparisons,
            "judge": self.verdicts,
        })
    }

    fn table(&self) -> Table {
        let row = |name: &str, items: usize, shots: usize, figure: &Figure| {
            let filter = match figure.filter.as_str() {
                "none" => String::new(),
                other => format!(", {other}"),
            };
            vec![
                name.to_owned(),
                format!("{}{filter}", figure.metric),
                shown(figure),
                items.to_string(),
                shots.to_string(),
            ]
        };
        let mut rows = Vec::new();
        for group in self.groups.iter().filter(|group| !group.figures.is_empty()) {
            let own = |result: &&TaskResult| group.tasks.contains(&result.task);
            let items = self
                .results
                .iter()
                .filter(own)
                .map(|result| result.items)
                .sum();
            let shots = self
                .results
                .iter()
                .find(own)
                .map_or(0, |result| result.shots);
            rows.extend(
                group
                    .figures
                    .iter()
                    .map(|figure| row(&group.group, items, shots, figure)),
            );
        }
        for result in self.results {
            rows.extend(
                result
                    .figures
                    .iter()
                    .map(|figure| row(&result.alias, result.items, result.shots, figure)),
            );
        }
        Table {
            title: String::new(),
            note: "In parentheses: 95% intervals.".into(),
            columns: ["task", "metric", "value", "items", "shots"]
                .map(str::to_owned)
                .to_vec(),
            rows,
        }
    }

    fn comparison(&self) -> Option<Table> {
        let against = self.against.as_ref()?;
        let row = |compared: &Compared| {
            let found = compared.comparison;
            let only = found
                .only
                .map(|[gained, lost]| format!("{gained} / {lost}"));
            vec![
                compared.task.clone(),
                compared.figure.trim_end_matches(",none").to_owned(),
                format!(
                    "{:+.4} ({:+.4} to {:+.4})",
                    found.difference, found.low, found.high
                ),
                only.unwrap_or_default(),
                found.p.map(|p| format!("{p:.4}")).unwrap_or_default(),
                found.items.to_string(),
            ]
        };
        Some(Table {
            title: format!("Against {against}"),
            note: "This model less the other, item by item, with a 95% bootstrap interval; items that only this one or only the other has \
                   right; the chance of a difference as large by luck (McNemar's exact test)."
                .into(),
            columns: ["task", "metric", "difference", "only one right", "p", "items"].map(str::to_owned).to_vec(),
            rows: self.comparisons.iter().map(row).collect(),
        })
    }

    /// What the judge says, and how far it can be trusted.
    fn judged(&self) -> Option<Table> {
        let found = self.verdicts.as_ref()?;
        let share = |value: f64, [low, high]: [f64; 2]| {
            format!(
                "{:.1} % ({:.1}-{:.1})",
                100.0 * value,
                100.0 * low,
                100.0 * high
            )
        };
        let [won, tied, lost] = found.outcomes;
        let mut rows = vec![
            ("pairs judged".to_owned(), found.pairs.to_string()),
            (
                "won / tied / lost".into(),
                format!("{won} / {tied} / {lost}"),
            ),
            ("win rate".into(), share(found.win_rate, found.win_interval)),
            (
                "win rate of answers of one length".into(),
                share(found.length_controlled, found.length_interval),
            ),
            (
                "first answer preferred".into(),
                format!("{:.1} %", 100.0 * found.first_place),
            ),
        ];
        if found.without_opinion > 0 {
            rows.push((
                "pairs without an opinion".into(),
                found.without_opinion.to_string(),
            ));
        }
        if let Some(trust) = &found.trust {
            rows.extend([
                (
                    "agreement with the checker".to_owned(),
                    share(trust.agreement, trust.agreement_interval),
                ),
                ("Cohen's kappa".into(), format!("{:.3}", trust.kappa)),
                ("Brier score".into(), format!("{:.3}", trust.brier)),
                (
                    "calibration error".into(),
                    format!("{:.3}", trust.calibration_error),
                ),
            ]);
        }
        Some(Table {
            title: "The judge's verdicts".into(),
            note: "A win is a preference in both orders; a tie counts half.".into(),
            columns: vec!["figure".into(), "value".into()],
            rows: rows
                .into_iter()
                .map(|(name, value)| vec![name, value])
                .collect(),
        })
    }

    /// Shares as bars.
    fn bars(&self) -> Option<Bars> {
        let own = self
            .results
            .iter()
            .map(|result| (&result.alias, &result.figures));
        let groups = self
            .groups
            .iter()
            .map(|group| (&group.group, &group.figures));
        let shares = groups.chain(own).flat_map(|(name, figures)| {
            let shares = figures.iter().filter(|figure| figure.is_share);
            shares.map(move |figure| (name, figure))
        });
        let bar = |(name, figure): (&String, &Figure)| Bar {
            name: format!("{name}: {} {}", figure.metric, figure.filter).replace(" none", ""),
            value: figure.value,
            low: figure.low,
            high: figure.high,
            text: shown(figure),
            series: 0,
        };
        let bars: Vec<Bar> = shares.map(bar).collect();
        (!bars.is_empty()).then(|| Bars {
            title: "Shares with their 95% intervals".into(),
            bars,
        })
    }

    fn page(&self) -> Report {
        let mut sections = vec![Section::Table(self.table())];
        sections.extend(self.bars().map(Section::Bars));
        sections.extend(self.comparison().map(Section::Table));
        sections.extend(self.judged().map(Section::Table));
        for (task, samples) in self.tasks.iter().zip(self.samples) {
            let shown = conversations(task, samples);
            if !shown.is_empty() {
                sections.push(Section::Conversations(shown));
            }
        }
        let settings = json!({"revision": self.subject.revision, "settings": self.subject.settings, "prompts": self.results.iter().map(|result| (result.task.clone(), result.prompts.clone().into())).collect::<Map<String, Value>>()});
        sections.push(Section::Folded {
            title: "Settings and digests of prompts".into(),
            body: serde_json::to_string_pretty(&settings).unwrap_or_default(),
        });
        let items: usize = self.results.iter().map(|result| result.items).sum();
        Report {
            title: format!("Evaluation of {}", self.subject.name),
            subtitle: String::new(),
            facts: vec![
                ("tasks".into(), self.results.len().to_string()),
                ("items".into(), items.to_string()),
            ],
            sections,
        }
    }
}

/// A figure for readers: shares in per cent.
fn shown(figure: &Figure) -> String {
    let Figure {
        value, low, high, ..
    } = figure;
    match figure.is_share {
        true => format!(
            "{:.1} % ({:.1}-{:.1})",
            100.0 * value,
            100.0 * low,
            100.0 * high
        ),
        false => format!("{value:.4} ({low:.4}-{high:.4})"),
    }
}

/// Wrong answers to look at, then some right ones.
fn conversations(task: &Task, samples: &[Value]) -> Vec<Conversation> {
    let Some(metric) = task.metrics.iter().find(|metric| metric.is_verdict()) else {
        return Vec::new();
    };
    let prefix = format!("{},", metric.name);
    // Several ways of reading: right where one of them finds it so.
    let verdict = |sample: &Value| {
        let marks = sample["marks"].as_object()?;
        let own = marks.iter().filter(|(key, _)| key.starts_with(&prefix));
        own.filter_map(|(_, mark)| mark.as_f64())
            .reduce(f64::max)
            .map(|mark| mark >= 0.5)
    };
    let mut all = Vec::new();
    for (right, count) in [false, true].into_iter().zip(SHOWN) {
        let chosen = samples
            .iter()
            .filter(|sample| verdict(sample) == Some(right))
            .take(count);
        all.extend(chosen.map(|sample| conversation(task, sample, right)));
    }
    all
}

fn conversation(task: &Task, sample: &Value, right: bool) -> Conversation {
    let text = |value: &Value| cut(value.as_str().unwrap_or_default());
    let target: Vec<String> = sample["target"]
        .as_array()
        .into_iter()
        .flatten()
        .map(text)
        .collect();
    let number = &sample["doc_id"];
    let mut turns = vec![("prompt".to_owned(), text(&sample["prompt"]))];
    turns.push(("assistant".to_owned(), answer(sample)));
    let read: Vec<String> = sample["filtered"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|texts| texts.get(0).map(text))
        .collect();
    if !read.is_empty() {
        turns.push(("read as".to_owned(), read.join(" | ")));
    }
    turns.push(("expected".to_owned(), target.join(" | ")));
    Conversation {
        title: format!("{}: item {number}", task.alias),
        turns,
        verdict: Some(right),
    }
}

/// What the model said: its first text, or the texts by likelihood.
fn answer(sample: &Value) -> String {
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

fn cut(text: &str) -> String {
    let count = text.chars().count();
    if count <= LONGEST_SHOWN {
        return text.to_owned();
    }
    // The end of a prompt is what is asked.
    let end: String = text.chars().skip(count - LONGEST_SHOWN).collect();
    format!("… {end}")
}

/// The file of a task's samples.
pub(super) fn samples_name(task: &str) -> String {
    let plain = |c: char| {
        if c.is_alphanumeric() || "-_.".contains(c) {
            c
        } else {
            '-'
        }
    };
    format!(
        "samples_{}.jsonl",
        task.chars().map(plain).collect::<String>()
    )
}

/// Writes all files.
pub(super) fn write(found: &Found<'_>, folder: &Path) -> Result<()> {
    for (task, samples) in found.tasks.iter().zip(found.samples) {
        let lines: String = samples.iter().map(|sample| format!("{sample}\n")).collect();
        let path = folder.join(samples_name(&task.name));
        write_whole(&path, lines.as_bytes()).map_err(Error::file(&path))?;
    }
    found
        .page()
        .write(&folder.join("report.html"))
        .map_err(espalier_evaluate::Error::from)?;
    let path = folder.join("results.json");
    let text = format!("{:#}\n", found.to_json());
    write_whole(&path, text.as_bytes()).map_err(Error::file(&path))
}

/// Says what was found.
pub(super) fn say(found: &Found<'_>, folder: &Path, context: &Context) -> Result<()> {
    if context.json {
        return Ok(());
    }
    for table in [Some(found.table()), found.comparison(), found.judged()]
        .into_iter()
        .flatten()
    {
        for line in table.text().lines() {
            context.terminal.line(line)?;
        }
    }
    context
        .terminal
        .note(&format!("   {}", folder.join("report.html").display()));
    Ok(())
}

/// Opens a page in the user's browser.
pub(super) fn open(page: &Path) -> Result<()> {
    let opener = if cfg!(target_os = "macos") {
        "open"
    } else {
        "xdg-open"
    };
    let started = std::process::Command::new(opener).arg(page).status();
    match started {
        Ok(status) if status.success() => Ok(()),
        _ => Err(Error::work(format!(
            "`{opener}` cannot open the page; it is {}",
            page.display()
        ))),
    }
}
