//! The memory of a sequence between decoding steps: key-value caches and recurrent states, one kind for each kind of mixer.

mod rows;

use burn::tensor::{Tensor, s};

pub use rows::RowPart;

use crate::{
    Result,
    layers::cross_attention::SourceKeys,
    model::Input,
    recurrent::RecurrentState,
    rounded_cache::{CacheFormat, RoundedRows},
    spec::{BlockSpec, MixerSpec, ModelSpec},
};

/// The state of a batch of sequences that are decoded together.
///
/// ```
/// use espalier_models::{spec::ModelSpec, state::SequenceState};
/// let state = SequenceState::new(&ModelSpec::llama(64, 16, 2, 2, 1, 32, 32));
/// assert_eq!(state.length(), 0);
/// ```
#[derive(Debug, Clone)]
pub struct SequenceState {
    pub(crate) blocks: Vec<BlockState>,
    /// Tokens of the source, and the interval of real ones in each row, once it is encoded.
    pub(crate) source: Option<(usize, Vec<(u32, u32)>)>,
    /// Segment of every position seen, row by row; 0 marks padding on the left. Empty until a row is padded.
    pub(crate) segments: Vec<Vec<u32>>,
    /// Tokens of each row's prompt; padding is none of it.
    pub(crate) prompts: Vec<u32>,
    pub(crate) length: usize,
}

/// The memory of one block.
#[derive(Debug, Clone)]
pub struct BlockState {
    /// What its mixer remembers.
    pub mixer: MixerState,
    /// What its channel mixer remembers, where it looks at the token before.
    pub channel: RecurrentState,
    /// Keys and values of the source.
    pub source: Option<SourceKeys>,
}

impl BlockState {
    fn new(mixer: MixerState) -> Self {
        Self {
            mixer,
            channel: RecurrentState::default(),
            source: None,
        }
    }
}

/// The memory of one block's mixer.
#[derive(Debug, Clone)]
#[allow(
    clippy::large_enum_variant,
    reason = "there is one for each block, and none is moved about"
)]
pub enum MixerState {
    /// Keys and values of all positions so far.
    Attention(KeyValues),
    /// What does not grow.
    Recurrent(RecurrentState),
    /// That of a block through which only some tokens pass.
    Routed(RoutedState),
}

impl MixerState {
    fn new(mixer: &MixerSpec) -> Self {
        match mixer {
            MixerSpec::Attention(_)
            | MixerSpec::AttentionExperts(_)
            | MixerSpec::LatentAttention(_) => Self::Attention(KeyValues::default()),
            MixerSpec::Recurrent(_) => Self::Recurrent(RecurrentState::default()),
        }
    }

    /// The keys and values, of a mixer that has them.
    pub(crate) fn key_values(&mut self) -> Option<&mut KeyValues> {
        match self {
            Self::Attention(cache) => Some(cache),
            Self::Recurrent(_) | Self::Routed(_) => None,
        }
    }

    /// The memory that does not grow, of a mixer that has it.
    pub(crate) fn recurrent(&mut self) -> Option<&mut RecurrentState> {
        match self {
            Self::Recurrent(state) => Some(state),
            Self::Attention(_) | Self::Routed(_) => None,
        }
    }
}

/// The memory of a block through which only some tokens pass: every row has its own, as their lengths differ.
#[derive(Debug, Clone)]
pub struct RoutedState {
    /// The memory before the first token.
    pub(crate) empty: Box<BlockState>,
    /// Each row's memory, and the segments of the tokens in it.
    pub(crate) rows: Vec<(BlockState, Vec<u32>)>,
}

impl RoutedState {
    /// Tokens that each row remembers.
    pub fn lengths(&self) -> Vec<usize> {
        self.rows
            .iter()
            .map(|(_, segments)| segments.len())
            .collect()
    }
}

impl SequenceState {
    /// The state before the first token.
    pub fn new(spec: &ModelSpec) -> Self {
        let plain = |block: &BlockSpec| BlockState::new(MixerState::new(&block.mixer));
        let block = |block: &BlockSpec| match block.routing {
            None => plain(block),
            Some(_) => {
                let routed = RoutedState {
                    empty: Box::new(plain(block)),
                    rows: Vec::new(),
                };
                BlockState::new(MixerState::Routed(routed))
            }
        };
        let blocks = spec.blocks.iter().map(block).collect();
        Self {
            blocks,
            source: None,
            segments: Vec::new(),
            prompts: Vec::new(),
            length: 0,
        }
    }

    /// The same state, which remembers keys and values in this format from here on; nothing may have been remembered yet.
    #[must_use]
    pub fn in_format(mut self, format: CacheFormat) -> Self {
        for block in &mut self.blocks {
            let mixer = match &mut block.mixer {
                MixerState::Routed(routed) => &mut routed.empty.mixer,
                mixer => mixer,
            };
            if let Some(cache) = mixer.key_values() {
                cache.format = format;
            }
        }
        self
    }

    /// The state whose row `i` is this one's row `rows[i]`, for beams.
    #[must_use]
    pub fn selected(&self, rows: &[usize]) -> Self {
        let block = |block: &BlockState| BlockState {
            mixer: match &block.mixer {
                MixerState::Attention(cache) => MixerState::Attention(cache.selected(rows)),
                MixerState::Recurrent(state) => MixerState::Recurrent(state.selected(rows)),
                MixerState::Routed(state) => {
                    let picked = rows
                        .iter()
                        .filter_map(|row| state.rows.get(*row).cloned())
                        .collect();
                    MixerState::Routed(RoutedState {
                        empty: state.empty.clone(),
                        rows: picked,
                    })
                }
            },
            channel: block.channel.selected(rows),
            source: block
                .source
                .as_ref()
                .map(|keys| keys.clone().map(|x| select(x, rows))),
        };
        let source = self.source.as_ref().map(|(time, seen)| {
            let pick = |row: &usize| if seen.len() == 1 { seen[0] } else { seen[*row] };
            (*time, rows.iter().map(pick).collect())
        });
        let segments = match self.segments.is_empty() {
            true => Vec::new(),
            false => rows.iter().map(|row| self.segments[*row].clone()).collect(),
        };
        let prompts = rows
            .iter()
            .filter_map(|row| self.prompts.get(*row).copied());
        Self {
            blocks: self.blocks.iter().map(block).collect(),
            source,
            segments,
            prompts: prompts.collect(),
            length: self.length,
        }
    }

    /// Counts the new tokens; returns the segments of all positions, where any row has more than one.
    pub(crate) fn extend(&mut self, input: &Input) -> Option<Vec<u32>> {
        let (time, past) = (input.time(), self.length);
        self.note_prompts(input);
        self.length += time;
        if input.segments.is_none() && self.segments.is_empty() {
            return None;
        }
        self.segments.resize(input.batch, vec![1; past]);
        for (row, known) in self.segments.iter_mut().enumerate() {
            match &input.segments {
                Some(new) => known.extend(&new[row * time..(row + 1) * time]),
                None => known.resize(past + time, 1),
            }
        }
        Some(self.segments.concat())
    }

    /// Keeps the length of each row's prompt: what the input says of it, or what is read first.
    fn note_prompts(&mut self, input: &Input) {
        let time = input.time();
        let is_text = |token: &usize| input.segments.as_ref().is_none_or(|s| s[*token] != 0);
        let told = |prompts: &Vec<u32>| {
            let row = |row: usize| (row * time..(row + 1) * time).find(&is_text);
            (0..input.batch)
                .map(|number| row(number).map_or(0, |token| prompts[token]))
                .collect()
        };
        let whole = |row: usize| (row * time..(row + 1) * time).filter(&is_text).count() as u32;
        match &input.prompts {
            Some(prompts) => self.prompts = told(prompts),
            None if self.length == 0 => self.prompts = (0..input.batch).map(whole).collect(),
            None => {}
        }
    }

    /// Tokens of the prompt of each of so many new tokens of every row.
    pub(crate) fn prompts(&self, time: usize) -> Vec<u32> {
        let row = |prompt: &u32| std::iter::repeat_n(*prompt, time);
        self.prompts.iter().flat_map(row).collect()
    }

    /// What the two parts of a block remember, where its mixer's memory does not grow.
    pub fn recurrent(&self, block: usize) -> Option<[&RecurrentState; 2]> {
        let block = self.blocks.get(block)?;
        match &block.mixer {
            MixerState::Recurrent(mixer) => Some([mixer, &block.channel]),
            MixerState::Attention(_) | MixerState::Routed(_) => None,
        }
    }

    /// Tokens of each row that passed through a block, where it is one that tokens may skip.
    pub fn processed(&self, block: usize) -> Option<Vec<usize>> {
        match &self.blocks.get(block)?.mixer {
            MixerState::Routed(state) => Some(state.lengths()),
            MixerState::Attention(_) | MixerState::Recurrent(_) => None,
        }
    }

    /// Positions seen, padding included.
    pub fn length(&self) -> usize {
        self.length
    }
}

/// Keys and values in buffers that grow by doubling, so that appending a position does not copy the past. Latents serve as both, and lie
/// among the keys.
#[derive(Debug, Clone, Default)]
pub struct KeyValues {
    key: Option<Tensor<4>>,
    value: Option<Tensor<4>>,
    /// Keys and values in fewer bits, in the place of the two.
    rounded: Option<[RoundedRows; 2]>,
    format: CacheFormat,
    length: usize,
}

/// Rows of the first axis.
fn select(x: Tensor<4>, rows: &[usize]) -> Tensor<4> {
    Tensor::cat(
        rows.iter()
            .map(|row| x.clone().slice(s![*row..*row + 1]))
            .collect(),
        0,
    )
}

impl KeyValues {
    fn selected(&self, rows: &[usize]) -> Self {
        let pick = |buffer: &Option<Tensor<4>>| buffer.clone().map(|x| select(x, rows));
        Self {
            key: pick(&self.key),
            value: pick(&self.value),
            rounded: self
                .rounded
                .as_ref()
                .map(|parts| parts.each_ref().map(|part| part.selected(rows))),
            format: self.format,
            length: self.length,
        }
    }

    /// The keys and values of all positions so far, as far as there are any, with their names.
    pub(crate) fn seen(&self) -> Vec<(&'static str, Tensor<4>)> {
        if let Some([keys, values]) = &self.rounded {
            return vec![("keys", keys.expanded()), ("values", values.expanded())];
        }
        let view = |buffer: &Option<Tensor<4>>| Some(buffer.clone()?.slice(s![.., 0..self.length]));
        let named = [("keys", view(&self.key)), ("values", view(&self.value))];
        let held = named.into_iter();
        held.filter_map(|(name, tensor)| Some((name, tensor?)))
            .collect()
    }

    /// As many positions as `length` of a text, of what `read` gives for the names and widths, `[heads, width]`, of this one's.
    pub(crate) fn filled(
        &self,
        length: usize,
        read: impl Fn(&str, [usize; 2]) -> Result<Tensor<4>>,
    ) -> Result<Self> {
        let mut filled = Self {
            length,
            ..Self::default()
        };
        for (name, tensor) in self.seen() {
            let [_, _, heads, width] = tensor.dims();
            let buffer = match name {
                "keys" => &mut filled.key,
                _ => &mut filled.value,
            };
            *buffer = Some(read(name, [heads, width])?);
        }
        Ok(filled)
    }

    /// Positions so far.
    pub(crate) fn length(&self) -> usize {
        self.length
    }

    /// Adds new positions of what serves as keys and as values, and returns all of them: `[batch, time, 1, width]`.
    pub fn append_latents(&mut self, latents: Tensor<4>) -> Tensor<4> {
        let total = self.length + latents.dims()[1];
        let all = append(&mut self.key, latents, self.length, total);
        self.length = total;
        all
    }

    /// Adds new positions and returns all of them; both tensors are `[batch, time, kv_heads, width]`.
    pub fn append(&mut self, key: Tensor<4>, value: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
        let total = self.length + key.dims()[1];
        if let Some(format) = self.format.rounding() {
            let fresh = [&key, &value].map(|like| RoundedRows::empty(format, like));
            let [keys, values] = self.rounded.get_or_insert(fresh);
            keys.append(key, self.length);
            values.append(value, self.length);
            self.length = total;
            return (keys.expanded(), values.expanded());
        }
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
            let grown = Tensor::zeros(
                [batch, total.next_power_of_two().max(64), heads, width],
                &new.device(),
            );
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
