//! XTC, "exclude top choices" (p-e-w, text-generation-webui 6335): now and then all tokens that are likely enough are left out, but for the least
//! likely of them.
//!
//! With the chance `probability`, and where at least two tokens have a probability of `threshold`, those above the least likely of them go. What
//! remains still fits, and is not what always comes.

use serde::{Deserialize, Serialize};

use super::{Candidate, likelier_first, mass};

/// Options of XTC.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Xtc {
    /// How often it acts.
    pub probability: f32,
    /// Which tokens are likely; above a half there are never two.
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

impl Xtc {
    /// Leaves out the top choices where `uniform`, a number in `[0, 1)`, says so.
    pub(super) fn apply(self, candidates: &mut Vec<Candidate>, uniform: f64) {
        if uniform >= f64::from(self.probability) {
            return;
        }
        candidates.sort_by(likelier_first);
        let wanted = f64::from(self.threshold) * mass(candidates);
        let likely = candidates
            .iter()
            .take_while(|candidate| f64::from(candidate.probability) >= wanted)
            .count();
        if likely > 1 {
            candidates.drain(..likely - 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_likely_of_the_likely_stays() {
        let xtc = Xtc {
            probability: 0.5,
            threshold: 0.2,
        };
        let left = |threshold, uniform| {
            let mut all: Vec<Candidate> = [(0, 0.15), (1, 0.5), (2, 0.05), (3, 0.3)]
                .map(|(id, probability)| Candidate { id, probability })
                .into();
            Xtc { threshold, ..xtc }.apply(&mut all, uniform);
            all.iter().map(|candidate| candidate.id).collect::<Vec<_>>()
        };
        assert_eq!(left(0.2, 0.4), [3, 0, 2]);
        assert_eq!(left(0.2, 0.5), [0, 1, 2, 3]);
        assert_eq!(left(0.4, 0.0), [1, 3, 0, 2]);
        assert_eq!(left(0.1, 0.0), [0, 2]);
    }
}
