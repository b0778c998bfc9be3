//! Decoding while tokens arrive.
//!
//! A character may be spread over several tokens, and some decoders treat the first token of a sequence specially. So each new
//! token is decoded together with the tokens of the last piece of text given out, and text is given out only once it does not
//! end in U+FFFD, the sign of an unfinished character.

use super::Tokenizer;
use crate::Result;

/// Turns ids into text piece by piece; made by [`Tokenizer::stream`].
///
/// The pieces together are the text of [`Tokenizer::decode`], but for byte-fallback vocabularies whose ids do not form valid
/// UTF-8: there a later bad byte can no longer spoil the characters already given out.
///
/// ```
/// use espalier_data::tokenizer::{BpeOptions, Tokenizer};
/// let options = BpeOptions { vocabulary: 259, ..Default::default() };
/// let tokenizer = Tokenizer::train_byte_level_bpe(std::iter::empty(), &options)?;
/// let ids = tokenizer.encode("é", false)?.ids; // two bytes, two tokens
/// let mut stream = tokenizer.stream();
/// assert_eq!(stream.push(ids[0])?, None);
/// assert_eq!(stream.push(ids[1])?.as_deref(), Some("é"));
/// # Ok::<(), espalier_data::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct TextStream {
    tokenizer: Tokenizer,
    skip_special: bool,
    /// Tokens of the last piece given out, then tokens not yet given out.
    window: Vec<u32>,
    /// How many of `window` have been given out.
    given: usize,
}

impl TextStream {
    pub(super) fn new(tokenizer: Tokenizer, skip_special: bool) -> Self {
        Self {
            tokenizer,
            skip_special,
            window: Vec::new(),
            given: 0,
        }
    }

    /// A stream behind tokens that have been given out.
    pub(super) fn after(tokenizer: Tokenizer, before: &[u32]) -> Self {
        Self {
            given: before.len(),
            window: before.to_vec(),
            ..Self::new(tokenizer, true)
        }
    }

    /// Takes one id; gives the text that became complete with it, if any did.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn push(&mut self, id: u32) -> Result<Option<String>> {
        self.window.push(id);
        let (before, now) = self.texts()?;
        match now.strip_prefix(before.as_str()) {
            Some(fresh) if !fresh.is_empty() && !now.ends_with('\u{FFFD}') => {
                let fresh = fresh.to_string();
                self.window.drain(..self.given);
                self.given = self.window.len();
                Ok(Some(fresh))
            }
            _ => Ok(None),
        }
    }

    /// The rest if there is any, unfinished characters included (as U+FFFD). The stream starts afresh.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn finish(&mut self) -> Result<Option<String>> {
        let (before, now) = self.texts()?;
        self.window.clear();
        self.given = 0;
        let common = before
            .chars()
            .zip(now.chars())
            .take_while(|(left, right)| left == right)
            .count();
        let rest: String = now.chars().skip(common).collect();
        Ok(Some(rest).filter(|rest| !rest.is_empty()))
    }

    /// The window's text without and with the tokens not yet given out.
    fn texts(&self) -> Result<(String, String)> {
        let before = self
            .tokenizer
            .decode(&self.window[..self.given], self.skip_special)?;
        Ok((
            before,
            self.tokenizer.decode(&self.window, self.skip_special)?,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::BpeOptions;
    use proptest::prelude::*;
    use std::sync::LazyLock;

    static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| {
        let texts =
            vec!["naïve café, the cat sat on the mat 日本語のテキスト".to_string(); 4];
        let options = BpeOptions {
            vocabulary: 300,
            ..Default::default()
        };
        Tokenizer::train_byte_level_bpe(texts.into_iter(), &options).unwrap()
    });

    fn streamed(mut stream: TextStream, ids: &[u32]) -> String {
        let mut text: String = ids
            .iter()
            .filter_map(|id| stream.push(*id).unwrap())
            .collect();
        text += &stream.finish().unwrap().unwrap_or_default();
        text
    }

    proptest! {
        #[test]
        fn texts_stream_as_they_decode(text in "\\PC*") {
            let ids = TOKENIZER.encode(&text, false).unwrap().ids;
            prop_assert_eq!(streamed(TOKENIZER.stream_with_special(), &ids), text);
        }

        #[test]
        fn any_ids_stream_as_they_decode(ids in prop::collection::vec(0u32..320, 0..40)) {
            prop_assert_eq!(streamed(TOKENIZER.stream(), &ids), TOKENIZER.decode(&ids, true).unwrap());
        }
    }
}
