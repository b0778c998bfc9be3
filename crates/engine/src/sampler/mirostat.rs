//! Mirostat (Basu et al., arXiv 2007.14966), the second version: the surprise of what is drawn is kept near a target.
//!
//! Tokens whose surprise `-log2 p` is at most `mu` are kept; after a token of the surprise `s` has been drawn, `mu` becomes
//! `mu - eta (s - tau)`. It begins at `2 tau`.

use serde::{Deserialize, Serialize};

use super::{Candidate, likelier_first, mass};

/// Options of Mirostat.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mirostat {
    /// The surprise that is aimed at, in bits.
    pub tau: f32,
    /// How fast the bound follows.
    pub eta: f32,
}

impl Default for Mirostat {
    fn default() -> Self {
        Self { tau: 5.0, eta: 0.1 }
    }
}

impl Mirostat {
    /// The bound before anything is drawn.
    pub(super) fn start(self) -> f64 {
        2.0 * f64::from(self.tau)
    }

    /// Keeps what is no more surprising than the bound, at least the likeliest.
    pub(super) fn keep(candidates: &mut Vec<Candidate>, bound: f64) {
        candidates.sort_by(likelier_first);
        let all = mass(candidates);
        let kept = candidates
            .iter()
            .take_while(|candidate| surprise(candidate.probability, all) <= bound)
            .count();
        candidates.truncate(kept.max(1));
    }

    /// The bound after a token of this surprise.
    pub(super) fn next(self, bound: f64, surprise: f64) -> f64 {
        bound - f64::from(self.eta) * (surprise - f64::from(self.tau))
    }
}

/// The surprise of a weight of so much mass, in bits.
pub(super) fn surprise(weight: f32, mass: f64) -> f64 {
    -(f64::from(weight) / mass).log2()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampler::{Sampler, SamplerOptions};

    #[test]
    fn a_worked_example() {
        let mirostat = Mirostat { tau: 2.0, eta: 0.5 };
        assert_eq!(mirostat.start(), 4.0);
        assert_eq!(mirostat.next(4.0, 3.0), 3.5);
        let mut all: Vec<Candidate> = [(0, 0.5), (1, 0.25), (2, 0.125), (3, 0.125)]
            .map(|(id, probability)| Candidate { id, probability })
            .into();
        Mirostat::keep(&mut all, 2.5);
        assert_eq!(all.len(), 2);
        Mirostat::keep(&mut all, -1.0);
        assert_eq!((all.len(), all[0].id), (1, 0));
    }

    #[test]
    fn the_surprise_converges_to_the_target() {
        // A long tail: 1 / (i + 1) over a thousand tokens.
        let logits: Vec<f32> = (0..1000).map(|i| -((i + 1) as f32).ln()).collect();
        let all: f64 = logits.iter().map(|x| f64::from(x.exp())).sum();
        let options = SamplerOptions {
            mirostat: Some(Mirostat { tau: 4.0, eta: 0.1 }),
            seed: 3,
            ..SamplerOptions::default()
        };
        let mut sampler = Sampler::new(options).unwrap();
        let surprises: Vec<f64> = (0..4000)
            .map(|_| {
                let token = sampler.sample(&mut logits.clone(), &[], &[]).unwrap();
                surprise(logits[token as usize].exp(), all)
            })
            .collect();
        let mean = surprises[500..].iter().sum::<f64>() / 3500.0;
        // The target is over what is kept, whose mass is less than all.
        assert!((mean - 4.0).abs() < 0.8, "{mean}");
    }
}
