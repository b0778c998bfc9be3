//! The tokens that are still in play, and what all steps do with them.

use std::cmp::Ordering;

use super::Candidate;
use crate::{Error, Result};

/// Tokens with their logits and weights, probabilities up to a common factor.
#[derive(Debug, Clone)]
pub(super) struct Candidates<'a> {
    logits: &'a [f32],
    largest: f32,
    /// `probability` is the weight `exp((logit - largest) / temperature)`.
    pub(super) list: Vec<Candidate>,
}

impl<'a> Candidates<'a> {
    /// All tokens, by id, but those that are impossible.
    pub(super) fn new(logits: &'a [f32], largest: usize, temperature: f32) -> Self {
        let mut candidates = Self {
            largest: logits[largest],
            logits,
            list: (0..logits.len() as u32)
                .map(|id| Candidate {
                    id,
                    probability: 1.0,
                })
                .collect(),
        };
        candidates.heat(temperature);
        candidates
    }

    /// Divides the logits; what is impossible, or becomes so by rounding, is left out.
    pub(super) fn heat(&mut self, temperature: f32) {
        let (logits, largest) = (self.logits, self.largest);
        self.list.iter_mut().for_each(|candidate| {
            let logit = logits[candidate.id as usize];
            candidate.probability = ((logit - largest) / temperature).exp();
        });
        self.list.retain(|candidate| candidate.probability > 0.0);
    }

    /// The logit of a candidate.
    pub(super) fn logit(&self, candidate: &Candidate) -> f32 {
        self.logits[candidate.id as usize]
    }

    /// The sum of all weights.
    pub(super) fn mass(&self) -> f64 {
        mass(&self.list)
    }

    /// The largest weight.
    pub(super) fn most(&self) -> f32 {
        let weights = self.list.iter().map(|candidate| candidate.probability);
        weights.fold(0.0, f32::max)
    }

    /// Keeps those whose weight is at least `least`, and the likeliest whatever it is.
    pub(super) fn keep_from(&mut self, least: f32) {
        let least = least.min(self.most());
        self.list.retain(|candidate| candidate.probability >= least);
    }

    /// Their entropy in nats.
    pub(super) fn entropy(&self) -> f64 {
        let mass = self.mass();
        let terms = self.list.iter().map(|candidate| {
            let probability = f64::from(candidate.probability) / mass;
            -probability * probability.ln()
        });
        terms.sum()
    }

    /// The candidates with probabilities that sum to 1.
    pub(super) fn normalised(mut self) -> Vec<Candidate> {
        let mass = self.mass();
        self.list.iter_mut().for_each(|candidate| {
            candidate.probability = (f64::from(candidate.probability) / mass) as f32;
        });
        self.list
    }
}

/// Place of the largest logit, the first of equals.
pub(super) fn largest(logits: &[f32]) -> Result<usize> {
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

pub(super) fn likelier_first(left: &Candidate, right: &Candidate) -> Ordering {
    right
        .probability
        .total_cmp(&left.probability)
        .then(left.id.cmp(&right.id))
}

/// Brings the `count` likeliest to the front, in order, without sorting the rest.
pub(super) fn sort_largest(candidates: &mut [Candidate], count: usize) {
    if count < candidates.len() {
        candidates.select_nth_unstable_by(count, likelier_first);
    }
    let count = count.min(candidates.len());
    candidates[..count].sort_unstable_by(likelier_first);
}

/// The sum of weights.
pub(super) fn mass(candidates: &[Candidate]) -> f64 {
    candidates
        .iter()
        .map(|candidate| f64::from(candidate.probability))
        .sum()
}

/// The candidate at which the running sum of probabilities passes `uniform`, a number in `[0, 1)`.
pub(super) fn draw(candidates: &[Candidate], uniform: f64) -> Result<Candidate> {
    let mut sum = 0.0;
    let wanted = uniform * mass(candidates);
    let passing = candidates.iter().find(|candidate| {
        sum += f64::from(candidate.probability);
        sum > wanted
    });
    passing
        .or(candidates.last())
        .copied()
        .ok_or_else(nothing_left)
}
