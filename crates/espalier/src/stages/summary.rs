//! What a run measured, for readers: one row for each figure, one column for each evaluation, shares with their 95% intervals.
//!
//! The terminal's table, the cards and the bars of the report's page are all made of it.

use espalier_evaluate::report::{Bar, Bars, Highlight, Section, Table};
use serde_json::{Map, Value};

use crate::{evaluation::shown, recipe::Recipe, stages::kinds::Kind};

/// Columns beyond which evaluations become rows.
const MOST_COLUMNS: usize = 4;

/// Cards above the table.
const MOST_CARDS: usize = 6;

/// The colour of what is only compared with.
pub const BASELINE: usize = 7;

/// What is before the name of what was evaluated, in names of stages.
const PREFIXES: [&str; 4] = ["evaluate-", "measure-", "test-", "eval-"];

/// A figure of one evaluation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// The figure.
    pub value: f64,
    /// Its 95% interval, where it has one.
    pub interval: Option<[f64; 2]>,
}

/// A figure of all evaluations.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// What was measured.
    pub name: String,
    /// Whether it is a share, from 0 to 1.
    pub share: bool,
    /// Whether more is better; none where neither is.
    pub higher_is_better: Option<bool>,
    /// Whether it is no figure of the model, but stands beside one.
    pub baseline: bool,
    /// The figure of each evaluation, in their order.
    pub cells: Vec<Option<Measured>>,
}

/// All that was measured.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Summary {
    /// The evaluations, by what they evaluated.
    pub columns: Vec<String>,
    /// The figures.
    pub rows: Vec<Row>,
}

/// What the evaluations of a run measured.
pub fn summary(recipe: &Recipe, results: &Map<String, Value>) -> Summary {
    let mut summary = Summary::default();
    for stage in &recipe.stage {
        let Some(figures) = results.get(&stage.name) else {
            continue;
        };
        if !matches!(stage.kind, Kind::Evaluate(_)) {
            continue;
        }
        let prefix = PREFIXES
            .iter()
            .find_map(|prefix| stage.name.strip_prefix(prefix));
        summary
            .columns
            .push(prefix.unwrap_or(&stage.name).to_owned());
        Reading {
            summary: &mut summary,
        }
        .all(figures);
    }
    let width = summary.columns.len();
    summary
        .rows
        .iter_mut()
        .for_each(|row| row.cells.resize(width, None));
    summary
}

/// Reads the figures of the last column.
struct Reading<'a> {
    summary: &'a mut Summary,
}

/// How a row is read.
#[derive(Clone, Copy)]
struct Nature {
    share: bool,
    higher_is_better: Option<bool>,
    baseline: bool,
}

/// A share of right answers.
const SHARE: Nature = Nature {
    share: true,
    higher_is_better: Some(true),
    baseline: false,
};

/// A figure of which less is better.
const LOSS: Nature = Nature {
    share: false,
    higher_is_better: Some(false),
    baseline: false,
};

impl Reading<'_> {
    fn all(&mut self, figures: &Value) {
        let perplexity = &figures["perplexity"];
        self.add("perplexity", perplexity["per_token"].as_f64(), None, LOSS);
        for (key, name) in [
            ("5-gram", "  of a 5-gram model"),
            ("unigram", "  of a unigram model"),
        ] {
            let beside = Nature {
                baseline: true,
                ..LOSS
            };
            self.add(name, perplexity[key].as_f64(), None, beside);
        }
        for (key, suffix) in [
            ("groups", ""),
            ("tasks", ""),
            ("sampled_worlds", ", sampled"),
        ] {
            for (task, figures) in entries(&figures[key]) {
                self.task(&format!("{task}{suffix}"), figures);
            }
        }
        self.accuracy("better answer preferred", &figures["preferences"]);
        self.accuracy("labels", &figures["labels"]);
        for (task, figures) in entries(&figures["retrieval"]) {
            self.accuracy(&format!("{task}, nearest neighbour"), figures);
        }
        for (task, figures) in entries(&figures["best_of"]) {
            self.accuracy(&format!("{task}, best by reward"), figures);
            for (key, name) in [("random", "  one at random"), ("any", "  any of them")] {
                let beside = Nature {
                    baseline: true,
                    ..SHARE
                };
                self.add(
                    &format!("{name}, {task}"),
                    figures[key].as_f64(),
                    None,
                    beside,
                );
            }
        }
    }

    fn task(&mut self, task: &str, figures: &Value) {
        for (metric, figure) in entries(figures).filter(|(_, figure)| figure.is_object()) {
            let nature = Nature {
                share: figure["share"].as_bool().unwrap_or(false),
                higher_is_better: figure["higher_is_better"].as_bool(),
                baseline: false,
            };
            let name = format!("{task}: {}", metric.replace(',', ", "));
            self.add(&name, figure["value"].as_f64(), interval(figure), nature);
        }
        if let Some(nats) = figures["divergence"].as_f64() {
            let nature = Nature {
                higher_is_better: None,
                ..LOSS
            };
            self.add(
                &format!("{task}: nats from the reference"),
                Some(nats),
                None,
                nature,
            );
        }
    }

    fn accuracy(&mut self, name: &str, figures: &Value) {
        self.add(name, figures["accuracy"].as_f64(), interval(figures), SHARE);
    }

    fn add(&mut self, name: &str, value: Option<f64>, interval: Option<[f64; 2]>, nature: Nature) {
        let Some(value) = value else { return };
        let column = self.summary.columns.len() - 1;
        let rows = &mut self.summary.rows;
        let place = rows
            .iter()
            .position(|row| row.name == name)
            .unwrap_or_else(|| {
                rows.push(Row {
                    name: name.to_owned(),
                    share: nature.share,
                    higher_is_better: nature.higher_is_better,
                    baseline: nature.baseline,
                    cells: Vec::new(),
                });
                rows.len() - 1
            });
        rows[place].cells.resize(column, None);
        rows[place].cells.push(Some(Measured { value, interval }));
    }
}

fn entries(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

fn interval(figures: &Value) -> Option<[f64; 2]> {
    Some([figures["low"].as_f64()?, figures["high"].as_f64()?])
}

impl Row {
    /// A cell in words.
    pub fn text(&self, cell: Option<Measured>) -> String {
        let Some(Measured { value, interval }) = cell else {
            return "-".into();
        };
        match (self.share, interval) {
            (true, Some([low, high])) => shown::share(value, low, high),
            (true, None) => format!("{:.1} %", 100.0 * value),
            (false, Some([low, high])) => {
                format!("{} ({}-{})", digits(value), digits(low), digits(high))
            }
            (false, None) => digits(value),
        }
    }

    /// The figure alone.
    fn short(&self, cell: Measured) -> String {
        self.text(Some(Measured {
            interval: None,
            ..cell
        }))
    }

    /// The cells that are there, with their columns.
    fn measured(&self) -> impl DoubleEndedIterator<Item = (usize, Measured)> + '_ {
        let cells = self.cells.iter().enumerate();
        cells.filter_map(|(column, cell)| Some((column, (*cell)?)))
    }
}

impl Summary {
    /// The table for the terminal and the page; nothing where nothing was measured.
    pub fn table(&self) -> Option<Table> {
        if self.rows.is_empty() {
            return None;
        }
        let has_interval = |row: &Row| row.measured().any(|(_, cell)| cell.interval.is_some());
        let note = match self.rows.iter().any(has_interval) {
            true => "In parentheses: 95% intervals.",
            false => "",
        };
        let (columns, rows) = match self.columns.len() > MOST_COLUMNS {
            false => (self.columns.clone(), self.by_figure()),
            true => (
                self.rows
                    .iter()
                    .map(|row| row.name.trim().to_owned())
                    .collect(),
                self.by_column(),
            ),
        };
        Some(Table {
            title: "What was measured, on held-out items".into(),
            note: note.into(),
            columns: [vec![String::new()], columns].concat(),
            rows,
        })
    }

    fn by_figure(&self) -> Vec<Vec<String>> {
        let line = |row: &Row| {
            let cells = row.cells.iter().map(|cell| row.text(*cell));
            std::iter::once(row.name.clone()).chain(cells).collect()
        };
        self.rows.iter().map(line).collect()
    }

    fn by_column(&self) -> Vec<Vec<String>> {
        let line = |(column, name): (usize, &String)| {
            let cells = self.rows.iter().map(|row| row.text(row.cells[column]));
            std::iter::once(name.clone()).chain(cells).collect()
        };
        self.columns.iter().enumerate().map(line).collect()
    }

    /// The last figure of each row, large, with the first one below.
    pub fn cards(&self) -> Option<Section> {
        let own = self.rows.iter().filter(|row| !row.baseline);
        let cards: Vec<Highlight> = own
            .filter_map(|row| self.card(row))
            .take(MOST_CARDS)
            .collect();
        (!cards.is_empty() && self.columns.len() <= MOST_COLUMNS)
            .then_some(Section::Highlights(cards))
    }

    fn card(&self, row: &Row) -> Option<Highlight> {
        let (first, before) = row.measured().next()?;
        let (last, after) = row.measured().next_back()?;
        let range = after.interval.filter(|_| row.share);
        let range =
            range.map(|[low, high]| format!(", {:.1} to {:.1} %", 100.0 * low, 100.0 * high));
        let earlier =
            (first < last).then(|| format!("; {} {}", self.columns[first], row.short(before)));
        let (range, earlier) = (range.unwrap_or_default(), earlier.unwrap_or_default());
        Some(Highlight {
            name: row.name.clone(),
            value: row.short(after),
            note: format!("{}{range}{earlier}", self.columns[last]),
            better: (first < last)
                .then(|| became_better(row, before, after))
                .flatten(),
        })
    }

    /// Bars of every figure, by evaluation.
    pub fn bars(&self) -> Vec<Section> {
        let mut all = Vec::new();
        let mut rows = self.rows.iter().peekable();
        while let Some(row) = rows.next() {
            let mut bars = self.bars_of(row, None);
            while let Some(beside) = rows.next_if(|next| next.baseline) {
                bars.extend(self.bars_of(beside, Some(beside.name.trim())));
            }
            let largest = bars
                .iter()
                .map(|bar| bar.high.max(bar.value))
                .fold(0.0, f64::max);
            if bars.len() < 2 && !row.share || largest <= 0.0 {
                continue;
            }
            if !row.share {
                for bar in &mut bars {
                    for part in [&mut bar.value, &mut bar.low, &mut bar.high] {
                        *part /= largest;
                    }
                }
            }
            let note = match row.higher_is_better {
                Some(false) => "Less is better.",
                _ => "",
            };
            all.push(Section::Bars(Bars {
                title: row.name.clone(),
                note: note.into(),
                bars,
            }));
        }
        all
    }

    fn bars_of(&self, row: &Row, baseline: Option<&str>) -> Vec<Bar> {
        let bar = |(column, cell): (usize, Measured)| {
            let [low, high] = cell.interval.unwrap_or([cell.value; 2]);
            Bar {
                name: match baseline {
                    None => self.columns[column].clone(),
                    Some(name) if self.columns.len() == 1 => name.to_owned(),
                    Some(name) => format!("{name} ({})", self.columns[column]),
                },
                value: cell.value,
                low,
                high,
                text: row.text(Some(cell)),
                series: baseline.map_or(column % BASELINE, |_| BASELINE),
            }
        };
        row.measured().map(bar).collect()
    }
}

/// A number with four digits that mean something, and never more than three behind the point.
fn digits(value: f64) -> String {
    match value.abs() {
        1000.0.. => format!("{value:.0}"),
        100.0.. => format!("{value:.1}"),
        10.0.. => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// Whether a figure became better, where the two intervals do not meet.
fn became_better(row: &Row, before: Measured, after: Measured) -> Option<bool> {
    let higher = row.higher_is_better?;
    let [before, after] = [before, after].map(|cell| cell.interval.unwrap_or([cell.value; 2]));
    match (after[0] > before[1], after[1] < before[0]) {
        (true, _) => Some(higher),
        (_, true) => Some(!higher),
        _ => None,
    }
}
