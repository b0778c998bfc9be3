//! The scales of a chart, their marks, and numbers in words.

use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};

/// Larger numbers could overflow in the arithmetic of a scale.
pub(super) const LARGEST: f64 = 1e300;

/// A scale with its marks; a logarithmic one holds exponents of ten.
#[derive(Debug, Clone)]
pub(super) struct Axis {
    low: f64,
    high: f64,
    marks: Vec<f64>,
    labels: Vec<String>,
}

impl Axis {
    /// The scale that holds all values with a little room; none for no values.
    pub(super) fn around(values: impl Iterator<Item = f64>, logarithmic: bool) -> Option<Self> {
        let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| {
            (l.min(v), h.max(v))
        });
        if low > high {
            return None;
        }
        // Closer values than this would fall on one unit of the drawing's arithmetic.
        let least = 1e-9 * low.abs().max(high.abs());
        let room = if high - low > least {
            0.0
        } else {
            least.max(if logarithmic { 0.1 } else { 0.5 })
        };
        let margin = if logarithmic {
            0.03 * (high - low)
        } else {
            0.0
        };
        let (low, high) = (low - room - margin, high + room + margin);
        let decades = if logarithmic {
            decades(low, high)
        } else {
            Vec::new()
        };
        let (marks, labels) = if decades.len() >= 3 {
            let labels = decades
                .iter()
                .map(|mark| significant(10f64.powf(*mark)))
                .collect();
            (decades, labels)
        } else if logarithmic {
            within_decade(low, high)
        } else {
            even(low, high)
        };
        Some(Self {
            low,
            high,
            marks,
            labels,
        })
    }

    pub(super) fn label(&self, value: f64) -> String {
        let distance = |mark: &f64| (mark - value).abs();
        let nearest = self
            .marks
            .iter()
            .enumerate()
            .min_by(|a, b| distance(a.1).total_cmp(&distance(b.1)));
        nearest.map_or(String::new(), |(index, _)| self.labels[index].clone())
    }
}

impl Ranged for Axis {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let share = (value - self.low) / (self.high - self.low);
        limit.0 + (share * f64::from(limit.1 - limit.0)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _hint: Hint) -> Vec<f64> {
        self.marks.clone()
    }

    fn range(&self) -> std::ops::Range<f64> {
        self.low..self.high
    }
}

/// Marks at whole multiples of 1, 2 or 5 times a power of ten, four to nine of them.
fn even(low: f64, high: f64) -> (Vec<f64>, Vec<String>) {
    let raw = (high - low) / 6.0;
    let power = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .map(|factor| factor * power)
        .into_iter()
        .find(|step| *step >= raw);
    let step = step.unwrap_or(raw);
    let first = (low / step).ceil();
    let marks: Vec<f64> = (0..12)
        .map(|index| (first + f64::from(index)) * step)
        .filter(|mark| *mark <= high)
        .collect();
    let labels = marks.iter().map(|mark| fixed(*mark, step)).collect();
    (marks, labels)
}

/// Exponents of whole powers of ten, thinned to eight at most.
fn decades(low: f64, high: f64) -> Vec<f64> {
    let every = ((high - low) / 8.0).ceil().max(1.0);
    let first = (low / every).ceil();
    (0..9)
        .map(|index| (first + f64::from(index)) * every)
        .filter(|exponent| *exponent <= high)
        .collect()
}

/// Marks of a logarithmic scale that spans hardly a decade: 1, 2 and 5 in each, or even marks where they are too few.
fn within_decade(low: f64, high: f64) -> (Vec<f64>, Vec<String>) {
    let exponents = (0..5).map(|index| low.floor() + f64::from(index));
    let all = exponents.flat_map(|exponent| [1f64, 2.0, 5.0].map(|digit| exponent + digit.log10()));
    let marks: Vec<f64> = all.filter(|mark| (low..=high).contains(mark)).collect();
    if marks.len() >= 3 {
        let labels = marks
            .iter()
            .map(|mark| significant(10f64.powf(*mark)))
            .collect();
        return (marks, labels);
    }
    let (values, labels) = even(10f64.powf(low), 10f64.powf(high));
    values
        .into_iter()
        .zip(labels)
        .map(|(value, label)| (value.log10(), label))
        .filter(|(mark, _)| mark.is_finite())
        .unzip()
}

/// A mark with as many decimals as its step needs.
fn fixed(value: f64, step: f64) -> String {
    let value = if value == 0.0 { 0.0 } else { value };
    let large = value.abs().max(step) >= 1e7;
    if large || step < 1e-4 {
        let digits =
            (value.abs().max(step).log10().floor() - step.log10().floor()).clamp(0.0, 9.0) as usize;
        return if value == 0.0 {
            "0".into()
        } else {
            format!("{value:.digits$e}")
        };
    }
    let decimals = (-step.log10().floor()).max(0.0) as usize;
    grouped(&format!("{value:.decimals$}"))
}

/// A value in at most four significant digits.
pub(super) fn significant(value: f64) -> String {
    if value == 0.0 {
        return "0".into();
    }
    let magnitude = value.abs().log10().floor();
    if !(-4.0..7.0).contains(&magnitude) {
        let (digits, exponent) = format!("{value:.3e}")
            .split_once('e')
            .map(|(d, e)| (trimmed(d), e.to_string()))
            .unwrap_or_default();
        return format!("{digits}e{exponent}");
    }
    grouped(&trimmed(&format!(
        "{value:.*}",
        (3.0 - magnitude).max(0.0) as usize
    )))
}

/// Without zeros at the end of the decimals.
fn trimmed(number: &str) -> String {
    if number.contains('.') {
        number.trim_end_matches('0').trim_end_matches('.').into()
    } else {
        number.into()
    }
}

/// With commas between thousands.
fn grouped(number: &str) -> String {
    let (sign, digits) = number
        .strip_prefix('-')
        .map_or(("", number), |digits| ("-", digits));
    let (whole, decimals) = digits.split_at(digits.find('.').unwrap_or(digits.len()));
    let parts: Vec<&str> = whole
        .as_bytes()
        .rchunks(3)
        .rev()
        .filter_map(|part| std::str::from_utf8(part).ok())
        .collect();
    format!("{sign}{}{decimals}", parts.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(low: f64, high: f64, logarithmic: bool) -> Vec<String> {
        Axis::around([low, high].into_iter(), logarithmic)
            .unwrap()
            .labels
    }

    #[test]
    fn marks_are_round_numbers() {
        assert_eq!(
            labels(0.0, 1.0, false),
            ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]
        );
        assert_eq!(
            labels(0.0, 10_000.0, false),
            ["0", "2,000", "4,000", "6,000", "8,000", "10,000"]
        );
        assert_eq!(
            labels(2.31, 5.2, false),
            ["2.5", "3.0", "3.5", "4.0", "4.5", "5.0"]
        );
        assert_eq!(
            labels(0.0, 2.9e-4, false),
            ["0", "5e-5", "1.0e-4", "1.5e-4", "2.0e-4", "2.5e-4"]
        );
        assert_eq!(
            labels(0.0, 3e9, false),
            ["0", "5e8", "1.0e9", "1.5e9", "2.0e9", "2.5e9", "3.0e9"]
        );
        assert_eq!(
            labels(-1.0, 1.0, false),
            ["-1.0", "-0.5", "0.0", "0.5", "1.0"]
        );
    }

    #[test]
    fn logarithmic_marks_follow_decades() {
        assert_eq!(
            labels(-3.0, 2.0, true),
            ["0.001", "0.01", "0.1", "1", "10", "100"]
        );
        assert_eq!(labels(0.0, 1.0, true), ["1", "2", "5", "10"]);
        assert_eq!(
            labels(-20.0, 4.0, true),
            ["1e-20", "1e-16", "1e-12", "1e-8", "0.0001", "1", "10,000"]
        );
        assert!(labels(0.301, 0.3222, true).len() >= 3);
    }

    #[test]
    fn values_have_four_digits() {
        let shown = [2.31456, 0.0, 12345.6, 1e-5, -0.5, 4.0, 1.23456e8].map(significant);
        assert_eq!(
            shown,
            ["2.315", "0", "12,346", "1e-5", "-0.5", "4", "1.235e8"]
        );
    }
}
