//! Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): keys and values are made of a narrow latent.

use serde::{Deserialize, Serialize};

use crate::spec::{NormSpec, RotaryScaling, RotarySpec};

/// Attention whose keys and values are linear maps of one latent of each token, and whose queries may be of another.
///
/// A query or key has channels without positions and, behind them, channels that rotate; those of the key are made of the
/// input itself, and all heads share them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LatentAttentionSpec {
    /// Heads, of queries as of keys and values.
    pub heads: usize,
    /// Width of the latent that queries are made of; they are made of the input where absent.
    pub query_latent: Option<usize>,
    /// Width of the latent that keys and values are made of.
    pub latent: usize,
    /// Channels without positions of a query or key.
    pub plain_dim: usize,
    /// Channels of a value.
    pub value_dim: usize,
    /// The positions of the rotating channels, all of which turn.
    pub rotary: RotarySpec,
    /// YaRN's `mscale_all_dim`: where positions are stretched by a factor, scores are multiplied by `(0.1 this ln(factor) + 1)^2`.
    pub stretch: Option<f64>,
    /// The norm over latents.
    pub norm: NormSpec,
    /// Biases on what is made of the input by way of a latent, and on the output.
    pub bias: bool,
}

impl LatentAttentionSpec {
    /// Channels of a query or key.
    pub fn key_dim(&self) -> usize {
        self.plain_dim.saturating_add(self.rotary.dim)
    }

    /// Factor on the scores.
    pub fn scale(&self) -> f64 {
        let factor = match self.rotary.scaling {
            RotaryScaling::Linear { factor }
            | RotaryScaling::Dynamic { factor, .. }
            | RotaryScaling::Llama3 { factor, .. }
            | RotaryScaling::Yarn { factor, .. } => factor,
            RotaryScaling::None | RotaryScaling::LongRope { .. } => 1.0,
        };
        let stretch = match self.stretch {
            Some(stretch) if factor > 1.0 => 0.1 * stretch * factor.ln() + 1.0,
            _ => 1.0,
        };
        (self.key_dim() as f64).powf(-0.5) * stretch * stretch
    }

    /// Numbers that are remembered of each position: the latent, and the key's rotating channels.
    pub fn remembered(&self) -> usize {
        self.latent.saturating_add(self.rotary.dim)
    }

    /// Channels of the keys and values of all heads.
    pub fn expanded(&self) -> usize {
        let head = self.key_dim().saturating_add(self.value_dim);
        self.heads.saturating_mul(head)
    }

    /// Channels of the keys and values that are made of a latent.
    pub(crate) fn key_values(&self) -> usize {
        let head = self.plain_dim.saturating_add(self.value_dim);
        self.heads.saturating_mul(head)
    }

    /// Channels of all values.
    pub(crate) fn values(&self) -> usize {
        self.heads.saturating_mul(self.value_dim)
    }

    /// Names and shapes of the parameters.
    pub(crate) fn parameters(&self, width: usize) -> Vec<(&'static str, Vec<usize>)> {
        let queries = self.heads.saturating_mul(self.key_dim());
        let latent = self.latent.saturating_add(self.rotary.dim);
        let mut list = match self.query_latent {
            Some(latent) => vec![
                ("query_latent.weight", vec![latent, width]),
                ("query_latent.bias", vec![latent]),
                ("query_norm.weight", vec![latent]),
                ("query.weight", vec![queries, latent]),
            ],
            None => vec![("query.weight", vec![queries, width])],
        };
        list.extend([
            ("latent.weight", vec![latent, width]),
            ("latent.bias", vec![latent]),
            ("latent_norm.weight", vec![self.latent]),
            ("key_value.weight", vec![self.key_values(), self.latent]),
            ("output.weight", vec![width, self.values()]),
            ("output.bias", vec![width]),
        ]);
        list.retain(|(name, _)| self.bias || !name.ends_with(".bias"));
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_stretched_with_the_positions() {
        let spec = LatentAttentionSpec {
            heads: 2,
            query_latent: None,
            latent: 4,
            plain_dim: 10,
            value_dim: 3,
            rotary: RotarySpec {
                dim: 6,
                theta: 1e4,
                interleaved: true,
                scaling: RotaryScaling::None,
            },
            stretch: Some(0.707),
            norm: NormSpec::rms(1e-6),
            bias: false,
        };
        assert_eq!(spec.scale(), 0.25);
        assert_eq!((spec.remembered(), spec.expanded()), (10, 38));
        let scaling = RotaryScaling::Yarn {
            factor: 40.0,
            original_context: 4096,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: 1.0,
            truncate: true,
        };
        let rotary = RotarySpec {
            scaling,
            ..spec.rotary.clone()
        };
        let stretched = LatentAttentionSpec { rotary, ..spec };
        // As in DeepSeek-V2: 1 + 0.0707 ln 40 is 1.260805.
        assert!((stretched.scale() - 0.25 * 1.260_805_f64.powi(2)).abs() < 1e-6);
    }
}
