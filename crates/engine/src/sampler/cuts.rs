//! Cuts that keep the likely, or the typical.

use super::{
    Candidate,
    candidates::{Candidates, sort_largest},
};

/// The `count` likeliest; 0 keeps all.
pub(super) fn top_k(candidates: &mut Candidates, count: usize) {
    if count > 0 && count < candidates.list.len() {
        sort_largest(&mut candidates.list, count);
        candidates.list.truncate(count);
    }
}

/// The smallest set of likeliest candidates that holds this share of the mass (nucleus; Holtzman et al., arXiv 1904.09751).
pub(super) fn top_p(candidates: &mut Candidates, share: f32) {
    if share >= 1.0 {
        return;
    }
    let wanted = f64::from(share) * candidates.mass();
    let list = &mut candidates.list;
    // A few tokens mostly hold all of the mass that counts, so the whole vocabulary is rarely sorted.
    let mut sorted = 256;
    loop {
        sort_largest(list, sorted);
        match crossing(&list[..sorted.min(list.len())], wanted) {
            Some(place) => return list.truncate(place + 1),
            None if sorted >= list.len() => return,
            None => sorted *= 8,
        }
    }
}

/// The place at which the running sum of weights reaches `wanted`.
fn crossing(list: &[Candidate], wanted: f64) -> Option<usize> {
    let mut sum = 0.0;
    list.iter().position(|candidate| {
        sum += f64::from(candidate.probability);
        sum >= wanted
    })
}

/// Those at least `share` times as likely as the likeliest (Nguyen et al., arXiv 2407.01082).
pub(super) fn min_p(candidates: &mut Candidates, share: f32) {
    if share > 0.0 {
        candidates.keep_from(share * candidates.most());
    }
}

/// Those whose surprise is closest to the entropy, until they hold this share of the mass (locally typical sampling; Meister et al.,
/// arXiv 2202.00666, equation 5).
pub(super) fn typical(candidates: &mut Candidates, share: f32) {
    if share >= 1.0 {
        return;
    }
    let (mass, entropy) = (candidates.mass(), candidates.entropy());
    let distance = |candidate: &Candidate| {
        let surprise = -(f64::from(candidate.probability) / mass).ln();
        (surprise - entropy).abs()
    };
    candidates.list.sort_by(|left, right| {
        let closer = distance(left).total_cmp(&distance(right));
        closer.then(left.id.cmp(&right.id))
    });
    if let Some(place) = crossing(&candidates.list, f64::from(share) * mass) {
        candidates.list.truncate(place + 1);
    }
}

/// Those with at least this probability, or else the likeliest (Hewitt et al., arXiv 2210.15191).
pub(super) fn epsilon(candidates: &mut Candidates, least: f32) {
    if least > 0.0 {
        candidates.keep_from((f64::from(least) * candidates.mass()) as f32);
    }
}

/// Those with at least `min(eta, sqrt(eta) exp(-entropy))`, or else the likeliest (Hewitt et al., arXiv 2210.15191, equation 6).
pub(super) fn eta(candidates: &mut Candidates, eta: f32) {
    if eta > 0.0 {
        let eta = f64::from(eta);
        let least = eta.min(eta.sqrt() * (-candidates.entropy()).exp());
        candidates.keep_from((least * candidates.mass()) as f32);
    }
}

/// Those whose logit is within so many standard deviations of the largest (top-n-sigma; Tang et al., arXiv 2411.07641, algorithm 1).
pub(super) fn top_n_sigma(candidates: &mut Candidates, count: f32) {
    if count <= 0.0 || candidates.list.is_empty() {
        return;
    }
    let logits: Vec<f64> = candidates
        .list
        .iter()
        .map(|candidate| f64::from(candidates.logit(candidate)))
        .collect();
    let number = logits.len() as f64;
    let mean = logits.iter().sum::<f64>() / number;
    let variance = logits.iter().map(|z| (z - mean).powi(2)).sum::<f64>() / number;
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let least = largest - f64::from(count) * variance.sqrt();
    let mut logits = logits.iter();
    candidates
        .list
        .retain(|_| logits.next().is_some_and(|logit| *logit >= least));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(logits: &[f32], cut: impl FnOnce(&mut Candidates)) -> Vec<u32> {
        let largest = super::super::largest(logits).unwrap();
        let mut candidates = Candidates::new(logits, largest, 1.0);
        cut(&mut candidates);
        let mut ids: Vec<u32> = candidates.list.iter().map(|one| one.id).collect();
        ids.sort_unstable();
        ids
    }

    fn logarithms(probabilities: &[f32]) -> Vec<f32> {
        probabilities.iter().map(|p| p.ln()).collect()
    }

    #[test]
    fn typical_tokens_are_those_whose_surprise_is_near_the_entropy() {
        // Entropy 1.1421; surprises 0.6931, 1.2040, 1.8971, 2.9957: distances 0.4490, 0.0618, 0.7550, 1.8536.
        let logits = logarithms(&[0.5, 0.3, 0.15, 0.05]);
        assert_eq!(kept(&logits, |all| typical(all, 0.2)), [1]);
        assert_eq!(kept(&logits, |all| typical(all, 0.5)), [0, 1]);
        assert_eq!(kept(&logits, |all| typical(all, 0.85)), [0, 1, 2]);
        assert_eq!(kept(&logits, |all| typical(all, 1.0)), [0, 1, 2, 3]);
    }

    #[test]
    fn cut_offs_by_probability_keep_the_likeliest() {
        let logits = logarithms(&[0.5, 0.3, 0.15, 0.05]);
        assert_eq!(kept(&logits, |all| epsilon(all, 0.1)), [0, 1, 2]);
        assert_eq!(kept(&logits, |all| epsilon(all, 0.9)), [0]);
        // sqrt(0.25) exp(-1.1421) = 0.1596 is below 0.25; sqrt(0.04) exp(-1.1421) = 0.0638 is above 0.04.
        assert_eq!(kept(&logits, |all| eta(all, 0.25)), [0, 1]);
        assert_eq!(kept(&logits, |all| eta(all, 0.04)), [0, 1, 2, 3]);
    }

    #[test]
    fn sigmas_are_counted_from_the_largest_logit_whatever_the_temperature() {
        // Mean 1, standard deviation sqrt(14 / 4) = 1.8708: from 4 down to 2.1292.
        let logits = [4.0, 1.0, 0.0, -1.0];
        assert_eq!(kept(&logits, |all| top_n_sigma(all, 1.0)), [0]);
        assert_eq!(kept(&logits, |all| top_n_sigma(all, 2.0)), [0, 1]);
        let heated = kept(&logits, |all| {
            all.heat(5.0);
            top_n_sigma(all, 2.0);
        });
        assert_eq!(heated, [0, 1]);
        assert_eq!(kept(&[2.0, 2.0], |all| top_n_sigma(all, 1.0)), [0, 1]);
    }
}
