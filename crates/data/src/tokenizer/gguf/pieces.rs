//! SentencePiece vocabularies: by merges in the order of scores (`llama`), or the likeliest pieces (`t5`).

use super::{CONTROL, UNKNOWN, USER_DEFINED, Vocabulary};
use crate::{
    Error, Result,
    gguf::Value,
    tokenizer::{
        SpecialTokens, Tokenizer,
        class::Form,
        older_files::Marks,
        sentencepiece::{self, Algorithm, Ids, ModelFile, Piece, PieceKind, Pieces},
    },
};

/// As SentencePiece's BPE cuts, unknown characters as bytes.
pub(super) fn by_merges(vocabulary: &Vocabulary<'_>, special: &SpecialTokens) -> Result<Tokenizer> {
    tokenizer(vocabulary, special, Algorithm::Bpe)
}

/// As SentencePiece's unigram model cuts.
pub(super) fn by_likelihood(
    vocabulary: &Vocabulary<'_>,
    special: &SpecialTokens,
) -> Result<Tokenizer> {
    tokenizer(vocabulary, special, Algorithm::Unigram)
}

fn tokenizer(
    vocabulary: &Vocabulary<'_>,
    special: &SpecialTokens,
    algorithm: Algorithm,
) -> Result<Tokenizer> {
    let scores = vocabulary.list("scores").unwrap_or_default();
    if scores.len() < vocabulary.tokens.len() {
        return Err(Error::Tokenizer(format!(
            "`tokenizer.ggml.scores` has {} entries for {} tokens",
            scores.len(),
            vocabulary.tokens.len()
        )));
    }
    let piece = |(id, text): (usize, &String)| Piece {
        text: text.clone(),
        score: scores.get(id).and_then(Value::as_f64).unwrap_or(0.0) as f32,
        kind: match vocabulary.kind(id) {
            CONTROL => PieceKind::Control,
            USER_DEFINED => PieceKind::UserDefined,
            1 => PieceKind::Normal,
            _ => PieceKind::Other,
        },
    };
    let unknown = vocabulary.role("unknown").map(|(_, id)| id).or_else(|| {
        let first = (0..vocabulary.tokens.len()).find(|id| vocabulary.kind(*id) == UNKNOWN)?;
        u32::try_from(first).ok()
    });
    let is_unigram = algorithm == Algorithm::Unigram;
    let charsmap = vocabulary.list("precompiled_charsmap").unwrap_or_default();
    let byte = |value: &Value| value.as_f64().map(|byte| byte as i64 as u8);
    let model = ModelFile {
        pieces: vocabulary.tokens.iter().enumerate().map(piece).collect(),
        algorithm,
        byte_fallback: vocabulary.tokens.iter().any(|token| token == "<0x00>"),
        ids: Ids {
            unknown: unknown.map_or(-1, i64::from),
            beginning: -1,
            end: -1,
        },
        unknown_piece: unknown
            .and_then(|id| vocabulary.tokens.get(id as usize))
            .cloned()
            .unwrap_or_default(),
        charsmap: charsmap.iter().filter_map(byte).collect(),
        add_dummy_prefix: vocabulary.flag("add_space_prefix").unwrap_or(true),
        remove_extra_whitespaces: vocabulary
            .flag("remove_extra_whitespaces")
            .unwrap_or(is_unigram),
        escape_whitespaces: true,
    };
    let pieces = Pieces::of(model, Form::AsWritten, 0);
    let (config, id) = (vocabulary.config(), |token: &str| pieces.id(token));
    let parts = sentencepiece::parts(Form::AsWritten, &pieces, &Marks::new(&config, special, &id))?;
    parts.build(&pieces.added())
}
