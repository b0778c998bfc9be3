//! The course of the step size.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

use crate::options::TrainOptions;

/// The course of the step size after warm-up.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Half a cosine from the peak to the end value.
    #[default]
    Cosine,
    /// `cycles` times half a cosine from the peak to the end value (arXiv 1608.03983, with equal periods).
    CosineRestarts,
    /// A straight line from the peak to the end value.
    Linear,
    /// The peak throughout.
    Constant,
    /// The peak, and in the last `decay` steps a straight line to the end value (arXiv 2404.06395).
    WarmupStableDecay,
    /// The peak times `sqrt(warmup / step)`, without an end (arXiv 1706.03762, equation 3).
    InverseSquareRoot,
}

/// A number of steps; below 1 a share of all, rounded up.
fn steps(number: f64, total: usize) -> f64 {
    match number < 1.0 {
        true => (number * total as f64).ceil(),
        false => number,
    }
}

impl TrainOptions {
    /// Step size of step `step` (from 0) of `total`.
    pub fn learning_rate_at(&self, step: usize, total: usize) -> f64 {
        let warmup = steps(self.warmup, total);
        let (step, total_steps) = (step as f64, total as f64);
        if step < warmup {
            return self.learning_rate * (step + 1.0) / warmup;
        }
        let progress = ((step - warmup) / (total_steps - warmup).max(1.0)).min(1.0);
        let end = self.final_learning_rate;
        let line = |progress: f64| 1.0 - (1.0 - end) * progress;
        let wave = |progress: f64| end + (1.0 - end) * 0.5 * (1.0 + (PI * progress).cos());
        let share = match self.schedule {
            Schedule::Constant => 1.0,
            Schedule::InverseSquareRoot => (warmup.max(1.0) / (step + 1.0)).sqrt(),
            Schedule::Linear => line(progress),
            Schedule::Cosine => wave(progress),
            // The end of the last period is no start of another.
            Schedule::CosineRestarts if progress >= 1.0 => wave(1.0),
            Schedule::CosineRestarts => wave((progress * self.cycles as f64).fract()),
            Schedule::WarmupStableDecay => {
                let decay = steps(self.decay, total).min(total_steps - warmup).max(1.0);
                line(((step - (total_steps - decay)) / decay).clamp(0.0, 1.0))
            }
        };
        self.learning_rate * share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(schedule: Schedule) -> TrainOptions {
        TrainOptions {
            learning_rate: 1.0,
            warmup: 10.0,
            final_learning_rate: 0.1,
            schedule,
            ..Default::default()
        }
    }

    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-12, "{found} {expected}");
    }

    #[test]
    fn schedules_begin_peak_and_end_where_they_should() {
        let cosine = options(Schedule::Cosine);
        close(cosine.learning_rate_at(0, 110), 0.1);
        close(cosine.learning_rate_at(10, 110), 1.0);
        close(cosine.learning_rate_at(60, 110), 0.55);
        close(cosine.learning_rate_at(110, 110), 0.1);
        close(options(Schedule::Linear).learning_rate_at(35, 110), 0.775);
        close(options(Schedule::Constant).learning_rate_at(100, 110), 1.0);
    }

    #[test]
    fn restarts_begin_at_the_peak_again() {
        let restarts = TrainOptions {
            cycles: 4,
            ..options(Schedule::CosineRestarts)
        };
        for start in [10, 35, 60, 85] {
            close(restarts.learning_rate_at(start, 110), 1.0);
        }
        // Halfway through a period of 25 steps there is no step; a fifth of it is.
        close(
            restarts.learning_rate_at(40, 110),
            0.1 + 0.45 * (1.0 + (0.2 * PI).cos()),
        );
        close(restarts.learning_rate_at(110, 110), 0.1);
    }

    #[test]
    fn what_is_stable_decays_at_the_end() {
        let stable = TrainOptions {
            decay: 0.2,
            ..options(Schedule::WarmupStableDecay)
        };
        close(stable.learning_rate_at(9, 100), 1.0);
        close(stable.learning_rate_at(80, 100), 1.0);
        close(stable.learning_rate_at(90, 100), 0.55);
        close(stable.learning_rate_at(100, 100), 0.1);
        let twenty = TrainOptions {
            decay: 20.0,
            ..stable.clone()
        };
        for step in 0..100 {
            close(
                twenty.learning_rate_at(step, 100),
                stable.learning_rate_at(step, 100),
            );
        }
    }

    #[test]
    fn the_first_transformers_schedule() {
        // d^-0.5 min(s^-0.5, s W^-1.5), steps s counted from 1.
        let (width, warmup) = (512f64, 4000f64);
        let options = TrainOptions {
            learning_rate: (width * warmup).powf(-0.5),
            schedule: Schedule::InverseSquareRoot,
            warmup,
            ..Default::default()
        };
        assert!((options.learning_rate_at(3999, 100_000) - 6.9877e-4).abs() < 1e-8);
        for step in [1f64, 1000.0, 4000.0, 4001.0, 16000.0, 100_000.0] {
            let expected = width.powf(-0.5) * step.powf(-0.5).min(step * warmup.powf(-1.5));
            assert!(
                (options.learning_rate_at(step as usize - 1, 100_000) - expected).abs() < 1e-12,
                "step {step}"
            );
        }
    }
}
