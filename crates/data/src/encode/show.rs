//! An encoded example as text with the targets of the loss marked, as `data show` prints it.

use super::{Encoder, Example};
use crate::Result;

const LEARNED: &str = "\x1b[32m";
const GIVEN: &str = "\x1b[2m";
const RESET: &str = "\x1b[0m";

impl Encoder {
    /// The text of an example with its special tokens; targets are green and the rest dim, or without `colour` targets
    /// stand between ⟦ and ⟧. A character spread over several tokens goes with its last one.
    ///
    /// # Errors
    /// [`crate::Error::Tokenizer`] when the ids cannot be decoded.
    pub fn show(&self, example: &Example, colour: bool) -> Result<String> {
        let mut shown = String::new();
        for (text, learned) in self.runs(example)? {
            shown += &match (colour, learned) {
                (true, true) => format!("{LEARNED}{text}{RESET}"),
                (true, false) => format!("{GIVEN}{text}{RESET}"),
                (false, true) => format!("⟦{text}⟧"),
                (false, false) => text,
            };
        }
        Ok(shown)
    }

    /// Stretches of text that are learned or not, by turns.
    fn runs(&self, example: &Example) -> Result<Vec<(String, bool)>> {
        let mut runs: Vec<(String, bool)> = Vec::new();
        let mut stream = self.tokenizer.stream_with_special();
        let mut add = |text: String, learned: bool| match runs.last_mut() {
            Some((run, flag)) if *flag == learned => run.push_str(&text),
            _ if text.is_empty() => {}
            _ => runs.push((text, learned)),
        };
        for (id, learned) in example.ids.iter().zip(&example.targets) {
            if let Some(text) = stream.push(*id)? {
                add(text, *learned);
            }
        }
        add(
            stream.finish()?.unwrap_or_default(),
            example.targets.last().copied().unwrap_or_default(),
        );
        Ok(runs)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::encoder;
    use super::super::{Encoded, Example};
    use crate::record::{Message, Record};

    #[test]
    fn learned_text_stands_out() {
        let encoder = encoder();
        let record = Record::Chat {
            messages: vec![Message::user("hé"), Message::assistant("the sum 日")],
            tools: None,
        };
        let Encoded::Example(example) = encoder.encode(&record).unwrap() else {
            panic!()
        };
        assert_eq!(
            encoder.show(&example, false).unwrap(),
            "<|im_start|>user\nhé<|im_end|>\n<|im_start|>assistant\n⟦the sum 日<|im_end|>⟧\n"
        );
        let coloured = encoder.show(&example, true).unwrap();
        assert!(coloured.contains("\x1b[32mthe sum 日<|im_end|>\x1b[0m"));
        assert_eq!(encoder.show(&Example::default(), true).unwrap(), "");
    }
}
