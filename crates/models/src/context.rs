//! What the blocks of one forward pass share: which tokens there are, where they stand, and what may be seen.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use burn::tensor::{Device, Tensor, TensorData};
use espalier_kernels::{
    attention::{Mask, MaskSpec},
    checkpoint::Shared,
    dropout::Dropout,
    linear::Precision,
    rotary::Rotation,
};

use crate::{
    alibi::{self, KeyBias},
    spec::{AlibiForm, AlibiSpec, AttentionSpec, MixerSpec, RotarySpec},
    stack::Memory,
};

/// What the blocks of one forward pass share: what may be seen, and where the tokens stand.
#[derive(Debug, Clone)]
pub struct Context {
    /// What queries may see in this block.
    pub mask: Mask,
    /// The rotation of this block's queries and keys.
    pub rotation: Option<Rotation>,
    /// Added to this block's scores by distance, `[heads, queries + keys - 1]`.
    pub bias: Option<Tensor<2>>,
    /// Added to this block's scores by key.
    pub key_bias: Option<KeyBias>,
    /// The arithmetic of products outside linear layers.
    pub precision: Precision,
    /// Whether the model is being trained, for layers that behave differently then.
    pub training: bool,
    /// Which of the new tokens are no padding, `[batch * time]`; all of them when absent.
    pub present: Option<Arc<Vec<bool>>>,
    /// What the block sees of the encoder.
    pub memory: Option<Memory>,
    /// Dropout on what the block's parts add.
    pub dropout: Option<Dropout>,
    /// The tokens themselves.
    pub(crate) tokens: Arc<Tokens>,
}

impl Context {
    /// What the blocks of a stack see of other parts of the model: the encoder's output and the bias, flat.
    pub fn shared(&self) -> Shared {
        let hidden = self
            .memory
            .as_ref()
            .and_then(|memory| memory.hidden.clone());
        [
            hidden.map(|hidden| hidden.flatten(0, 2)),
            self.bias.clone().map(|bias| bias.flatten(0, 1)),
        ]
    }

    /// The same context with other values in place of those of [`Context::shared`].
    #[must_use]
    pub fn with_shared(&self, [hidden, bias]: Shared) -> Self {
        let mut context = self.clone();
        if let (Some(memory), Some(hidden)) = (&mut context.memory, hidden) {
            memory.hidden = memory.hidden.as_ref().map(|old| hidden.reshape(old.dims()));
        }
        if let (Some(old), Some(bias)) = (&mut context.bias, bias) {
            *old = bias.reshape(old.dims());
        }
        context
    }

    /// `x`, `[batch, time, width]`, with zeros for padding before the text, which a recurrent layer would remember.
    pub fn without_padding(&self, x: Tensor<3>) -> Tensor<3> {
        if self.tokens.has_leading_padding() {
            self.text_alone(x)
        } else {
            x
        }
    }

    /// `x`, `[batch, time, width]`, with zeros for all padding.
    pub fn text_alone(&self, x: Tensor<3>) -> Tensor<3> {
        match self.text_mask(&x) {
            Some(mask) => x * mask,
            None => x,
        }
    }

    /// As [`Context::without_padding`], with another number than zero.
    pub fn instead_of_padding(&self, x: Tensor<3>, number: f64) -> Tensor<3> {
        match self
            .text_mask(&x)
            .filter(|_| self.tokens.has_leading_padding())
        {
            Some(mask) => x * mask.clone() + (mask.neg() + 1.0) * number,
            None => x,
        }
    }

    /// 0 for padding and 1 for text, `[batch, time, 1]`, where there is padding.
    fn text_mask(&self, x: &Tensor<3>) -> Option<Tensor<3>> {
        let mask = self
            .present
            .as_ref()?
            .iter()
            .map(|present| f32::from(u8::from(*present)))
            .collect::<Vec<_>>();
        let [batch, time, _] = x.dims();
        Some(Tensor::from_data(
            TensorData::new(mask, [batch, time, 1]),
            &x.device().inner(),
        ))
    }

    /// Which of the new tokens are the first of a text, `[batch * time]`, where any are.
    pub fn starts(&self) -> Option<Vec<bool>> {
        let starts: Vec<bool> = self
            .tokens
            .positions
            .iter()
            .map(|position| *position == 0)
            .collect();
        starts.contains(&true).then_some(starts)
    }
}

/// The new tokens of a pass, and what is known of those before them.
#[derive(Debug, Clone)]
pub(crate) struct Tokens {
    pub batch: usize,
    /// New tokens of a row.
    pub time: usize,
    /// Tokens of a row that were seen before.
    pub past: usize,
    /// Position of every new token.
    pub positions: Vec<u32>,
    /// Segment of every token, earlier ones included, `[batch * (past + time)]`.
    pub segments: Option<Vec<u32>>,
    /// Length so far of the text that each new token belongs to, on which some rotations depend, `[batch * time]`.
    pub lengths: Vec<usize>,
    pub bidirectional: bool,
    pub training: bool,
    pub precision: Precision,
    pub device: Device,
}

impl Tokens {
    /// The context of blocks with this mixer.
    pub fn context(self: &Arc<Self>, mixer: &MixerSpec) -> Context {
        let (time, keys) = (self.time, self.past + self.time);
        let (rotary, window) = match mixer {
            MixerSpec::Attention(attention) => (attention.rotary.as_ref(), attention.window),
            MixerSpec::AttentionExperts(attention) => (attention.rotary.as_ref(), None),
            MixerSpec::LatentAttention(attention) => (Some(&attention.rotary), None),
            MixerSpec::Recurrent(_) => (None, None),
        };
        let (bias, key_bias) = match mixer {
            MixerSpec::Attention(AttentionSpec {
                alibi: Some(alibi),
                heads,
                kv_heads,
                ..
            }) => match *alibi {
                AlibiSpec {
                    largest,
                    form: AlibiForm::Distance,
                } => (
                    Some(alibi::bias(*heads, largest, time, keys, &self.device)),
                    None,
                ),
                AlibiSpec {
                    largest,
                    form: AlibiForm::RoundedPosition,
                } => {
                    let heads = [*heads, *kv_heads];
                    (
                        None,
                        Some(KeyBias::new(
                            heads,
                            largest,
                            &self.positions,
                            self.batch,
                            &self.device,
                        )),
                    )
                }
            },
            _ => (None, None),
        };
        Context {
            bias,
            key_bias,
            mask: match mixer {
                // Without a look at what came before, nor the cost of one.
                MixerSpec::Recurrent(_) => Tokens {
                    past: 0,
                    segments: None,
                    ..(**self).clone()
                }
                .mask(None),
                _ => self.mask(window),
            },
            rotation: rotary.map(|rotary| self.rotation(rotary)),
            precision: self.precision,
            training: self.training,
            present: self.present(),
            memory: None,
            dropout: None,
            tokens: self.clone(),
        }
    }

    fn rotation(&self, rotary: &RotarySpec) -> Rotation {
        let (factor, interleaved) = (rotary.attention_factor(), rotary.interleaved);
        let mut by_length = BTreeMap::new();
        for length in &self.lengths {
            by_length
                .entry(rotary.deciding_length(*length))
                .or_insert_with_key(|length| rotary.inverse_frequencies(*length));
        }
        let frequencies =
            |token: usize| by_length[&rotary.deciding_length(self.lengths[token])].as_slice();
        Rotation::by_token(
            &self.positions,
            self.batch,
            frequencies,
            factor,
            interleaved,
        )
    }

    fn mask(&self, window: Option<usize>) -> Mask {
        let (queries, keys, segments) =
            (self.time, self.past + self.time, self.segments.as_deref());
        match real_tokens(segments, self.batch) {
            // Padding sees the text too, as in the reference library; nobody sees padding.
            Some(seen) if self.bidirectional => Mask::both_ways(queries, keys, &seen, window),
            _ => Mask::new(MaskSpec {
                batch: self.batch,
                queries,
                keys,
                causal: !self.bidirectional,
                window,
                segments,
            }),
        }
    }

    /// Segments of a row's new tokens.
    pub fn new_segments(&self, row: usize) -> Vec<u32> {
        let (keys, past) = (self.past + self.time, self.past);
        match &self.segments {
            Some(segments) => segments[row * keys + past..(row + 1) * keys].to_vec(),
            None => vec![1; self.time],
        }
    }

    /// Whether there is padding before a text among the new tokens.
    pub fn has_leading_padding(&self) -> bool {
        self.segments.is_some()
            && (0..self.batch).any(|row| {
                self.new_segments(row)
                    .windows(2)
                    .any(|pair| pair[0] == 0 && pair[1] != 0)
            })
            || self.has_padding_alone()
    }

    /// Whether all new tokens of a row are padding.
    fn has_padding_alone(&self) -> bool {
        self.segments.is_some()
            && (0..self.batch).any(|row| self.new_segments(row).iter().all(|s| *s == 0))
    }

    pub fn present(&self) -> Option<Arc<Vec<bool>>> {
        self.segments.as_ref()?;
        let present: Vec<bool> = (0..self.batch)
            .flat_map(|row| self.new_segments(row))
            .map(|s| s != 0)
            .collect();
        present.contains(&false).then(|| Arc::new(present))
    }

    /// Some of the new tokens, by their flat indices, in rows of equal length; behind tokens with the `earlier` segments
    /// where there is one row.
    pub fn part(&self, batch: usize, ids: &[u32], earlier: &[u32]) -> Arc<Self> {
        let all: Option<Vec<u32>> = self.segments.as_ref().map(|_| {
            (0..self.batch)
                .flat_map(|row| self.new_segments(row))
                .collect()
        });
        let segment = |id: &u32| all.as_ref().map_or(1, |all| all[*id as usize]);
        let segments: Vec<u32> = earlier
            .iter()
            .copied()
            .chain(ids.iter().map(segment))
            .collect();
        Arc::new(Self {
            batch,
            time: ids.len() / batch.max(1),
            past: earlier.len(),
            positions: ids.iter().map(|id| self.positions[*id as usize]).collect(),
            lengths: ids.iter().map(|id| self.lengths[*id as usize]).collect(),
            segments: segments
                .iter()
                .any(|segment| *segment != 1)
                .then_some(segments),
            ..self.clone()
        })
    }
}

/// How long the text of each new token is so far: one more than the largest position of its segment, whatever else is in the
/// batch. `positions`: `[batch * time]`; `segments`: those of earlier tokens included, `[batch * keys]`.
pub(crate) fn text_lengths(
    positions: &[u32],
    segments: Option<&[u32]>,
    batch: usize,
) -> Vec<usize> {
    let time = (positions.len() / batch.max(1)).max(1);
    let row = |(number, positions): (usize, &[u32])| -> Vec<usize> {
        let keys = segments.map_or(0, |segments| segments.len() / batch.max(1));
        let segment = |t: usize| {
            segments.map_or(1, |segments| {
                segments[(number + 1) * keys - positions.len() + t]
            })
        };
        let mut longest: HashMap<u32, usize> = HashMap::new();
        for (t, position) in positions.iter().enumerate() {
            let length = longest.entry(segment(t)).or_default();
            *length = (*length).max(*position as usize + 1);
        }
        (0..positions.len()).map(|t| longest[&segment(t)]).collect()
    };
    positions.chunks(time).enumerate().flat_map(row).collect()
}

/// The interval of real tokens of each row, where segments tell nothing but padding (0) from one text (1).
pub(crate) fn real_tokens(segments: Option<&[u32]>, batch: usize) -> Option<Vec<(u32, u32)>> {
    let segments = segments.filter(|segments| segments.iter().all(|segment| *segment <= 1))?;
    let row = |row: &[u32]| {
        let first = row.iter().position(|segment| *segment == 1).unwrap_or(0);
        (
            first as u32,
            (first + row.iter().filter(|segment| **segment == 1).count()) as u32,
        )
    };
    Some(
        segments
            .chunks((segments.len() / batch.max(1)).max(1))
            .map(row)
            .collect(),
    )
}
