//! The specification of a model: a family is data, not code.
//!
//! A [`ModelSpec`] describes any decoder as a list of blocks; each block names its sequence mixer and its channel mixer.

pub use espalier_kernels::activation::Activation;
use serde::{Deserialize, Serialize};

/// Everything that decides a model's shape and arithmetic.
///
/// ```
/// use espalier_models::spec::ModelSpec;
/// let spec = ModelSpec::llama(512, 64, 2, 4, 2, 160, 128);
/// assert_eq!(spec.blocks.len(), 2);
/// assert!(spec.parameter_count() > 512 * 64);
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelSpec {
    /// The registered name of the family (`model_type` of `config.json`).
    pub family: String,
    /// Rows of the embedding table.
    pub vocabulary: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Longest sequence that the model was made for.
    pub context: usize,
    /// Rows of the table of learned absolute positions, where the family has one.
    pub learned_positions: Option<usize>,
    /// The blocks, first to last.
    pub blocks: Vec<BlockSpec>,
    /// The norm before the head.
    pub final_norm: NormSpec,
    /// Whether the head is the embedding table.
    pub tied_head: bool,
    /// Standard deviation of a fresh weight.
    pub initializer_range: f64,
    /// Beginning-of-sequence token.
    pub bos: Option<u32>,
    /// End-of-sequence tokens.
    pub eos: Vec<u32>,
    /// Padding token.
    pub pad: Option<u32>,
}

/// One residual block: `x += mixer(norm(x)); x += channel(norm(x))`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BlockSpec {
    /// What mixes along time.
    pub mixer: MixerSpec,
    /// The norm before the mixer.
    pub mixer_norm: NormSpec,
    /// What mixes along width.
    pub channel: ChannelSpec,
    /// The norm before the channel mixer.
    pub channel_norm: NormSpec,
}

/// What mixes along time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MixerSpec {
    /// Softmax attention.
    Attention(AttentionSpec),
}

/// Softmax attention, multi-head to multi-query.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AttentionSpec {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; query head `h` reads key head `h / (heads / kv_heads)`.
    pub kv_heads: usize,
    /// Width of one head; `heads * head_dim` need not equal the model's width.
    pub head_dim: usize,
    /// Factor on the scores.
    pub scale: f64,
    /// Rotary positions, where the family has them.
    pub rotary: Option<RotarySpec>,
    /// Each query sees this many keys, itself included; all before it when absent.
    pub window: Option<usize>,
    /// Biases on the query, key and value projections.
    pub qkv_bias: bool,
    /// A bias on the output projection.
    pub output_bias: bool,
    /// A norm over each head of queries and keys, before the rotation.
    pub qk_norm: Option<NormSpec>,
}

/// Rotary positions in the half layout of Hugging Face checkpoints: pairs `(x_i, x_{i + dim/2})`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RotarySpec {
    /// Channels of a head that rotate.
    pub dim: usize,
    /// Base of the frequencies.
    pub theta: f64,
    /// How the frequencies were changed to reach longer contexts.
    pub scaling: RotaryScaling,
}

/// Changes of the rotary frequencies.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum RotaryScaling {
    /// Frequencies as in RoFormer.
    None,
    /// Positional Interpolation: all frequencies divided by `factor`.
    Linear {
        /// New length over old length.
        factor: f64,
    },
    /// LLaMA 3.1: long wavelengths are interpolated, short ones kept.
    Llama3 {
        /// Interpolation of the long wavelengths.
        factor: f64,
        /// Where interpolation is whole.
        low_freq_factor: f64,
        /// Where interpolation begins.
        high_freq_factor: f64,
        /// Context before the extension.
        original_context: usize,
    },
    /// YaRN: a ramp between interpolation and extrapolation, and a factor on the rotated vectors.
    Yarn {
        /// New length over old length.
        factor: f64,
        /// Context before the extension.
        original_context: usize,
        /// Rotations above which a channel is left alone.
        beta_fast: f64,
        /// Rotations below which a channel is interpolated.
        beta_slow: f64,
        /// Factor on cosines and sines, already resolved from `mscale` where the file has it.
        attention_factor: f64,
        /// Whether the ramp's ends are rounded to whole channels.
        truncate: bool,
    },
}

/// What mixes along width.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChannelSpec {
    /// `down(activation(up(x)))`.
    Mlp(MlpSpec),
    /// `down(activation(gate(x)) * up(x))`.
    GatedMlp(MlpSpec),
}

/// The sizes of a feed-forward layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MlpSpec {
    /// Inner width.
    pub inner: usize,
    /// The nonlinearity.
    pub activation: Activation,
    /// Biases on all projections.
    pub bias: bool,
}

/// A norm over the width.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormSpec {
    /// `(x - mean) / sqrt(var + epsilon) * weight + bias`, biased variance.
    LayerNorm {
        /// Added to the variance.
        epsilon: f64,
    },
    /// `x / sqrt(mean(x^2) + epsilon) * weight`.
    RmsNorm {
        /// Added to the mean square.
        epsilon: f64,
    },
}
