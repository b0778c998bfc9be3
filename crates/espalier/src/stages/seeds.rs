//! A recipe for several seeds: the same run once for each, and mean and spread of every figure.
//!
//! Each seed's run lies in `seed-N/` and is a run like any other: finished stages are skipped, an interrupted one goes on.

use std::collections::BTreeSet;

use burn::tensor::Device;
use espalier_evaluate::report::{Report, Section, Table};
use serde_json::{Map, Value, json};

use super::{Voice, hashes::FileHashes, report::plain, run_once};
use crate::{Result, recipe::Recipe};

/// Mean and spread of a figure.
///
/// ```
/// use espalier::stages::seeds::Spread;
/// let spread = Spread::of(&[1.0, 2.0, 6.0]).unwrap();
/// assert_eq!((spread.mean, spread.minimum, spread.maximum), (3.0, 1.0, 6.0));
/// assert!((spread.deviation.unwrap() - 7f64.sqrt()).abs() < 1e-12);
/// assert_eq!(Spread::of(&[1.0]).unwrap().deviation, None);
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// Arithmetic mean.
    pub mean: f64,
    /// Standard deviation of the sample (divided by one less than the number); a single value has none.
    pub deviation: Option<f64>,
    /// The smallest value.
    pub minimum: f64,
    /// The largest value.
    pub maximum: f64,
    /// The number of values.
    pub runs: usize,
}

impl Spread {
    /// Of all values; of none there is none.
    pub fn of(values: &[f64]) -> Option<Self> {
        let runs = values.len();
        let mean = values.iter().sum::<f64>() / runs as f64;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        (runs > 0).then(|| Self {
            mean,
            deviation: (runs > 1).then(|| (squares / (runs - 1) as f64).sqrt()),
            minimum: values.iter().copied().fold(f64::INFINITY, f64::min),
            maximum: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            runs,
        })
    }

    fn to_json(self) -> Value {
        json!({
            "mean": self.mean,
            "standard_deviation": self.deviation,
            "minimum": self.minimum,
            "maximum": self.maximum,
            "runs": self.runs,
        })
    }

    fn row(self, figure: &str) -> Vec<String> {
        let deviation = self.deviation.map_or("-".into(), plain);
        let extremes = [self.minimum, self.maximum].map(plain);
        [figure.to_owned(), plain(self.mean), deviation]
            .into_iter()
            .chain(extremes)
            .collect()
    }
}

/// Mean and spread of every figure, by stage and by figure, in order.
pub type Spreads = Vec<(String, Vec<(String, Spread)>)>;

/// Runs a recipe once for each of its seeds.
///
/// Returns `{"seeds": {SEED: figures}, "summary": {STAGE: {FIGURE: {mean, ...}}}}`.
pub(super) fn run(
    recipe: &Recipe,
    chosen: &BTreeSet<usize>,
    device: &Device,
    hashes: &mut FileHashes,
    voice: &mut dyn Voice,
) -> Result<Value> {
    let mut results = Map::new();
    for seed in &recipe.seeds {
        voice.say(&format!("seed {seed}"));
        let result = run_once(&recipe.of_seed(*seed), chosen, device, hashes, voice)?;
        results.insert(seed.to_string(), result);
    }
    let spreads = spreads(recipe, &results);
    if chosen.len() == recipe.stage.len() {
        write_report(recipe, &spreads)?;
        let report = recipe.output.join("report.html");
        voice.say(&format!("report of all seeds: {}", report.display()));
    }
    let of_stage = |(name, figures): &(String, Vec<(String, Spread)>)| {
        let figures = figures
            .iter()
            .map(|(key, spread)| (key.clone(), spread.to_json()));
        (name.clone(), Value::Object(figures.collect()))
    };
    let summary: Map<String, Value> = spreads.iter().map(of_stage).collect();
    Ok(json!({"seeds": results, "summary": summary}))
}

/// Mean and spread of the figures of all seeds, whose results are by seed and by stage.
pub fn spreads(recipe: &Recipe, results: &Map<String, Value>) -> Spreads {
    let of_stage = |stage: &crate::recipe::Stage| {
        let mut figures: Vec<(String, Vec<f64>)> = Vec::new();
        for result in results.values() {
            for (key, value) in stage.kind.work().figures(&result[&stage.name]) {
                match figures.iter_mut().find(|(known, _)| *known == key) {
                    Some((_, values)) => values.push(value),
                    None => figures.push((key, vec![value])),
                }
            }
        }
        let spread = |(key, values): (String, Vec<f64>)| Some((key, Spread::of(&values)?));
        let spreads = figures.into_iter().filter_map(spread).collect();
        (stage.name.clone(), spreads)
    };
    recipe.stage.iter().map(of_stage).collect()
}

/// One table for each stage.
pub fn tables(spreads: &Spreads) -> Vec<Table> {
    let columns = ["figure", "mean", "standard deviation", "minimum", "maximum"];
    let table = |(name, figures): &(String, Vec<(String, Spread)>)| Table {
        title: name.clone(),
        note: String::new(),
        columns: columns.map(str::to_owned).to_vec(),
        rows: figures
            .iter()
            .map(|(key, spread)| spread.row(key))
            .collect(),
    };
    let measured = spreads.iter().filter(|(_, figures)| !figures.is_empty());
    measured.map(table).collect()
}

fn write_report(recipe: &Recipe, spreads: &Spreads) -> Result<()> {
    let seeds: Vec<String> = recipe.seeds.iter().map(u64::to_string).collect();
    let title = recipe.output.file_name().unwrap_or_default();
    let reports = |seed: &u64| (format!("seed {seed}"), format!("seed-{seed}/report.html"));
    let report = Report {
        title: title.to_string_lossy().into_owned(),
        subtitle: format!(
            "{} stages, seeds {}, espalier {}",
            recipe.stage.len(),
            seeds.join(", "),
            env!("CARGO_PKG_VERSION")
        ),
        facts: recipe.seeds.iter().map(reports).collect(),
        sections: tables(spreads).into_iter().map(Section::Table).collect(),
    };
    Ok(report
        .write(&recipe.output.join("report.html"))
        .map_err(espalier_evaluate::Error::from)?)
}
