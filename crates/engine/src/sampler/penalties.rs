//! What has occurred becomes less likely, and what a user favours likelier.
//!
//! The repetition penalty (Keskar et al., arXiv 1909.05858, section 4.1, as `transformers` has it) looks at prompt and answer; frequency and presence penalties
//! are OpenAI's and look at the answer alone.

use std::collections::{BTreeMap, BTreeSet};

use super::SamplerOptions;

/// Adds biases, then applies the penalties; `prompt` tokens of the history were not generated.
pub(super) fn apply(logits: &mut [f32], history: &[u32], prompt: usize, options: &SamplerOptions) {
    for (id, bias) in &options.logit_bias {
        if let Some(logit) = logits.get_mut(*id as usize) {
            *logit += bias;
        }
    }
    let window = match options.repetition_window {
        0 => history,
        window => &history[history.len().saturating_sub(window)..],
    };
    repeated(logits, window, options.repetition_penalty);
    let generated = history.get(prompt..).unwrap_or_default();
    counted(
        logits,
        generated,
        options.frequency_penalty,
        options.presence_penalty,
    );
}

/// Lowers the logits of the tokens in the history, each once however often it occurs: positive ones are divided, negative ones
/// multiplied.
pub(crate) fn repeated(logits: &mut [f32], history: &[u32], penalty: f32) {
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

/// Subtracts `frequency` for each time that a token was generated, and `presence` once.
fn counted(logits: &mut [f32], generated: &[u32], frequency: f32, presence: f32) {
    if frequency == 0.0 && presence == 0.0 {
        return;
    }
    let mut counts = BTreeMap::<u32, f32>::new();
    for id in generated {
        *counts.entry(*id).or_default() += 1.0;
    }
    for (id, count) in counts {
        if let Some(logit) = logits.get_mut(id as usize) {
            *logit -= count * frequency + presence;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repetition_is_penalised_once_a_token() {
        let mut logits = [2.0, -1.0, 3.0];
        repeated(&mut logits, &[0, 1, 0, 0, 99], 2.0);
        assert_eq!(logits, [1.0, -2.0, 3.0]);
    }

    #[test]
    fn frequency_counts_and_presence_does_not_and_the_prompt_is_free() {
        let options = SamplerOptions {
            frequency_penalty: 0.5,
            presence_penalty: 0.25,
            ..SamplerOptions::default()
        };
        let mut logits = [1.0; 4];
        apply(&mut logits, &[3, 0, 0, 1, 0], 2, &options);
        assert_eq!(logits, [-0.25, 0.25, 1.0, 1.0]);
    }

    #[test]
    fn a_window_forgets_what_lies_before_it() {
        let options = SamplerOptions {
            repetition_penalty: 2.0,
            repetition_window: 2,
            ..SamplerOptions::default()
        };
        let mut logits = [1.0; 3];
        apply(&mut logits, &[0, 1, 2], 0, &options);
        assert_eq!(logits, [1.0, 0.5, 0.5]);
    }

    #[test]
    fn biases_are_added_before_the_penalties() {
        let options = SamplerOptions {
            logit_bias: [(0, 3.0), (1, -100.0), (99, 1.0)].into(),
            repetition_penalty: 2.0,
            ..SamplerOptions::default()
        };
        let mut logits = [-1.0, 0.0];
        apply(&mut logits, &[0], 0, &options);
        assert_eq!(logits, [1.0, -100.0]);
    }
}
