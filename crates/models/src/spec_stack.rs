//! The stacks that a [`ModelSpec`] has: what an encoder and a decoder share, and how wide they are.

use crate::spec::{
    BlockSpec, EmbeddingProjectionSpec, EncoderSpec, ModelSpec, NormSpec, PositionSpec,
    ProjectionPlace, RelativePositionSpec,
};

/// Embedding additions, blocks and last norm, of a decoder or an encoder.
#[derive(Debug, Clone, Copy)]
pub struct StackSpec<'a> {
    /// The blocks, first to last.
    pub blocks: &'a [BlockSpec],
    /// See [`ModelSpec::block_order`].
    pub block_order: Option<&'a [usize]>,
    /// See [`ModelSpec::embedding_projection`].
    pub embedding_projection: Option<EmbeddingProjectionSpec>,
    /// Positions that are added to the embedded tokens.
    pub positions: Option<PositionSpec>,
    /// Rows of the table of token types.
    pub token_types: Option<usize>,
    /// A bias by distance that all blocks share.
    pub relative: Option<RelativePositionSpec>,
    /// A norm over the embedded tokens.
    pub embedding_norm: Option<NormSpec>,
    /// The norm after the last block.
    pub final_norm: Option<NormSpec>,
    /// Whether every token sees the whole text.
    pub bidirectional: bool,
}

impl StackSpec<'_> {
    /// Width of what is added to the tokens of a model of this width.
    pub(crate) fn added_width(&self, width: usize) -> usize {
        match self.embedding_projection {
            Some(projection) if projection.place == ProjectionPlace::BehindPositions => {
                projection.width
            }
            _ => width,
        }
    }

    /// The embedding's width, where the last linear layer leads back to it.
    pub(crate) fn leads_back(&self) -> Option<usize> {
        self.embedding_projection
            .filter(|projection| projection.place == ProjectionPlace::BothEnds)
            .map(|projection| projection.width)
    }
}

impl ModelSpec {
    /// Width of the embedding's table and of what the head reads.
    pub fn outer_width(&self) -> usize {
        self.embedding_projection
            .map_or(self.width, |projection| projection.width)
    }

    /// Width of the hidden states that the decoder gives.
    pub fn hidden_width(&self) -> usize {
        self.stack().leads_back().unwrap_or(self.width)
    }

    /// The model without its head, and without its encoder.
    pub fn stack(&self) -> StackSpec<'_> {
        StackSpec {
            blocks: &self.blocks,
            block_order: self.block_order.as_deref(),
            embedding_projection: self.embedding_projection,
            positions: self.positions,
            token_types: self.token_types,
            relative: self.relative,
            embedding_norm: self.embedding_norm,
            final_norm: self.final_norm,
            bidirectional: self.bidirectional,
        }
    }

    /// Positions that the model has learned; beyond them it cannot go.
    pub fn learned_positions(&self) -> Option<usize> {
        self.positions.and_then(PositionSpec::learned)
    }

    /// Takes over which positions come from a table of the file in place of sines and cosines, which no configuration tells.
    pub(crate) fn take_tables_of(&mut self, other: &Self) {
        let take = |own: &mut Option<PositionSpec>, other: Option<PositionSpec>| {
            if let (Some(PositionSpec::Sinusoidal { .. }), Some(PositionSpec::Fixed { .. })) =
                (*own, other)
            {
                *own = other;
            }
        };
        take(&mut self.positions, other.positions);
        if let (Some(own), Some(other)) = (&mut self.encoder, &other.encoder) {
            take(&mut own.positions, other.positions);
        }
    }

    /// Learned positions of what reads a prompt: an encoder-decoder's encoder, or the only stack.
    pub fn prompt_positions(&self) -> Option<usize> {
        let positions = match &self.encoder {
            Some(encoder) => encoder.positions,
            None => self.positions,
        };
        positions.and_then(PositionSpec::learned)
    }
}

impl EncoderSpec {
    /// The encoder as a stack.
    pub fn stack(&self) -> StackSpec<'_> {
        StackSpec {
            blocks: &self.blocks,
            block_order: None,
            embedding_projection: None,
            positions: self.positions,
            token_types: None,
            relative: self.relative,
            embedding_norm: self.embedding_norm,
            final_norm: self.final_norm,
            bidirectional: true,
        }
    }
}
