//! Statistics: how far a measured accuracy can be trusted.
//!
//! The Wilson score interval (Wilson 1927, "Probable inference, the law of succession, and statistical inference"): unlike
//! the textbook `p ± z·sqrt(p(1-p)/n)` it stays within 0 and 1 and is honest for small `n` and for `p` near either end.
//!
//! Left out: comparisons of two models on the same items (McNemar), which need the items' pairing.

use serde::{Deserialize, Serialize};

/// The 97.5% quantile of the standard normal distribution, to the two decimals in common use: a 95% interval.
const Z: f64 = 1.96;

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
