//! A request under way: its tokens, its sampler, and who is told.

use espalier_models::spec::ModelSpec;

use super::{
    logprobs::logprobs,
    request::{Ending, Request, Token},
};
use crate::{Result, decode::Finish, rules::Place, sampler::Sampler};

/// A request under way.
pub(super) struct Job {
    pub request: Request,
    /// The prompt and what was generated.
    pub history: Vec<u32>,
    pub prompt: usize,
    /// Tokens of the prompt that the prefix cache knew.
    pub cached: usize,
    /// When it came, in requests.
    pub number: u64,
    sampler: Sampler,
}

impl Job {
    pub fn new(
        mut request: Request,
        number: u64,
    ) -> std::result::Result<Self, Box<(Request, crate::Error)>> {
        let sampler = match Sampler::new(request.sampler.clone()) {
            Ok(sampler) => sampler,
            Err(error) => return Err(Box::new((request, error))),
        };
        let history = std::mem::take(&mut request.prompt);
        Ok(Self {
            prompt: history.len(),
            sampler: sampler.behind(history.len()),
            history,
            cached: 0,
            number,
            request,
        })
    }

    /// Tokens that were generated.
    pub fn generated(&self) -> &[u32] {
        &self.history[self.prompt..]
    }

    /// Chooses the next token by `logits`, `[vocabulary]`, and tells of it; why the text ends with it, if it does.
    ///
    /// # Errors
    /// When no token can be chosen.
    pub fn advance(&mut self, spec: &ModelSpec, logits: &[f32]) -> Result<Option<Finish>> {
        let token = self.choose(spec, logits)?;
        self.history.push(token.id);
        let goes_on = self.request.listener.token(&token);
        let positions = spec.learned_positions().unwrap_or(usize::MAX);
        Ok(match () {
            () if self.request.end.contains(&token.id) => Some(Finish::End),
            () if !goes_on => Some(Finish::Stopped),
            () if self.generated().len() >= self.request.max_new_tokens => Some(Finish::Length),
            () if self.history.len() > positions => Some(Finish::Context),
            () => None,
        })
    }

    /// The token that must come here, or else one that may.
    fn choose(&mut self, spec: &ModelSpec, logits: &[f32]) -> Result<Token> {
        let rules = &self.request.sampler.rules;
        let place = Place {
            history: &self.history,
            prompt: self.prompt,
            longest: self.request.max_new_tokens,
            end: &self.request.end,
        };
        let mut changed = logits.to_vec();
        if let Some(constraint) = &mut self.request.constraint {
            constraint.forbid(&mut changed)?;
        }
        let id = match rules.forced(spec.encoder.as_ref(), &place) {
            Some(token) => token,
            None => {
                let forbidden = rules.forbidden(&place);
                self.sampler
                    .sample(&mut changed, &self.history, &forbidden)?
            }
        };
        if let Some(constraint) = &mut self.request.constraint {
            constraint.accept(id)?;
        }
        let count = self.request.logprobs;
        Ok(Token {
            id,
            logprobs: count.map(|count| logprobs(logits, id, count)),
        })
    }

    /// Tells of the end.
    pub fn end(mut self, finish: Result<Finish>) {
        let ending = finish.map(|finish| Ending {
            finish,
            prompt: self.prompt,
            cached: self.cached,
            generated: self.history.len() - self.prompt,
        });
        self.request.listener.end(ending);
    }
}
