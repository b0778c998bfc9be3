//! The specification of a model: a family is data, not code.
//!
//! A [`ModelSpec`] describes any model as a list of blocks; each block names its sequence mixer and its channel mixer. An
//! encoder-decoder has a second list in [`EncoderSpec`].

pub use crate::recurrent::{RecurrentSpec, RwkvChannelSpec};
pub use crate::spec_embedding::{
    EmbeddingProjectionSpec, PositionSpec, ProjectionPlace, RelativePositionSpec,
};
pub use crate::spec_heads::{
    ClassifierDenseSpec, ClassifierSpec, HeadTransformSpec, Problem, Subject,
};
pub use crate::spec_latent::LatentAttentionSpec;
pub use crate::spec_routing::{
    AttentionExpertsSpec, BalanceForm, CapacitySpec, ClampedGate, DepthGate, DepthPredictor,
    DepthRouting, ExpertGroups, ExpertsSpec, MultiHeadExpertsSpec, RouterLosses, RouterScores,
    RouterSpec, SharedExpertSpec,
};
pub use espalier_kernels::activation::Activation;
pub use espalier_kernels::one_bit::WeightBits;
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
    /// The width of the embedding where it is not the model's, and what leads from one to the other.
    pub embedding_projection: Option<EmbeddingProjectionSpec>,
    /// Longest sequence that the model was made for.
    pub context: usize,
    /// Positions that are added to the embedded tokens.
    pub positions: Option<PositionSpec>,
    /// Rows of the table of token types, which is added to the embedded tokens (BERT).
    pub token_types: Option<usize>,
    /// A bias by distance that all blocks share (T5).
    pub relative: Option<RelativePositionSpec>,
    /// The blocks, first to last.
    pub blocks: Vec<BlockSpec>,
    /// The numbers of the blocks in the order in which they are run, where some are run more than once (ALBERT).
    pub block_order: Option<Vec<usize>>,
    /// The norm after the last block; post-norm models have none.
    pub final_norm: Option<NormSpec>,
    /// The encoder whose output these blocks see, which makes the model an encoder-decoder.
    pub encoder: Option<EncoderSpec>,
    /// Whether every token sees the whole text, as in encoders; such a model does not generate.
    pub bidirectional: bool,
    /// Factor on the embedded tokens.
    pub embedding_scale: f64,
    /// A norm over the embedded tokens, positions and types included.
    pub embedding_norm: Option<NormSpec>,
    /// Whether there is no head: such a model gives hidden states alone.
    pub headless: bool,
    /// A layer before the head (BERT).
    pub head_transform: Option<HeadTransformSpec>,
    /// Whether the head is the embedding table.
    pub tied_head: bool,
    /// A bias on the logits.
    pub head_bias: bool,
    /// Whether that bias is never trained (BART's `final_logits_bias`).
    pub head_bias_fixed: bool,
    /// A dense layer with tanh over the first token's hidden state (BERT).
    pub pooler: bool,
    /// Scores of classes, in place of a head.
    pub classifier: Option<ClassifierSpec>,
    /// A linear layer from the pooled state to two classes (BERT's next sentence).
    pub next_sentence: bool,
    /// Factor on the logits.
    pub logit_scale: f64,
    /// Logits `z` become `softcap * tanh(z / softcap)`, after the factor.
    pub logit_softcap: Option<f64>,
    /// What the weights of the blocks' linear maps are rounded to when they multiply, and their inputs to eight bits; nothing is when absent.
    #[serde(default)]
    pub bits: Option<WeightBits>,
    /// Losses of the blocks' routers, where they have any.
    pub router_losses: Option<RouterLosses>,
    /// In training, this times `(log Z)^2` is added to every token's loss, `Z` the sum of the logits' exponentials (PaLM).
    pub z_loss: f64,
    /// Standard deviation of a fresh weight.
    pub initializer_range: f64,
    /// Standard deviation of a fresh embedding, where it is another one (T5).
    pub embedding_range: Option<f64>,
    /// Beginning-of-sequence token.
    pub bos: Option<u32>,
    /// End-of-sequence tokens.
    pub eos: Vec<u32>,
    /// Padding token.
    pub pad: Option<u32>,
}

/// The encoder of an encoder-decoder. It shares vocabulary, width, embedding and embedding scale with the decoder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EncoderSpec {
    /// The blocks, first to last.
    pub blocks: Vec<BlockSpec>,
    /// Positions that are added to the embedded tokens.
    pub positions: Option<PositionSpec>,
    /// A bias by distance that all blocks share.
    pub relative: Option<RelativePositionSpec>,
    /// A norm over the embedded tokens.
    pub embedding_norm: Option<NormSpec>,
    /// The norm after the last block.
    pub final_norm: Option<NormSpec>,
    /// The token with which the decoder starts.
    pub decoder_start: u32,
    /// Whether the decoder is trained to start with the last token of its target instead, which names the language (mBART).
    pub starts_with_last: bool,
    /// Whether looking up the padding token trains nothing (BART and Marian, which may start the decoder with it).
    pub fixed_padding: bool,
    /// A token that generation puts first.
    pub forced_first: Option<u32>,
    /// A token that generation puts last, where it does not end before.
    pub forced_last: Option<u32>,
}

/// One residual block: a sequence mixer and a channel mixer, joined as [`Residual`] says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BlockSpec {
    /// What mixes along time.
    pub mixer: MixerSpec,
    /// The norm before the mixer, or where `residual` says; none where it reads the stream as it is.
    pub mixer_norm: Option<NormSpec>,
    /// Attention to the encoder's output, after the mixer, with its norm.
    pub cross: Option<CrossSpec>,
    /// What mixes along width.
    pub channel: ChannelSpec,
    /// The norm before the channel mixer; without one, in parallel blocks, it reads what the mixer reads.
    pub channel_norm: Option<NormSpec>,
    /// A norm over what the mixer adds.
    pub mixer_output_norm: Option<NormSpec>,
    /// A norm over what the channel mixer adds.
    pub channel_output_norm: Option<NormSpec>,
    /// How the two are joined.
    pub residual: Residual,
    /// Factor on what the two parts add (Granite).
    pub residual_scale: f64,
    /// Which tokens pass through the block; all when absent.
    pub routing: Option<DepthRouting>,
}

impl BlockSpec {
    /// The usual block: `x += mixer(norm(x)); x += channel(norm(x))`.
    pub fn sequential(mixer: MixerSpec, channel: ChannelSpec, norm: NormSpec) -> Self {
        Self {
            mixer,
            mixer_norm: Some(norm),
            cross: None,
            channel,
            channel_norm: Some(norm),
            mixer_output_norm: None,
            channel_output_norm: None,
            residual: Residual::Sequential,
            residual_scale: 1.0,
            routing: None,
        }
    }

    /// A block that is its mixer alone: `x += mixer(norm(x))`.
    pub fn mixer_alone(mixer: MixerSpec, norm: NormSpec) -> Self {
        Self {
            channel_norm: None,
            ..Self::sequential(mixer, ChannelSpec::None, norm)
        }
    }

    /// A parallel block whose two parts read the same norm: `x += mixer(norm(x)) + channel(norm(x))`.
    pub fn parallel(mixer: MixerSpec, channel: ChannelSpec, norm: NormSpec) -> Self {
        Self {
            channel_norm: None,
            residual: Residual::Parallel,
            ..Self::sequential(mixer, channel, norm)
        }
    }

    /// The block of the first Transformer, with norms over the sums: `x = norm(x + mixer(x)); x = norm(x + channel(x))`.
    pub fn post_norm(mixer: MixerSpec, channel: ChannelSpec, norm: NormSpec) -> Self {
        Self {
            residual: Residual::PostNorm,
            ..Self::sequential(mixer, channel, norm)
        }
    }

    /// A block whose norms the stream itself passes: `x = norm(x); x += mixer(x); x = norm(x); x += channel(x)`.
    pub fn normed_stream(mixer: MixerSpec, channel: ChannelSpec, norm: NormSpec) -> Self {
        Self {
            residual: Residual::NormedStream,
            ..Self::sequential(mixer, channel, norm)
        }
    }

    /// A block with norms over what its parts add, and none before them: `x += norm(mixer(x)); x += norm(channel(x))`.
    pub fn output_norm(mixer: MixerSpec, channel: ChannelSpec, norm: NormSpec) -> Self {
        Self {
            residual: Residual::OutputNorm,
            ..Self::sequential(mixer, channel, norm)
        }
    }
}

/// Attention to the encoder's output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CrossSpec {
    /// The attention; it has no positions and no windows.
    pub attention: AttentionSpec,
    /// Its norm, which stands where the block's other norms do.
    pub norm: NormSpec,
}

/// How the two parts of a block are joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Residual {
    /// One after the other: `x += mixer(norm(x)); x += channel(norm(x))`.
    Sequential,
    /// Side by side: `x += mixer(norm(x)) + channel(norm(x))`.
    Parallel,
    /// With norms over the sums: `x = norm(x + mixer(x)); x = norm(x + channel(x))`.
    PostNorm,
    /// With norms through which the stream itself passes: `x = norm(x); x += mixer(x); x = norm(x); x += channel(x)` (BLOOM's other form).
    NormedStream,
    /// With norms over what is added alone: `x += norm(mixer(x)); x += norm(channel(x))` (OLMo 2).
    OutputNorm,
}

/// What mixes along time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MixerSpec {
    /// Softmax attention.
    Attention(AttentionSpec),
    /// Softmax attention whose queries and outputs are experts.
    AttentionExperts(AttentionExpertsSpec),
    /// Softmax attention whose keys and values are made of a latent.
    LatentAttention(LatentAttentionSpec),
    /// A memory that does not grow.
    Recurrent(RecurrentSpec),
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
    /// ALiBi (arXiv 2108.12409), where the family has it.
    pub alibi: Option<AlibiSpec>,
    /// Scores `s` become `softcap * tanh(s / softcap)`.
    pub softcap: Option<f64>,
    /// Each query sees this many keys, itself included; all before it when absent.
    pub window: Option<usize>,
    /// Biases on the query, key and value projections.
    pub qkv_bias: bool,
    /// A bias on the output projection.
    pub output_bias: bool,
    /// Queries, keys and values are cut off at this and minus this, after their norms (OLMo).
    pub clip: Option<f64>,
    /// A norm over queries and keys, before the rotation.
    pub qk_norm: Option<NormSpec>,
    /// What that norm runs over.
    pub qk_norm_extent: NormExtent,
    /// Whether each head has a score of its own that takes its share of the softmax and adds no value (gpt-oss).
    pub sinks: bool,
    /// A norm over all heads' mixed values together, which the output projection reads (BitNet).
    #[serde(default)]
    pub sub_norm: Option<NormSpec>,
}

/// What a norm of queries or keys runs over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormExtent {
    /// Each head, all with one weight, `[head_dim]`.
    Head,
    /// Each head, with a weight of its own, `[heads, head_dim]`, and no bias (Cohere).
    OwnHead,
    /// All heads together, `[heads * head_dim]` (OLMo 2).
    AllHeads,
}

impl AttentionSpec {
    /// Attention without positions, biases, norms or windows, its scores divided by the root of the head's width.
    pub fn plain(heads: usize, kv_heads: usize, head_dim: usize) -> Self {
        Self {
            heads,
            kv_heads,
            head_dim,
            scale: (head_dim as f64).powf(-0.5),
            rotary: None,
            alibi: None,
            softcap: None,
            window: None,
            qkv_bias: false,
            output_bias: false,
            clip: None,
            qk_norm: None,
            qk_norm_extent: NormExtent::Head,
            sinks: false,
            sub_norm: None,
        }
    }

    /// Channels of a head that are remembered of each position, for keys and for values.
    pub fn remembered_width(&self) -> usize {
        let key_bias = self
            .alibi
            .is_some_and(|alibi| alibi.form == AlibiForm::RoundedPosition);
        self.head_dim
            + if key_bias {
                self.heads / self.kv_heads.max(1)
            } else {
                0
            }
    }
}

/// Scores that fall with the distance.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct AlibiSpec {
    /// The slopes run down to `2^-this`.
    pub largest: f64,
    /// What is added.
    pub form: AlibiForm,
}

/// What ALiBi adds to the scores: the same up to a constant of each query, but for rounding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AlibiForm {
    /// The distance times the slope, after the scores' factor (the paper, BLOOM, MPT).
    Distance,
    /// The key's position times the slope, rounded to bf16, before the scores' factor (Falcon).
    RoundedPosition,
}

/// Rotary positions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RotarySpec {
    /// Channels of a head that rotate.
    pub dim: usize,
    /// Base of the frequencies.
    pub theta: f64,
    /// Whether channels `(x_2i, x_2i+1)` turn together (GPT-J), rather than `(x_i, x_i+dim/2)` as in most checkpoints.
    pub interleaved: bool,
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
    /// Dynamic NTK: beyond the original context the base grows with the sequence.
    Dynamic {
        /// How far the base reaches.
        factor: f64,
        /// Context before the extension.
        original_context: usize,
    },
    /// LongRoPE (arXiv 2402.13753): a divisor for every channel pair, one list for short sequences and one for long ones.
    LongRope {
        /// Divisors up to the original context.
        short: Vec<f64>,
        /// Divisors beyond it.
        long: Vec<f64>,
        /// Context before the extension.
        original_context: usize,
        /// Factor on cosines and sines, with both lists.
        attention_factor: f64,
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
    /// A few of many such layers for each token.
    SparseExperts(ExpertsSpec),
    /// A few of many such layers for each part of a token.
    MultiHeadExperts(MultiHeadExpertsSpec),
    /// RWKV's feed-forward layer, which sees the token before.
    Rwkv(RwkvChannelSpec),
    /// Nothing: such a block is its mixer alone (Mamba).
    None,
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
    /// A norm over the inner width, which the last projection reads (BitNet).
    #[serde(default)]
    pub sub_norm: Option<NormSpec>,
}

/// A norm over the width.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormSpec {
    /// `(x - mean) / sqrt(var + epsilon) * weight + bias`, biased variance.
    LayerNorm {
        /// Added to the variance.
        epsilon: f64,
        /// Whether there is a bias.
        bias: bool,
        /// Whether the weight is stored as its distance from one (Nemotron).
        from_one: bool,
    },
    /// `(x - mean) / sqrt(var + epsilon)`, without parameters (OLMo).
    Standardised {
        /// Added to the variance.
        epsilon: f64,
    },
    /// `x / sqrt(mean(x^2) + epsilon) * weight`.
    RmsNorm {
        /// Added to the mean square.
        epsilon: f64,
        /// Whether the weight is stored as its distance from one (Gemma).
        from_one: bool,
    },
    /// `x / sqrt(mean(x^2) + epsilon)`, without parameters (Falcon-Mamba).
    Scaled {
        /// Added to the mean square.
        epsilon: f64,
    },
}

impl NormSpec {
    /// LayerNorm with a bias.
    pub fn layer(epsilon: f64) -> Self {
        Self::LayerNorm {
            epsilon,
            bias: true,
            from_one: false,
        }
    }

    /// LayerNorm without a bias.
    pub fn layer_without_bias(epsilon: f64) -> Self {
        Self::LayerNorm {
            epsilon,
            bias: false,
            from_one: false,
        }
    }

    /// RMSNorm.
    pub fn rms(epsilon: f64) -> Self {
        Self::RmsNorm {
            epsilon,
            from_one: false,
        }
    }

    /// What is added to the variance or mean square.
    pub fn epsilon(self) -> f64 {
        match self {
            Self::LayerNorm { epsilon, .. }
            | Self::RmsNorm { epsilon, .. }
            | Self::Standardised { epsilon }
            | Self::Scaled { epsilon } => epsilon,
        }
    }

    /// Whether there is a weight.
    pub fn has_weight(self) -> bool {
        !matches!(self, Self::Standardised { .. } | Self::Scaled { .. })
    }

    /// Whether there is a bias.
    pub fn has_bias(self) -> bool {
        matches!(self, Self::LayerNorm { bias: true, .. })
    }
}
