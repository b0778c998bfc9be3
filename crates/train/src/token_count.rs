//! What a model reads in training, counted the same way before a run and in it.

use std::ops::AddAssign;

use serde::{Deserialize, Serialize};

/// Tokens of batches: those of texts, those of them that the loss asks for, and what fills rows up.
///
/// ```
/// use espalier_train::token_count::TokenCount;
/// let count = TokenCount { real: 75, learned: 10, padding: 25 };
/// assert_eq!((count.read(), count.padding_share()), (100, 0.25));
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenCount {
    /// Tokens of texts, sources included.
    pub real: u64,
    /// Predictions that the loss asks for.
    pub learned: u64,
    /// Tokens that fill rows up to the longest of their batch: computed like others, and of no use.
    pub padding: u64,
}

impl TokenCount {
    /// All tokens that pass through the model.
    pub fn read(&self) -> u64 {
        self.real + self.padding
    }

    /// Padding as a share of what is read.
    pub fn padding_share(&self) -> f64 {
        self.padding as f64 / self.read().max(1) as f64
    }

    /// The count of a run that is longer by `factor`.
    pub(crate) fn scaled(&self, factor: f64) -> Self {
        let scaled = |count: u64| (count as f64 * factor).round() as u64;
        Self {
            real: scaled(self.real),
            learned: scaled(self.learned),
            padding: scaled(self.padding),
        }
    }
}

impl AddAssign for TokenCount {
    fn add_assign(&mut self, other: Self) {
        self.real += other.real;
        self.learned += other.learned;
        self.padding += other.padding;
    }
}
