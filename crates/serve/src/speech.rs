//! From the scheduler's tokens to what is sent: pieces of text, whole characters alone, that end before a stop string.
//!
//! Text is made where tokens are, on the thread that computes, so that a stop string ends the work at once.

use espalier_data::tokenizer::Tokenizer;
use espalier_engine::{
    answer::AnswerText,
    decode::Finish,
    scheduler::{Cancellation, Ending, Listener, Token},
};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

use crate::error::Refusal;

/// What is said of one answer.
#[derive(Debug, Clone)]
pub(crate) enum Said {
    /// Text that became certain, with the tokens since the last piece.
    Piece(String, Vec<Told>),
    /// The end.
    End(Ended),
    /// The end by an error.
    Failed(Refusal),
}

/// A token with its log-probability, where that was asked for.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    pub token: Spelled,
    pub likeliest: Vec<Spelled>,
}

/// A token as text and bytes.
#[derive(Debug, Clone)]
pub(crate) struct Spelled {
    pub text: String,
    pub logprob: f32,
}

/// How an answer ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ended {
    pub finish: Finish,
    pub prompt: usize,
    pub cached: usize,
    pub generated: usize,
}

/// What comes of all answers of a request: the number of the answer, and what is said.
pub(crate) type Heard = UnboundedReceiver<(usize, Said)>;

/// Ends a request's work when nobody waits for it any more.
#[derive(Debug, Default)]
pub(crate) struct Waiting(Cancellation);

impl Waiting {
    pub fn cancellation(&self) -> Cancellation {
        self.0.clone()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// Listens to the scheduler for one answer.
pub(crate) struct Speaker {
    number: usize,
    text: AnswerText,
    tokenizer: Tokenizer,
    end: Vec<u32>,
    told: Vec<Told>,
    to: UnboundedSender<(usize, Said)>,
    failed: bool,
}

impl Speaker {
    pub fn new(
        number: usize,
        text: AnswerText,
        tokenizer: Tokenizer,
        end: Vec<u32>,
        to: UnboundedSender<(usize, Said)>,
    ) -> Self {
        Self {
            number,
            text,
            tokenizer,
            end,
            told: Vec::new(),
            to,
            failed: false,
        }
    }

    fn say(&self, said: Said) -> bool {
        self.to.send((self.number, said)).is_ok()
    }

    fn spell(&self, id: u32, logprob: f32) -> Spelled {
        let text = self.tokenizer.decode(&[id], false);
        Spelled {
            text: text.unwrap_or_default(),
            logprob,
        }
    }
}

impl Listener for Speaker {
    fn token(&mut self, token: &Token) -> bool {
        if self.end.contains(&token.id) {
            return true;
        }
        if let Some(logprobs) = &token.logprobs {
            let likeliest = logprobs.likeliest.iter();
            let told = Told {
                token: self.spell(token.id, logprobs.chosen),
                likeliest: likeliest.map(|(id, p)| self.spell(*id, *p)).collect(),
            };
            self.told.push(told);
        }
        match self.text.push(token.id) {
            Ok(piece) => {
                let said = match piece.text.is_empty() {
                    true => true,
                    false => {
                        let told = std::mem::take(&mut self.told);
                        self.say(Said::Piece(piece.text, told))
                    }
                };
                said && !piece.stopped
            }
            Err(error) => {
                self.failed = true;
                self.say(Said::Failed(Refusal::of_engine(&error)));
                false
            }
        }
    }

    fn end(&mut self, ending: espalier_engine::Result<Ending>) {
        if self.failed {
            return;
        }
        let said = match (ending, self.text.finish()) {
            (Ok(ending), Ok(piece)) => {
                let told = std::mem::take(&mut self.told);
                if !piece.text.is_empty() || !told.is_empty() {
                    self.say(Said::Piece(piece.text, told));
                }
                Said::End(Ended {
                    finish: match self.text.is_stopped() {
                        true => Finish::Stopped,
                        false => ending.finish,
                    },
                    prompt: ending.prompt,
                    cached: ending.cached,
                    generated: ending.generated,
                })
            }
            (Err(error), _) | (_, Err(error)) => Said::Failed(Refusal::of_engine(&error)),
        };
        self.say(said);
    }
}
