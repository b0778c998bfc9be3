//! Records with labels as token ids: the label of a text stands for all of it, that of a word at its first token, that of a step at
//! its last one, the line break that ends it (as TRL's PRM trainer has it).

use super::{Encoded, Encoder, dropped};
use crate::record::{Label, Message};
use crate::{Error, Result};

/// What ends a step.
const STEP_END: &str = "\n";

/// Token ids of which something is said.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Labelled {
    /// Token ids, `[time]`.
    pub ids: Vec<u32>,
    /// The tokens that the labels belong to, in order; none where the text as a whole has its one label.
    pub places: Vec<usize>,
    /// What is said.
    pub labels: Vec<Label>,
}

impl Labelled {
    /// Cuts the text to its first `length` tokens, with the labels behind them.
    pub(super) fn truncate(&mut self, length: usize) {
        self.ids.truncate(length);
        let kept = self.places.iter().filter(|place| **place < length).count();
        if !self.places.is_empty() {
            self.places.truncate(kept);
            self.labels.truncate(kept);
        }
    }

    /// Itself, unless no label is left.
    pub(super) fn kept(self) -> Encoded {
        match self.labels.is_empty() || self.ids.is_empty() {
            true => dropped("no label is left within `length`"),
            false => Encoded::Labelled(self),
        }
    }
}

impl Encoder {
    /// A text with what the tokenizer puts around it, and its label.
    pub(super) fn labelled(&self, text: &str, label: &Label) -> Result<Encoded> {
        let mut labelled = Labelled {
            ids: self.tokenizer.encode_ids(text, true)?,
            places: Vec::new(),
            labels: vec![label.clone()],
        };
        labelled.truncate(self.max_length);
        Ok(labelled.kept())
    }

    /// Words with spaces between them. A word that leaves no token of its own has no place for its label, which is an error.
    pub(super) fn tagged(&self, words: &[String], labels: &[Label]) -> Result<Encoded> {
        let encoding = self.tokenizer.encode(&words.join(" "), true)?;
        let (mut start, mut places) = (0, Vec::with_capacity(words.len()));
        for word in words {
            let end = start + word.chars().count();
            // A token may bring the space before its word along.
            let is_of_word = |(from, to): &(usize, usize)| *from < end && *to > start;
            let from = places.last().map_or(0, |last| last + 1);
            let found = encoding.offsets.iter().skip(from).position(is_of_word);
            let place = found.map(|found| from + found).ok_or_else(|| {
                Error::Tokenizer(format!("the word `{word}` has no token for its label"))
            })?;
            places.push(place);
            start = end + 1;
        }
        let mut labelled = Labelled {
            ids: encoding.ids,
            places,
            labels: labels.to_vec(),
        };
        labelled.truncate(self.max_length);
        Ok(labelled.kept())
    }

    /// A prompt and the steps of its answer, each encoded by itself with a line break behind it.
    pub(super) fn steps(
        &self,
        prompt: &[Message],
        steps: &[String],
        labels: &[Label],
    ) -> Result<Encoded> {
        let mut ids = self.prompt(prompt, None)?;
        let mut places = Vec::with_capacity(steps.len());
        for step in steps {
            let step = format!("{step}{STEP_END}");
            ids.extend(self.tokenizer.encode_ids(&step, false)?);
            places.push(ids.len().saturating_sub(1));
        }
        let mut labelled = Labelled {
            ids,
            places,
            labels: labels.to_vec(),
        };
        labelled.truncate(self.max_length);
        Ok(labelled.kept())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Record;
    use crate::template::{CHATML, ChatTemplate};
    use crate::tokenizer::{BpeOptions, Tokenizer};

    fn encoder() -> Encoder {
        let options = BpeOptions {
            vocabulary: 280,
            ..BpeOptions::default()
        };
        let texts = vec!["the cat and the hat".to_owned(); 8];
        let tokenizer = Tokenizer::train_byte_level_bpe(texts.into_iter(), &options).unwrap();
        Encoder::new(
            tokenizer.with_template(ChatTemplate::new(CHATML).unwrap()),
            64,
        )
    }

    fn encoded(record: &Record) -> Labelled {
        match encoder().encode(record).unwrap() {
            Encoded::Labelled(labelled) => labelled,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_word_is_labelled_at_its_first_token() {
        let labels: Vec<Label> = [0.0, 1.0, 2.0].map(Label::Number).into();
        let words = ["the", "\u{e9}t\u{e9}", "hats"].map(str::to_owned);
        let tagged = encoded(&Record::Tagged {
            words: words.into(),
            labels: labels.clone(),
        });
        let encoder = encoder();
        let before = |place: usize| {
            let ids = &tagged.ids[..tagged.places[place]];
            encoder.tokenizer.decode(ids, false).unwrap()
        };
        assert_eq!(tagged.labels, labels);
        // A token may begin with the space before its word.
        assert_eq!(
            [0, 1, 2].map(|i| before(i).trim_end().to_owned()),
            ["", "the", "the \u{e9}t\u{e9}"]
        );
    }

    #[test]
    fn a_step_is_labelled_at_the_line_break_that_ends_it() {
        let labels: Vec<Label> = [true, false].map(Label::Flag).into();
        let steps = encoded(&Record::Steps {
            prompt: vec![Message::user("a?")],
            steps: vec!["the cat".into(), "the hat".into()],
            labels: labels.clone(),
        });
        let encoder = encoder();
        let until = |place: usize| {
            let ids = &steps.ids[..=steps.places[place]];
            encoder.tokenizer.decode(ids, false).unwrap()
        };
        assert!(until(0).ends_with("assistant\nthe cat\n"), "{}", until(0));
        assert!(until(1).ends_with("the cat\nthe hat\n"));
        assert_eq!(steps.labels, labels);
    }

    #[test]
    fn labels_behind_the_length_are_left_out() {
        let mut labelled = Labelled {
            ids: vec![1, 2, 3, 4],
            places: vec![1, 3],
            labels: [0.0, 1.0].map(Label::Number).into(),
        };
        labelled.truncate(3);
        assert_eq!(
            (labelled.places.as_slice(), labelled.labels.len()),
            (&[1][..], 1)
        );
        labelled.truncate(1);
        assert!(matches!(labelled.kept(), Encoded::Dropped { .. }));
    }
}
