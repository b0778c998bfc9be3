//! Chat templates: the Jinja program of a tokenizer that turns messages into the text a model was tuned on, rendered as
//! Hugging Face's `transformers` renders it.
//!
//! A template may come from anyone, so it reaches no file, and its output ([`OUTPUT_LIMIT`]), its nesting, what it makes and what it
//! does are limited.
//! Left out: includes and imports, and time zones (`strftime_now` gives UTC).

mod bounds;
mod builtin;
mod clock;
mod continuation;
mod conversation;
mod engine;
mod filters;
mod generation;
pub(crate) mod messages;
mod operators;
mod program;
mod python;
mod slices;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

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
        let (program, marks_generation) = generation::rewrite(source);
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
            let messages = self.understood(conversation);
            return self.render_messages(conversation, &messages);
        }
        if conversation.add_generation_prompt {
            return Err(Error::Template(
                "continue_final_message excludes add_generation_prompt; choose one".into(),
            ));
        }
        let messages = continuation::marked(conversation.messages)?;
        continuation::cut_at_mark(self.render_messages(conversation, &messages)?)
    }

    /// Messages as the template understands them. Contents that are absent are none where the template fails without them (DeepSeek's
    /// ask for that), parts of contents are joined where it fails at lists or writes them as values.
    pub(crate) fn understood<'a>(&self, conversation: &Conversation<'a>) -> Cow<'a, [Message]> {
        let given = conversation.messages;
        let joined = messages::joined(given);
        let nulls = messages::with_nulls(given);
        let both = joined.as_deref().and_then(messages::with_nulls);
        if joined.is_none() && nulls.is_none() || self.understands(conversation, given) {
            return Cow::Borrowed(given);
        }
        let others = [joined, nulls, both].into_iter().flatten();
        let understood = others
            .into_iter()
            .find(|messages| self.understands(conversation, messages));
        understood.map_or(Cow::Borrowed(given), Cow::Owned)
    }

    /// Whether the template takes the messages, and writes no value where there should be a text.
    fn understands(&self, conversation: &Conversation, messages: &[Message]) -> bool {
        let Ok(rendered) = self.render_messages(conversation, messages) else {
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
