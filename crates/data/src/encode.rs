//! Encoding: records to token ids and the loss mask, `[time]` each.
//!
//! The targets of the loss depend on the kind of record: all tokens of a text, the assistant's turns of a conversation (end-of-turn
//! tokens included) unless they are marked as not to be learned, the answers of a preference. Of records with labels no token is a target. The assistant's tokens are derived from the chat template, never declared: a
//! token is a target if it shares a character with the assistant's text; added special tokens share none.
//!
//! Sources: the conventions of Hugging Face's TRL (completion masks, common-prefix rule, truncation that keeps the start).

mod assistant;
mod labels;
mod marks;
mod show;
mod truncate;
mod unread;

pub use assistant::render_learned;

use serde_json::Value;

pub use self::{labels::Labelled, truncate::Truncation};
use crate::record::{Message, Record};
use crate::template::{ChatTemplate, Conversation};
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// Token ids with their loss mask.
///
/// ```
/// use espalier_data::encode::Example;
/// let example = Example::new(vec![5, 6, 7], vec![false, true, true]);
/// assert_eq!(example.target_count(), 2);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Example {
    /// Token ids, `[time]`.
    pub ids: Vec<u32>,
    /// `targets[t]`: the loss asks for token `t` (predicted from the tokens before it), `[time]`.
    pub targets: Vec<bool>,
}

impl Example {
    /// Joins ids and their mask, which must have the same length.
    pub fn new(ids: Vec<u32>, targets: Vec<bool>) -> Self {
        debug_assert_eq!(ids.len(), targets.len());
        Self { ids, targets }
    }

    /// A prompt of `prompt` tokens with its answer, of which every token is a target.
    ///
    /// ```
    /// use espalier_data::encode::Example;
    /// assert_eq!(Example::answered(vec![5, 6, 7], 1).targets, [false, true, true]);
    /// ```
    pub fn answered(ids: Vec<u32>, prompt: usize) -> Self {
        let targets = (0..ids.len()).map(|place| place >= prompt).collect();
        Self::new(ids, targets)
    }

    /// Number of tokens that the loss asks for. The first token has nothing before it and never counts.
    pub fn target_count(&self) -> usize {
        predicted(&self.targets).count()
    }
}

/// The places of targets that something stands before: the first token of a text is never predicted.
pub(crate) fn predicted(targets: &[bool]) -> impl Iterator<Item = usize> + '_ {
    (1..targets.len()).filter(|place| targets[*place])
}

/// A better and a worse continuation of the same prompt; `targets` marks the continuation.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Pair {
    /// Prompt and better answer.
    pub chosen: Example,
    /// Prompt and worse answer.
    pub rejected: Example,
    /// By how much the better answer's reward should be larger; 0 where nothing is said.
    pub margin: f64,
}

impl Pair {
    /// The pair, or nothing where its two texts are alike, for then there is nothing to prefer.
    fn kept(self, reason: &str) -> Encoded {
        match self.chosen.ids == self.rejected.ids {
            true => dropped(reason),
            false => Encoded::Pair(self),
        }
    }
}

/// An encoded record, or the reason why it is left out.
#[derive(Debug, Clone, PartialEq)]
pub enum Encoded {
    /// A text or a conversation.
    Example(Example),
    /// A preference.
    Pair(Pair),
    /// A text of which something is said, as a whole or at some of its tokens.
    Labelled(Labelled),
    /// An answer that is good or bad; the targets mark it.
    Unpaired {
        /// Prompt and answer.
        example: Example,
        /// Whether it is a good one.
        desirable: bool,
    },
    /// Nothing is left to learn, so the record is left out; callers count these.
    Dropped {
        /// Why, without details of the record, so that equal reasons can be counted together.
        reason: String,
    },
}

/// Turns records into token ids and masks.
///
/// ```
/// use espalier_data::encode::{Encoded, Encoder};
/// use espalier_data::record::{Message, Record};
/// use espalier_data::template::{CHATML, ChatTemplate};
/// use espalier_data::tokenizer::{BpeOptions, Tokenizer};
/// let tokenizer = Tokenizer::train_byte_level_bpe(std::iter::empty(), &BpeOptions { vocabulary: 259, ..Default::default() })?;
/// let encoder = Encoder::new(tokenizer.with_template(ChatTemplate::new(CHATML)?), 1024);
/// let messages = vec![Message::user("2+2?"), Message::assistant("4")];
/// let Encoded::Example(example) = encoder.encode(&Record::Chat { messages, tools: None })? else { unreachable!() };
/// assert_eq!(example.target_count(), 2); // "4" and "<|im_end|>"
/// # Ok::<(), espalier_data::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Encoder {
    /// The tokenizer, with the chat template that conversations need.
    pub tokenizer: Tokenizer,
    /// Longer examples keep their first `max_length` tokens.
    pub max_length: usize,
    /// Put the beginning-of-sequence token before plain texts, even if the tokenizer itself does not.
    pub add_bos: bool,
}

impl Encoder {
    /// An encoder that adds to plain texts what the tokenizer adds, and the end-of-sequence token.
    pub fn new(tokenizer: Tokenizer, max_length: usize) -> Self {
        Self {
            tokenizer,
            max_length,
            add_bos: false,
        }
    }

    /// Encodes one record.
    ///
    /// # Errors
    /// [`Error::Template`] when a conversation meets no chat template, one that refuses it, or one from which the assistant's
    /// part cannot be told; [`Error::Tokenizer`] when the text cannot be encoded.
    pub fn encode(&self, record: &Record) -> Result<Encoded> {
        match record {
            Record::Text { text } => {
                let example = self.text(text)?;
                Ok(keep(
                    example,
                    "a text of no more than one token, before which nothing stands",
                ))
            }
            Record::Chat { messages, tools } => self.chat(messages, tools.as_ref()),
            Record::Preference {
                prompt,
                chosen,
                rejected,
                margin,
                tools,
            } => self.preference(prompt, [chosen, rejected], *margin, tools.as_ref()),
            Record::Labelled { text, label } => self.labelled(text, label),
            Record::Tagged { words, labels } => self.tagged(words, labels),
            Record::Steps {
                prompt,
                steps,
                labels,
            } => self.steps(prompt, steps, labels),
            Record::Unpaired {
                prompt,
                answer,
                desirable,
                tools,
            } => self.unpaired(prompt, answer, *desirable, tools.as_ref()),
        }
    }

    /// The ids of a conversation up to where the assistant begins to speak.
    ///
    /// # Errors
    /// As [`Encoder::encode`].
    pub fn prompt(&self, messages: &[Message], tools: Option<&Value>) -> Result<Vec<u32>> {
        let prompted = Conversation {
            add_generation_prompt: true,
            ..self.conversation(messages, tools)
        };
        let text = self.template(tools)?.render(&prompted)?.text;
        self.tokenizer.encode_ids(&text, false)
    }

    /// A text with its end; every token is learned. Without an end-of-sequence token on the tokenizer, no end is added.
    fn text(&self, text: &str) -> Result<Example> {
        let mut ids = self.tokenizer.encode_ids(text, true)?;
        let special = self.tokenizer.special();
        let id = |token: &Option<String>| self.tokenizer.id(token.as_deref()?);
        if let Some(bos) = id(&special.bos).filter(|bos| self.add_bos && ids.first() != Some(bos)) {
            ids.insert(0, bos);
        }
        if let Some(eos) = id(&special.eos).filter(|eos| ids.last() != Some(eos)) {
            ids.push(eos);
        }
        let targets = vec![true; ids.len()];
        Ok(self.truncated(ids, targets))
    }

    /// A conversation, whose targets are the assistant's turns.
    fn chat(&self, messages: &[Message], tools: Option<&Value>) -> Result<Encoded> {
        let conversation = self.conversation(messages, tools);
        let rendered = render_learned(
            self.template(tools)?,
            &conversation,
            &self.tokenizer.special_texts(),
        )?;
        let encoding = self.tokenizer.encode(&rendered.text, false)?;
        let targets = overlapping(&encoding.offsets, &rendered.generation);
        let reason = match targets.iter().any(|target| *target) {
            true => CUT_OFF,
            false if assistants(messages).all(|(_, message)| !message.learned) => {
                "no turn of the assistant is to be learned (`weight` 0)"
            }
            false => "the assistant says nothing that the template shows",
        };
        Ok(keep(self.truncated(encoding.ids, targets), reason))
    }

    /// A pair; the ids after the longest common prefix of the prompt with both whole conversations are the answers.
    fn preference(
        &self,
        prompt: &[Message],
        [chosen, rejected]: [&Message; 2],
        margin: Option<f64>,
        tools: Option<&Value>,
    ) -> Result<Encoded> {
        let [chosen, rejected] = self.answers(prompt, [chosen, rejected], tools)?;
        let pair = Pair {
            chosen,
            rejected,
            margin: margin.unwrap_or(0.0),
        };
        if pair.chosen.target_count() == 0 || pair.rejected.target_count() == 0 {
            return Ok(dropped(NO_ANSWER));
        }
        Ok(pair.kept("`chosen` and `rejected` are the same, so that neither is better"))
    }

    /// An answer and its verdict, encoded as those of a pair are.
    fn unpaired(
        &self,
        prompt: &[Message],
        answer: &Message,
        desirable: bool,
        tools: Option<&Value>,
    ) -> Result<Encoded> {
        let [example] = self.answers(prompt, [answer], tools)?;
        Ok(match example.target_count() {
            0 => dropped(NO_ANSWER),
            _ => Encoded::Unpaired { example, desirable },
        })
    }

    /// The prompt with each of these answers.
    fn answers<const N: usize>(
        &self,
        prompt: &[Message],
        answers: [&Message; N],
        tools: Option<&Value>,
    ) -> Result<[Example; N]> {
        let template = self.template(tools)?;
        let start = self.prompt(prompt, tools)?;
        // Nothing but the answer is learned.
        let given = |message: &Message| Message {
            learned: false,
            ..message.clone()
        };
        let prompt: Vec<Message> = prompt.iter().map(given).collect();
        let mut prompt_length = start.len();
        let mut all: [Vec<u32>; N] = std::array::from_fn(|_| Vec::new());
        for (ids, answer) in all.iter_mut().zip(answers) {
            let whole = [prompt.as_slice(), std::slice::from_ref(answer)].concat();
            let conversation = self.conversation(&whole, tools);
            let (messages, rendered) = template.understood(&conversation);
            let text = rendered?.text;
            unread::refuse_unread(template, &conversation, &messages, &text)?;
            *ids = self.tokenizer.encode_ids(&text, false)?;
            prompt_length = prompt_length.min(common_prefix(&start, ids));
        }
        Ok(all.map(|ids| {
            let Example { ids, targets } = Example::answered(ids, prompt_length);
            self.truncated(ids, targets)
        }))
    }

    /// Whether the template leaves out the reasoning of turns before a conversation's last one. Many do so by design; then it is
    /// not learned.
    pub fn hides_reasoning(&self, record: &Record) -> bool {
        let Record::Chat { messages, tools } = record else {
            return false;
        };
        let conversation = self.conversation(messages, tools.as_ref());
        self.template(tools.as_ref())
            .is_ok_and(|template| unread::hides_reasoning(template, &conversation, record))
    }

    fn conversation<'a>(
        &'a self,
        messages: &'a [Message],
        tools: Option<&'a Value>,
    ) -> Conversation<'a> {
        Conversation {
            tools,
            ..Conversation::new(messages, self.tokenizer.special())
        }
    }

    fn template(&self, tools: Option<&Value>) -> Result<&ChatTemplate> {
        self.tokenizer.template_for(tools.is_some()).ok_or_else(|| {
            let names: Vec<&str> = self.tokenizer.template_names().collect();
            let there = match names.is_empty() {
                true => "none".to_string(),
                false => format!("no `default`, but {}", names.join(", ")),
            };
            Error::Template(format!(
                "the tokenizer has {there}, and conversations need one; choose one, such as template = \"chatml\""
            ))
        })
    }

    fn truncated(&self, mut ids: Vec<u32>, mut targets: Vec<bool>) -> Example {
        ids.truncate(self.max_length);
        targets.truncate(self.max_length);
        Example::new(ids, targets)
    }
}

/// Why a record is left out whose prompt leaves no room.
const NO_ANSWER: &str = "no token of an answer is left within `length`";

/// The example, or the reason why there is nothing to learn in it.
fn keep(example: Example, reason: &str) -> Encoded {
    match example.target_count() {
        0 => dropped(reason),
        _ => Encoded::Example(example),
    }
}

const CUT_OFF: &str = "no token to learn is left within `length`";

/// The turns of the assistant, with their numbers.
fn assistants(messages: &[Message]) -> impl DoubleEndedIterator<Item = (usize, &Message)> {
    let messages = messages.iter().enumerate();
    messages.filter(|(_, message)| message.role == "assistant")
}

fn dropped(reason: &str) -> Encoded {
    Encoded::Dropped {
        reason: reason.into(),
    }
}

/// Whether each token's characters meet one of the spans, all half-open; the spans ascend.
fn overlapping(offsets: &[(usize, usize)], spans: &[(usize, usize)]) -> Vec<bool> {
    let meets = |(start, end): &(usize, usize)| {
        let first = spans.partition_point(|span| span.1 <= *start);
        let mut near = spans[first..].iter().take_while(|span| span.0 < *end);
        near.any(|span| *start.max(&span.0) < *end.min(&span.1))
    };
    offsets.iter().map(meets).collect()
}

fn common_prefix(left: &[u32], right: &[u32]) -> usize {
    left.iter()
        .zip(right)
        .take_while(|(left, right)| left == right)
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::template::CHATML;
    use crate::tokenizer::BpeOptions;

    #[test]
    fn tokens_that_meet_a_span_are_targets() {
        let offsets = [(0, 1), (1, 5), (5, 5), (5, 7), (7, 8), (8, 9)];
        let spans = [(3, 3), (4, 6), (8, 9)];
        let expected = [false, true, false, true, false, true];
        assert_eq!(overlapping(&offsets, &spans), expected);
        let many: Vec<(usize, usize)> = (0..300_000)
            .map(|place| (2 * place, 2 * place + 1))
            .collect();
        assert!(overlapping(&many, &many).iter().all(|meets| *meets));
    }

    pub(super) fn tokenizer() -> Tokenizer {
        let texts = vec!["what is the sum of two and three? the sum is five.".to_string(); 4];
        Tokenizer::train_byte_level_bpe(
            texts.into_iter(),
            &BpeOptions {
                vocabulary: 300,
                ..Default::default()
            },
        )
        .unwrap()
    }

    pub(super) fn encoder() -> Encoder {
        Encoder::new(
            tokenizer().with_template(ChatTemplate::new(CHATML).unwrap()),
            1000,
        )
    }

    fn example(encoder: &Encoder, record: Record) -> Example {
        match encoder.encode(&record).unwrap() {
            Encoded::Example(example) => example,
            other => panic!("{other:?}"),
        }
    }

    /// Text of the tokens that are learned.
    fn learned(encoder: &Encoder, example: &Example) -> String {
        let ids = example
            .ids
            .iter()
            .zip(&example.targets)
            .filter(|(_, target)| **target)
            .map(|(id, _)| *id);
        encoder
            .tokenizer
            .decode(&ids.collect::<Vec<_>>(), false)
            .unwrap()
    }

    #[test]
    fn a_text_is_learned_whole_with_its_end() {
        let mut encoder = encoder();
        let whole = example(
            &encoder,
            Record::Text {
                text: "the sum".into(),
            },
        );
        assert_eq!(learned(&encoder, &whole), "the sum<|im_end|>");
        assert!(whole.targets.iter().all(|target| *target));
        let ended = example(
            &encoder,
            Record::Text {
                text: "the sum<|im_end|>".into(),
            },
        );
        assert_eq!(ended, whole);
        let special = crate::tokenizer::SpecialTokens {
            bos: Some("<|im_start|>".into()),
            ..encoder.tokenizer.special().clone()
        };
        encoder.tokenizer = encoder.tokenizer.with_special(special);
        encoder.add_bos = true;
        assert_eq!(
            example(
                &encoder,
                Record::Text {
                    text: "the sum".into()
                }
            )
            .ids[0],
            1
        );
    }

    fn chat() -> Record {
        let messages = vec![
            Message::system("Be brief."),
            Message::user("two and three?"),
            Message::assistant("fünf 👍"),
            Message::user("the sum?"),
            Message::assistant("the sum is five."),
        ];
        Record::Chat {
            messages,
            tools: None,
        }
    }

    #[test]
    fn only_the_assistant_is_learned() {
        let encoder = encoder();
        let example = example(&encoder, chat());
        assert_eq!(
            learned(&encoder, &example),
            "fünf 👍<|im_end|>the sum is five.<|im_end|>"
        );
    }

    #[test]
    fn unmarked_templates_give_the_same_mask() {
        let marked = encoder();
        let source = CHATML
            .replace("{%- generation %}", "")
            .replace("{%- endgeneration %}", "");
        let template = ChatTemplate::new(&source).unwrap();
        assert!(!template.marks_generation());
        let unmarked = Encoder::new(tokenizer().with_template(template), 1000);
        assert_eq!(example(&marked, chat()), example(&unmarked, chat()));
    }

    #[test]
    fn long_examples_keep_their_start() {
        let mut encoder = encoder();
        let whole = example(&encoder, chat());
        let first = whole.targets.iter().position(|target| *target).unwrap();
        encoder.max_length = first + 1;
        assert_eq!(example(&encoder, chat()).ids, whole.ids[..=first]);
        encoder.max_length = first;
        assert!(matches!(
            encoder.encode(&chat()).unwrap(),
            Encoded::Dropped { .. }
        ));
    }

    #[test]
    fn a_conversation_without_answers_is_dropped() {
        let record = Record::Chat {
            messages: vec![Message::user("Hi")],
            tools: None,
        };
        assert!(matches!(
            encoder().encode(&record).unwrap(),
            Encoded::Dropped { .. }
        ));
    }

    #[test]
    fn answers_begin_after_the_common_prefix() {
        let (encoder, prompt) = (encoder(), vec![Message::user("two and three?")]);
        let (chosen, rejected) = (
            Message::assistant("five"),
            Message::assistant("I do not know"),
        );
        let record = Record::Preference {
            prompt,
            chosen,
            rejected,
            margin: None,
            tools: None,
        };
        let Encoded::Pair(pair) = encoder.encode(&record).unwrap() else {
            panic!()
        };
        assert_eq!(learned(&encoder, &pair.chosen), "five<|im_end|>\n");
        assert_eq!(
            learned(&encoder, &pair.rejected),
            "I do not know<|im_end|>\n"
        );
    }

    #[test]
    fn a_prompt_that_merges_into_the_answer_shortens_the_prefix() {
        assert_eq!(common_prefix(&[1, 2, 3], &[1, 2, 9, 4]), 2);
        assert_eq!(
            overlapping(&[(0, 0), (0, 3), (3, 5), (5, 9)], &[(4, 6)]),
            [false, false, true, true]
        );
    }

    #[test]
    fn a_missing_template_says_how_to_choose_one() {
        let error = Encoder::new(tokenizer(), 10).encode(&chat()).unwrap_err();
        assert!(error.to_string().contains("template = \"chatml\""));
    }
}
