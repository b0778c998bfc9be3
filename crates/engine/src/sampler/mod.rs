//! From logits to the next token.
//!
//! First logits change: a bias of tokens, the penalties (`penalties.rs`), DRY (`dry.rs`), and forbidden tokens become impossible. Then come the
//! steps of [`SamplerOptions::order`], by default those of Hugging Face's `transformers` in their order: temperature, top-k, top-p (Holtzman et
//! al., arXiv 1904.09751), min-p (Nguyen et al., arXiv 2407.01082), typical (`typical.rs`), XTC (`xtc.rs`). Temperature
//! comes before the cuts because published settings of models are meant that way; llama.cpp's order is `top_k,typical,top_p,min_p,xtc,temperature`,
//! which keeps other tokens at the same settings. With Mirostat (`mirostat.rs`) the temperature is the only one of them.
//!
//! What the makers of a model forbid or force is in [`crate::rules`]; decoding passes it to [`Sampler::sample`].
//!
//! Beam search is in [`crate::beam`].

mod dry;
mod mirostat;
mod options;
mod penalties;
mod typical;
mod xtc;

use std::cmp::Ordering;

use espalier_data::random::Random;

pub use self::{
    dry::Dry,
    mirostat::Mirostat,
    options::{SamplerOptions, Step},
    xtc::Xtc,
};
pub(crate) use penalties::repetition as penalise;

use crate::{Error, Result};

/// A token that can be drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// Token id.
    pub id: u32,
    /// Its probability among the candidates.
    pub probability: f32,
}

/// Chooses tokens; two samplers with the same options make the same choices.
///
/// ```
/// use espalier_engine::sampler::{Sampler, SamplerOptions};
/// let mut sampler = Sampler::new(SamplerOptions { temperature: 0.0, ..Default::default() })?;
/// assert_eq!(sampler.sample(&mut [0.5, 2.0, 2.0], &[], &[])?, 1);
/// assert_eq!(sampler.sample(&mut [0.5, 2.0, 2.0], &[], &[1])?, 2);
/// # Ok::<(), espalier_engine::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Sampler {
    options: SamplerOptions,
    random: Random,
    /// Tokens of the history that were not generated.
    prompt: usize,
    /// The bound of Mirostat.
    bound: f64,
}

impl Sampler {
    /// A sampler at the beginning of its random stream.
    ///
    /// # Errors
    /// As [`SamplerOptions::validate`].
    pub fn new(options: SamplerOptions) -> Result<Self> {
        options.validate()?;
        let random = Random::new(options.seed);
        let bound = options.mirostat.map_or(0.0, Mirostat::start);
        Ok(Self {
            options,
            random,
            prompt: 0,
            bound,
        })
    }

    /// The same sampler behind a prompt of so many tokens, which frequency and presence penalties leave out.
    #[must_use]
    pub fn behind(self, prompt: usize) -> Self {
        Self { prompt, ..self }
    }

    /// Chooses the next token. `logits` (`[vocabulary]`) are changed in place by the penalty and by `forbid`, tokens that must
    /// not come; `history` are the tokens before. Each call takes one random number, one more with XTC, greedy choice none; of
    /// equally likely tokens the lowest id is the likeliest.
    ///
    /// # Errors
    /// [`Error::Sampling`] for a logit that is NaN or +inf, and when nothing is left to choose from.
    pub fn sample(&mut self, logits: &mut [f32], history: &[u32], forbid: &[u32]) -> Result<u32> {
        let excluded = match self.options.xtc {
            Some(_) if self.options.temperature != 0.0 => self.random.f(),
            _ => 1.0,
        };
        let candidates = self.candidates_at(logits, history, forbid, excluded)?;
        if self.options.temperature == 0.0 {
            return candidates
                .first()
                .map(|candidate| candidate.id)
                .ok_or_else(nothing_left);
        }
        let token = draw(&candidates, self.random.f())?;
        if let Some(mirostat) = self.options.mirostat {
            let mut drawn = candidates.iter().filter(|candidate| candidate.id == token);
            let probability = drawn.next().map_or(1.0, |drawn| drawn.probability);
            self.bound = mirostat.next(self.bound, mirostat::surprise(probability, 1.0));
        }
        Ok(token)
    }

    /// The tokens that [`Sampler::sample`] would draw from where XTC does not act, with their probabilities, which sum to 1.
    ///
    /// # Errors
    /// As [`Sampler::sample`].
    pub fn candidates(
        &self,
        logits: &mut [f32],
        history: &[u32],
        forbid: &[u32],
    ) -> Result<Vec<Candidate>> {
        self.candidates_at(logits, history, forbid, 1.0)
    }

    /// As [`Sampler::candidates`], with the random number of XTC.
    fn candidates_at(
        &self,
        logits: &mut [f32],
        history: &[u32],
        forbid: &[u32],
        excluded: f64,
    ) -> Result<Vec<Candidate>> {
        let options = &self.options;
        for (token, bias) in &options.logit_bias {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit += bias;
            }
        }
        penalise(logits, history, options.repetition_penalty);
        let generated = &history[self.prompt.min(history.len())..];
        penalties::occurrence(
            logits,
            generated,
            options.frequency_penalty,
            options.presence_penalty,
        );
        if let Some(dry) = &options.dry {
            dry.apply(logits, history);
        }
        forbid.iter().for_each(|id| {
            if let Some(logit) = logits.get_mut(*id as usize) {
                *logit = f32::NEG_INFINITY;
            }
        });
        let largest = largest(logits)?;
        if self.options.temperature == 0.0 {
            return Ok(vec![Candidate {
                id: largest as u32,
                probability: 1.0,
            }]);
        }
        // Where the temperature comes first, the weights are computed with it.
        let first = options.mirostat.is_some() || options.order.first() == Some(&Step::Temperature);
        let temperature = if first { options.temperature } else { 1.0 };
        let mut candidates = weights(logits, logits[largest], temperature);
        match options.mirostat {
            Some(_) => Mirostat::keep(&mut candidates, self.bound),
            None => {
                let steps = options.order.iter().skip(usize::from(first));
                steps.for_each(|step| self.take(*step, &mut candidates, excluded));
            }
        }
        Ok(normalised(candidates))
    }

    /// One step of the order.
    fn take(&self, step: Step, candidates: &mut Vec<Candidate>, excluded: f64) {
        let options = &self.options;
        let most = candidates
            .iter()
            .fold(0f32, |most, one| most.max(one.probability));
        match step {
            Step::Temperature => candidates.iter_mut().for_each(|candidate| {
                let logit = (candidate.probability / most).ln();
                candidate.probability = (logit / options.temperature).exp();
            }),
            Step::TopK if options.top_k > 0 && options.top_k < candidates.len() => {
                sort_largest(candidates, options.top_k);
                candidates.truncate(options.top_k);
            }
            Step::TopP if options.top_p < 1.0 => keep_mass(candidates, f64::from(options.top_p)),
            Step::MinP => {
                candidates.retain(|candidate| candidate.probability >= options.min_p * most)
            }
            Step::Typical if options.typical_p < 1.0 => {
                typical::keep(candidates, f64::from(options.typical_p));
            }
            Step::Xtc => {
                if let Some(xtc) = options.xtc {
                    xtc.apply(candidates, excluded);
                }
            }
            Step::TopK | Step::TopP | Step::Typical => {}
        }
        candidates.retain(|candidate| candidate.probability > 0.0);
    }
}

/// Place of the largest logit, the first of equals.
fn largest(logits: &[f32]) -> Result<usize> {
    let mut best: Option<usize> = None;
    for (token, value) in logits.iter().copied().enumerate() {
        if value.is_nan() || value == f32::INFINITY {
            return Err(Error::Sampling(format!(
                "the logit of token {token} is {value}; the model's weights or its input are broken"
            )));
        }
        if value > f32::NEG_INFINITY && best.is_none_or(|best| value > logits[best]) {
            best = Some(token);
        }
    }
    best.ok_or_else(nothing_left)
}

pub(crate) fn nothing_left() -> Error {
    Error::Sampling("no token can be chosen: every one is forbidden or has the logit -inf".into())
}

/// Probabilities up to a common factor, the largest being 1, by id; impossible tokens are left out.
fn weights(logits: &[f32], largest: f32, temperature: f32) -> Vec<Candidate> {
    let weight = |logit: f32| ((logit - largest) / temperature).exp();
    let all = logits.iter().enumerate().map(|(id, logit)| Candidate {
        id: id as u32,
        probability: weight(*logit),
    });
    all.filter(|candidate| candidate.probability > 0.0)
        .collect()
}

fn likelier_first(left: &Candidate, right: &Candidate) -> Ordering {
    right
        .probability
        .total_cmp(&left.probability)
        .then(left.id.cmp(&right.id))
}

/// Brings the `count` likeliest to the front, in order, without sorting the rest.
fn sort_largest(candidates: &mut [Candidate], count: usize) {
    if count < candidates.len() {
        candidates.select_nth_unstable_by(count, likelier_first);
    }
    let count = count.min(candidates.len());
    candidates[..count].sort_unstable_by(likelier_first);
}

/// Keeps the smallest set of likeliest candidates that holds this share of the mass.
fn keep_mass(candidates: &mut Vec<Candidate>, share: f64) {
    let wanted = share * mass(candidates);
    // A few tokens mostly hold all of the mass that counts, so the whole vocabulary is rarely sorted.
    let mut sorted = 256;
    loop {
        sort_largest(candidates, sorted);
        let mut sum = 0.0;
        let crossing = candidates.iter().take(sorted).position(|candidate| {
            sum += f64::from(candidate.probability);
            sum >= wanted
        });
        match crossing {
            Some(place) => return candidates.truncate(place + 1),
            None if sorted >= candidates.len() => return,
            None => sorted *= 8,
        }
    }
}

fn mass(candidates: &[Candidate]) -> f64 {
    candidates
        .iter()
        .map(|candidate| f64::from(candidate.probability))
        .sum()
}

fn normalised(mut candidates: Vec<Candidate>) -> Vec<Candidate> {
    let mass = mass(&candidates);
    candidates.iter_mut().for_each(|candidate| {
        candidate.probability = (f64::from(candidate.probability) / mass) as f32
    });
    candidates
}

/// The candidate at which the running sum of probabilities passes `uniform`, a number in `[0, 1)`.
fn draw(candidates: &[Candidate], uniform: f64) -> Result<u32> {
    let mut sum = 0.0;
    let wanted = uniform * mass(candidates);
    let passing = candidates.iter().find(|candidate| {
        sum += f64::from(candidate.probability);
        sum > wanted
    });
    passing
        .or(candidates.last())
        .map(|candidate| candidate.id)
        .ok_or_else(nothing_left)
}

#[cfg(test)]
mod tests;
