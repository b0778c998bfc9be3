//! What is asked of the scheduler, and what it tells while it works.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use crate::{Error, Result, decode::Finish, sampler::SamplerOptions};

/// A prompt to be continued. Its tokens depend on the prompt, the options and the seed, not on what else is computed.
pub struct Request {
    /// The prompt's tokens.
    pub prompt: Vec<u32>,
    /// Most tokens to generate.
    pub max_new_tokens: usize,
    /// Options of sampling.
    pub sampler: SamplerOptions,
    /// What may come next by a grammar.
    pub constraint: Option<Box<dyn Constraint>>,
    /// Tokens that end the text; the last of them is told of as a token too.
    pub end: Vec<u32>,
    /// How many of the likeliest tokens are told of beside each chosen one, with log-probabilities.
    pub logprobs: Option<usize>,
    /// Higher ones come first.
    pub priority: i32,
    /// Who asks: those who have less under way come first.
    pub client: u64,
    /// Set by the client that gives up.
    pub cancelled: Cancellation,
    /// Who is told.
    pub listener: Box<dyn Listener>,
}

impl Request {
    /// A request of the usual priority that nobody gives up.
    pub fn new(
        prompt: Vec<u32>,
        max_new_tokens: usize,
        sampler: SamplerOptions,
        listener: impl Listener + 'static,
    ) -> Self {
        Self {
            prompt,
            max_new_tokens,
            sampler,
            constraint: None,
            end: Vec::new(),
            logprobs: None,
            priority: 0,
            client: 0,
            cancelled: Cancellation::default(),
            listener: Box::new(listener),
        }
    }
}

/// Whether somebody still waits for the answer; copies share it.
#[derive(Debug, Clone, Default)]
pub struct Cancellation(Arc<AtomicBool>);

impl Cancellation {
    /// Nobody waits any more.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether nobody waits any more.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A token of an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// Its log-probability under the model, and the likeliest tokens with theirs, where that was asked for.
    pub logprobs: Option<Logprobs>,
}

/// Natural logarithms of probabilities under the model, before temperature and cuts.
#[derive(Debug, Clone, PartialEq)]
pub struct Logprobs {
    /// That of the token.
    pub chosen: f32,
    /// The likeliest tokens, in order.
    pub likeliest: Vec<(u32, f32)>,
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ending {
    /// Why it ended.
    pub finish: Finish,
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Those of them that were read for an earlier request.
    pub cached: usize,
    /// Tokens that were generated.
    pub generated: usize,
}

/// Who hears of a request's tokens. It is called by the thread that computes and must not wait.
pub trait Listener: Send {
    /// A token came; whether more may come.
    fn token(&mut self, token: &Token) -> bool;

    /// The request ended. Nothing comes after it.
    fn end(&mut self, ending: Result<Ending, Error>);
}

/// A grammar or another rule that follows the text token by token.
pub trait Constraint: Send {
    /// Sets the logits, `[vocabulary]`, of tokens that may not come to -inf.
    ///
    /// # Errors
    /// When the rule cannot be followed any further.
    fn forbid(&mut self, logits: &mut [f32]) -> Result<()>;

    /// This token came.
    ///
    /// # Errors
    /// When it may not.
    fn accept(&mut self, token: u32) -> Result<()>;
}
