//! Statistics: how far a measured accuracy can be trusted.
//!
//! The Wilson score interval (Wilson 1927, "Probable inference, the law of succession, and statistical inference"): unlike
//! the textbook `p ± z·sqrt(p(1-p)/n)` it stays within 0 and 1 and is honest for small `n` and for `p` near either end.
//!
//! Two models on the same items are compared item by item: McNemar's exact test (1947) of the items on which they differ, and the
//! bootstrap (Efron 1979) of the mean difference.

use espalier_data::random::Random;
use serde::{Deserialize, Serialize};

/// The 97.5% quantile of the standard normal distribution, to the two decimals in common use: a 95% interval.
pub const Z: f64 = 1.96;

/// Samples of a bootstrap.
const RESAMPLES: usize = 1000;

/// Seed of a bootstrap: the same figures give the same interval.
const SEED: u64 = 1234;

/// The Wilson 95% interval of the rate `correct / total`, as fractions; all of 0 to 1 where nothing was measured.
///
/// ```
/// let (low, high) = espalier_evaluate::statistics::wilson(250, 500);
/// assert!((low - 0.4563).abs() < 1e-4 && (high - 0.5437).abs() < 1e-4);
/// ```
pub fn wilson(correct: u64, total: u64) -> (f64, f64) {
    if total == 0 {
        return (0.0, 1.0);
    }
    let n = total as f64;
    let p = correct.min(total) as f64 / n;
    let scale = 1.0 + Z * Z / n;
    let centre = (p + Z * Z / (2.0 * n)) / scale;
    let half = Z * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt() / scale;
    ((centre - half).max(0.0), (centre + half).min(1.0))
}

/// A 95% interval, and the standard error.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
    /// The standard error; absent of a single value.
    pub error: Option<f64>,
}

/// The interval of a mean: Wilson's where all values are 0 or 1, else by the standard error, within 0 and 1 where marks are `shares`.
///
/// ```
/// use espalier_evaluate::statistics::mean_interval;
/// let found = mean_interval(&[1.0, 1.0, 0.0, 1.0], true);
/// assert_eq!(found.error, Some(0.25));
/// assert!((found.low - 0.3006).abs() < 1e-4 && (found.high - 0.9544).abs() < 1e-4);
/// ```
pub fn mean_interval(values: &[f64], shares: bool) -> Interval {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    let error = (values.len() > 1).then(|| (squares / (count - 1.0)).sqrt() / count.sqrt());
    if shares && values.iter().all(|value| *value == 0.0 || *value == 1.0) {
        let (low, high) = wilson(mean.mul_add(count, 0.5) as u64, values.len() as u64);
        return Interval { low, high, error };
    }
    let half = Z * error.unwrap_or(f64::INFINITY);
    let bound = |bound: f64| if shares { bound.clamp(0.0, 1.0) } else { bound };
    Interval {
        low: bound(mean - half),
        high: bound(mean + half),
        error,
    }
}

/// The percentile interval of a figure of `count` items, and its standard error, by drawing items with replacement.
pub fn bootstrap(count: usize, figure: impl Fn(&[usize]) -> f64) -> Interval {
    let mut random = Random::new(SEED);
    let mut draw = || figure(&(0..count).map(|_| random.below(count)).collect::<Vec<_>>());
    let mut figures: Vec<f64> = (0..RESAMPLES).map(|_| draw()).collect();
    figures.sort_by(f64::total_cmp);
    let mean = figures.iter().sum::<f64>() / RESAMPLES as f64;
    let squares: f64 = figures.iter().map(|figure| (figure - mean).powi(2)).sum();
    Interval {
        low: figures[RESAMPLES / 40],
        high: figures[RESAMPLES - 1 - RESAMPLES / 40],
        error: (count > 1).then(|| (squares / (RESAMPLES - 1) as f64).sqrt()),
    }
}

/// Two models on the same items.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Items that both answered.
    pub items: usize,
    /// Mean of the second's marks less the first's.
    pub difference: f64,
    /// Its 95% interval, by bootstrap over items.
    pub low: f64,
    /// Its 95% interval, by bootstrap over items.
    pub high: f64,
    /// Items that the second alone has right, and the first alone; of marks of right and wrong.
    pub only: Option<[u64; 2]>,
    /// How likely differences as large are by chance: McNemar's exact test, two-sided; of marks of right and wrong.
    pub p: Option<f64>,
}

/// Compares marks of the same items.
///
/// ```
/// use espalier_evaluate::statistics::compare;
/// let found = compare(&[(0.0, 1.0), (0.0, 1.0), (1.0, 1.0), (1.0, 0.0)]);
/// assert_eq!((found.difference, found.only, found.p), (0.25, Some([2, 1]), Some(1.0)));
/// ```
pub fn compare(marks: &[(f64, f64)]) -> Comparison {
    let mean = |places: &mut dyn Iterator<Item = usize>| {
        let sum: f64 = places.map(|place| marks[place].1 - marks[place].0).sum();
        sum / marks.len().max(1) as f64
    };
    let Interval { low, high, .. } = match marks.is_empty() {
        true => Interval {
            low: 0.0,
            high: 0.0,
            error: None,
        },
        false => bootstrap(marks.len(), |chosen| mean(&mut chosen.iter().copied())),
    };
    let is_verdict = |mark: f64| mark == 0.0 || mark == 1.0;
    let verdicts = marks
        .iter()
        .all(|(one, other)| is_verdict(*one) && is_verdict(*other));
    let count = |first: f64, second: f64| {
        marks
            .iter()
            .filter(|pair| **pair == (first, second))
            .count() as u64
    };
    let only = verdicts.then(|| [count(0.0, 1.0), count(1.0, 0.0)]);
    Comparison {
        items: marks.len(),
        difference: mean(&mut (0..marks.len())),
        low,
        high,
        only,
        p: only.map(|[gained, lost]| mcnemar(gained, lost)),
    }
}

/// McNemar's exact test: twice the smaller tail of a fair coin.
///
/// ```
/// use espalier_evaluate::statistics::mcnemar;
/// assert!((mcnemar(1, 9) - 0.021484).abs() < 1e-6);
/// assert_eq!(mcnemar(0, 0), 1.0);
/// ```
pub fn mcnemar(gained: u64, lost: u64) -> f64 {
    let (count, fewer) = (gained + lost, gained.min(lost));
    // Logarithms of the binomial coefficients, as 2^-count may underflow.
    let (mut logarithm, mut tail) = (-(count as f64) * std::f64::consts::LN_2, 0.0);
    for i in 0..=fewer {
        tail += logarithm.exp();
        logarithm += ((count - i) as f64 / (i + 1) as f64).ln();
    }
    (2.0_f64 * tail).min(1.0)
}

/// Items answered correctly, of all items asked.
///
/// ```
/// use espalier_evaluate::statistics::Accuracy;
/// let accuracy = Accuracy { correct: 417, total: 500 };
/// assert_eq!(accuracy.to_string(), "83.4 % (79.9-86.4)");
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accuracy {
    /// Items answered correctly.
    pub correct: u64,
    /// Items asked.
    pub total: u64,
}

impl Accuracy {
    /// Counts one item.
    pub fn record(&mut self, correct: bool) {
        self.correct += u64::from(correct);
        self.total += 1;
    }

    /// The fraction answered correctly; not a number where nothing was asked.
    pub fn value(&self) -> f64 {
        self.correct as f64 / self.total as f64
    }

    /// The Wilson 95% interval of the fraction.
    pub fn interval(&self) -> (f64, f64) {
        wilson(self.correct, self.total)
    }
}

impl FromIterator<bool> for Accuracy {
    fn from_iter<I: IntoIterator<Item = bool>>(outcomes: I) -> Self {
        let mut accuracy = Self::default();
        outcomes
            .into_iter()
            .for_each(|correct| accuracy.record(correct));
        accuracy
    }
}

impl std::fmt::Display for Accuracy {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.total == 0 {
            return out.write_str("no items");
        }
        let (low, high) = self.interval();
        write!(
            out,
            "{:.1} % ({:.1}-{:.1})",
            100.0 * self.value(),
            100.0 * low,
            100.0 * high
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(interval: (f64, f64), low: f64, high: f64) {
        assert!(
            (interval.0 - low).abs() < 5e-5 && (interval.1 - high).abs() < 5e-5,
            "{interval:?}"
        );
    }

    #[test]
    fn wilson_gives_the_published_numbers() {
        close(wilson(250, 500), 0.4563, 0.5437);
        close(wilson(0, 10), 0.0, 0.2775);
        close(wilson(10, 10), 0.7225, 1.0);
        close(wilson(1, 1), 0.2065, 1.0);
        assert_eq!(wilson(0, 0), (0.0, 1.0));
    }

    #[test]
    fn intervals_hold_the_rate_and_shrink() {
        for correct in 0..=40 {
            let (low, high) = wilson(correct, 40);
            let rate = correct as f64 / 40.0;
            assert!(
                low <= rate + 1e-12
                    && rate <= high + 1e-12
                    && (0.0..=1.0).contains(&low)
                    && high <= 1.0
            );
            let (finer_low, finer_high) = wilson(correct * 10, 400);
            assert!(finer_high - finer_low < high - low);
        }
    }

    #[test]
    fn accuracy_counts_and_prints() {
        let accuracy: Accuracy = [true, true, false, true].into_iter().collect();
        assert_eq!(
            accuracy,
            Accuracy {
                correct: 3,
                total: 4
            }
        );
        assert_eq!(accuracy.value(), 0.75);
        assert_eq!(
            Accuracy {
                correct: 417,
                total: 500
            }
            .to_string(),
            "83.4 % (79.9-86.4)"
        );
        assert_eq!(
            Accuracy {
                correct: 500,
                total: 500
            }
            .to_string(),
            "100.0 % (99.2-100.0)"
        );
        assert_eq!(Accuracy::default().to_string(), "no items");
    }
}
