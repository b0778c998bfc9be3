//! What a data set holds: one [`Record`] a line, whatever file form it came from.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// One message of a conversation, in OpenAI's form.
///
/// Fields other than `role` and `content` (`tool_calls`, `name`, `tool_call_id`, `reasoning_content`, ...) are kept as they
/// came, because chat templates read them.
///
/// ```
/// use espalier_data::record::Message;
/// let message = Message::user("Hello");
/// assert_eq!(serde_json::to_string(&message)?, r#"{"role":"user","content":"Hello"}"#);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// The text.
    #[serde(default)]
    pub content: String,
    /// Every other field.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

impl Message {
    /// A message of any role.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: content.into(),
            rest: Map::new(),
        }
    }

    /// A user's message.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new("user", content)
    }

    /// An assistant's message.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new("assistant", content)
    }

    /// A system message.
    pub fn system(content: impl Into<String>) -> Self {
        Self::new("system", content)
    }
}

/// One example of a data set.
#[derive(Debug, Clone, PartialEq)]
#[expect(
    clippy::large_enum_variant,
    reason = "the largest kind is as common as the others"
)]
pub enum Record {
    /// Plain text, learned whole.
    Text {
        /// The document.
        text: String,
    },
    /// A conversation; the assistant's turns are learned.
    Chat {
        /// The turns, in order.
        messages: Vec<Message>,
        /// JSON schemas of the tools on offer.
        tools: Option<Value>,
    },
    /// A prompt with a better and a worse answer.
    Preference {
        /// The conversation up to the answer.
        prompt: Vec<Message>,
        /// The better answer, an assistant's message.
        chosen: Message,
        /// The worse answer, an assistant's message.
        rejected: Message,
        /// JSON schemas of the tools on offer.
        tools: Option<Value>,
    },
}
