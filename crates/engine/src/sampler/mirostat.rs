//! Mirostat 2 (Basu et al., arXiv 2007.14966, algorithm 2): a cut that keeps the surprise of the text at a target.
//!
//! Tokens with a surprise of more than `mu` bits are left out. The surprise of the drawn token, among those that were kept, moves `mu` by
//! the learning rate times its distance from the target.

use serde::{Deserialize, Serialize};

use super::candidates::Candidates;

/// Options of Mirostat.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MirostatOptions {
    /// Bits of surprise a token that are aimed at.
    pub target: f32,
    /// How fast `mu` follows.
    pub learning_rate: f32,
}

impl Default for MirostatOptions {
    fn default() -> Self {
        Self {
            target: 5.0,
            learning_rate: 0.1,
        }
    }
}

/// The options, and where the cut is now.
#[derive(Debug, Clone)]
pub(super) struct Mirostat {
    options: MirostatOptions,
    mu: f32,
}

impl Mirostat {
    /// At the beginning of a text the cut lies at twice the target.
    pub(super) fn new(options: MirostatOptions) -> Self {
        Self {
            mu: 2.0 * options.target,
            options,
        }
    }

    /// Leaves out what is too surprising; the likeliest stays.
    pub(super) fn cut(&self, candidates: &mut Candidates) {
        let least = f64::from(-self.mu).exp2() * candidates.mass();
        candidates.keep_from(least as f32);
    }

    /// Moves the cut, after a token of this probability among the kept ones was drawn.
    pub(super) fn learn(&mut self, probability: f32) {
        let surprise = -probability.log2();
        self.mu -= self.options.learning_rate * (surprise - self.options.target);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Sampler, SamplerOptions};
    use super::*;

    #[test]
    fn the_cut_follows_the_surprise() {
        let mut mirostat = Mirostat::new(MirostatOptions {
            target: 2.0,
            learning_rate: 0.5,
        });
        // Probabilities 1/2, 1/4, 1/8, 1/8 lie 1, 2, 3 and 3 bits deep.
        let logits: Vec<f32> = [0.5f32, 0.25, 0.125, 0.125]
            .iter()
            .map(|p| p.ln())
            .collect();
        let kept = |mirostat: &Mirostat| {
            let mut candidates = Candidates::new(&logits, 0, 1.0);
            mirostat.cut(&mut candidates);
            candidates.list.len()
        };
        assert_eq!(kept(&mirostat), 4);
        mirostat.learn(1.0 / 32.0);
        assert_eq!((mirostat.mu, kept(&mirostat)), (2.5, 2));
        mirostat.learn(1.0 / 64.0);
        assert_eq!((mirostat.mu, kept(&mirostat)), (0.5, 1));
    }

    #[test]
    fn the_running_surprise_comes_to_the_target() {
        // Zipf's law over 5000 tokens.
        let logits: Vec<f32> = (1..=5000).map(|rank| -(rank as f32).ln()).collect();
        for target in [3.0f32, 5.0] {
            let options = MirostatOptions {
                target,
                ..MirostatOptions::default()
            };
            let mut sampler = Sampler::new(SamplerOptions {
                mirostat: Some(options),
                ..SamplerOptions::default()
            })
            .unwrap();
            let (mut sum, draws) = (0.0, 2000);
            for _ in 0..draws {
                let mut peek = sampler.clone();
                let candidates = peek.candidates(&mut logits.clone(), &[], &[]).unwrap();
                let chosen = sampler.sample(&mut logits.clone(), &[], &[]).unwrap();
                let chosen = candidates.iter().find(|one| one.id == chosen).unwrap();
                sum += -chosen.probability.log2();
            }
            let mean = sum / draws as f32;
            assert!((mean - target).abs() < 0.1 * target, "{mean} of {target}");
        }
    }
}
