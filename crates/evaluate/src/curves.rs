//! Curves: reading a run's `metrics.jsonl` into one series for each quantity.
//!
//! A line is one JSON object, `{"step": 20, "loss": 2.31, "learning_rate": 1e-3}`; every number but the step is a point
//! of the series that bears its key, and a null is a point that is not a number (JSON has no other word for it). A killed
//! run may leave its last line torn, which is not an error; one that was resumed writes some steps again, and then the
//! later lines hold.
//!
//! Left out: texts, lists and objects among the values, which are no curves.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::report::Series;

/// The longest line that is read, in bytes.
const LONGEST_LINE: u64 = 1 << 20;

/// Why metrics could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MetricsError {
    /// The file could not be read.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A line other than the last is malformed.
    #[error("{}:{line}: {reason}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Line in the file, from 1.
        line: usize,
        /// What is wrong and what was expected.
        reason: String,
    },
}

/// The curves of a run.
///
/// ```
/// let path = std::env::temp_dir().join("espalier-doc-metrics.jsonl");
/// std::fs::write(&path, "{\"step\": 1, \"loss\": 4.5}\n{\"step\": 2, \"loss\": 4.0}\n").unwrap();
/// let metrics = espalier_evaluate::curves::read_metrics(&path).unwrap();
/// assert_eq!(metrics.get("loss").unwrap().points, [(1.0, 4.5), (2.0, 4.0)]);
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metrics {
    /// One series for each key, in the order of their first appearance; points are (step, value).
    pub series: Vec<Series>,
    /// Whether the last line was torn and left out.
    pub torn: bool,
}

impl Metrics {
    /// The series of a key.
    pub fn get(&self, key: &str) -> Option<&Series> {
        self.series.iter().find(|series| series.name == key)
    }

    /// Adds the numbers of one line at its step; a step that goes back overrides all from there on.
    fn add(&mut self, step: f64, line: &Map<String, Value>) {
        self.series
            .iter_mut()
            .for_each(|series| forget(&mut series.points, |x| x > step));
        for (key, value) in line.iter().filter(|(key, _)| *key != "step") {
            let value = if value.is_null() {
                Some(f64::NAN)
            } else {
                value.as_f64()
            };
            if let Some(value) = value {
                let points = self.points(key);
                forget(points, |x| x >= step);
                points.push((step, value));
            }
        }
    }

    fn points(&mut self, key: &str) -> &mut Vec<(f64, f64)> {
        let index = self
            .series
            .iter()
            .position(|series| series.name == key)
            .unwrap_or_else(|| {
                self.series.push(Series {
                    name: key.into(),
                    points: Vec::new(),
                });
                self.series.len() - 1
            });
        &mut self.series[index].points
    }
}

/// Reads the metrics of a run, finished or killed.
///
/// # Errors
/// [`MetricsError`] when the file cannot be read, or a line before the last is not an object with a number `step`.
pub fn read_metrics(path: impl AsRef<Path>) -> Result<Metrics, MetricsError> {
    let path = path.as_ref();
    let file_error = |source| MetricsError::File {
        path: path.into(),
        source,
    };
    let mut reader = BufReader::new(std::fs::File::open(path).map_err(file_error)?);
    let (mut metrics, mut number, mut line) = (Metrics::default(), 0, Vec::new());
    let mut torn: Option<MetricsError> = None;
    while next_line(&mut reader, &mut line).map_err(file_error)? {
        number += 1;
        if line.trim_ascii().is_empty() {
            continue;
        }
        if let Some(error) = torn {
            return Err(error);
        }
        torn = match parse_line(&line) {
            Ok((step, values)) => {
                metrics.add(step, &values);
                None
            }
            Err(reason) => Some(MetricsError::Line {
                path: path.into(),
                line: number,
                reason,
            }),
        };
    }
    metrics.series.retain(|series| !series.points.is_empty());
    metrics.torn = torn.is_some();
    Ok(metrics)
}

/// Reads one line, or the first part of one that is too long to be metrics; false at the end of the file.
fn next_line(reader: &mut impl BufRead, line: &mut Vec<u8>) -> std::io::Result<bool> {
    line.clear();
    Ok(reader.by_ref().take(LONGEST_LINE).read_until(b'\n', line)? > 0)
}

/// The step and the values of a line.
fn parse_line(line: &[u8]) -> Result<(f64, Map<String, Value>), String> {
    let expected = "expected an object such as {\"step\": 20, \"loss\": 2.31}";
    let values: Map<String, Value> =
        serde_json::from_slice(line).map_err(|error| format!("{error}; {expected}"))?;
    let step = values.get("step").and_then(Value::as_f64);
    Ok((
        step.ok_or_else(|| format!("no number `step`; {expected}"))?,
        values,
    ))
}

/// Drops the points from the end whose step is void; they are in order.
fn forget(points: &mut Vec<(f64, f64)>, void: impl Fn(f64) -> bool) {
    while points.last().is_some_and(|point| void(point.0)) {
        points.pop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: impl AsRef<[u8]>) -> Result<Metrics, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        std::fs::write(&path, text).unwrap();
        let shown = format!("{}:", path.display());
        read_metrics(&path).map_err(|error| error.to_string().replace(&shown, ""))
    }

    fn points(metrics: &Metrics, key: &str) -> Vec<(f64, f64)> {
        metrics.get(key).unwrap().points.clone()
    }

    #[test]
    fn each_key_is_a_series() {
        let metrics = read(
            "{\"step\": 1, \"loss\": 4.5, \"phase\": \"warm\", \"learning_rate\": 1e-3}\n\n\
             {\"step\": 2, \"loss\": 4.25}\n{\"step\": 2, \"held_out_loss\": 5}\n",
        )
        .unwrap();
        let names: Vec<&str> = metrics
            .series
            .iter()
            .map(|series| series.name.as_str())
            .collect();
        assert_eq!(names, ["loss", "learning_rate", "held_out_loss"]);
        assert_eq!(points(&metrics, "loss"), [(1.0, 4.5), (2.0, 4.25)]);
        assert_eq!(points(&metrics, "held_out_loss"), [(2.0, 5.0)]);
        assert!(!metrics.torn);
    }

    #[test]
    fn nulls_are_points_that_are_no_numbers() {
        let metrics = read("{\"step\": 1, \"loss\": null}\n").unwrap();
        assert!(points(&metrics, "loss")[0].1.is_nan());
    }

    #[test]
    fn a_torn_last_line_is_left_out() {
        for tail in [
            &b"{\"step\": 2, \"lo"[..],
            b"{\"step\": 2, \"los\xc3",
            b"\0\0\0\0",
            b"{\"step\"\n",
        ] {
            let metrics = read([&b"{\"step\": 1, \"loss\": 1}\n"[..], tail].concat()).unwrap();
            assert_eq!(points(&metrics, "loss"), [(1.0, 1.0)]);
            assert!(metrics.torn);
        }
    }

    #[test]
    fn a_malformed_line_in_the_middle_is_named() {
        let complaint = read("{\"step\": 1}\n{\"loss\": 1}\n{\"step\": 2}\n").unwrap_err();
        assert_eq!(
            complaint,
            "2: no number `step`; expected an object such as {\"step\": 20, \"loss\": 2.31}"
        );
        let complaint = read("[1]\n{\"step\": 2}\n").unwrap_err();
        assert!(
            complaint.starts_with("1: invalid type: sequence, expected a map"),
            "{complaint}"
        );
    }

    #[test]
    fn resumed_steps_hold() {
        let line = |step: u32, loss: u32| format!("{{\"step\": {step}, \"loss\": {loss}}}\n");
        let killed = format!(
            "{}{}{{\"step\": 3, \"held_out_loss\": 7}}\n{}",
            line(1, 10),
            line(2, 20),
            line(4, 40)
        );
        let metrics = read(format!("{killed}{}{}", line(2, 21), line(3, 31))).unwrap();
        assert_eq!(
            points(&metrics, "loss"),
            [(1.0, 10.0), (2.0, 21.0), (3.0, 31.0)]
        );
        assert!(metrics.get("held_out_loss").is_none());
    }

    #[test]
    fn absent_files_are_named() {
        let complaint = read_metrics("absent/metrics.jsonl")
            .unwrap_err()
            .to_string();
        assert!(
            complaint.starts_with("absent/metrics.jsonl: "),
            "{complaint}"
        );
    }
}
