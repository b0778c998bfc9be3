//! Metrics of a whole corpus: each item leaves counts, and the figure is made of their sums.

use super::{Score, bleu, chrf, ter};

/// How many counts an item can leave.
pub const COUNTS: usize = 18;

/// What an item leaves.
pub type Counts = [f64; COUNTS];

/// A metric whose figure is of sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Corpus {
    /// Sequences of words in common.
    Bleu,
    /// Sequences of characters in common.
    ChrF,
    /// Edits, in per cent of the reference's length.
    Ter,
}

impl Corpus {
    /// The mark of an answer: the score of it alone, from 0 to 100, and its counts.
    pub fn mark(self, answer: &str, golds: &[String]) -> Score {
        let counts = match self {
            Self::Bleu => bleu::counts(answer, golds),
            Self::ChrF => chrf::counts(answer, golds),
            Self::Ter => ter::counts(answer, golds),
        };
        Score {
            counts,
            ..Score::of(self.score(&counts))
        }
    }

    /// The figure of all items.
    pub fn figure(self, scores: &[Score]) -> f64 {
        let mut sums = [0.0; COUNTS];
        for score in scores {
            for (sum, count) in sums.iter_mut().zip(score.counts) {
                *sum += count;
            }
        }
        self.score(&sums)
    }

    fn score(self, counts: &Counts) -> f64 {
        match self {
            Self::Bleu => bleu::score(counts),
            Self::ChrF => chrf::score(counts),
            Self::Ter => ter::score(counts),
        }
    }
}
