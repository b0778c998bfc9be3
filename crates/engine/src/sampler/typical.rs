//! Locally typical sampling (Meister et al., arXiv 2202.00666): the tokens are kept whose surprise is nearest to the expected one.
//!
//! With the entropy `H` of the distribution, tokens are taken in the order of `|-ln p - H|` until they hold the share `typical_p` of the mass.

use super::{Candidate, likelier_first, mass};

/// Keeps the most typical candidates that hold this share of the mass.
pub(super) fn keep(candidates: &mut Vec<Candidate>, share: f64) {
    let all = mass(candidates);
    let surprise = |candidate: &Candidate| -(f64::from(candidate.probability) / all).ln();
    let entropy: f64 = candidates
        .iter()
        .map(|candidate| f64::from(candidate.probability) / all * surprise(candidate))
        .sum();
    let gap = |candidate: &Candidate| (surprise(candidate) - entropy).abs();
    candidates.sort_by(|a, b| gap(a).total_cmp(&gap(b)).then_with(|| likelier_first(a, b)));
    let (mut sum, wanted) = (0.0, share * all);
    let crossing = candidates.iter().position(|candidate| {
        sum += f64::from(candidate.probability);
        sum >= wanted
    });
    if let Some(place) = crossing {
        candidates.truncate(place + 1);
    }
    candidates.sort_by(likelier_first);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worked_example() {
        // Surprises 0.693, 1.204, 1.897 and 2.996, the entropy 1.142: nearest are 0.3, 0.5, 0.15 and 0.05, in this order.
        let candidates = |share| {
            let mut all: Vec<Candidate> = [(0, 0.5), (1, 0.3), (2, 0.15), (3, 0.05)]
                .map(|(id, probability)| Candidate { id, probability })
                .into();
            keep(&mut all, share);
            all.iter().map(|candidate| candidate.id).collect::<Vec<_>>()
        };
        assert_eq!(candidates(0.29), [1]);
        assert_eq!(candidates(0.79), [0, 1]);
        assert_eq!(candidates(0.81), [0, 1, 2]);
        assert_eq!(candidates(1.0), [0, 1, 2, 3]);
    }
}
