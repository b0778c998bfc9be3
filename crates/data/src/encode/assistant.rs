//! The characters of a rendered conversation that the assistant generates, for the loss mask.
//!
//! A template with `{% generation %}` marks says so itself. Otherwise the conversation is rendered up to each assistant's turn
//! with a generation prompt, and up to its end: the text between is the model's to generate. Templates whose rendering
//! of a turn depends on later turns break that; then the turn's content is looked for in the text.

use crate::record::Message;
use crate::template::{ChatTemplate, Conversation, Rendered};
use crate::{Error, Result};

/// Half-open range of bytes of the whole text.
type Span = (usize, usize);

/// Renders a conversation with what the assistant says in `generation`. `special` are the tokenizer's special tokens.
pub(super) fn render_marked(
    template: &ChatTemplate,
    conversation: &Conversation,
    special: &[String],
) -> Result<Rendered> {
    let mut rendered = template.render(conversation)?;
    if !template.marks_generation() {
        let turns = conversation
            .messages
            .iter()
            .enumerate()
            .filter(|(_, message)| message.role == "assistant");
        let spans: Result<Vec<Span>> = turns
            .map(|(turn, _)| span(template, conversation, &rendered.text, turn, special))
            .collect();
        rendered.generation = in_characters(&rendered.text, &spans?);
    }
    Ok(rendered)
}

/// The assistant's text in a turn.
fn span(
    template: &ChatTemplate,
    conversation: &Conversation,
    whole: &str,
    turn: usize,
    special: &[String],
) -> Result<Span> {
    let part = |length: usize, add_generation_prompt: bool| {
        let messages = &conversation.messages[..length];
        let part = Conversation {
            messages,
            add_generation_prompt,
            ..conversation.clone()
        };
        // A template may refuse a part of a conversation that it takes whole.
        Some(template.render(&part).ok()?.text).filter(|text| whole.starts_with(text.as_str()))
    };
    match (part(turn, true), part(turn + 1, false)) {
        (Some(before), Some(after)) if before.len() < after.len() => Ok((
            before.len(),
            end_of_turn(whole, before.len(), after.len(), special),
        )),
        _ => find_content(whole, &conversation.messages[turn], turn, special),
    }
}

/// Leaves out white space after the special token that ends a turn: generation has stopped by then.
fn end_of_turn(whole: &str, start: usize, end: usize, special: &[String]) -> usize {
    let said = whole[start..end].trim_end();
    let ended = special.iter().any(|token| said.ends_with(token.as_str()));
    if ended { start + said.len() } else { end }
}

/// The only place of a turn's content, with a special token that follows at once.
fn find_content(whole: &str, message: &Message, turn: usize, special: &[String]) -> Result<Span> {
    let content = message.content.trim();
    let mut places = whole.match_indices(content).map(|(place, _)| place);
    let (Some(start), None, false) = (places.next(), places.next(), content.is_empty()) else {
        return Err(Error::Template(format!(
            "cannot tell which text the assistant says in message {}: its content is empty, changed, or found more than once \
             in the rendered text; put {{% generation %}} and {{% endgeneration %}} around it in the template",
            turn + 1
        )));
    };
    let end = start + content.len();
    let ending = special
        .iter()
        .filter(|token| whole[end..].starts_with(token.as_str()))
        .map(String::len)
        .max();
    Ok((start, end + ending.unwrap_or(0)))
}

/// Byte ranges, ascending, as character ranges.
fn in_characters(text: &str, spans: &[Span]) -> Vec<(usize, usize)> {
    let (mut byte, mut character) = (0, 0);
    let mut count_to = |place: usize| {
        character += text[byte..place].chars().count();
        byte = place;
        character
    };
    spans
        .iter()
        .map(|(start, end)| (count_to(*start), count_to(*end)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::SpecialTokens;

    #[derive(serde::Deserialize)]
    struct Case {
        name: String,
        template: String,
        messages: Vec<Message>,
        tools: Option<serde_json::Value>,
        add_generation_prompt: bool,
        rendered: Option<String>,
    }

    fn roles() -> SpecialTokens {
        SpecialTokens {
            bos: Some("<s>".into()),
            eos: Some("</s>".into()),
            ..Default::default()
        }
    }

    fn special() -> Vec<String> {
        ["<|im_end|>", "</s>", "<|eot_id|>", "<end_of_turn>"]
            .map(String::from)
            .to_vec()
    }

    fn said(
        source: &str,
        messages: &[Message],
        tools: Option<&serde_json::Value>,
    ) -> Result<Vec<String>> {
        let roles = roles();
        let conversation = Conversation {
            tools,
            ..Conversation::new(messages, &roles)
        };
        let rendered = render_marked(&ChatTemplate::new(source)?, &conversation, &special())?;
        let characters: Vec<char> = rendered.text.chars().collect();
        Ok(rendered
            .generation
            .iter()
            .map(|(start, end)| characters[*start..*end].iter().collect())
            .collect())
    }

    fn cases() -> Vec<Case> {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../tests/fixtures/templates.json"
        );
        let cases: Vec<Case> =
            serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        cases
            .into_iter()
            .filter(|case| case.rendered.is_some() && !case.add_generation_prompt)
            .collect()
    }

    /// What the reference's templates have the assistant say.
    fn expected(name: &str) -> Option<Vec<&'static str>> {
        let call =
            r#"{"name": "get_weather", "parameters": {"city": "Köln", "days": 2}}<|eot_id|>"#;
        Some(match name {
            "chatml/three" => vec![" Hello! \n<|im_end|>"],
            "chatml-generation/three" => vec!["Hello!<|im_end|>"],
            "chatml/system" | "chatml-generation/system" => vec!["Ja.<|im_end|>"],
            "chatml/tool" | "chatml-generation/tool" => {
                vec!["<|im_end|>", "Seven degrees.<|im_end|>"]
            }
            "headers/three" => vec!["Hello!<|eot_id|>"],
            "headers/system" => vec!["Ja.<|eot_id|>"],
            "headers/tool" => vec![call, "Seven degrees.<|eot_id|>"],
            "inst/three" => vec![" Hello!</s>"],
            "turns/three" => vec!["Hello!<end_of_turn>"],
            "turns/tool" => vec!["<end_of_turn>", "Seven degrees.<end_of_turn>"],
            // Written backwards, but once more forwards at the end, where the search finds it.
            "filters/system" => vec!["Ja."],
            _ => return None,
        })
    }

    #[test]
    fn derived_spans_are_what_the_assistant_says() {
        let mut seen = 0;
        for case in cases() {
            let assistants = case
                .messages
                .iter()
                .filter(|message| message.role == "assistant")
                .count();
            let said = said(&case.template, &case.messages, case.tools.as_ref());
            match expected(&case.name) {
                Some(expected) => assert_eq!(said.unwrap(), expected, "{}", case.name),
                None if assistants == 0 => {
                    assert_eq!(said.unwrap(), Vec::<String>::new(), "{}", case.name)
                }
                // Numbered by their total and written backwards: nothing can be derived.
                None => assert!(
                    said.unwrap_err().to_string().contains("{% generation %}"),
                    "{}",
                    case.name
                ),
            }
            seen += usize::from(assistants > 0);
        }
        assert_eq!(seen, 18);
    }

    #[test]
    fn templates_that_look_ahead_are_searched() {
        // The number of messages comes first, so no part is a prefix of the whole.
        let source = "{{ messages | length }}{% for m in messages %}[{{ m.role }}]{{ m.content }}</s>\n{% endfor %}";
        let messages = [
            Message::user("Sum?"),
            Message::assistant("fünf"),
            Message::user("Sure?"),
            Message::assistant("ja"),
        ];
        assert_eq!(
            said(source, &messages, None).unwrap(),
            ["fünf</s>", "ja</s>"]
        );
        let ambiguous = [Message::user("fünf?"), Message::assistant("fünf")];
        assert!(
            said(source, &ambiguous, None)
                .unwrap_err()
                .to_string()
                .contains("message 2")
        );
    }

    #[test]
    fn white_space_that_ends_a_turn_is_said() {
        let source = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}";
        let messages = [
            Message::user("a"),
            Message::assistant("b"),
            Message::user("c"),
        ];
        assert_eq!(said(source, &messages, None).unwrap(), ["b\n"]);
    }
}
