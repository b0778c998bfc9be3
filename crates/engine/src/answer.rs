//! A text that is being made of tokens, up to a stop string: whole characters alone, and nothing that may turn out to begin a stop string.

use espalier_data::tokenizer::{TextStream, Tokenizer};

use crate::{
    Result,
    stop::{StopMatcher, Stopped},
};

/// The text so far.
///
/// ```
/// use espalier_data::tokenizer::{BpeOptions, Tokenizer};
/// use espalier_engine::answer::AnswerText;
/// let options = BpeOptions { vocabulary: 259, ..Default::default() };
/// let tokenizer = Tokenizer::train_byte_level_bpe(std::iter::empty(), &options)?;
/// let mut answer = AnswerText::new(&tokenizer, &[], vec!["STOP".into()]);
/// let mut heard = String::new();
/// for id in tokenizer.encode_ids("é STOP x", false)? {
///     let piece = answer.push(id)?;
///     heard.push_str(&piece.text);
///     if piece.stopped { break }
/// }
/// assert_eq!(heard, "é ");
/// # Ok::<(), espalier_engine::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct AnswerText {
    stream: TextStream,
    stops: StopMatcher,
    stopped: bool,
    /// Special tokens whose text counts.
    shown: Vec<(u32, String)>,
}

/// A piece of text that became certain, or nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Piece {
    /// The text.
    pub text: String,
    /// Whether a stop string came after it.
    pub stopped: bool,
}

impl AnswerText {
    /// The text behind a prompt, before its first token. It ends before the first of the strings `stops`.
    pub fn new(tokenizer: &Tokenizer, prompt: &[u32], stops: Vec<String>) -> Self {
        Self {
            stream: tokenizer.stream_after(prompt),
            stops: StopMatcher::new(stops),
            stopped: false,
            shown: Vec::new(),
        }
    }

    /// The same with special tokens that are part of the text, as marks of calls are.
    #[must_use]
    pub fn showing(mut self, tokens: Vec<(u32, String)>) -> Self {
        self.shown = tokens;
        self
    }

    /// Whether a stop string ended it.
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// Takes a token that does not end the text.
    ///
    /// # Errors
    /// When the tokenizer cannot decode it.
    pub fn push(&mut self, token: u32) -> Result<Piece> {
        let mark = self.shown.iter().find(|(id, _)| *id == token);
        let text = match mark.map(|(_, text)| text.clone()) {
            Some(text) => self.stream.finish()?.unwrap_or_default() + &text,
            None => self.stream.push(token)?.unwrap_or_default(),
        };
        Ok(self.pass(&text))
    }

    /// What was held back, when no more tokens come; nothing after a stop string.
    ///
    /// # Errors
    /// When the tokenizer cannot decode it.
    pub fn finish(&mut self) -> Result<Piece> {
        if self.stopped {
            return Ok(Piece::default());
        }
        let rest = self.stream.finish()?.unwrap_or_default();
        let mut piece = self.pass(&rest);
        if !piece.stopped {
            piece.text.push_str(&self.stops.finish());
        }
        Ok(piece)
    }

    fn pass(&mut self, text: &str) -> Piece {
        let (text, stopped) = match self.stops.push(text) {
            Stopped::Emit(text) => (text, false),
            Stopped::Stop(text) => (text, true),
        };
        self.stopped = stopped;
        Piece { text, stopped }
    }
}
