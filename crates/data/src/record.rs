//! What a data set holds: one [`Record`] a line, whatever file form it came from.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// What a message says.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Content {
    /// Nothing: `null`, or no `content`, as beside tool calls.
    #[default]
    Absent,
    /// Nothing, said as `null`; for templates that ask whether a content is none.
    Null,
    /// Text.
    Text(String),
    /// OpenAI's parts, `{"type": "text", "text": ...}`, in order.
    Parts(Vec<Value>),
}

impl Content {
    /// The text, with that of parts joined; empty where there is none.
    pub fn text(&self) -> Cow<'_, str> {
        match self {
            Self::Absent | Self::Null => Cow::Borrowed(""),
            Self::Text(text) => Cow::Borrowed(text),
            Self::Parts(parts) => {
                let texts = parts.iter().filter_map(|part| part.get("text")?.as_str());
                Cow::Owned(texts.collect())
            }
        }
    }
}

impl From<String> for Content {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

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
    /// `system`, `developer`, `user`, `assistant` or `tool`.
    pub role: String,
    /// What is said.
    #[serde(default)]
    pub content: Content,
    /// Whether the loss asks for this turn if it is the assistant's; in files OpenAI's `weight`, 0 or 1.
    #[serde(
        rename = "weight",
        with = "weight",
        default = "weight::one",
        skip_serializing_if = "weight::is_one"
    )]
    pub learned: bool,
    /// Every other field.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

impl Message {
    /// A message of any role.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: Content::Text(content.into()),
            learned: true,
            rest: Map::new(),
        }
    }

    /// The text that is said; empty where there is none.
    pub fn text(&self) -> Cow<'_, str> {
        self.content.text()
    }

    /// Whether it calls tools: `tool_calls` that are null or an empty list call none.
    pub fn has_calls(&self) -> bool {
        let calls = self.rest.get("tool_calls").and_then(Value::as_array);
        calls.is_some_and(|calls| !calls.is_empty())
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

/// The number that stands for whether a turn is learned.
mod weight {
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn one() -> bool {
        true
    }

    pub fn is_one(learned: &bool) -> bool {
        *learned
    }

    pub fn serialize<S: Serializer>(learned: &bool, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u8(u8::from(*learned))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
        Ok(f64::deserialize(deserializer)? != 0.0)
    }
}

/// One example of a data set.
#[derive(Debug, Clone, PartialEq)]
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
        /// By how much the better answer's reward should be larger, where that is said.
        margin: Option<f64>,
        /// JSON schemas of the tools on offer.
        tools: Option<Value>,
    },
    /// A prompt with an answer that is good or bad.
    Unpaired {
        /// The conversation up to the answer.
        prompt: Vec<Message>,
        /// The answer, an assistant's message.
        answer: Message,
        /// Whether it is a good one.
        desirable: bool,
        /// JSON schemas of the tools on offer.
        tools: Option<Value>,
    },
    /// A text of a class.
    Labelled {
        /// The text.
        text: String,
        /// What it is; several classes, or a number.
        label: Label,
    },
    /// Words, each of a class.
    Tagged {
        /// The words, in order.
        words: Vec<String>,
        /// What each of them is.
        labels: Vec<Label>,
    },
    /// An answer in steps, each of which is right or wrong.
    Steps {
        /// The conversation up to the answer.
        prompt: Vec<Message>,
        /// The steps, in order.
        steps: Vec<String>,
        /// Whether each is right.
        labels: Vec<Label>,
    },
}

impl Record {
    /// Leaves the last of the assistant's turns to be learned, and no other.
    pub fn learn_last_turn(&mut self) {
        let Self::Chat { messages, .. } = self else {
            return;
        };
        let mut turns = messages.iter_mut().rev();
        let mut own = turns.by_ref().filter(|turn| turn.role == "assistant");
        own.next();
        own.for_each(|turn| turn.learned = false);
    }
}

/// What is said of a text, a word or a step.
///
/// ```
/// use espalier_data::record::Label;
/// let labels: Vec<Label> = serde_json::from_str(r#"[true, 2, "B-PER", [0, 1]]"#)?;
/// assert_eq!(labels[2], Label::Name("B-PER".into()));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Label {
    /// Right or wrong.
    Flag(bool),
    /// The number of a class, or a number to be found.
    Number(f64),
    /// The name of a class.
    Name(String),
    /// Several classes by name, or a number for each class.
    Many(Vec<Label>),
}
