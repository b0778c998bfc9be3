//! What a client changes of the logits before a token is chosen: OpenAI's `logit_bias`, `presence_penalty` and `frequency_penalty`.
//!
//! `logits[t] += bias[t] - presence [t occurred] - frequency count(t)`, counted over the generated tokens.

use std::collections::BTreeMap;

use super::request::Logprobs;

/// Changes of the logits.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Adjustments {
    /// Added to the logits of these tokens.
    pub bias: Vec<(u32, f32)>,
    /// Taken from the logits of tokens that were generated.
    pub presence: f32,
    /// Taken from the logits of tokens for each time that they were generated.
    pub frequency: f32,
}

impl Adjustments {
    /// Changes `logits`, `[vocabulary]`, after the tokens `generated`.
    ///
    /// ```
    /// use espalier_engine::scheduler::Adjustments;
    /// let penalties = Adjustments { presence: 0.5, frequency: 0.25, ..Adjustments::default() };
    /// let mut logits = [1.0, 1.0, 1.0];
    /// penalties.apply(&mut logits, &[1, 1]);
    /// assert_eq!(logits, [1.0, 0.0, 1.0]);
    /// ```
    pub fn apply(&self, logits: &mut [f32], generated: &[u32]) {
        for (id, bias) in &self.bias {
            if let Some(logit) = logits.get_mut(*id as usize) {
                *logit += bias;
            }
        }
        if self.presence == 0.0 && self.frequency == 0.0 {
            return;
        }
        let mut counts: BTreeMap<u32, f32> = BTreeMap::new();
        for id in generated {
            *counts.entry(*id).or_default() += 1.0;
        }
        for (id, count) in counts {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit -= self.presence + self.frequency * count;
            }
        }
    }
}

/// Log-probabilities of a token and of the likeliest ones.
pub(super) fn logprobs(logits: &[f32], chosen: u32, count: usize) -> Logprobs {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits
        .iter()
        .map(|logit| f64::from(logit - largest).exp())
        .sum();
    let normaliser = f64::from(largest) + sum.ln();
    let of = |id: u32| {
        let logit = logits.get(id as usize).copied().map(f64::from);
        (logit.unwrap_or(f64::NEG_INFINITY) - normaliser) as f32
    };
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    let likelier = |a: &u32, b: &u32| {
        let [a_logit, b_logit] = [a, b].map(|id| logits[*id as usize]);
        b_logit.total_cmp(&a_logit).then(a.cmp(b))
    };
    if count < ids.len() {
        ids.select_nth_unstable_by(count, likelier);
        ids.truncate(count);
    }
    ids.sort_unstable_by(likelier);
    Logprobs {
        chosen: of(chosen),
        likeliest: ids.into_iter().map(|id| (id, of(id))).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likeliest_come_in_order() {
        let logits = [0.1f32, 0.4, 0.2, 0.3].map(f32::ln);
        let found = logprobs(&logits, 2, 2);
        assert!((found.chosen - 0.2f32.ln()).abs() < 1e-6);
        let ids: Vec<u32> = found.likeliest.iter().map(|(id, _)| *id).collect();
        assert_eq!(ids, [1, 3]);
        assert_eq!(logprobs(&logits, 0, 9).likeliest.len(), 4);
        let biased = Adjustments {
            bias: vec![(1, -100.0), (77, 1.0)],
            ..Adjustments::default()
        };
        let mut logits = logits;
        biased.apply(&mut logits, &[]);
        assert!(logits[1] < -100.0);
    }
}
