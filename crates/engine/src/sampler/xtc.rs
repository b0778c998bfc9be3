//! XTC ("exclude top choices"): now and then all likely tokens but the least likely of them are left out, so that a text leaves the beaten
//! track where there is another way on. As llama.cpp has it; there is no paper.

use espalier_data::random::Random;
use serde::{Deserialize, Serialize};

use super::candidates::{Candidates, likelier_first};

/// Options of XTC.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Xtc {
    /// How often it happens.
    pub probability: f32,
    /// From which probability on a token is likely.
    pub threshold: f32,
}

impl Default for Xtc {
    fn default() -> Self {
        Self {
            probability: 0.5,
            threshold: 0.1,
        }
    }
}

/// Takes one random number.
pub(super) fn exclude(candidates: &mut Candidates, options: Xtc, random: &mut Random) {
    if random.f() >= f64::from(options.probability) {
        return;
    }
    let least = f64::from(options.threshold) * candidates.mass();
    let is_likely = |weight: f32| f64::from(weight) >= least;
    candidates.list.sort_unstable_by(likelier_first);
    let likely = candidates.list.iter();
    let likely = likely.take_while(|one| is_likely(one.probability)).count();
    candidates.list.drain(..likely.saturating_sub(1));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(probability: f32, threshold: f32) -> Vec<u32> {
        let logits: Vec<f32> = [0.15f32, 0.5, 0.05, 0.3].iter().map(|p| p.ln()).collect();
        let mut candidates = Candidates::new(&logits, 1, 1.0);
        let options = Xtc {
            probability,
            threshold,
        };
        exclude(&mut candidates, options, &mut Random::new(1));
        let mut ids: Vec<u32> = candidates.list.iter().map(|one| one.id).collect();
        ids.sort_unstable();
        ids
    }

    #[test]
    fn the_least_likely_of_the_likely_stays() {
        assert_eq!(kept(1.0, 0.1), [0, 2]);
        assert_eq!(kept(1.0, 0.2), [0, 2, 3]);
        assert_eq!(kept(1.0, 0.4), [0, 1, 2, 3]);
        assert_eq!(kept(1.0, 0.9), [0, 1, 2, 3]);
        assert_eq!(kept(0.0, 0.1), [0, 1, 2, 3]);
    }
}
