//! What a model reads before it answers: description, labelled examples and question, as one text or as a conversation.

use espalier_data::record::Message;
use serde_json::Value;

use crate::Result;

/// A prompt, ready to be encoded, and the conversation that it is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Prompt {
    /// The text; a conversation is rendered by the model's template.
    pub text: String,
    /// The conversation, for those who take no text.
    pub messages: Vec<Message>,
    /// Whether the template wrote all marks, as in training, so that the tokenizer adds none of its own.
    pub marked: bool,
}

impl Prompt {
    /// A prompt of one turn, and no template.
    pub fn plain(text: impl Into<String>) -> Self {
        let text = text.into();
        Self {
            messages: vec![Message::user(&text)],
            marked: false,
            text,
        }
    }
}

/// Renders a conversation; with `continues`, its last message is left open for the model to go on with.
pub type ChatTemplate<'a> = &'a dyn Fn(&[Message], bool) -> Result<String>;

/// How prompts are made, the same for all tasks of an evaluation.
#[derive(Clone, Copy)]
pub struct Prompting<'a> {
    /// Labelled examples, where the user decides; else the task does.
    pub shots: Option<usize>,
    /// Seed by which examples are chosen; lm-evaluation-harness takes 1234.
    pub seed: u64,
    /// What a system message says before the task's description.
    pub system: Option<&'a str>,
    /// The model's chat template, where it is applied.
    pub chat: Option<ChatTemplate<'a>>,
    /// Whether examples are turns of their own; else all of it is one message.
    pub multiturn: bool,
}

impl Default for Prompting<'_> {
    fn default() -> Self {
        Self {
            shots: None,
            seed: 1234,
            system: None,
            chat: None,
            multiturn: false,
        }
    }
}

/// A turn, and what separates it from the next where all are one text.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Turn {
    pub role: &'static str,
    pub content: String,
    pub delimiter: String,
}

impl Turn {
    pub fn new(role: &'static str, content: impl Into<String>, delimiter: &str) -> Self {
        Self {
            role,
            content: content.into(),
            delimiter: delimiter.to_owned(),
        }
    }
}

/// What a question and its answer are made of.
pub(super) struct Question<'a> {
    pub text: String,
    pub answer: Option<String>,
    /// What every answer begins with.
    pub prefix: Option<String>,
    pub target_delimiter: &'a str,
    pub shot_delimiter: &'a str,
}

impl Question<'_> {
    /// The turns of user and assistant.
    pub fn turns(self) -> Vec<Turn> {
        let answer = self.answer.filter(|answer| !answer.is_empty());
        let prefix = self.prefix.filter(|prefix| !prefix.is_empty());
        let needs = |prefix: &str| needs_delimiter(&self.text, prefix);
        let delimited = match &prefix {
            None => answer.is_some(),
            Some(prefix) => answer.is_some() || needs(prefix),
        };
        let delimiter = if delimited { self.target_delimiter } else { "" };
        let mut turns = vec![Turn::new("user", self.text, delimiter)];
        if let Some(answer) = answer {
            let text = joined(prefix.as_deref(), Some(&answer), " ");
            turns.push(Turn::new("assistant", text, self.shot_delimiter));
        } else if let Some(prefix) = prefix {
            turns.push(Turn::new("assistant", prefix, ""));
        }
        turns
    }
}

/// Turns as a prompt: joined, or through the model's template.
pub(super) fn prompt(turns: &[Turn], prompting: &Prompting<'_>) -> Result<Prompt> {
    let messages = match prompting.multiturn {
        true => turns
            .iter()
            .map(|turn| message(turn.role, &turn.content))
            .collect(),
        false => single_turn(turns),
    };
    let continues = messages.last().is_some_and(|last| last.role == "assistant");
    let text = match prompting.chat {
        Some(chat) => chat(&messages, continues)?,
        None => text(turns),
    };
    Ok(Prompt {
        text,
        messages,
        marked: false,
    })
}

fn text(turns: &[Turn]) -> String {
    let part = |turn: &Turn| format!("{}{}", turn.content, turn.delimiter);
    turns.iter().map(part).collect()
}

/// The turns as one message of the user, between a system message and the beginning of an answer where there are these.
fn single_turn(turns: &[Turn]) -> Vec<Message> {
    let (system, rest) = match turns {
        [first, rest @ ..] if first.role == "system" => (Some(first), rest),
        all => (None, all),
    };
    let (rest, opened) = match rest {
        [rest @ .., last] if last.role == "assistant" => (rest, Some(last)),
        all => (all, None),
    };
    let mut user = text(rest);
    if let Some(last) = rest.last() {
        user.truncate(user.len() - last.delimiter.len());
    }
    let system = system.map(|turn| message("system", &turn.content));
    let opened = opened.map(|turn| message("assistant", &turn.content));
    let user = message("user", &user);
    system.into_iter().chain([user]).chain(opened).collect()
}

fn message(role: &str, text: &str) -> Message {
    match role {
        "assistant" => Message::assistant(text),
        "system" => Message::system(text),
        _ => Message::user(text),
    }
}

/// Two texts with a delimiter between them, unless one of them is missing or brings white space.
pub(super) fn joined(first: Option<&str>, second: Option<&str>, delimiter: &str) -> String {
    match (first.unwrap_or(""), second.unwrap_or("")) {
        ("", text) | (text, "") => text.to_owned(),
        (first, second) if needs_delimiter(first, second) => format!("{first}{delimiter}{second}"),
        (first, second) => format!("{first}{second}"),
    }
}

fn needs_delimiter(first: &str, second: &str) -> bool {
    !first.is_empty()
        && !first.ends_with(char::is_whitespace)
        && !second.starts_with(char::is_whitespace)
}

/// A value as a template prints it where it is a whole text.
pub(super) fn plain_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(answer: Option<&str>, prefix: Option<&str>) -> Vec<Turn> {
        let question = Question {
            text: "Q: 1?".into(),
            answer: answer.map(str::to_owned),
            prefix: prefix.map(str::to_owned),
            target_delimiter: " ",
            shot_delimiter: "\n\n",
        };
        question.turns()
    }

    #[test]
    fn questions_are_joined_as_the_harness_joins_them() {
        assert_eq!(text(&question(Some("A"), None)), "Q: 1? A\n\n");
        assert_eq!(text(&question(None, None)), "Q: 1?");
        assert_eq!(text(&question(None, Some("So"))), "Q: 1? So");
        assert_eq!(text(&question(Some("A"), Some("So"))), "Q: 1? So A\n\n");
    }

    #[test]
    fn a_conversation_is_one_message_or_many() {
        let mut turns = vec![Turn::new("system", "Be short.", "")];
        turns.extend(question(Some("A"), None));
        turns.extend(question(None, None));
        let texts = |prompt: Prompt| -> Vec<(String, String)> {
            let pair = |m: &Message| (m.role.clone(), m.text().into_owned());
            prompt.messages.iter().map(pair).collect()
        };
        let one = prompt(&turns, &Prompting::default()).unwrap();
        assert_eq!(one.text, "Be short.Q: 1? A\n\nQ: 1?");
        let expected = [("system", "Be short."), ("user", "Q: 1? A\n\nQ: 1?")];
        let expected = expected.map(|(role, text)| (role.to_owned(), text.to_owned()));
        assert_eq!(texts(one), expected);
        let many = Prompting {
            multiturn: true,
            ..Prompting::default()
        };
        assert_eq!(texts(prompt(&turns, &many).unwrap()).len(), 4);
    }
}
