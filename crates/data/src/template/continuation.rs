//! Rendering up to the end of the final message, so that a model goes on with it.

use super::Rendered;
use crate::record::{Content, Message};
use crate::{Error, Result};

/// Marks the place where a final message is to be continued; the same text as in `transformers`.
const CONTINUE_MARK: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// The messages with the mark at the end of the last one.
pub(super) fn marked(messages: &[Message]) -> Result<Vec<Message>> {
    let mut messages = messages.to_vec();
    let Some(last) = messages.last_mut() else {
        return Err(Error::Template(
            "continue_final_message: there is no message to continue".into(),
        ));
    };
    last.content = Content::Text(last.text().into_owned() + CONTINUE_MARK);
    Ok(messages)
}

/// Cuts at the last continuation mark; if the template trimmed the mark's space, it would have trimmed the content's too.
pub(super) fn cut_at_mark(rendered: Rendered) -> Result<Rendered> {
    let Some(place) = rendered.text.rfind(CONTINUE_MARK.trim_end()) else {
        return Err(Error::Template(
            "continue_final_message: the template does not show the last message, so it cannot be continued".into(),
        ));
    };
    let kept = &rendered.text[..place];
    let kept = if rendered.text[place..].starts_with(CONTINUE_MARK) {
        kept
    } else {
        kept.trim_end()
    };
    let length = kept.chars().count();
    let spans = rendered
        .generation
        .iter()
        .filter(|(start, _)| *start < length);
    let generation = spans
        .map(|(start, end)| (*start, length.min(*end)))
        .collect();
    Ok(Rendered {
        text: kept.to_string(),
        generation,
    })
}
