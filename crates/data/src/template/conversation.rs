//! What a template is rendered with.

use serde_json::{Map, Value};

use super::messages;
use crate::record::Message;
use crate::tokenizer::SpecialTokens;

/// The variables of a template's rendering.
#[derive(Debug, Clone)]
pub struct Conversation<'a> {
    /// The turns, in order.
    pub messages: &'a [Message],
    /// JSON schemas of the tools on offer; templates see `none` when there are none.
    pub tools: Option<&'a Value>,
    /// Whether to end with the beginning of an assistant's turn.
    pub add_generation_prompt: bool,
    /// Whether to cut the text right after the last message's content, so that a model goes on with it.
    pub continue_final_message: bool,
    /// The tokenizer's special tokens, seen as `bos_token` and so on.
    pub special: &'a SpecialTokens,
    /// Further variables, such as `enable_thinking`; they win over the ones above.
    pub variables: Map<String, Value>,
}

impl<'a> Conversation<'a> {
    /// A conversation without tools, rendered whole and without a prompt at its end.
    pub fn new(messages: &'a [Message], special: &'a SpecialTokens) -> Self {
        Self {
            messages,
            tools: None,
            add_generation_prompt: false,
            continue_final_message: false,
            special,
            variables: Map::new(),
        }
    }
}

/// The variables that a template sees.
pub(super) fn variables(conversation: &Conversation, messages: &[Message]) -> Map<String, Value> {
    let mut variables = Map::new();
    for (name, token) in conversation.special.named() {
        variables.insert(name.into(), token.into());
    }
    variables.insert(
        "messages".into(),
        messages.iter().map(messages::value).collect(),
    );
    variables.insert(
        "tools".into(),
        conversation.tools.cloned().unwrap_or(Value::Null),
    );
    variables.insert("documents".into(), Value::Null);
    variables.insert(
        "add_generation_prompt".into(),
        conversation.add_generation_prompt.into(),
    );
    variables.extend(conversation.variables.clone());
    variables
}
