//! Penalties on tokens that have occurred: repetition (Keskar et al., arXiv 1909.05858), frequency and presence (OpenAI's interface).
//!
//! Repetition divides a positive logit by its factor and multiplies a negative one, once for each token, prompt included. Frequency subtracts
//! its number for every occurrence and presence its own once; both count what was generated, and not the prompt.

use std::collections::{BTreeMap, BTreeSet};

/// Lowers the logits of the tokens in the history, each once however often it occurs.
pub(crate) fn repetition(logits: &mut [f32], history: &[u32], penalty: f32) {
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

/// Subtracts `frequency` for every occurrence of a token in what was generated, and `presence` for the first.
pub(super) fn occurrence(logits: &mut [f32], generated: &[u32], frequency: f32, presence: f32) {
    if frequency == 0.0 && presence == 0.0 {
        return;
    }
    let mut counts: BTreeMap<u32, f32> = BTreeMap::new();
    for id in generated {
        *counts.entry(*id).or_default() += 1.0;
    }
    for (id, count) in counts {
        if let Some(logit) = logits.get_mut(id as usize) {
            *logit -= frequency * count + presence;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repetition_is_penalised_once_a_token() {
        let mut logits = [2.0, -1.0, 3.0];
        repetition(&mut logits, &[0, 1, 0, 0, 99], 2.0);
        assert_eq!(logits, [1.0, -2.0, 3.0]);
    }

    #[test]
    fn occurrences_are_counted() {
        let mut logits = [2.0, -1.0, 3.0];
        occurrence(&mut logits, &[0, 1, 0, 0, 99], 0.5, 0.25);
        assert_eq!(logits, [2.0 - 1.5 - 0.25, -1.0 - 0.5 - 0.25, 3.0]);
        occurrence(&mut logits, &[0], 0.0, 0.0);
        assert_eq!(logits[0], 0.25);
    }
}
