//! The characters of a rendered conversation that the assistant generates, for the loss mask.
//!
//! A template with `{% generation %}` marks says so itself. Otherwise the span of a turn lies between two ends of shorter
//! renderings: of the messages before the turn with a generation prompt, after which the model speaks, and of the messages with
//! the turn, after which it has spoken. Templates write earlier turns in other ways than the last one (thinking is left out, a
//! turn ends with another token), so that the shorter renderings need not be prefixes of the whole. What they have in common with it
//! is found by [`marks`](super::marks) in the messages: behind the same mark stands the same text, up to the place in question.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use serde_json::Value;

use super::assistants;
use super::marks::{Marked, Placing, Unmarked};
use super::unread::refuse_unread;
use crate::record::Message;
use crate::template::{ChatTemplate, Conversation, Rendered};
use crate::{Error, Result};

/// The most bytes that shorter renderings of one conversation may take together: a bound on time.
const MOST_RENDERED: usize = 256 << 20;

/// Half-open range of bytes of the whole text.
type Span = (usize, usize);

/// Renders a conversation with what the loss asks for in `generation`: what the assistant says in the turns that are to be learned.
/// `special` are the tokenizer's special tokens.
///
/// # Errors
/// [`Error::Template`] when the template refuses the conversation, or it cannot be told what the assistant says.
pub fn render_learned(
    template: &ChatTemplate,
    conversation: &Conversation,
    special: &[String],
) -> Result<Rendered> {
    let (messages, rendered) = template.understood(conversation);
    let mut rendered = rendered?;
    refuse_unread(template, conversation, &messages, &rendered.text)?;
    if template.marks_generation() {
        leave_out(&mut rendered, &messages)?;
        return Ok(rendered);
    }
    let search = |placing| {
        Search::new(
            template,
            conversation,
            &messages,
            &rendered.text,
            special,
            placing,
        )?
        .spans()
    };
    let mut failure = None;
    for placing in Placing::ALL {
        match search(placing) {
            Ok(spans) => {
                rendered.generation = in_characters(&rendered.text, &spans);
                return Ok(rendered);
            }
            Err(turn) => failure = failure.or(Some(turn)),
        }
    }
    Err(Error::Template(format!(
        "cannot tell which text the assistant says in message {}: put {{% generation %}} and {{% endgeneration %}} around it in \
         the template",
        failure.unwrap_or_default() + 1
    )))
}

/// Drops the spans of turns that are not to be learned from what a template has marked.
fn leave_out(rendered: &mut Rendered, messages: &[Message]) -> Result<()> {
    let turns: Vec<&Message> = assistants(messages).map(|(_, message)| message).collect();
    if turns.iter().all(|message| message.learned) {
        return Ok(());
    }
    if turns.len() != rendered.generation.len() {
        return Err(Error::Template(format!(
            "cannot tell which turns are not to be learned (`weight` 0): the template has {} parts between {{% generation %}} and \
             {{% endgeneration %}} for {} turns of the assistant",
            rendered.generation.len(),
            turns.len()
        )));
    }
    let mut turns = turns.iter();
    rendered
        .generation
        .retain(|_| turns.next().is_some_and(|message| message.learned));
    Ok(())
}

/// The end of a shorter rendering: its last mark that the whole has, and what stands behind it.
#[derive(Clone)]
struct Ending {
    /// None when there is no such mark: then the tail is all.
    mark: Option<char>,
    /// How often the mark has stood there by then.
    count: usize,
    tail: String,
}

/// What endings of the same kind have in common, so that a long conversation is not rendered anew for each turn.
type Kind = (String, bool, bool);

/// An ending behind a mark of the last message, by the mark's number there, and how many bytes of it the whole has.
type Known = (usize, Ending, usize);

/// A search for spans in one rendering.
struct Search<'a> {
    template: &'a ChatTemplate,
    conversation: &'a Conversation<'a>,
    special: &'a [String],
    /// Special tokens behind which some message's text begins.
    headers: Vec<&'a str>,
    marked: Marked,
    whole: Unmarked,
    /// Where each mark stands in the whole.
    places: HashMap<char, Vec<usize>>,
    known: RefCell<HashMap<Kind, Known>>,
    /// Bytes of shorter renderings so far.
    rendered: Cell<usize>,
}

impl<'a> Search<'a> {
    /// Renders the messages with marks; the number of the first message when they change what is rendered.
    fn new(
        template: &'a ChatTemplate,
        conversation: &'a Conversation<'a>,
        messages: &[Message],
        text: &str,
        special: &'a [String],
        placing: Placing,
    ) -> Result<Self, usize> {
        let free = template.absent_characters(conversation);
        let marked = Marked::new(messages, placing, free).ok_or(0_usize)?;
        let rendered = template.render_messages(conversation, &marked.messages);
        let whole = marked.unmark(&rendered.map_err(|_| 0_usize)?.text);
        if whole.text != text {
            return Err(assistants(messages).next().map_or(0, |(turn, _)| turn));
        }
        let mut places: HashMap<char, Vec<usize>> = HashMap::new();
        for (mark, place) in &whole.marks {
            places.entry(*mark).or_default().push(*place);
        }
        let opens = |token: &&str| {
            let mut marks = whole.marks.iter();
            marks.any(|(_, place)| whole.text[..*place].trim_end().ends_with(token))
        };
        let tokens = special.iter().map(String::as_str);
        let headers = tokens.filter(opens).collect();
        Ok(Self {
            template,
            conversation,
            special,
            headers,
            marked,
            whole,
            places,
            known: RefCell::default(),
            rendered: Cell::new(0),
        })
    }

    /// The spans of the turns that are to be learned; the number of a turn that cannot be told.
    fn spans(&self) -> Result<Vec<Span>, usize> {
        let (mut spans, mut last_end) = (Vec::new(), 0);
        for (turn, message) in assistants(&self.marked.messages) {
            let span = self
                .start(turn)
                .and_then(|start| Some((start, self.end(turn, start)?)));
            let (start, end) = span
                .filter(|span| last_end <= span.0 && self.holds(turn, *span))
                .ok_or(turn)?;
            let says = !message.text().trim().is_empty() || message.has_calls();
            if start == end && says && message.learned {
                return Err(turn);
            }
            last_end = end;
            if message.learned && start < end {
                spans.push((start, end));
            }
        }
        Ok(spans)
    }

    /// Where the model begins to speak: after the generation prompt, as far as the turn was written after it.
    fn start(&self, turn: usize) -> Option<usize> {
        let ending = self.ending(turn, true)?;
        let (place, alike) = self.common(&ending)?;
        if alike == ending.tail.len() {
            return Some(place + alike);
        }
        let without = self.ending(turn, false)?;
        let without = Some(without.tail).filter(|_| without.mark == ending.mark);
        let prompt = without
            .as_deref()
            .and_then(|text| ending.tail.strip_prefix(text));
        let prompt = prompt.filter(|prompt| !prompt.trim().is_empty());
        let found = prompt.and_then(|prompt| self.behind(prompt, place));
        let parts_inside = prompt.is_some_and(|prompt| alike >= ending.tail.len() - prompt.len());
        let common = &self.whole.text[place..place + alike];
        let parted = |condition: bool| condition.then_some(place + alike);
        found
            .or(parted(parts_inside || self.ends_header(common.trim_end())))
            .or_else(|| self.behind_header(&ending.tail, place))
            .or(parted(self.ends_special(common)))
    }

    /// Behind the header that the generation prompt ends with, where the turn has it behind other text than the prompt.
    fn behind_header(&self, prompt: &str, place: usize) -> Option<usize> {
        let headers = self.headers.iter();
        let last = headers.filter_map(|token| prompt.rfind(token)).max()?;
        let header = &prompt[last..];
        let behind = self.behind(header, place);
        behind.or_else(|| self.behind(header.trim_end(), place))
    }

    /// Behind the last such text between a place and the next mark.
    fn behind(&self, text: &str, place: usize) -> Option<usize> {
        let end = self.next_mark(place)?;
        let found = self.whole.text[place..end].rfind(text)?;
        Some(place + found + text.len())
    }

    /// Whether a text ends with a special token.
    fn ends_special(&self, text: &str) -> bool {
        let mut tokens = self.special.iter();
        tokens.any(|token| text.ends_with(token.as_str()))
    }

    /// Whether a text ends with a special token behind which some message's text begins.
    fn ends_header(&self, text: &str) -> bool {
        let mut tokens = self.headers.iter();
        tokens.any(|token| text.ends_with(token))
    }

    /// Where the model has spoken.
    fn end(&self, turn: usize, start: usize) -> Option<usize> {
        let ending = self.without_suffix(turn, start, self.ending(turn + 1, false)?);
        let (place, alike) = self.common(&ending)?;
        let end = match alike == ending.tail.len() {
            true => self.with_stop(start, place + alike),
            false => self.other_end(place.max(start), place + alike),
        };
        if end > start {
            return Some(self.end_of_turn(start, end));
        }
        self.end_behind_marks(turn, start).or(Some(start))
    }

    /// Where the model has spoken in a turn that the template shows in another way, or not at all, when it is the last one: with the
    /// first special token behind what the turn says.
    fn end_behind_marks(&self, turn: usize, start: usize) -> Option<usize> {
        let marks = self.marked.of_message[turn].iter();
        let places = marks.filter_map(|mark| self.places.get(mark)).flatten();
        let last = places.copied().filter(|place| *place >= start).max()?;
        let end = self.other_end(last, last);
        self.ends_special(&self.whole.text[last..end])
            .then_some(end)
    }

    /// The ending of a turn without what the template writes behind any conversation, such as an instruction or the next turn's
    /// beginning: what a conversation without the turn ends with too, behind the same special token.
    ///
    /// The message before the turn has no such suffix when all that its rendering ends with stands before the turn in the whole too.
    fn without_suffix(&self, turn: usize, start: usize, mut ending: Ending) -> Ending {
        let eos = self.conversation.special.eos.as_deref();
        let goes_on = |end: &usize| {
            let suffix = ending.tail[*end..].trim();
            !suffix.is_empty() && Some(suffix) != eos
        };
        let tokens = self.special.iter();
        let ends = tokens.flat_map(|token| {
            let places = ending.tail.match_indices(token.as_str());
            places.map(|(place, token)| place + token.len())
        });
        let mut ends: Vec<usize> = ends.filter(goes_on).collect();
        ends.sort_unstable();
        if ends.is_empty() {
            return ending;
        }
        let Some(without) = self.ending(turn, false) else {
            return ending;
        };
        let common = self.common(&without);
        let is_before_turn =
            |(place, alike): (usize, usize)| alike == without.tail.len() && place + alike < start;
        if common.is_some_and(is_before_turn) {
            return ending;
        }
        let is_suffix = |end: &usize| {
            let (kept, suffix) = ending.tail.split_at(*end);
            let before = without.tail.strip_suffix(suffix);
            let mut tokens = self.special.iter();
            let both = |before: &str, token: &str| kept.ends_with(token) && before.ends_with(token);
            before.is_some_and(|before| tokens.any(|token| both(before, token)))
        };
        if let Some(end) = ends.into_iter().find(is_suffix) {
            ending.tail.truncate(end);
        }
        ending
    }

    /// A turn may end without a special token when it is the last one, and with one, behind white space at most, when it is not, which
    /// may be the next turn's first: it stops the model.
    fn with_stop(&self, start: usize, end: usize) -> usize {
        let said = self.whole.text[start.min(end)..end].trim_end();
        let limit = self.next_mark(end).unwrap_or(self.whole.text.len());
        let rest = self.whole.text[end..limit].trim_start();
        let white = limit - end - rest.len();
        if self.ends_special(said) {
            return end;
        }
        let begins = self.conversation.special.bos.as_ref();
        let next = self.special.iter().filter(|token| Some(*token) != begins);
        let next = next.filter(|token| rest.starts_with(token.as_str()));
        next.map(String::len)
            .max()
            .map_or(end, |length| end + white + length)
    }

    /// The end of a turn that ends in another way than it does when it is the last one: with the next special token, unless what is
    /// alike ends with one, which is no header's.
    fn other_end(&self, place: usize, alike: usize) -> usize {
        let text = &self.whole.text;
        let said = text[place.min(alike)..alike].trim_end();
        if self.ends_special(said) && !self.ends_header(said) {
            return alike;
        }
        let limit = self.next_mark(alike).unwrap_or(text.len());
        let next = self
            .special
            .iter()
            .filter_map(|token| Some((text[alike..limit].find(token.as_str())?, token.len())))
            .min_by_key(|(found, length)| (*found, std::cmp::Reverse(*length)));
        next.map_or(alike, |(found, length)| alike + found + length)
    }

    /// The ending of the first messages: a known one of its kind if the whole has as much of it here, or else a new rendering's.
    fn ending(&self, length: usize, add_generation_prompt: bool) -> Option<Ending> {
        let Some(last) = length.checked_sub(1) else {
            return self.rendered_ending(length, add_generation_prompt);
        };
        let is_all = length == self.marked.messages.len();
        let kind = (
            kind(&self.marked.messages[last]),
            add_generation_prompt,
            is_all,
        );
        let marks = &self.marked.of_message[last];
        if let Some((number, known, alike)) = self.known.borrow().get(&kind) {
            let ending = Ending {
                mark: marks.get(*number).copied(),
                ..known.clone()
            };
            let common = ending.mark.and_then(|_| self.common(&ending));
            if common.is_some_and(|(_, here)| here == *alike) {
                return Some(ending);
            }
        }
        let ending = self.rendered_ending(length, add_generation_prompt)?;
        let number = marks.iter().position(|mark| Some(*mark) == ending.mark);
        if let (Some(number), Some((_, alike))) = (number, self.common(&ending)) {
            let known = (number, ending.clone(), alike);
            self.known.borrow_mut().insert(kind, known);
        }
        Some(ending)
    }

    /// Renders the first messages.
    fn rendered_ending(&self, length: usize, add_generation_prompt: bool) -> Option<Ending> {
        let part = Conversation {
            add_generation_prompt,
            ..self.conversation.clone()
        };
        let messages = &self.marked.messages[..length];
        let rendered = self.template.render_messages(&part, messages).ok()?.text;
        self.rendered.set(self.rendered.get() + rendered.len());
        let part = self.marked.unmark(&rendered);
        let mut counts: HashMap<char, usize> = HashMap::new();
        let count = |(mark, place): &(char, usize)| {
            let count = counts.entry(*mark).or_default();
            *count += 1;
            (*mark, *place, *count)
        };
        let counted: Vec<(char, usize, usize)> = part.marks.iter().map(count).collect();
        let whole_has = |(mark, place, count): (char, usize, usize)| {
            let there = self.places.get(&mark)?.len() >= count;
            there.then(|| Ending {
                mark: Some(mark),
                count,
                tail: part.text[place..].to_string(),
            })
        };
        let known = counted.into_iter().rev().find_map(whole_has);
        (self.rendered.get() <= MOST_RENDERED).then(|| {
            known.unwrap_or(Ending {
                mark: None,
                count: 0,
                tail: part.text,
            })
        })
    }

    /// The place of an ending's mark in the whole, and how many bytes behind it are those of the ending; no special token is cut.
    fn common(&self, ending: &Ending) -> Option<(usize, usize)> {
        let place = match ending.mark {
            Some(mark) => *self.places.get(&mark)?.get(ending.count - 1)?,
            None => 0,
        };
        let (tail, rest) = (ending.tail.as_str(), &self.whole.text[place..]);
        let pairs = tail.chars().zip(rest.chars());
        let mut alike: usize = pairs
            .take_while(|(left, right)| left == right)
            .map(|(character, _)| character.len_utf8())
            .sum();
        if alike < tail.len() {
            // Without any mark, texts that part early say nothing.
            let next = self.next_mark(place);
            (ending.mark.is_some() || next.is_some()).then_some(())?;
            alike = next.map_or(alike, |next| alike.min(next - place));
            alike = uncut(tail, uncut(rest, alike, self.special), self.special);
        }
        Some((place, alike))
    }

    /// The place of the first mark after one.
    fn next_mark(&self, place: usize) -> Option<usize> {
        let marks = &self.whole.marks;
        let next = marks.partition_point(|(_, other)| *other <= place);
        marks.get(next).map(|(_, next)| *next)
    }

    /// Leaves out white space after the special token that ends a turn: generation has stopped by then.
    fn end_of_turn(&self, start: usize, end: usize) -> usize {
        let said = self.whole.text[start..end].trim_end();
        if self.ends_special(said) {
            start + said.len()
        } else {
            end
        }
    }

    /// Whether a span has a mark of the turn, if these are there at all, and none of what others say.
    fn holds(&self, turn: usize, (start, end): Span) -> bool {
        let marks = &self.whole.marks;
        let first = marks.partition_point(|(_, place)| *place <= start);
        let inside = marks[first..].iter().take_while(|(_, place)| *place < end);
        let given = |(mark, _): &(char, usize)| {
            let owner = self.marked.owner(*mark);
            owner.is_some_and(|owner| self.marked.messages[owner].role != "assistant")
        };
        if inside.clone().any(given) {
            return false;
        }
        let own = self.marked.of_message[turn].iter();
        let mut own = own.filter_map(|mark| self.places.get(mark)).peekable();
        own.peek().is_none() || own.flatten().any(|place| (start..=end).contains(place))
    }
}

/// What a message has, on which its ending depends.
fn kind(message: &Message) -> String {
    let there = message.rest.iter().filter(|(_, value)| !value.is_null());
    let calls = message.rest.get("tool_calls").and_then(Value::as_array);
    let mut kind = format!(
        "{} {} {}",
        message.role,
        message.text().is_empty(),
        calls.map_or(0, Vec::len)
    );
    there.for_each(|(name, _)| kind = format!("{kind} {name}"));
    kind
}

/// A length that cuts no special token of the text, and no tag such as `<think>`.
fn uncut(text: &str, length: usize, special: &[String]) -> usize {
    let cut = |token: &String| {
        let starts = text[..length].char_indices().rev();
        starts
            .take_while(|(start, _)| start + token.len() > length)
            .filter(|(start, _)| text[*start..].starts_with(token.as_str()))
            .map(|(start, _)| start)
            .last()
    };
    let length = special.iter().filter_map(cut).min().unwrap_or(length);
    let last = text[..length].rfind(['<', '>', '[', ']']);
    let open = last.filter(|place| text[*place..].starts_with(['<', '[']));
    open.unwrap_or(length)
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
