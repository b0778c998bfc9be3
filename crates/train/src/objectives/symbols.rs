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
    /// Whether a decoder is trained to start with the last token of its target instead (mBART).
    pub starts_with_last: bool,
    /// The end of a sequence.
    pub eos: Option<u32>,
}

/// Special tokens of a fresh vocabulary, for objectives that mask.
pub(super) fn fresh_mask() -> Vec<String> {
    vec!["<mask>".into()]
}

/// Sentinels of a fresh vocabulary.
const FRESH_SENTINELS: usize = 32;

/// Special tokens of a fresh vocabulary, for objectives that mark removed spans.
pub(super) fn fresh_sentinels() -> Vec<String> {
    (0..FRESH_SENTINELS)
        .map(|i| format!("<extra_id_{i}>"))
        .collect()
}
