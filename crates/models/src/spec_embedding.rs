//! What a stack adds to its tokens' vectors, and how these join it where they are of another width.

use serde::{Deserialize, Serialize};

/// An embedding of another width than the model's, and the linear layers between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EmbeddingProjectionSpec {
    /// Width of the table of the embedding.
    pub width: usize,
    /// Where the linear layers stand.
    pub place: ProjectionPlace,
}

impl EmbeddingProjectionSpec {
    /// A layer behind positions from an embedding of this width.
    pub fn behind_positions(width: usize) -> Self {
        let place = ProjectionPlace::BehindPositions;
        Self { width, place }
    }

    /// Layers at both ends, from an embedding of this width and back.
    pub fn both_ends(width: usize) -> Self {
        let place = ProjectionPlace::BothEnds;
        Self { width, place }
    }
}

/// Where linear layers stand between an embedding and a model of another width.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProjectionPlace {
    /// Behind what is added to the tokens, which is as wide as they are, and the norm over it; with a bias (ALBERT, ELECTRA).
    BehindPositions,
    /// Before what is added to the tokens, and another one back, behind the last block and norm; without biases (OPT).
    BothEnds,
}

/// Positions that are added to the embedded tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PositionSpec {
    /// A table of vectors.
    Learned {
        /// Positions that there are.
        count: usize,
        /// Rows before that of position 0 (BART: 2).
        offset: usize,
    },
    /// A table of vectors in which the padding token has the row of its own number, the first other token of a text the row after
    /// that, and so on: padding within a text is not counted (RoBERTa).
    LearnedBehindPadding {
        /// Positions that there are, the rows up to the padding's left out.
        count: usize,
        /// The padding token.
        padding: u32,
    },
    /// A table of vectors that is never trained, in place of sines and cosines, where a file holds other numbers (Pegasus).
    Fixed {
        /// Positions that there are.
        count: usize,
    },
    /// Sines and cosines (arXiv 1706.03762).
    Sinusoidal {
        /// Whether they take turns, as in the paper, rather than all sines before all cosines, as in Marian.
        interleaved: bool,
    },
    /// All sines before all cosines, counted as in [`PositionSpec::LearnedBehindPadding`], with wavelengths whose longest is 10,000
    /// times the shortest, and nothing for padding (M2M-100).
    SinusoidalBehindPadding {
        /// The padding token.
        padding: u32,
    },
}

/// T5's relative positions (arXiv 1910.10683): a learned bias for each head and each bucket of distances.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelativePositionSpec {
    /// Buckets of distances.
    pub buckets: usize,
    /// Rows of the table, of which those after the buckets are for nothing (MPNet).
    pub rows: usize,
    /// The distance from which on all share a bucket.
    pub max_distance: usize,
    /// Columns of the table.
    pub heads: usize,
    /// Whether every block has a table of its own (UMT5), rather than all one together.
    pub per_block: bool,
}

impl PositionSpec {
    /// Positions of the table, beyond which there are none.
    pub fn learned(self) -> Option<usize> {
        match self {
            Self::Learned { count, .. }
            | Self::LearnedBehindPadding { count, .. }
            | Self::Fixed { count } => Some(count),
            Self::Sinusoidal { .. } | Self::SinusoidalBehindPadding { .. } => None,
        }
    }

    /// Rows of the table, where there is one.
    pub fn table_rows(self) -> Option<usize> {
        match self {
            Self::Learned { count, offset } => Some(count.saturating_add(offset)),
            Self::Fixed { count } => Some(count),
            Self::LearnedBehindPadding { count, padding } => {
                Some(count.saturating_add(padding as usize).saturating_add(1))
            }
            Self::Sinusoidal { .. } | Self::SinusoidalBehindPadding { .. } => None,
        }
    }
}

impl RelativePositionSpec {
    /// The names of a stack's tables: one for all its `blocks`, or one for each.
    pub fn names(self, prefix: &str, blocks: usize) -> impl Iterator<Item = String> {
        let name = move |number: usize| match self.per_block {
            true => format!("{prefix}blocks.{number}.relative_bias"),
            false => format!("{prefix}relative_bias"),
        };
        (0..if self.per_block { blocks } else { 1 }).map(name)
    }
}
