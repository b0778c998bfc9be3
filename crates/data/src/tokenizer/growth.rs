//! Tokens added to a tokenizer that there is already.

use std::sync::Arc;

use serde_json::json;
use tokenizers::AddedToken;

use super::added_tokens::Added;
use super::{Kind, Tokenizer, library_error};
use crate::{Error, Result};

impl Tokenizer {
    /// The same tokenizer with further special tokens; those that it has as special tokens already stay as they are, and those that are
    /// pieces of its vocabulary become special under the id that they have. New ones get the ids behind [`Tokenizer::vocabulary_size`].
    ///
    /// ```
    /// use espalier_data::tokenizer::{BpeOptions, Tokenizer};
    /// let tokenizer = Tokenizer::train_byte_level_bpe(std::iter::empty(), &BpeOptions { vocabulary: 259, ..Default::default() })?;
    /// let grown = tokenizer.with_added(&["<|tool|>".into()])?;
    /// assert_eq!(grown.encode("<|tool|>", false)?.ids, [259]);
    /// # Ok::<(), espalier_data::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Invalid`] when a token is empty, [`Error::Tokenizer`] for RWKV's world tokenizer, and where the ids have holes.
    pub fn with_added(&self, tokens: &[String]) -> Result<Self> {
        if tokens.iter().any(|token| token.trim().is_empty()) {
            return Err(Error::Invalid(
                "a token to add is empty; give its text".into(),
            ));
        }
        let Kind::Library(library) = &self.pipeline.kind else {
            return Err(Error::Tokenizer(
                "RWKV's world tokenizer is a fixed table, to which no tokens can be added".into(),
            ));
        };
        let mut library = (**library).clone();
        let mut companion = (*self.companion).clone();
        let mut next = self.vocabulary_size() as u32;
        for token in tokens {
            let old = library.token_to_id(token);
            library
                .add_special_tokens([AddedToken::from(token.clone(), true)])
                .map_err(library_error)?;
            let id = library.token_to_id(token);
            let expected = old.unwrap_or(next);
            if id != Some(expected) {
                return Err(Error::Tokenizer(format!(
                    "`{token}` cannot be added: the tokenizer's ids have holes, and it would take the place of another"
                )));
            }
            next = next.max(expected + 1);
            // Where this list is there, readers take it for the whole truth.
            if let Some(listed) = companion
                .config
                .get_mut("added_tokens_decoder")
                .and_then(|listed| listed.as_object_mut())
            {
                let mut entry = Added::special(expected, token).to_json();
                if let Some(entry) = entry.as_object_mut() {
                    entry.remove("id");
                }
                listed.insert(expected.to_string(), json!(entry));
            }
        }
        let mut grown = Self::from_library(library)?;
        grown.companion = Arc::new(companion);
        Ok(grown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::BpeOptions;

    #[test]
    fn new_tokens_stand_behind_the_old_ones_and_are_saved() {
        let options = BpeOptions {
            vocabulary: 259,
            ..Default::default()
        };
        let tokenizer = Tokenizer::train_byte_level_bpe(std::iter::empty(), &options).unwrap();
        let folder = tempfile::tempdir().unwrap();
        tokenizer.save(folder.path()).unwrap();
        let config = folder.path().join("tokenizer_config.json");
        let list = r#"{"eos_token":"<|im_end|>","added_tokens_decoder":{"2":{"content":"<|im_end|>","special":true}}}"#;
        std::fs::write(&config, list).unwrap();
        let loaded = Tokenizer::load(folder.path()).unwrap();
        let grown = loaded
            .with_added(&["<|tool|>".into(), "<|im_end|>".into(), "a".into()])
            .unwrap();
        let a = loaded.id("a").unwrap();
        assert_eq!(
            grown.encode("a<|tool|><|im_end|>", false).unwrap().ids,
            [a, 259, 2]
        );
        assert!(grown.is_special(a) && grown.is_special(259));
        assert_eq!(grown.vocabulary_size(), 260);
        assert_eq!(grown.special().eos.as_deref(), Some("<|im_end|>"));
        let again = tempfile::tempdir().unwrap();
        grown.save(again.path()).unwrap();
        let text = std::fs::read_to_string(again.path().join("tokenizer_config.json")).unwrap();
        assert!(text.contains("<|tool|>"), "{text}");
        assert_eq!(
            Tokenizer::load(again.path()).unwrap().fingerprint(),
            grown.fingerprint()
        );
        assert!(
            tokenizer
                .with_added(&[" ".into()])
                .unwrap_err()
                .to_string()
                .contains("empty")
        );
    }
}
