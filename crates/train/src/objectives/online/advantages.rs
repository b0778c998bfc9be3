//! From rewards to advantages: how much better an answer, or a token of it, is than what was to be expected. Pure functions.
//!
//! Groups (GRPO, arXiv 2402.03300, Eq. 4): `A = (r - mean) / (std + 1e-4)` over the answers to one prompt. Leave-one-out (RLOO,
//! arXiv 2402.14740, Eq. 7): `A_i = R_i - mean of the others`. Generalised advantages (arXiv 1506.02438, Eq. 16):
//! `A_t = d_t + gamma lambda A_{t+1}` with `d_t = r_t + gamma V_{t+1} - V_t`.
//!
//! A reward that is not known (none of its sources had an opinion) counts in no mean, and its advantage is 0.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a deviation gets added before something is divided by it.
const SMALL: f64 = 1e-4;

/// What advantages within a group are divided by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scale {
    /// The deviation of the group's rewards.
    #[default]
    Group,
    /// The deviation of all rewards of the batch.
    Batch,
    /// Nothing (Dr. GRPO, arXiv 2503.20783).
    None,
}

/// Advantages relative to the mean of each group of `group` rewards.
pub fn of_groups(rewards: &[Option<f64>], group: usize, scale: Scale) -> Vec<f64> {
    let all = deviation(&known(rewards));
    let of_group = |rewards: &[Option<f64>]| -> Vec<f64> {
        let values = known(rewards);
        let (mean, own) = (mean(&values), deviation(&values));
        let divisor = match scale {
            Scale::Group => own + SMALL,
            Scale::Batch => all + SMALL,
            Scale::None => 1.0,
        };
        // Equal rewards differ from their mean by nothing, whatever rounding says.
        let equal = are_equal(&values);
        let advantage = |reward: &Option<f64>| match reward {
            Some(reward) if !equal => (reward - mean) / divisor,
            _ => 0.0,
        };
        rewards.iter().map(advantage).collect()
    };
    rewards.chunks(group.max(1)).flat_map(of_group).collect()
}

/// Advantages over the mean of the others in each group of `group`; a reward that stands alone has none to be compared with.
pub fn leave_one_out(rewards: &[Option<f64>], group: usize) -> Vec<f64> {
    let of_group = |rewards: &[Option<f64>]| -> Vec<f64> {
        let values = known(rewards);
        let (sum, others) = (values.iter().sum::<f64>(), values.len().saturating_sub(1));
        let equal = are_equal(&values);
        let advantage = |reward: &Option<f64>| match reward {
            Some(reward) if others > 0 && !equal => reward - (sum - reward) / others as f64,
            _ => 0.0,
        };
        rewards.iter().map(advantage).collect()
    };
    rewards.chunks(group.max(1)).flat_map(of_group).collect()
}

/// `(A - mean) / (std + 1e-4)` over all.
pub fn normalised(advantages: &[f64]) -> Vec<f64> {
    let (mean, deviation) = (mean(advantages), deviation(advantages));
    let normal = |advantage: &f64| (advantage - mean) / (deviation + SMALL);
    advantages.iter().map(normal).collect()
}

/// Whether each group of `group` has known rewards that are all equal, so that nothing can be learned from it.
pub fn without_spread(rewards: &[Option<f64>], group: usize) -> Vec<bool> {
    let groups = rewards.chunks(group.max(1));
    groups.map(|rewards| are_equal(&known(rewards))).collect()
}

/// Generalised advantages of the tokens of one answer; nothing comes after the last.
pub fn generalised(rewards: &[f64], values: &[f64], gamma: f64, lambda: f64) -> Vec<f64> {
    let mut advantages = vec![0.0; rewards.len()];
    let (mut next_value, mut next) = (0.0, 0.0);
    for t in (0..rewards.len()).rev() {
        let difference = rewards[t] + gamma * next_value - values[t];
        next = difference + gamma * lambda * next;
        (advantages[t], next_value) = (next, values[t]);
    }
    advantages
}

/// Values of mean 0 and variance 1; of a mean that stays as it is, where `keep_mean`.
pub fn whitened(values: &[f64], keep_mean: bool) -> Vec<f64> {
    let (mean, variance) = (mean(values), deviation(values).powi(2));
    let shift = if keep_mean { mean } else { 0.0 };
    let white = |value: &f64| (value - mean) / (variance + 1e-8).sqrt() + shift;
    values.iter().map(white).collect()
}

/// Cuts `joined` into parts as long as those of `like`.
pub fn apart(joined: &[f64], like: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let mut rest = joined;
    like.iter()
        .map(|part| {
            let (first, behind) = rest.split_at(part.len().min(rest.len()));
            rest = behind;
            first.to_vec()
        })
        .collect()
}

/// What a token costs for leaving the reference, at the given log-probabilities of policy and reference.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KlEstimator {
    /// `log p - log q`.
    #[default]
    K1,
    /// `q / p - 1 - log (q / p)`, which is never negative.
    K3,
}

impl KlEstimator {
    /// The estimate for a token.
    pub fn of(self, policy: f64, reference: f64) -> f64 {
        let ratio = reference - policy;
        match self {
            Self::K1 => -ratio,
            Self::K3 => ratio.exp() - 1.0 - ratio,
        }
    }
}

/// The coefficient of the penalty after `episodes` answers at the divergence `kl`, steered towards `target` (arXiv 1909.08593,
/// section 2.2).
pub fn steered(coefficient: f64, kl: f64, target: f64, episodes: f64, horizon: f64) -> f64 {
    let error = (kl / target - 1.0).clamp(-0.2, 0.2);
    coefficient * (1.0 + error * episodes / horizon)
}

fn known(rewards: &[Option<f64>]) -> Vec<f64> {
    rewards.iter().flatten().copied().collect()
}

fn are_equal(values: &[f64]) -> bool {
    values.windows(2).all(|pair| pair[0] == pair[1])
}

/// The mean; 0 of nothing.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// The deviation over one less than the count; 0 of equal values, and of fewer than two.
pub fn deviation(values: &[f64]) -> f64 {
    if are_equal(values) {
        return 0.0;
    }
    let mean = mean(values);
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (squares / (values.len() - 1) as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn assert_near(found: &[f64], expected: &[f64]) {
        let near = found
            .iter()
            .zip(expected)
            .all(|(a, b)| (a - b).abs() < 1e-6);
        assert!(
            near && found.len() == expected.len(),
            "{found:?}, expected {expected:?}"
        );
    }

    /// Two groups of three.
    const REWARDS: [Option<f64>; 6] = [
        Some(1.0),
        Some(0.0),
        Some(0.0),
        Some(1.0),
        Some(0.5),
        Some(0.0),
    ];

    #[test]
    fn groups() {
        for (scale, expected) in [
            (
                Scale::None,
                [0.666_667, -0.333_333, -0.333_333, 0.5, 0.0, -0.5],
            ),
            (
                Scale::Group,
                [
                    1.154_501, -0.577_250, -0.577_250, 0.999_800, 0.0, -0.999_800,
                ],
            ),
            (
                Scale::Batch,
                [
                    1.355_851, -0.677_926, -0.677_926, 1.016_888, 0.0, -1.016_888,
                ],
            ),
        ] {
            assert_near(&of_groups(&REWARDS, 3, scale), &expected);
        }
        assert_near(
            &leave_one_out(&REWARDS, 3),
            &[1.0, -0.5, -0.5, 0.75, 0.0, -0.75],
        );
    }

    #[test]
    fn leaving_one_out_is_a_factor_on_the_groups_mean() {
        let group: Vec<f64> = of_groups(&REWARDS, 3, Scale::None);
        let scaled: Vec<f64> = group.iter().map(|advantage| 1.5 * advantage).collect();
        assert_near(&leave_one_out(&REWARDS, 3), &scaled);
    }

    #[test]
    fn equal_rewards_give_exactly_nothing() {
        // The mean of ten times 0.1 is not 0.1.
        let equal = [Some(0.1); 10];
        for scale in [Scale::Group, Scale::Batch, Scale::None] {
            assert_eq!(of_groups(&equal, 10, scale), [0.0; 10]);
        }
        assert_eq!(leave_one_out(&equal, 10), [0.0; 10]);
        assert_eq!(without_spread(&REWARDS, 3), [false, false]);
        assert_eq!(without_spread(&equal, 5), [true, true]);
    }

    #[test]
    fn unknown_rewards_count_in_nothing() {
        let rewards = [Some(1.0), None, Some(0.0), None, Some(2.0), None];
        assert_near(
            &of_groups(&rewards, 3, Scale::None),
            &[0.5, 0.0, -0.5, 0.0, 0.0, 0.0],
        );
        assert_near(
            &leave_one_out(&rewards, 3),
            &[1.0, 0.0, -1.0, 0.0, 0.0, 0.0],
        );
    }

    #[test]
    fn generalised_advantages() {
        let rewards = [-0.01, 0.005, 0.025, 1.0];
        let values = [0.1, 0.2, 0.3, 0.4];
        for (gamma, lambda, expected) in [
            (1.0, 0.95, [0.816_987, 0.765_250, 0.695, 0.6]),
            (1.0, 1.0, [0.92, 0.83, 0.725, 0.6]),
            (1.0, 0.0, [0.09, 0.105, 0.125, 0.6]),
            (0.99, 0.95, [0.790_106, 0.746_525, 0.685_3, 0.6]),
        ] {
            assert_near(&generalised(&rewards, &values, gamma, lambda), &expected);
        }
        // With lambda 1 the returns say nothing of the values.
        let other = [3.0, -1.0, 0.0, 7.0];
        let returns = |values: &[f64]| -> Vec<f64> {
            let advantages = generalised(&rewards, values, 1.0, 1.0);
            advantages.iter().zip(values).map(|(a, v)| a + v).collect()
        };
        assert_near(&returns(&values), &returns(&other));
    }

    #[test]
    fn whitening() {
        let advantages = [0.816_987_5, 0.765_25, 0.695];
        assert_near(
            &whitened(&advantages, false),
            &[0.945_790, 0.100_785, -1.046_575],
        );
        let rewards = [-0.01, 0.005, 0.025, 1.0];
        let expected = [-0.278_335, -0.248_146, -0.207_894, 1.754_375];
        assert_near(&whitened(&rewards, true), &expected);
    }

    #[test]
    fn penalties_of_tokens() {
        let (policy, reference) = ([-1.0, -0.5, -2.0], [-1.2, -0.4, -1.5]);
        let cost = |estimator: KlEstimator| -> Vec<f64> {
            let both = policy.iter().zip(reference);
            both.map(|(p, q)| -0.05 * estimator.of(*p, q)).collect()
        };
        assert_near(&cost(KlEstimator::K1), &[-0.01, 0.005, 0.025]);
        assert!(cost(KlEstimator::K3).iter().all(|cost| *cost < 0.0));
        assert_eq!(KlEstimator::K3.of(-0.7, -0.7), 0.0);
    }

    #[test]
    fn the_coefficient_is_steered() {
        for (kl, expected) in [(12.0, 0.050_512), (3.0, 0.049_488), (6.0, 0.05)] {
            assert_near(&[steered(0.05, kl, 6.0, 512.0, 10_000.0)], &[expected]);
        }
    }
}
