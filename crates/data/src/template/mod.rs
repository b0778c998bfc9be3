//! Chat templates: the Jinja program of a tokenizer that turns messages into the text a model was tuned on, rendered as
//! Hugging Face's `transformers` renders it.
//!
//! A template may come from anyone, so it reaches no file, and its output ([`OUTPUT_LIMIT`]), its nesting, what it makes and what it
//! does are limited.
//! Left out: includes and imports, and time zones (`strftime_now` gives UTC).

mod arguments;
mod bounds;
mod builtin;
mod clock;
mod continuation;
mod conversation;
mod engine;
mod escapes;
mod filters;
mod format;
mod generation;
pub(crate) mod messages;
mod numbers;
mod operators;
mod program;
mod python;
mod slices;
mod strings;
#[cfg(test)]
mod tests;
mod texts;

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::{Map, Value};

pub use builtin::{CHATML, PLAIN};
pub use conversation::Conversation;

use crate::record::{Content, Message};
use crate::{Error, Result};
use conversation::variables;
use generation::Sentinels;

/// The most bytes that a template may render.
pub const OUTPUT_LIMIT: usize = 64 << 20;

/// A chat template, checked for its syntax.
///
/// ```
/// use espalier_data::record::Message;
/// use espalier_data::template::{CHATML, ChatTemplate, Conversation};
/// let messages = [Message::user("Hi"), Message::assistant("Hello")];
/// let rendered = ChatTemplate::new(CHATML)?.render(&Conversation::new(&messages, &Default::default()))?;
/// assert_eq!(rendered.text, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n");
/// assert_eq!(rendered.generation, [(52, 67)]);
/// # Ok::<(), espalier_data::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatTemplate {
    source: String,
    /// The source with the generation tags turned into filter tags.
    program: String,
    marks_generation: bool,
}

/// Renders a text template, as task files of lm-evaluation-harness have them: no line is trimmed, an undefined variable is an error, and there
/// is the filter `regex_replace`.
///
/// ```
/// use espalier_data::template::render_text;
/// let variables = serde_json::from_str(r#"{"words": ["a", "b"]}"#)?;
/// assert_eq!(render_text("{{ words[:-1]|join(' ') }}: {{ words }}", &variables)?, "a: ['a', 'b']");
/// assert!(render_text("{{ word }}", &variables).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`Error::Template`] when the template is malformed, fails, or renders more than [`OUTPUT_LIMIT`].
pub fn render_text(source: &str, variables: &Map<String, Value>) -> Result<String> {
    engine::render_text(source, variables)
}

/// A rendered conversation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rendered {
    /// The text, to be encoded without adding special tokens.
    pub text: String,
    /// Half-open ranges of characters (not bytes) inside the template's generation marks, in order.
    pub generation: Vec<(usize, usize)>,
}

impl ChatTemplate {
    /// Checks a template's syntax.
    ///
    /// # Errors
    /// [`Error::Template`] with the line when the template is malformed.
    pub fn new(source: &str) -> Result<Self> {
        // Jinja reads every end of a line as a line feed.
        let lines = source.replace("\r\n", "\n").replace('\r', "\n");
        let (program, marks_generation) = generation::rewrite(&lines);
        Ok(Self {
            source: source.into(),
            program: engine::check(&program)?,
            marks_generation,
        })
    }

    /// The template as it was given.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether the template says which text the assistant generates (`{% generation %}`).
    pub fn marks_generation(&self) -> bool {
        self.marks_generation
    }

    /// Renders a conversation.
    ///
    /// # Errors
    /// [`Error::Template`] when the template refuses the conversation (with the template's own words), fails, or renders more
    /// than [`OUTPUT_LIMIT`]; when a final message is to be continued but the template does not show it.
    pub fn render(&self, conversation: &Conversation) -> Result<Rendered> {
        if !conversation.continue_final_message {
            return self.understood(conversation).1;
        }
        if conversation.add_generation_prompt {
            return Err(Error::Template(
                "continue_final_message excludes add_generation_prompt; choose one".into(),
            ));
        }
        let messages = continuation::marked(conversation.messages)?;
        continuation::cut_at_mark(self.render_messages(conversation, &messages)?)
    }

    /// Messages as the template understands them, and what it renders of them. Contents that are absent are none where the template
    /// fails without them (DeepSeek's ask for that), parts of contents are joined where it fails at lists or writes them as values,
    /// and texts become lists of one part where it reads nothing but lists (SmolVLM's).
    pub(crate) fn understood<'a>(
        &self,
        conversation: &Conversation<'a>,
    ) -> (Cow<'a, [Message]>, Result<Rendered>) {
        let given = conversation.messages;
        let whole = |messages: &[Message]| {
            let rendered = self.render_messages(conversation, messages);
            let plain = self.writes_texts(conversation, messages, &rendered);
            let shown = plain && self.reads_texts(conversation, messages, &rendered);
            (rendered, plain, shown)
        };
        let (rendered, plain, shown) = whole(given);
        if shown {
            return (Cow::Borrowed(given), rendered);
        }
        // What is written as it should be, though some text is not shown, comes second.
        let (mut best, mut is_plain) = ((Cow::Borrowed(given), rendered), plain);
        let joined = messages::joined(given);
        let nulls = messages::with_nulls(given);
        let both = joined.as_deref().and_then(messages::with_nulls);
        let others = [joined, nulls, both].into_iter().flatten();
        let others = others.map(|messages| (messages, true));
        let in_parts = messages::in_parts(given).map(|messages| (messages, false));
        for (messages, may_be_second) in others.chain(in_parts) {
            let (rendered, plain, shown) = whole(&messages);
            if shown {
                return (Cow::Owned(messages), rendered);
            }
            if plain && may_be_second && !is_plain {
                (best, is_plain) = ((Cow::Owned(messages), rendered), true);
            }
        }
        best
    }

    /// Whether the template takes the messages, and writes no value where there should be a text.
    fn writes_texts(
        &self,
        conversation: &Conversation,
        messages: &[Message],
        rendered: &Result<Rendered>,
    ) -> bool {
        let Ok(rendered) = rendered else {
            return false;
        };
        let nulls = messages
            .iter()
            .any(|message| message.content == Content::Null);
        let prints_nulls = || {
            let empty = messages::with_empty_texts(messages);
            let empty = self.render_messages(conversation, &empty);
            empty.is_ok_and(|empty| messages::prints_nulls(&rendered.text, &empty.text))
        };
        !(messages::prints_parts(&rendered.text, messages) || nulls && prints_nulls())
    }

    /// Whether the template shows the last text of each role; beside calls of tools, many leave it out.
    fn reads_texts(
        &self,
        conversation: &Conversation,
        messages: &[Message],
        rendered: &Result<Rendered>,
    ) -> bool {
        let Ok(rendered) = rendered else {
            return false;
        };
        let mut same = |changed: &[Message]| {
            let other = self.render_messages(conversation, changed);
            other.is_ok_and(|other| other.text == rendered.text)
        };
        let mut last: BTreeMap<&str, usize> = BTreeMap::new();
        for (turn, message) in messages.iter().enumerate() {
            if !message.has_calls() {
                last.insert(&message.role, turn);
            }
        }
        last.into_values()
            .all(|turn| messages::shows_text(&rendered.text, messages, turn, &mut same))
    }

    /// Renders these messages in place of the conversation's, as they are.
    pub(crate) fn render_messages(
        &self,
        conversation: &Conversation,
        messages: &[Message],
    ) -> Result<Rendered> {
        self.render_variables(&variables(conversation, messages))
    }

    /// Characters that occur neither in the template nor in what the conversation brings.
    pub(crate) fn absent_characters(
        &self,
        conversation: &Conversation,
    ) -> impl Iterator<Item = char> + use<> {
        generation::absent_characters(
            &self.program,
            &variables(conversation, conversation.messages),
        )
    }

    fn render_variables(&self, variables: &Map<String, Value>) -> Result<Rendered> {
        let sentinels = Sentinels::absent_from(&self.program, variables);
        let output = engine::render(&self.program, variables, move |body| sentinels.wrap(&body))?;
        Ok(sentinels.extract(&output))
    }
}
