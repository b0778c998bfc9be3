//! What a model remembers of a sequence between decoding steps, one kind of memory for each kind of mixer.

use burn::tensor::{Tensor, s};

use crate::spec::{BlockSpec, MixerSpec, ModelSpec};

/// The state of a batch of sequences that are decoded together.
///
/// ```
/// use espalier_models::{spec::ModelSpec, state::SequenceState};
/// let state = SequenceState::new(&ModelSpec::llama(64, 16, 2, 2, 1, 32, 32));
/// assert_eq!(state.length(), 0);
/// ```
#[derive(Debug, Clone)]
pub struct SequenceState {
    pub(crate) mixers: Vec<MixerState>,
    /// Segment of every position seen, row by row; 0 marks padding on the left. Empty until a row is padded.
    pub(crate) segments: Vec<Vec<u32>>,
    pub(crate) length: usize,
}

/// The memory of one block's mixer.
#[derive(Debug, Clone)]
pub enum MixerState {
    /// Keys and values of all positions so far.
    Attention(KeyValues),
    /// That of a block through which only some tokens pass.
    Routed(RoutedState),
}

impl MixerState {
    fn new(mixer: &MixerSpec) -> Self {
        match mixer {
            MixerSpec::Attention(_) | MixerSpec::AttentionExperts(_) => Self::Attention(KeyValues::default()),
        }
    }

    /// The keys and values, of a mixer that has them.
    pub(crate) fn key_values(&mut self) -> Option<&mut KeyValues> {
        match self {
            Self::Attention(cache) => Some(cache),
            Self::Routed(_) => None,
        }
    }
}

/// The memory of a block through which only some tokens pass: every row has its own, as their lengths differ.
#[derive(Debug, Clone)]
pub struct RoutedState {
    /// The memory before the first token.
    pub(crate) empty: Box<MixerState>,
    /// Each row's memory, and the segments of the tokens in it.
    pub(crate) rows: Vec<(MixerState, Vec<u32>)>,
}

impl RoutedState {
    /// Tokens that each row remembers.
    pub fn lengths(&self) -> Vec<usize> {
        self.rows.iter().map(|(_, segments)| segments.len()).collect()
    }
}

impl SequenceState {
    /// The state before the first token.
    pub fn new(spec: &ModelSpec) -> Self {
        let memory = |block: &BlockSpec| match block.routing {
            None => MixerState::new(&block.mixer),
            Some(_) => {
                MixerState::Routed(RoutedState { empty: Box::new(MixerState::new(&block.mixer)), rows: Vec::new() })
            }
        };
        Self { mixers: spec.blocks.iter().map(memory).collect(), segments: Vec::new(), length: 0 }
    }

    /// Positions seen, padding included.
    pub fn length(&self) -> usize {
        self.length
    }
}

/// Keys and values in buffers that grow by doubling, so that appending a position does not copy the past.
#[derive(Debug, Clone, Default)]
pub struct KeyValues {
    key: Option<Tensor<4>>,
    value: Option<Tensor<4>>,
    length: usize,
}

impl KeyValues {
    /// Adds new positions and returns all of them; both tensors are `[batch, time, kv_heads, head_dim]`.
    pub fn append(&mut self, key: Tensor<4>, value: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
        let total = self.length + key.dims()[1];
        let keys = append(&mut self.key, key, self.length, total);
        let values = append(&mut self.value, value, self.length, total);
        self.length = total;
        (keys, values)
    }
}

fn append(buffer: &mut Option<Tensor<4>>, new: Tensor<4>, start: usize, total: usize) -> Tensor<4> {
    let [batch, _, heads, width] = new.dims();
    let roomy = match buffer.take() {
        Some(old) if old.dims()[1] >= total => old,
        old => {
            let grown = Tensor::zeros([batch, total.next_power_of_two().max(64), heads, width], &new.device());
            match old {
                Some(old) => grown.slice_assign(s![.., 0..start], old.slice(s![.., 0..start])),
                None => grown,
            }
        }
    };
    let filled = roomy.slice_assign(s![.., start..total], new);
    let view = filled.clone().slice(s![.., 0..total]);
    *buffer = Some(filled);
    view
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    #[test]
    fn appended_positions_come_back_in_order() {
        let device = Device::flex();
        let mut cache = KeyValues::default();
        let mut expected = Vec::new();
        for step in 0..130 {
            let new = Tensor::<4>::full([1, 1, 1, 1], step as f32, &device);
            expected.push(step as f32);
            let (keys, values) = cache.append(new.clone(), new);
            assert_eq!(keys.into_data().try_to_vec::<f32>().unwrap(), expected);
            assert_eq!(values.dims()[1], step + 1);
        }
    }
}
