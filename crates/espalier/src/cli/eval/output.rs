//! What an evaluation leaves: `results.json`, a file of samples for each task, a page, and a table on the terminal.

use std::path::Path;

use espalier_data::disk::write_whole;
use espalier_evaluate::{
    judge::Verdicts,
    report::{Report, Section, Table},
    results::{Figure, GroupResult, TaskResult},
    tasks::Task,
};
use serde_json::{Map, Value, json};

use super::{EvalArgs, tasks::Subject};
use crate::{
    Error, Result,
    cli::Context,
    evaluation::{Answers, compare::Compared, shown},
};

/// All that was found.
pub(super) struct Found<'a> {
    pub subject: &'a Subject,
    pub args: &'a EvalArgs,
    pub tasks: &'a [Task],
    pub answers: &'a Answers,
    pub groups: Vec<GroupResult>,
    pub comparisons: Vec<Compared>,
    pub against: Option<String>,
    pub verdicts: Option<Verdicts>,
}

impl Found<'_> {
    /// The result, with the keys of lm-evaluation-harness under `results`.
    pub fn to_json(&self) -> Value {
        let mut results = Map::new();
        let tasks = self
            .answers
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
            "tasks": self.answers.results,
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
                shown::figure(figure),
                items.to_string(),
                shots.to_string(),
            ]
        };
        let mut rows = Vec::new();
        for group in self.groups.iter().filter(|group| !group.figures.is_empty()) {
            let own = |result: &&TaskResult| group.tasks.contains(&result.task);
            let items = self
                .answers
                .results
                .iter()
                .filter(own)
                .map(|result| result.items)
                .sum();
            let shots = self
                .answers
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
        for result in &self.answers.results {
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
        let share = |value: f64, [low, high]: [f64; 2]| shown::share(value, low, high);
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

    fn page(&self) -> Report {
        let cards = shown::cards(&self.answers.results, &self.groups);
        let mut sections = vec![Section::Highlights(cards), Section::Table(self.table())];
        sections.extend(shown::bars(&self.answers.results, &self.groups).map(Section::Bars));
        sections.extend(self.comparison().map(Section::Table));
        sections.extend(self.judged().map(Section::Table));
        for (task, samples) in self.tasks.iter().zip(&self.answers.samples) {
            let shown = shown::conversations(task, samples);
            if !shown.is_empty() {
                sections.push(Section::Conversations(shown));
            }
        }
        let settings = json!({"revision": self.subject.revision, "settings": self.subject.settings, "prompts": self.answers.results.iter().map(|result| (result.task.clone(), result.prompts.clone().into())).collect::<Map<String, Value>>()});
        sections.push(Section::Folded {
            title: "Settings and digests of prompts".into(),
            body: serde_json::to_string_pretty(&settings).unwrap_or_default(),
        });
        let items: usize = self.answers.results.iter().map(|result| result.items).sum();
        Report {
            title: format!("Evaluation of {}", self.subject.name),
            subtitle: format!(
                "{} tasks · {items} items · espalier {}",
                self.answers.results.len(),
                env!("CARGO_PKG_VERSION")
            ),
            facts: Vec::new(),
            sections,
        }
    }
}

/// Writes all files.
pub(super) fn write(found: &Found<'_>, folder: &Path) -> Result<()> {
    found.answers.write(found.tasks, folder)?;
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
