//! The frequencies of rotary positions and their changes for longer contexts.
//!
//! RoFormer (arXiv 2104.09864), Positional Interpolation (2306.15595), YaRN (2309.00071) and LLaMA 3.1. Channel pair `i`
//! of `dim / 2` turns by `theta^(-2i / dim)` per position, before the change.

use crate::spec::{MixerSpec, ModelSpec, RotaryScaling, RotarySpec};
use std::f64::consts::TAU;

impl ModelSpec {
    /// Whether keys that were cached for `before` positions are wrong for `after`: LongRoPE changes all its frequencies when
    /// a sequence outgrows the original context.
    pub fn stales_cache(&self, before: usize, after: usize) -> bool {
        self.blocks.iter().any(|block| {
            let rotary = match &block.mixer {
                MixerSpec::Attention(attention) => attention.rotary.as_ref(),
                MixerSpec::AttentionExperts(attention) => attention.rotary.as_ref(),
                MixerSpec::LatentAttention(attention) => Some(&attention.rotary),
                MixerSpec::Recurrent(_) => None,
            };
            rotary.is_some_and(|rotary| rotary.changes_between(before, after))
        })
    }
}

impl RotarySpec {
    /// The angle per position of each channel pair, `[dim / 2]` rounded up, in radians, for a sequence of `length` positions.
    ///
    /// ```
    /// use espalier_models::spec::{RotaryScaling, RotarySpec};
    /// let rotary = RotarySpec { dim: 4, theta: 10_000.0, interleaved: false, scaling: RotaryScaling::Linear { factor: 2.0 } };
    /// assert_eq!(rotary.inverse_frequencies(0), [0.5, 0.005]);
    /// ```
    pub fn inverse_frequencies(&self, length: usize) -> Vec<f32> {
        let theta = self.base(length);
        let plain = |pair: usize| theta.powf(-2.0 * pair as f64 / self.dim as f64);
        (0..self.dim.div_ceil(2))
            .map(|pair| self.scaled(pair, plain(pair), length) as f32)
            .collect()
    }

    /// The shortest length whose frequencies are those of `length`.
    pub(crate) fn deciding_length(&self, length: usize) -> usize {
        match self.scaling {
            RotaryScaling::Dynamic {
                original_context, ..
            } => length.max(original_context),
            RotaryScaling::LongRope {
                original_context, ..
            } => match length > original_context {
                true => original_context + 1,
                false => 0,
            },
            _ => 0,
        }
    }

    /// The base of the frequencies, which dynamic scaling lets grow with the sequence.
    fn base(&self, length: usize) -> f64 {
        let RotaryScaling::Dynamic {
            factor,
            original_context,
        } = self.scaling
        else {
            return self.theta;
        };
        let (length, original, dim) = (
            length.max(original_context) as f64,
            original_context as f64,
            self.dim as f64,
        );
        self.theta * (factor * length / original - (factor - 1.0)).powf(dim / (dim - 2.0).max(1.0))
    }

    /// Whether the frequencies of a sequence change when it grows from one length to another: cached keys are then stale.
    pub fn changes_between(&self, before: usize, after: usize) -> bool {
        match self.scaling {
            RotaryScaling::LongRope {
                original_context, ..
            } => before <= original_context && after > original_context,
            _ => false,
        }
    }

    /// The factor on cosines and sines; 1 but for YaRN and LongRoPE.
    pub fn attention_factor(&self) -> f32 {
        match self.scaling {
            RotaryScaling::Yarn {
                attention_factor, ..
            }
            | RotaryScaling::LongRope {
                attention_factor, ..
            } => attention_factor as f32,
            _ => 1.0,
        }
    }

    /// The frequency of `pair` after the change.
    fn scaled(&self, pair: usize, frequency: f64, length: usize) -> f64 {
        match self.scaling {
            RotaryScaling::None | RotaryScaling::Dynamic { .. } => frequency,
            RotaryScaling::LongRope {
                ref short,
                ref long,
                original_context,
                ..
            } => {
                let divisors = if length > original_context {
                    long
                } else {
                    short
                };
                frequency / divisors.get(pair).copied().unwrap_or(1.0)
            }
            RotaryScaling::Linear { factor } => frequency / factor,
            RotaryScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_context,
            } => {
                let rotations = original_context as f64 * frequency / TAU;
                let kept = (rotations - low_freq_factor) / (high_freq_factor - low_freq_factor);
                mix(frequency, factor, kept)
            }
            RotaryScaling::Yarn {
                factor,
                original_context,
                beta_fast,
                beta_slow,
                truncate,
                ..
            } => {
                let (low, high) = self.ramp(original_context, beta_fast, beta_slow, truncate);
                mix(frequency, factor, 1.0 - (pair as f64 - low) / (high - low))
            }
        }
    }

    /// The pairs at which YaRN's interpolation begins and is whole.
    fn ramp(
        &self,
        original_context: usize,
        beta_fast: f64,
        beta_slow: f64,
        truncate: bool,
    ) -> (f64, f64) {
        let pair_of = |rotations: f64| {
            self.dim as f64 * (original_context as f64 / (rotations * TAU)).ln()
                / (2.0 * self.theta.ln())
        };
        let (mut low, mut high) = (pair_of(beta_fast), pair_of(beta_slow));
        if truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(self.dim as f64 - 1.0));
        if low == high {
            (low, high + 0.001)
        } else {
            (low, high)
        }
    }
}

/// A share `kept` of the frequency, the rest interpolated by `factor`.
fn mix(frequency: f64, factor: f64, kept: f64) -> f64 {
    let kept = kept.clamp(0.0, 1.0);
    (1.0 - kept) * frequency / factor + kept * frequency
}

#[cfg(test)]
#[allow(
    clippy::excessive_precision,
    reason = "the numbers stand as they were published"
)]
mod tests {
    use super::*;

    fn assert_near(rotary: &RotarySpec, expected: &[(usize, f32)]) {
        assert_near_at(rotary, 0, expected);
    }

    fn assert_near_at(rotary: &RotarySpec, length: usize, expected: &[(usize, f32)]) {
        let frequencies = rotary.inverse_frequencies(length);
        assert_eq!(frequencies.len(), rotary.dim / 2);
        for &(pair, value) in expected {
            let error = (frequencies[pair] - value).abs() / value;
            assert!(
                error <= 1e-6,
                "pair {pair}: {} against {value}",
                frequencies[pair]
            );
        }
    }

    fn yarn(dim: usize, theta: f64, original_context: usize) -> RotarySpec {
        let (factor, beta_fast, beta_slow, truncate) = (4.0, 32.0, 1.0, true);
        let attention_factor = 0.1 * f64::ln(factor) + 1.0;
        let scaling = RotaryScaling::Yarn {
            factor,
            original_context,
            beta_fast,
            beta_slow,
            attention_factor,
            truncate,
        };
        RotarySpec {
            dim,
            theta,
            interleaved: false,
            scaling,
        }
    }

    #[test]
    fn default_and_linear() {
        let rotary = RotarySpec {
            dim: 8,
            theta: 1e4,
            interleaved: false,
            scaling: RotaryScaling::None,
        };
        assert_near(&rotary, &[(0, 1.0), (1, 0.1), (2, 0.01), (3, 0.001)]);
        assert_eq!(rotary.attention_factor(), 1.0);
        let rotary = RotarySpec {
            scaling: RotaryScaling::Linear { factor: 4.0 },
            ..rotary
        };
        assert_near(&rotary, &[(0, 0.25), (1, 0.025), (2, 0.0025), (3, 0.00025)]);
    }

    #[test]
    fn dynamic_and_long_rope_follow_the_length() {
        let scaling = RotaryScaling::Dynamic {
            factor: 2.0,
            original_context: 2048,
        };
        let rotary = RotarySpec {
            dim: 8,
            theta: 1e4,
            interleaved: false,
            scaling,
        };
        assert_near_at(&rotary, 100, &[(0, 1.0), (1, 0.1), (2, 0.01), (3, 0.001)]);
        let grown = [
            (0, 1.0),
            (1, 0.069_336_124),
            (2, 0.004_807_498_3),
            (3, 0.000_333_333_33),
        ];
        assert_near_at(&rotary, 4096, &grown);
        let scaling = RotaryScaling::LongRope {
            short: vec![1.0, 1.1, 1.2, 1.3],
            long: vec![1.0, 2.0, 4.0, 8.0],
            original_context: 4096,
            attention_factor: 1.0,
        };
        let rotary = RotarySpec { scaling, ..rotary };
        assert_near_at(
            &rotary,
            4096,
            &[(0, 1.0), (1, 0.1 / 1.1), (2, 0.01 / 1.2), (3, 0.001 / 1.3)],
        );
        assert_near_at(
            &rotary,
            4097,
            &[(0, 1.0), (1, 0.05), (2, 0.0025), (3, 0.000_125)],
        );
        assert!(rotary.changes_between(4096, 4097) && !rotary.changes_between(4097, 5000));
    }

    #[test]
    fn yarn_matches_the_reference() {
        let small = yarn(8, 1e4, 2048);
        assert_near(
            &small,
            &[(0, 1.0), (1, 0.1), (2, 0.006_249_999_6), (3, 0.00025)],
        );
        assert!((small.attention_factor() - 1.138_629_4).abs() < 1e-6);
        let expected = [
            (23, 0.006_978_306),
            (24, 0.005_375_321_5),
            (28, 0.001_848_276_6),
            (32, 0.000_602_941_15),
            (36, 0.000_179_841_15),
            (40, 4.445_698_5e-5),
            (63, 3.102_344_4e-7),
        ];
        assert_near(&yarn(128, 1e6, 32768), &expected);
    }

    #[test]
    fn yarn_without_rounded_ends_has_a_shorter_ramp() {
        let mut rotary = yarn(128, 1e6, 32768);
        let rounded = rotary.inverse_frequencies(0);
        if let RotaryScaling::Yarn { truncate, .. } = &mut rotary.scaling {
            *truncate = false;
        }
        let exact = rotary.inverse_frequencies(0);
        assert_eq!((exact[10], exact[63]), (rounded[10], rounded[63]));
        assert!(exact[24] > rounded[24]);
    }

    #[test]
    fn llama3_matches_the_reference() {
        let scaling = RotaryScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 8192,
        };
        let expected = [
            (28, 0.003_211_446_1),
            (29, 0.002_166_570_6),
            (30, 0.001_371_893_7),
            (32, 0.000_524_846_02),
            (34, 0.000_178_507_79),
            (35, 9.556_212_2e-5),
            (36, 7.784_655_5e-5),
            (63, 3.068_925_9e-7),
        ];
        assert_near(
            &RotarySpec {
                dim: 128,
                theta: 5e5,
                interleaved: false,
                scaling,
            },
            &expected,
        );
    }
}
