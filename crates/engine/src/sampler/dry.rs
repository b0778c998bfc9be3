//! DRY, "don't repeat yourself" (p-e-w, text-generation-webui 5677): a token that would make a repetition longer is made less likely, the more
//! so the longer what it repeats already is.
//!
//! Where the last `n` tokens of the text have occurred before, and `t` came after them there, the logit of `t` loses
//! `multiplier base^(n - allowed)` for `n >= allowed`, `n` as long as possible. A repetition does not reach over tokens that break one,
//! such as the end of a line.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Options of DRY.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Dry {
    /// What the shortest repetition that counts costs.
    pub multiplier: f32,
    /// The factor for each token more.
    pub base: f32,
    /// The shortest repetition that counts, in tokens.
    pub allowed_length: usize,
    /// Tokens that break a repetition.
    pub breakers: Vec<u32>,
}

impl Default for Dry {
    fn default() -> Self {
        Self {
            multiplier: 0.8,
            base: 1.75,
            allowed_length: 2,
            breakers: Vec::new(),
        }
    }
}

/// Longer repetitions cost no more, for a logit has lost everything by then.
const LONGEST: usize = 64;

impl Dry {
    /// Lowers the logits of tokens that would go on repeating.
    pub(super) fn apply(&self, logits: &mut [f32], history: &[u32]) {
        for (token, length) in self.repetitions(history) {
            if length >= self.allowed_length
                && let Some(logit) = logits.get_mut(token as usize)
            {
                let power = (length - self.allowed_length) as f32;
                *logit -= self.multiplier * self.base.powf(power);
            }
        }
    }

    /// For each token that came after an earlier occurrence of the text's end: the longest such end.
    fn repetitions(&self, history: &[u32]) -> BTreeMap<u32, usize> {
        let mut longest = BTreeMap::new();
        let Some(last) = history.last() else {
            return longest;
        };
        if self.breakers.contains(last) {
            return longest;
        }
        for place in 0..history.len() - 1 {
            // The token at `place` would be repeated after the end at `place - 1`.
            let next = history[place + 1];
            if history[place] != *last || self.breakers.contains(&next) {
                continue;
            }
            let mut length = 1;
            while length <= place
                && length < LONGEST
                && history[place - length] == history[history.len() - 1 - length]
                && !self.breakers.contains(&history[place - length])
            {
                length += 1;
            }
            let entry = longest.entry(next).or_insert(0);
            *entry = (*entry).max(length);
        }
        longest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worked_example() {
        let dry = Dry {
            multiplier: 1.0,
            base: 2.0,
            allowed_length: 2,
            breakers: vec![9],
        };
        // `1 2 3` has occurred, and `1 2` stands at the end: 3 would go on; `2 5` is too short.
        let history = [1, 2, 3, 2, 5, 0, 1, 2];
        let mut logits = [0.0; 6];
        dry.apply(&mut logits, &history);
        assert_eq!(logits, [0.0, 0.0, 0.0, -1.0, 0.0, 0.0]);
        // One token more doubles it.
        let mut logits = [0.0; 6];
        dry.apply(&mut logits, &[0, 1, 2, 3, 5, 0, 1, 2]);
        assert_eq!(logits[3], -2.0);
        // A breaker ends what counts.
        let mut logits = [0.0; 6];
        dry.apply(&mut logits, &[1, 9, 2, 3, 5, 1, 9, 2]);
        assert_eq!(logits, [0.0; 6]);
        dry.apply(&mut logits, &[]);
        assert_eq!(logits, [0.0; 6]);
    }
}
