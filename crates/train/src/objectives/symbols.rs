//! The tokens that objectives write themselves.

/// Tokens of the vocabulary that corrupt a text, frame it, or must be left alone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Symbols {
    /// Stands for what was masked.
    pub mask: Option<u32>,
    /// T5's marks of removed spans, `<extra_id_0>` first.
    pub sentinels: Vec<u32>,
    /// Tokens that are never masked.
    pub special: Vec<u32>,
    /// Tokens that end a sentence.
    pub sentence_ends: Vec<u32>,
    /// Rows of the embedding table.
    pub vocabulary: usize,
    /// The token with which a decoder starts.
    pub decoder_start: Option<u32>,
    /// The end of a sequence.
    pub eos: Option<u32>,
}
