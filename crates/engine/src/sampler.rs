//! From logits to the next token.
//!
//! What changes logits comes first: logit bias, penalties for what has occurred, DRY, forbidden tokens. Then temperature and the cuts
//! follow in an order that may be chosen ([`SamplerOptions::order`]); the usual one is that of Hugging Face's `transformers`:
//! temperature, top-n-sigma, top-k, top-p, min-p, typical, epsilon and eta cut-off, XTC, and then the draw. Temperature comes before the cuts because
//! published settings of models are meant that way; llama.cpp applies it last, which keeps other tokens at the same settings
//! ([`Step::LLAMA_CPP`]). Mirostat chooses its own cut, and stands in the place of all others.
//!
//! What the makers of a model forbid or force is in [`crate::rules`]; decoding passes it to [`Sampler::sample`].
//! Beam search is in [`crate::beam`].

mod candidates;
mod cuts;
pub mod dry;
pub mod mirostat;
mod options;
mod order;
mod penalties;
pub mod xtc;

use espalier_data::random::Random;

pub(crate) use self::{candidates::nothing_left, penalties::repeated};
use self::{
    candidates::{Candidates, draw, largest},
    mirostat::Mirostat,
};
pub use self::{options::SamplerOptions, order::Step};
use crate::Result;

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
    order: Vec<Step>,
    random: Random,
    mirostat: Option<Mirostat>,
    /// Tokens of the history that were not chosen here.
    prompt: usize,
}

impl Sampler {
    /// A sampler at the beginning of its random stream.
    ///
    /// # Errors
    /// As [`SamplerOptions::validate`].
    pub fn new(options: SamplerOptions) -> Result<Self> {
        options.validate()?;
        Ok(Self {
            random: Random::new(options.seed),
            mirostat: options.mirostat.map(Mirostat::new),
            order: options.steps(),
            prompt: 0,
            options,
        })
    }

    /// The same sampler behind a prompt of so many tokens, which frequency and presence penalties do not count.
    #[must_use]
    pub fn behind(self, prompt: usize) -> Self {
        Self { prompt, ..self }
    }

    /// Chooses the next token. `logits` (`[vocabulary]`) are changed in place by bias, penalties and `forbid`, tokens that must
    /// not come; `history` are the tokens before, the prompt's too. Each call takes one random number, one more where XTC is on; greedy
    /// choice none. Of equally likely tokens the lowest id is the likeliest.
    ///
    /// # Errors
    /// [`crate::Error::Sampling`] for a logit that is NaN or +inf, and when nothing is left to choose from.
    pub fn sample(&mut self, logits: &mut [f32], history: &[u32], forbid: &[u32]) -> Result<u32> {
        let candidates = self.candidates(logits, history, forbid)?;
        if self.options.temperature == 0.0 {
            return candidates
                .first()
                .map(|candidate| candidate.id)
                .ok_or_else(nothing_left);
        }
        let chosen = draw(&candidates, self.random.f())?;
        if let Some(mirostat) = &mut self.mirostat {
            mirostat.learn(chosen.probability);
        }
        Ok(chosen.id)
    }

    /// The tokens that [`Sampler::sample`] would draw from, with their probabilities, which sum to 1. It takes a random number where XTC is on.
    ///
    /// # Errors
    /// As [`Sampler::sample`].
    pub fn candidates(
        &mut self,
        logits: &mut [f32],
        history: &[u32],
        forbid: &[u32],
    ) -> Result<Vec<Candidate>> {
        penalties::apply(logits, history, self.prompt, &self.options);
        if let Some(options) = &self.options.dry {
            dry::penalise(logits, history, options);
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
        // Where temperature comes first, as it mostly does, weights are made once.
        let (temperature, cuts) = match self.order.split_first() {
            Some((Step::Temperature, rest)) => (self.options.temperature, rest),
            _ => (1.0, &self.order[..]),
        };
        let mut candidates = Candidates::new(logits, largest, temperature);
        for step in cuts {
            step.apply(&mut candidates, &self.options, &mut self.random);
        }
        if let Some(mirostat) = &self.mirostat {
            mirostat.cut(&mut candidates);
        }
        Ok(candidates.normalised())
    }
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
        let mut sampler = Sampler::new(options).unwrap();
        let candidates = sampler.candidates(&mut logits(), &[], &[]).unwrap();
        assert!((candidates::mass(&candidates) - 1.0).abs() < 1e-6);
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
        let mut sampler = Sampler::new(SamplerOptions {
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
            SamplerOptions {
                typical_p: 0.0,
                ..Default::default()
            },
            SamplerOptions {
                presence_penalty: f32::NAN,
                ..Default::default()
            },
            SamplerOptions {
                logit_bias: [(3, f32::INFINITY)].into(),
                ..Default::default()
            },
        ];
        let keys = [
            "temperature",
            "top_p",
            "min_p",
            "repetition_penalty",
            "typical_p",
            "presence_penalty",
            "logit_bias of token 3",
        ];
        for (options, key) in bad.iter().zip(keys) {
            assert!(options.validate().unwrap_err().to_string().starts_with(key));
        }
    }

    #[test]
    fn the_order_decides_what_is_kept() {
        // At temperature 0.5 the likeliest has 0.685 of the mass, before it 0.5.
        let options = |order: &[Step]| SamplerOptions {
            temperature: 0.5,
            top_p: 0.6,
            order: order.to_vec(),
            ..Default::default()
        };
        assert_eq!(kept(options(&[])), [1]);
        assert_eq!(kept(options(&Step::LLAMA_CPP)), [1, 3]);
        assert_eq!(kept(options(&[Step::TopP, Step::Temperature])), [1, 3]);
        let said = |order: &[Step]| options(order).validate().unwrap_err().to_string();
        assert!(said(&[Step::Temperature]).contains("`top_p` is on"));
        assert!(said(&[Step::TopP, Step::TopP]).contains("twice"));
    }

    #[test]
    fn mirostat_stands_alone() {
        let options = SamplerOptions {
            mirostat: Some(mirostat::MirostatOptions::default()),
            min_p: 0.1,
            ..Default::default()
        };
        let said = options.validate().unwrap_err().to_string();
        assert!(said.contains("`min_p` is set too"), "{said}");
    }

    #[test]
    fn what_was_generated_is_counted_behind_the_prompt() {
        let mut sampler = Sampler::new(SamplerOptions {
            temperature: 0.0,
            presence_penalty: 1.0,
            ..Default::default()
        })
        .unwrap()
        .behind(1);
        assert_eq!(sampler.sample(&mut [1.5, 1.0], &[0], &[]).unwrap(), 0);
        assert_eq!(sampler.sample(&mut [1.5, 1.0], &[0, 0], &[]).unwrap(), 1);
    }
}
