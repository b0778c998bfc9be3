//! Metrics of a run: their descriptions, their sums between two lines of the log, and the log itself.
//!
//! The log is one JSON object a line, appended and flushed, cut back to the checkpoint on resume.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use espalier_data::disk::Log;
use serde_json::{Map, Value};

use crate::{Error, Result, objectives::Metric, rewards};

/// Description of a metric, for logs, reports and terminals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MetricDescription {
    /// Its name in the log; of held-out data `eval_<name>`.
    pub name: &'static str,
    /// Its definition, in a line.
    pub help: &'static str,
    /// The title of the chart that it is drawn in, with others of the same title.
    pub chart: &'static str,
    /// Whether it is a share, to be shown in percent.
    pub share: bool,
}

impl MetricDescription {
    /// A number of any size.
    pub const fn number(name: &'static str, chart: &'static str, help: &'static str) -> Self {
        Self {
            name,
            help,
            chart,
            share: false,
        }
    }

    /// A share between 0 and 1.
    pub const fn share(name: &'static str, chart: &'static str, help: &'static str) -> Self {
        Self {
            share: true,
            ..Self::number(name, chart, help)
        }
    }
}

/// Metric of token predictions.
pub const ACCURACY: MetricDescription = MetricDescription::share(
    "accuracy",
    "accuracy",
    "share of the targets that are the model's first choice",
);
/// Metric of token predictions.
pub const EXACT_MATCH: MetricDescription = MetricDescription::share(
    "exact_match",
    "accuracy",
    "share of the rows of which every target is the model's first choice",
);

/// The loss itself.
const LOSS: MetricDescription =
    MetricDescription::number("loss", "loss", "mean over the units of a step");

/// Metrics of the model's routers and their auxiliary losses, independent of the objective.
const OF_MODELS: &[MetricDescription] = &[
    MetricDescription::number(
        "aux_loss",
        "balance loss",
        "balance loss of the routers, not weighted",
    ),
    MetricDescription::number(
        "z_loss",
        "z-loss",
        "squared log-partition of the routers, not weighted",
    ),
    MetricDescription::number(
        "experts/load",
        "experts: the largest load over the mean",
        "tokens of the busiest expert over the mean, averaged over the layers",
    ),
    MetricDescription::number(
        "experts/load_worst",
        "experts: the largest load over the mean",
        "tokens of the busiest expert over the mean, in the worst layer",
    ),
    MetricDescription::number(
        "experts/distinct",
        "experts: different ones of a token",
        "different experts that the parts of a token find",
    ),
    MetricDescription::share(
        "experts/dropped",
        "experts: dropped choices",
        "share of the choices that a full expert dropped",
    ),
    MetricDescription::share(
        "depth/predictor_accuracy",
        "depths: predictor right",
        "share of the tokens whose choice of depth the causal predictor foresees",
    ),
];

/// Metrics of the optimiser's step.
const OF_STEPS: &[MetricDescription] = &[
    MetricDescription::number(
        "learning_rate",
        "learning rate",
        "step size of the last step",
    ),
    MetricDescription::number(
        "gradient_norm",
        "gradient norm",
        "L2 norm over all parameters, before clipping",
    ),
];

/// All metrics that a run with these metrics of its objective may log, in the order of a report.
pub fn descriptions(
    objective: &'static [MetricDescription],
) -> impl Iterator<Item = &'static MetricDescription> {
    [&LOSS]
        .into_iter()
        .chain(objective)
        .chain(rewards::METRICS)
        .chain(OF_MODELS)
        .chain(OF_STEPS)
}

/// Sums of metrics since the last line of the log.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Window {
    sums: BTreeMap<String, [f64; 2]>,
}

impl Window {
    /// Adds values and their units.
    pub fn add(&mut self, metrics: &[Metric]) {
        for metric in metrics {
            let [sum, units] = self.sums.entry(metric.name.to_owned()).or_default();
            *sum += metric.sum;
            *units += metric.units;
        }
    }

    /// The means, by name; the window is empty after that.
    pub fn means(&mut self) -> Vec<(String, f64)> {
        std::mem::take(&mut self.sums)
            .into_iter()
            .map(|(name, [sum, units])| (name, sum / units.max(1.0)))
            .collect()
    }

    /// The sums as the bits of their numbers, which JSON keeps exactly where it would round.
    pub fn to_bits(&self) -> BTreeMap<String, [u64; 2]> {
        let bits = |(name, sums): (&String, &[f64; 2])| (name.clone(), sums.map(f64::to_bits));
        self.sums.iter().map(bits).collect()
    }

    /// The window of which these are the bits.
    pub fn from_bits(bits: BTreeMap<String, [u64; 2]>) -> Self {
        let sums = |(name, bits): (String, [u64; 2])| (name, bits.map(f64::from_bits));
        Self {
            sums: bits.into_iter().map(sums).collect(),
        }
    }
}

/// An append-only log, `metrics.jsonl`.
#[derive(Debug)]
pub struct MetricsLog {
    path: PathBuf,
    file: Log,
}

impl MetricsLog {
    /// Opens the log as it was when it had so many bytes: what was written after that is written again. One that lost some of them,
    /// as when the power failed, keeps the whole lines before the first that is torn.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn open(path: &Path, bytes: u64) -> Result<Self> {
        let file = Log::open(path).map_err(Error::file(path))?;
        file.cut(bytes).map_err(Error::file(path))?;
        let whole = whole_lines(&fs::read(path).map_err(Error::file(path))?);
        file.cut(whole as u64).map_err(Error::file(path))?;
        Ok(Self {
            path: path.to_owned(),
            file,
        })
    }

    /// Bytes so far.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn bytes(&self) -> Result<u64> {
        self.file.bytes().map_err(Error::file(&self.path))
    }

    /// Lets the disk have what was written, so that no checkpoint survives it.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn sync(&self) -> Result<()> {
        self.file.sync().map_err(Error::file(&self.path))
    }

    /// Appends lines that say something else, each an object, with the step as their first key.
    ///
    /// # Errors
    /// When the disk is full.
    pub fn write_objects(&mut self, step: usize, objects: &[Value]) -> Result<()> {
        for object in objects {
            let mut line = Map::from_iter([("step".to_owned(), Value::from(step))]);
            line.extend(object.as_object().cloned().unwrap_or_default());
            self.append(&line)?;
        }
        Ok(())
    }

    /// Appends one line: `step` and `values`. A number that is not finite becomes null, as JSON has none.
    ///
    /// # Errors
    /// When the disk is full.
    pub fn write(&mut self, step: usize, values: &[(String, f64)]) -> Result<()> {
        let mut object = Map::new();
        object.insert("step".into(), step.into());
        object.extend(
            values
                .iter()
                .map(|(key, value)| (key.clone(), Value::from(*value))),
        );
        self.append(&object)
    }

    fn append(&mut self, object: &Map<String, Value>) -> Result<()> {
        let line = format!("{}\n", serde_json::to_string(object).unwrap_or_default());
        self.file
            .append(line.as_bytes())
            .map_err(Error::file(&self.path))?;
        self.is_there().map_err(Error::file(&self.path))
    }

    /// Whether the file still has its name: what is written to one that was deleted is lost with the process.
    fn is_there(&self) -> io::Result<()> {
        let (named, open) = (fs::metadata(&self.path)?, self.file.bytes()?);
        match named.len() == open {
            true => Ok(()),
            false => Err(io::Error::other("another file has taken its place")),
        }
    }
}

/// Bytes of the lines that are whole, up to the first that is not.
fn whole_lines(log: &[u8]) -> usize {
    let is_whole = |line: &&[u8]| {
        line.ends_with(b"\n") && serde_json::from_slice::<Map<String, Value>>(line).is_ok()
    };
    let lines = log.split_inclusive(|byte| *byte == b'\n');
    lines.take_while(is_whole).map(<[u8]>::len).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_come_back_from_their_bits() {
        let mut window = Window::default();
        for sum in [0.1, f64::NAN, 1e-300] {
            let name = if sum.is_nan() { "b" } else { "a" };
            window.add(&[Metric {
                name,
                sum,
                units: 3.0,
            }]);
        }
        let bits = window.to_bits();
        assert_eq!(Window::from_bits(bits.clone()).to_bits(), bits);
        let means = window.means();
        assert_eq!(means[0], ("a".into(), (0.1 + 1e-300) / 6.0));
        assert_eq!(window, Window::default());
    }

    #[test]
    fn a_log_that_was_deleted_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut log = MetricsLog::open(&path, 0).unwrap();
        log.write(1, &[]).unwrap();
        fs::remove_file(&path).unwrap();
        let error = log.write(2, &[]).unwrap_err().to_string();
        assert!(error.contains("metrics.jsonl"), "{error}");
        fs::write(&path, "").unwrap();
        assert!(log.write(3, &[]).is_err());
    }

    #[test]
    fn resuming_drops_later_and_torn_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut log = MetricsLog::open(&path, 0).unwrap();
        for step in 1..=3 {
            log.write(step, &[("loss".into(), 0.5)]).unwrap();
        }
        fs::write(
            &path,
            fs::read_to_string(&path).unwrap() + "{\"step\": 4, \"lo",
        )
        .unwrap();
        let two = "{\"step\":1,\"loss\":0.5}\n{\"step\":2,\"loss\":0.5}\n";
        let mut log = MetricsLog::open(&path, two.len() as u64).unwrap();
        assert_eq!(log.bytes().unwrap(), two.len() as u64);
        log.write(3, &[("loss".into(), 0.25)]).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, format!("{two}{{\"step\":3,\"loss\":0.25}}\n"));
    }

    #[test]
    fn a_log_that_was_damaged_before_the_checkpoint_keeps_its_whole_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let (one, two) = ("{\"step\":1}\n", "{\"step\":2}\n");
        for damaged in [
            format!("{one}{{\"ste"),
            format!("{one}{}", "\0".repeat(two.len())),
            format!("{one}{{\"step\":\n{two}"),
            format!("{one}{}", two.trim_end()),
        ] {
            fs::write(&path, &damaged).unwrap();
            let mut log = MetricsLog::open(&path, damaged.len() as u64).unwrap();
            log.write(3, &[]).unwrap();
            let text = fs::read_to_string(&path).unwrap();
            assert_eq!(text, format!("{one}{{\"step\":3}}\n"), "{damaged:?}");
        }
    }
}
