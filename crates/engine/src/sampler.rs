//! From logits to the next token.
//!
//! The steps and their order are those of Hugging Face's `transformers`: repetition penalty and forbidden tokens,
//! temperature, top-k, top-p (Holtzman et al., arXiv 1904.09751), min-p (Nguyen et al., arXiv 2407.01082), draw. Temperature
//! comes before the cuts because published settings of models are meant that way; llama.cpp applies it last, which keeps other
//! tokens at the same settings.
//!
//! What the makers of a model forbid or force is in [`crate::rules`]; decoding passes it to [`Sampler::sample`].
//!
//! Left out: frequency and presence penalties, typical and mirostat sampling. Beam search is in [`crate::beam`].

use std::cmp::Ordering;
use std::collections::BTreeSet;

use espalier_data::random::Random;
use serde::{Deserialize, Serialize};

use crate::{Error, Result, rules::Rules};

/// Options of sampling.
///
/// ```
/// use espalier_engine::sampler::SamplerOptions;
/// let greedy = SamplerOptions { temperature: 0.0, ..Default::default() };
/// assert!(greedy.validate().is_ok());
/// assert!(SamplerOptions { top_p: 1.5, ..greedy }.validate().is_err());
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SamplerOptions {
    /// Logits are divided by it; 0 takes the likeliest token.
    pub temperature: f32,
    /// Keep this many of the likeliest tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the likeliest tokens until their probabilities sum to this; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least this many times as likely as the likeliest; 0 keeps all.
    pub min_p: f32,
    /// Makes tokens of the history less likely: positive logits are divided by it, negative ones multiplied; 1 does nothing.
    pub repetition_penalty: f32,
    /// Seed of the draws.
    pub seed: u64,
    /// What may not come, and what must.
    pub rules: Rules,
}

impl Default for SamplerOptions {
    /// The model's own distribution.
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            seed: 0,
            rules: Rules::default(),
        }
    }
}

impl SamplerOptions {
    /// Checks every value.
    ///
    /// # Errors
    /// [`Error::Sampling`] names the key and what it may be.
    pub fn validate(&self) -> Result<()> {
        let check = |key: &str, value: f32, good: bool, expected: &str| {
            if good {
                Ok(())
            } else {
                Err(Error::Sampling(format!(
                    "{key} = {value}: expected {expected}"
                )))
            }
        };
        let finite = |value: f32| value.is_finite();
        check(
            "temperature",
            self.temperature,
            finite(self.temperature) && self.temperature >= 0.0,
            "0 (greedy) or more",
        )?;
        check(
            "top_p",
            self.top_p,
            self.top_p > 0.0 && self.top_p <= 1.0,
            "more than 0, at most 1 (off)",
        )?;
        check(
            "min_p",
            self.min_p,
            (0.0..=1.0).contains(&self.min_p),
            "0 (off) to 1",
        )?;
        let penalty = self.repetition_penalty;
        check(
            "repetition_penalty",
            penalty,
            finite(penalty) && penalty > 0.0,
            "more than 0; 1 is off",
        )
    }
}

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
}

impl Sampler {
    /// A sampler at the beginning of its random stream.
    ///
    /// # Errors
    /// As [`SamplerOptions::validate`].
    pub fn new(options: SamplerOptions) -> Result<Self> {
        options.validate()?;
        let random = Random::new(options.seed);
        Ok(Self { options, random })
    }

    /// Chooses the next token. `logits` (`[vocabulary]`) are changed in place by the penalty and by `forbid`, tokens that must
    /// not come; `history` are the tokens before. Each call takes one random number, greedy choice none; of equally likely
    /// tokens the lowest id is the likeliest.
    ///
    /// # Errors
    /// [`Error::Sampling`] for a logit that is NaN or +inf, and when nothing is left to choose from.
    pub fn sample(&mut self, logits: &mut [f32], history: &[u32], forbid: &[u32]) -> Result<u32> {
        let candidates = self.candidates(logits, history, forbid)?;
        if self.options.temperature == 0.0 {
            return candidates
                .first()
                .map(|candidate| candidate.id)
                .ok_or_else(nothing_left);
        }
        draw(&candidates, self.random.f())
    }

    /// The tokens that [`Sampler::sample`] would draw from, with their probabilities, which sum to 1.
    ///
    /// # Errors
    /// As [`Sampler::sample`].
    pub fn candidates(
        &self,
        logits: &mut [f32],
        history: &[u32],
        forbid: &[u32],
    ) -> Result<Vec<Candidate>> {
        penalise(logits, history, self.options.repetition_penalty);
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
        let mut candidates = weights(logits, logits[largest], self.options.temperature);
        self.cut(&mut candidates);
        Ok(normalised(candidates))
    }

    fn cut(&self, candidates: &mut Vec<Candidate>) {
        if self.options.top_k > 0 && self.options.top_k < candidates.len() {
            sort_largest(candidates, self.options.top_k);
            candidates.truncate(self.options.top_k);
        }
        if self.options.top_p < 1.0 {
            keep_mass(candidates, f64::from(self.options.top_p));
        }
        // The likeliest candidate's weight is 1.
        candidates.retain(|candidate| candidate.probability >= self.options.min_p);
    }
}

/// Lowers the logits of the tokens in the history, each once however often it occurs.
pub(crate) fn penalise(logits: &mut [f32], history: &[u32], penalty: f32) {
    if penalty == 1.0 {
        return;
    }
    for id in history.iter().collect::<BTreeSet<_>>() {
        if let Some(logit) = logits.get_mut(*id as usize) {
            *logit = if *logit > 0.0 {
                *logit / penalty
            } else {
                *logit * penalty
            };
        }
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
mod tests {
    use super::*;

    const PROBABILITIES: [f32; 4] = [0.15, 0.5, 0.05, 0.3];

    fn logits() -> Vec<f32> {
        PROBABILITIES
            .iter()
            .map(|probability| probability.ln())
            .collect()
    }

    fn kept(options: SamplerOptions) -> Vec<u32> {
        let sampler = Sampler::new(options).unwrap();
        let candidates = sampler.candidates(&mut logits(), &[], &[]).unwrap();
        assert!((mass(&candidates) - 1.0).abs() < 1e-6);
        let mut ids: Vec<u32> = candidates.iter().map(|candidate| candidate.id).collect();
        ids.sort_unstable();
        ids
    }

    #[test]
    fn cuts_keep_the_published_sets() {
        let options = SamplerOptions::default;
        assert_eq!(kept(options()), [0, 1, 2, 3]);
        assert_eq!(
            kept(SamplerOptions {
                top_p: 0.79,
                ..options()
            }),
            [1, 3]
        );
        assert_eq!(
            kept(SamplerOptions {
                top_p: 0.81,
                ..options()
            }),
            [0, 1, 3]
        );
        assert_eq!(
            kept(SamplerOptions {
                min_p: 0.2,
                ..options()
            }),
            [0, 1, 3]
        );
        assert_eq!(
            kept(SamplerOptions {
                top_k: 1,
                ..options()
            }),
            [1]
        );
        assert_eq!(
            kept(SamplerOptions {
                top_k: 3,
                top_p: 0.8,
                ..options()
            }),
            [1, 3]
        );
        assert_eq!(
            kept(SamplerOptions {
                min_p: 1.0,
                ..options()
            }),
            [1]
        );
    }

    #[test]
    fn temperature_comes_before_the_cuts() {
        // Squared and normalised, 0.5 alone has 0.685 of the mass.
        assert_eq!(
            kept(SamplerOptions {
                temperature: 0.5,
                top_p: 0.6,
                ..Default::default()
            }),
            [1]
        );
        assert_eq!(
            kept(SamplerOptions {
                top_p: 0.6,
                ..Default::default()
            }),
            [1, 3]
        );
    }

    #[test]
    fn large_vocabularies_are_cut_the_same() {
        let mut logits = vec![0.0; 5000];
        let sampler = Sampler::new(SamplerOptions {
            top_p: 0.5,
            ..Default::default()
        })
        .unwrap();
        let ids: Vec<u32> = sampler
            .candidates(&mut logits, &[], &[])
            .unwrap()
            .iter()
            .map(|one| one.id)
            .collect();
        assert_eq!(ids, (0..2500).collect::<Vec<u32>>());
    }

    #[test]
    fn repetition_is_penalised_once_a_token() {
        let mut logits = [2.0, -1.0, 3.0];
        penalise(&mut logits, &[0, 1, 0, 0, 99], 2.0);
        assert_eq!(logits, [1.0, -2.0, 3.0]);
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let mut sampler = Sampler::new(SamplerOptions {
            seed: 7,
            ..Default::default()
        })
        .unwrap();
        let mut counts = [0.0f64; 4];
        let draws = 100_000.0;
        for _ in 0..100_000 {
            counts[sampler.sample(&mut logits(), &[], &[]).unwrap() as usize] += 1.0;
        }
        for (count, probability) in counts.iter().zip(PROBABILITIES.map(f64::from)) {
            let deviation = (draws * probability * (1.0 - probability)).sqrt();
            assert!(
                (count - draws * probability).abs() < 3.0 * deviation,
                "{counts:?}"
            );
        }
    }

    #[test]
    fn equal_seeds_draw_equally() {
        let run = |seed| {
            let mut sampler = Sampler::new(SamplerOptions {
                seed,
                ..Default::default()
            })
            .unwrap();
            (0..50)
                .map(|_| sampler.sample(&mut logits(), &[], &[]).unwrap())
                .collect::<Vec<_>>()
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
    }

    #[test]
    fn greedy_takes_the_lowest_of_equals_and_nothing_forbidden() {
        let mut sampler = Sampler::new(SamplerOptions {
            temperature: 0.0,
            ..Default::default()
        })
        .unwrap();
        assert_eq!(sampler.sample(&mut [1.0, 3.0, 3.0], &[], &[]).unwrap(), 1);
        assert_eq!(
            sampler
                .sample(&mut [1.0, 3.0, 3.0], &[], &[1, 2, 7])
                .unwrap(),
            0
        );
        assert!(
            sampler
                .sample(&mut [1.0], &[], &[0])
                .unwrap_err()
                .to_string()
                .contains("no token can be chosen")
        );
        assert!(sampler.sample(&mut [], &[], &[]).is_err());
    }

    #[test]
    fn broken_logits_are_errors() {
        let mut sampler = Sampler::new(SamplerOptions::default()).unwrap();
        let error = sampler.sample(&mut [1.0, f32::NAN], &[], &[]).unwrap_err();
        assert!(error.to_string().contains("token 1 is NaN"));
        assert!(sampler.sample(&mut [f32::INFINITY, 0.0], &[], &[]).is_err());
        assert_eq!(
            sampler
                .sample(&mut [f32::NEG_INFINITY, 0.0], &[], &[])
                .unwrap(),
            1
        );
    }

    #[test]
    fn tiny_temperatures_do_not_overflow() {
        let mut sampler = Sampler::new(SamplerOptions {
            temperature: 1e-30,
            ..Default::default()
        })
        .unwrap();
        assert_eq!(
            sampler.sample(&mut [-50.0, 80.0, 79.0], &[], &[]).unwrap(),
            1
        );
    }

    #[test]
    fn options_out_of_range_are_named() {
        let bad = [
            SamplerOptions {
                temperature: -1.0,
                ..Default::default()
            },
            SamplerOptions {
                top_p: 0.0,
                ..Default::default()
            },
            SamplerOptions {
                min_p: f32::NAN,
                ..Default::default()
            },
            SamplerOptions {
                repetition_penalty: 0.0,
                ..Default::default()
            },
        ];
        for (options, key) in
            bad.iter()
                .zip(["temperature", "top_p", "min_p", "repetition_penalty"])
        {
            assert!(options.validate().unwrap_err().to_string().starts_with(key));
        }
    }
}
