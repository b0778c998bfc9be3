//! DRY ("don't repeat yourself"): a token that would carry on a repetition becomes less likely, the more so the longer the repetition is.
//!
//! For a token that followed an earlier occurrence of the last `m` tokens of the text, the longest such `m` counts: where it is at
//! least `allowed_length`, `multiplier base^(m - allowed_length)` is subtracted from the logit. Repetitions do not reach over a breaker, such
//! as the end of a line, and breakers themselves are not penalised. As llama.cpp has it; there is no paper.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Beyond it powers are no numbers any more.
const MOST: f64 = 1e30;

/// Options of DRY.
///
/// ```
/// use espalier_engine::sampler::dry::{Dry, penalise};
/// let options = Dry { multiplier: 1.0, ..Dry::default() };
/// let mut logits = [0.0; 4];
/// penalise(&mut logits, &[1, 2, 3, 1, 2], &options);
/// assert_eq!(logits, [0.0, 0.0, 0.0, -1.0]);
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Dry {
    /// What a repetition of the allowed length costs.
    pub multiplier: f32,
    /// What each further token multiplies it by.
    pub base: f32,
    /// Tokens of a repetition from which on it costs something.
    pub allowed_length: usize,
    /// How many of the last tokens are looked at; 0 looks at all.
    pub window: usize,
    /// Tokens that no repetition reaches over.
    pub breakers: Vec<u32>,
}

impl Default for Dry {
    fn default() -> Self {
        Self {
            multiplier: 0.8,
            base: 1.75,
            allowed_length: 2,
            window: 0,
            breakers: Vec::new(),
        }
    }
}

/// Subtracts the penalties from `logits` (`[vocabulary]`).
pub fn penalise(logits: &mut [f32], history: &[u32], options: &Dry) {
    for (id, length) in repetitions(history, options) {
        let (Some(logit), Some(beyond)) = (
            logits.get_mut(id as usize),
            length.checked_sub(options.allowed_length),
        ) else {
            continue;
        };
        let growth = f64::from(options.base).powf(beyond as f64).min(MOST);
        *logit -= (f64::from(options.multiplier) * growth) as f32;
    }
}

/// The tokens that would carry on a repetition, each with the length of the longest one.
fn repetitions(history: &[u32], options: &Dry) -> BTreeMap<u32, usize> {
    let start = match options.window {
        0 => 0,
        window => history.len().saturating_sub(window),
    };
    let backwards: Vec<u32> = history[start..].iter().rev().copied().collect();
    let is_breaker = |id: &u32| options.breakers.contains(id);
    let longest = backwards.iter().position(is_breaker);
    let longest = longest.unwrap_or(backwards.len());
    let mut found = BTreeMap::new();
    for (place, common) in common_prefixes(&backwards).into_iter().enumerate().skip(1) {
        let (length, next) = (common.min(longest), backwards[place - 1]);
        if length > 0 && !is_breaker(&next) {
            let known = found.entry(next).or_insert(0);
            *known = length.max(*known);
        }
    }
    found
}

/// For every place, how many tokens from there are those of the beginning (the Z-function, in linear time).
fn common_prefixes(tokens: &[u32]) -> Vec<usize> {
    let mut lengths = vec![0; tokens.len()];
    let (mut left, mut right) = (0, 0);
    for place in 1..tokens.len() {
        let mut length = match place < right {
            true => lengths[place - left].min(right - place),
            false => 0,
        };
        while tokens.get(place + length) == Some(&tokens[length]) {
            length += 1;
        }
        if place + length > right {
            (left, right) = (place, place + length);
        }
        lengths[place] = length;
    }
    lengths
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(history: &[u32], options: &Dry) -> Vec<(u32, usize)> {
        repetitions(history, options).into_iter().collect()
    }

    #[test]
    fn the_longest_repetition_counts() {
        // After `1 2` came 3 and, behind `9 1 2`, 4.
        let history = [1, 2, 3, 9, 1, 2, 4, 9, 1, 2];
        assert_eq!(found(&history, &Dry::default()), [(3, 2), (4, 3)]);
        let mut logits = [0.0; 10];
        penalise(&mut logits, &history, &Dry::default());
        assert!((logits[3] + 0.8).abs() < 1e-6 && (logits[4] + 1.4).abs() < 1e-6);
    }

    #[test]
    fn breakers_end_repetitions_and_are_free() {
        let options = Dry {
            breakers: vec![9],
            ..Dry::default()
        };
        let history = [1, 2, 3, 9, 1, 2, 4, 9, 1, 2];
        assert_eq!(found(&history, &options), [(3, 2), (4, 2)]);
        assert!(found(&[1, 9, 2, 1], &options).is_empty());
    }

    #[test]
    fn a_window_forgets() {
        let options = Dry {
            window: 4,
            ..Dry::default()
        };
        assert!(found(&[5, 6, 7, 1, 2, 5], &options).is_empty());
        assert_eq!(found(&[5, 6, 7, 1, 2, 5], &Dry::default()), [(6, 1)]);
    }

    #[test]
    fn prefixes_are_those_of_the_definition() {
        let mut random = espalier_data::random::Random::new(3);
        for _ in 0..200 {
            let tokens: Vec<u32> = (0..random.below(30))
                .map(|_| random.below(3) as u32)
                .collect();
            for (place, length) in common_prefixes(&tokens).into_iter().enumerate().skip(1) {
                let pairs = tokens[place..].iter().zip(&tokens);
                assert_eq!(length, pairs.take_while(|(a, b)| a == b).count());
            }
        }
    }

    #[test]
    fn long_repetitions_stay_numbers() {
        let mut logits = [0.0; 2];
        penalise(&mut logits, &[1; 5000], &Dry::default());
        assert!(logits[1].is_finite() && logits[1] < -1e29);
    }
}
