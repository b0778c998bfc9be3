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
mod penalties;
mod typical;
mod xtc;

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::{fmt, str::FromStr};

use espalier_data::random::Random;
use serde::{Deserialize, Serialize};

pub use self::{dry::Dry, mirostat::Mirostat, xtc::Xtc};
pub(crate) use penalties::repetition as penalise;

use crate::{Error, Result, rules::Rules};

/// A step from the model's distribution to the one that is drawn from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Divides the logits.
    Temperature,
    /// Keeps some of the likeliest.
    TopK,
    /// Keeps the likeliest that hold a share of the mass.
    TopP,
    /// Keeps what is not much less likely than the likeliest.
    MinP,
    /// Keeps what is about as surprising as is expected.
    Typical,
    /// Leaves the likeliest out now and then.
    Xtc,
}

impl Step {
    /// All, in the usual order.
    pub const ALL: [Self; 6] = [
        Self::Temperature,
        Self::TopK,
        Self::TopP,
        Self::MinP,
        Self::Typical,
        Self::Xtc,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Temperature => "temperature",
            Self::TopK => "top_k",
            Self::TopP => "top_p",
            Self::MinP => "min_p",
            Self::Typical => "typical",
            Self::Xtc => "xtc",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Step {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        let found = Self::ALL.into_iter().find(|step| step.name() == name);
        found.ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("expected one of {names}")
        })
    }
}

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
    /// Subtracted from the logit of a token for every time that it was generated; 0 does nothing.
    pub frequency_penalty: f32,
    /// Subtracted from the logit of a token that was generated; 0 does nothing.
    pub presence_penalty: f32,
    /// Added to the logits of tokens.
    pub logit_bias: BTreeMap<u32, f32>,
    /// Keep the most typical tokens until their probabilities sum to this; 1 keeps all.
    pub typical_p: f32,
    /// Makes repetitions less likely the longer they are.
    pub dry: Option<Dry>,
    /// Leaves out the likeliest tokens now and then.
    pub xtc: Option<Xtc>,
    /// Keeps the surprise near a target, in place of all cuts.
    pub mirostat: Option<Mirostat>,
    /// The steps, each once, in the order in which they are taken; one that is left out is not taken.
    pub order: Vec<Step>,
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
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: BTreeMap::new(),
            typical_p: 1.0,
            dry: None,
            xtc: None,
            mirostat: None,
            order: Step::ALL.to_vec(),
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
        )?;
        check(
            "typical_p",
            self.typical_p,
            self.typical_p > 0.0 && self.typical_p <= 1.0,
            "more than 0, at most 1 (off)",
        )?;
        for (key, value) in [
            ("frequency_penalty", self.frequency_penalty),
            ("presence_penalty", self.presence_penalty),
        ] {
            check(key, value, finite(value), "a number; 0 is off")?;
        }
        for (token, bias) in &self.logit_bias {
            let key = format!("logit_bias of token {token}");
            check(
                &key,
                *bias,
                !bias.is_nan() && *bias != f32::INFINITY,
                "a number, or -inf",
            )?;
        }
        if let Some(dry) = &self.dry {
            let good = finite(dry.multiplier) && dry.multiplier >= 0.0;
            check("dry.multiplier", dry.multiplier, good, "0 (off) or more")?;
            let good = finite(dry.base) && dry.base >= 1.0;
            check("dry.base", dry.base, good, "1 or more")?;
        }
        if let Some(xtc) = self.xtc {
            let share = |value: f32| (0.0..=1.0).contains(&value);
            check(
                "xtc.probability",
                xtc.probability,
                share(xtc.probability),
                "0 (off) to 1",
            )?;
            check(
                "xtc.threshold",
                xtc.threshold,
                share(xtc.threshold),
                "0 to 1",
            )?;
        }
        if let Some(mirostat) = self.mirostat {
            let good = |value: f32| finite(value) && value > 0.0;
            check(
                "mirostat.tau",
                mirostat.tau,
                good(mirostat.tau),
                "more than 0",
            )?;
            check(
                "mirostat.eta",
                mirostat.eta,
                good(mirostat.eta),
                "more than 0",
            )?;
        }
        let twice = |(place, step): (usize, &Step)| self.order[..place].contains(step);
        match self.order.iter().enumerate().find(|entry| twice(*entry)) {
            Some((_, step)) => Err(Error::Sampling(format!("order has {step} twice"))),
            None => Ok(()),
        }
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
    fn the_order_decides_what_is_kept() {
        let llama_cpp = vec![
            Step::TopK,
            Step::Typical,
            Step::TopP,
            Step::MinP,
            Step::Xtc,
            Step::Temperature,
        ];
        let options = SamplerOptions {
            temperature: 0.5,
            top_p: 0.6,
            order: llama_cpp,
            ..Default::default()
        };
        assert_eq!(kept(options.clone()), [1, 3]);
        // Without the step the temperature is not applied.
        let sampler = Sampler::new(SamplerOptions {
            order: vec![Step::TopP],
            ..options
        })
        .unwrap();
        let candidates = sampler.candidates(&mut logits(), &[], &[]).unwrap();
        assert!((candidates[0].probability - 0.625).abs() < 1e-6);
        let twice = SamplerOptions {
            order: vec![Step::TopP, Step::TopP],
            ..Default::default()
        };
        assert!(
            twice
                .validate()
                .unwrap_err()
                .to_string()
                .contains("top_p twice")
        );
    }

    #[test]
    fn a_bias_moves_tokens() {
        let bias = |token, bias| SamplerOptions {
            logit_bias: BTreeMap::from([(token, bias)]),
            temperature: 0.0,
            ..Default::default()
        };
        let greedy = |options| {
            Sampler::new(options)
                .unwrap()
                .sample(&mut logits(), &[], &[])
                .unwrap()
        };
        assert_eq!(
            (greedy(bias(2, 10.0)), greedy(bias(1, f32::NEG_INFINITY))),
            (2, 3)
        );
        assert!(bias(2, f32::NAN).validate().is_err());
    }

    #[test]
    fn penalties_of_occurrence_leave_the_prompt_out() {
        let options = SamplerOptions {
            temperature: 0.0,
            presence_penalty: 5.0,
            ..Default::default()
        };
        let mut sampler = Sampler::new(options).unwrap().behind(1);
        assert_eq!(sampler.sample(&mut logits(), &[1], &[]).unwrap(), 1);
        assert_eq!(sampler.sample(&mut logits(), &[1, 1], &[]).unwrap(), 3);
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
