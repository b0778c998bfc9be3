//! What a conversation brings and its template does not show: refused where it would have been learned, or where what is learned rests on
//! it; told of where templates leave it out by design, as they do with the reasoning of earlier turns.

use super::assistants;
use crate::record::{Message, Record};
use crate::template::messages::{prints_parts, reasoning, shows_text};
use crate::template::{ChatTemplate, Conversation};
use crate::{Error, Result};

/// Refuses a conversation of which the template leaves out what is to be learned, or the tools on offer. `text` is what it renders.
///
/// # Errors
/// [`Error::Template`] with what is not shown.
pub(super) fn refuse_unread(
    template: &ChatTemplate,
    conversation: &Conversation,
    messages: &[Message],
    text: &str,
) -> Result<()> {
    if prints_parts(text, messages) {
        return Err(Error::Template(
            "the template does not read contents that are lists of parts; give texts (thinking as `reasoning_content`)".into(),
        ));
    }
    let same = |conversation: &Conversation, messages: &[Message]| {
        let other = template.render_messages(conversation, messages);
        other.is_ok_and(|other| other.text == text)
    };
    let without = |name: &dyn Fn(usize, &str) -> bool| {
        let mut messages = messages.to_vec();
        for (turn, message) in messages.iter_mut().enumerate() {
            message.rest.retain(|key, _| !name(turn, key));
        }
        same(conversation, &messages)
    };
    let toolless = Conversation {
        tools: None,
        ..conversation.clone()
    };
    if conversation.tools.is_some() && same(&toolless, messages) {
        return Err(Error::Template(
            "the template does not show the `tools`, so that what is learned would be learned without them; use the template of a model \
             that calls tools, or leave `tools` out of the record"
                .into(),
        ));
    }
    let calling = assistants(messages).find(|(_, message)| message.learned && message.has_calls());
    if let Some((turn, _)) = calling
        && without(&|_, key| key == "tool_calls")
    {
        return Err(Error::Template(format!(
            "the template does not show the `tool_calls` of message {}, so nothing of them would be learned; use the template of a \
             model that calls tools, or give a null content where there is only the call",
            turn + 1
        )));
    }
    let Some((answer, last)) = last_learned(messages) else {
        return Ok(());
    };
    if let Some((name, _)) = reasoning(last)
        && without(&|turn, key| turn == answer && key == name)
    {
        return Err(Error::Template(format!(
            "the template does not show the `{name}` of message {}, so nothing of it would be learned; use the template of a model that \
             reasons, write it into the content between the marks that the model knows, or leave it out of the record",
            answer + 1
        )));
    }
    let shown = last.has_calls()
        || shows_text(text, messages, answer, &mut |changed| {
            same(conversation, changed)
        });
    match shown {
        true => Ok(()),
        false => Err(Error::Template(format!(
            "the template does not show the content of message {}, so nothing of it would be learned",
            answer + 1
        ))),
    }
}

/// Whether a template leaves out the reasoning of turns before the last one, which many do by design.
pub(super) fn hides_reasoning(
    template: &ChatTemplate,
    conversation: &Conversation,
    record: &Record,
) -> bool {
    let Record::Chat { messages, .. } = record else {
        return false;
    };
    let earlier = messages
        .split_last()
        .map_or(&[][..], |(_, earlier)| earlier);
    let reasons = |message: &&Message| reasoning(message).is_some();
    let count = earlier.iter().filter(reasons).count();
    if count == 0 {
        return false;
    }
    let Some(mark) = template.absent_characters(conversation).next() else {
        return false;
    };
    let mut marked = messages.clone();
    for message in &mut marked[..earlier.len()] {
        if let Some((name, text)) = reasoning(message).map(|(name, text)| (name, text.to_owned())) {
            let marked = text.trim_end().to_owned() + &mark.to_string();
            message.rest.insert(name.to_owned(), marked.into());
        }
    }
    let marked = Conversation {
        messages: &marked,
        ..conversation.clone()
    };
    let rendered = template.render(&marked);
    rendered.is_ok_and(|rendered| rendered.text.matches(mark).count() < count)
}

/// The last message, where it is the assistant's and to be learned.
fn last_learned(messages: &[Message]) -> Option<(usize, &Message)> {
    let (answer, last) = assistants(messages).last()?;
    (answer + 1 == messages.len() && last.learned).then_some((answer, last))
}
