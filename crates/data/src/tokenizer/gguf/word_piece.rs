//! WordPiece vocabularies. The converter writes a word's beginning as `▁the` and what goes on as `ing`, where BERT's own files have `the`
//! and `##ing`.

use std::collections::HashMap;

use super::{CONTROL, Vocabulary};
use crate::{
    Result,
    tokenizer::{
        SpecialTokens, Tokenizer,
        class::Form,
        older_files::{Marks, word_piece},
    },
};

pub(super) fn tokenizer(vocabulary: &Vocabulary<'_>) -> Result<Tokenizer> {
    let word = |id: usize, token: &str| match token.strip_prefix('▁') {
        Some(beginning) => beginning.to_owned(),
        None if vocabulary.kind(id) == CONTROL || is_bracketed(token) => token.to_owned(),
        None => format!("##{token}"),
    };
    let tokens = vocabulary.tokens.iter().enumerate();
    let ids: HashMap<String, u32> = tokens
        .filter_map(|(id, token)| Some((word(id, token), u32::try_from(id).ok()?)))
        .collect();
    let named = vocabulary.special();
    let known = |token: &str| ids.contains_key(token).then(|| token.to_owned());
    let mut special = SpecialTokens {
        unk: named.unk.clone().or_else(|| known("[UNK]")),
        ..named
    };
    // The beginning of a text is BERT's class token, under whichever name the file has it.
    for (role, token, usual) in [
        ("cls_token", special.bos.clone(), "[CLS]"),
        ("sep_token", special.eos.clone(), "[SEP]"),
    ] {
        if !special.extra.contains_key(role)
            && let Some(token) = token.or_else(|| known(usual))
        {
            special.extra.insert(role.into(), token);
        }
    }
    let config = vocabulary.config();
    let id = |token: &str| ids.get(token).copied();
    let parts = word_piece(Form::Bert, &ids, &Marks::new(&config, &special, &id))?;
    parts.build(&vocabulary.added())
}

/// Such as `[PAD]`, which is part of no word.
fn is_bracketed(token: &str) -> bool {
    token.len() > 2 && token.starts_with('[') && token.ends_with(']')
}
