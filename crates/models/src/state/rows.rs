//! Rows of sequence states that come together, leave and are replaced while others go on, for continuous batching.
//!
//! Rows of a batch end together, so shorter ones stand behind padding. What is moved are the tokens themselves; padding is made anew.

use burn::tensor::{Tensor, s};

use super::{BlockState, KeyValues, MixerState, RoutedState, SequenceState};
use crate::recurrent::RecurrentState;

/// The first tokens of a row of a state.
#[derive(Debug, Clone, Copy)]
pub struct RowPart<'a> {
    /// The state.
    pub state: &'a SequenceState,
    /// The row.
    pub row: usize,
    /// How many of its tokens, which is all of them where the state does not [keep every token](SequenceState::keeps_every_token).
    pub tokens: usize,
}

impl<'a> RowPart<'a> {
    /// A row as a whole.
    pub fn whole(state: &'a SequenceState, row: usize) -> Self {
        Self {
            state,
            row,
            tokens: state.row_length(row),
        }
    }

    /// Where its tokens lie among the state's positions.
    fn places(&self) -> std::ops::Range<usize> {
        let start = self.state.length - self.state.row_length(self.row);
        start..start + self.tokens
    }
}

impl SequenceState {
    /// Tokens of a row, without the padding before them.
    pub fn row_length(&self, row: usize) -> usize {
        let padding = self.segments.get(row).map_or(0, |segments| {
            segments.iter().take_while(|s| **s == 0).count()
        });
        self.length - padding
    }

    /// Whether what was read can be cut off at any token: keys and values can, a recurrent state cannot.
    pub fn keeps_every_token(&self) -> bool {
        self.blocks.iter().all(|block| {
            matches!(block.mixer, MixerState::Attention(_)) && block.channel.is_empty()
        })
    }

    /// Bytes of all tensors, room for later tokens included.
    pub fn bytes(&self) -> u64 {
        self.blocks.iter().map(BlockState::bytes).sum()
    }

    /// Positions for which there is room without growing; the length where nothing grows.
    pub fn room(&self) -> usize {
        let caches = self.blocks.iter().filter_map(|block| match &block.mixer {
            MixerState::Attention(cache) => cache.key.as_ref().map(|key| key.dims()[1]),
            _ => None,
        });
        caches.min().unwrap_or(usize::MAX)
    }

    /// A batch of these rows of decoders' states, with room for `room` positions or as many as they have.
    ///
    /// ```
    /// use burn::tensor::Device;
    /// use espalier_models::{model::{Input, LanguageModel}, source::Seed, spec::ModelSpec, state::{RowPart, SequenceState}};
    /// let model = LanguageModel::build(ModelSpec::llama(64, 16, 2, 2, 1, 32, 32), &mut Seed(0), &Device::flex())?;
    /// let read = |ids: Vec<u32>| -> Result<SequenceState, espalier_models::Error> {
    ///     let mut state = SequenceState::new(model.spec());
    ///     model.hidden(&Input::rows(&[ids])?, Some(&mut state))?;
    ///     Ok(state)
    /// };
    /// let (one, two) = (read(vec![1, 2, 3])?, read(vec![4])?);
    /// let both = SequenceState::gathered(&[RowPart::whole(&one, 0), RowPart::whole(&two, 0)], 64);
    /// assert_eq!((both.length(), both.row_length(1)), (3, 1));
    /// # Ok::<(), espalier_models::Error>(())
    /// ```
    #[must_use]
    pub fn gathered(rows: &[RowPart], room: usize) -> Self {
        let length = rows.iter().map(|part| part.tokens).max().unwrap_or(0);
        let count = rows.first().map_or(0, |part| part.state.blocks.len());
        let segments = |part: &RowPart| segments(length, part.tokens);
        let uneven = rows.iter().any(|part| part.tokens < length);
        let prompt = |part: &RowPart| part.state.prompts.get(part.row).copied().unwrap_or(0);
        Self {
            blocks: (0..count)
                .map(|block| gathered_block(rows, block, [length, room.max(length)]))
                .collect(),
            source: None,
            segments: match uneven {
                true => rows.iter().map(segments).collect(),
                false => Vec::new(),
            },
            prompts: rows.iter().map(prompt).collect(),
            length,
        }
    }

    /// Puts another row in the place of this batch's row `place`; it must not have more tokens than this batch has positions.
    pub fn replace(&mut self, place: usize, part: &RowPart) {
        let length = self.length;
        for (own, other) in self.blocks.iter_mut().zip(&part.state.blocks) {
            match (&mut own.mixer, &other.mixer) {
                (MixerState::Attention(own), MixerState::Attention(other)) => {
                    own.put(place, length, other, part);
                }
                (MixerState::Recurrent(own), MixerState::Recurrent(other)) => {
                    put(own, place, other, part.row);
                }
                (MixerState::Routed(own), MixerState::Routed(other)) => {
                    if let (Some(own), Some(other)) =
                        (own.rows.get_mut(place), other.rows.get(part.row))
                    {
                        *own = other.clone();
                    }
                }
                _ => {}
            }
            put(&mut own.channel, place, &other.channel, part.row);
        }
        if part.tokens < length && self.segments.is_empty() {
            self.segments = vec![vec![1; length]; self.prompts.len()];
        }
        if let Some(own) = self.segments.get_mut(place) {
            *own = segments(length, part.tokens);
        }
        if let (Some(own), Some(other)) = (
            self.prompts.get_mut(place),
            part.state.prompts.get(part.row),
        ) {
            *own = *other;
        }
    }
}

/// Segments of a row of so many positions whose last `tokens` are text.
fn segments(length: usize, tokens: usize) -> Vec<u32> {
    let mut segments = vec![0; length - tokens];
    segments.resize(length, 1);
    segments
}

fn gathered_block(rows: &[RowPart], block: usize, sizes: [usize; 2]) -> BlockState {
    let mixers = || {
        rows.iter()
            .map(|row| (&row.state.blocks[block].mixer, row.row))
    };
    let mixer = match &rows[0].state.blocks[block].mixer {
        MixerState::Attention(_) => {
            let caches = mixers().map(|(mixer, _)| match mixer {
                MixerState::Attention(cache) => Some(cache),
                MixerState::Recurrent(_) | MixerState::Routed(_) => None,
            });
            MixerState::Attention(gathered_cache(rows, &caches.collect::<Vec<_>>(), sizes))
        }
        MixerState::Recurrent(_) => {
            let states = mixers().filter_map(|(mixer, row)| match mixer {
                MixerState::Recurrent(state) => Some((state, row)),
                MixerState::Attention(_) | MixerState::Routed(_) => None,
            });
            MixerState::Recurrent(gathered_state(&states.collect::<Vec<_>>()))
        }
        MixerState::Routed(routed) => {
            let rows = mixers().filter_map(|(mixer, row)| match mixer {
                MixerState::Routed(other) => other.rows.get(row).cloned(),
                MixerState::Attention(_) | MixerState::Recurrent(_) => None,
            });
            MixerState::Routed(RoutedState {
                empty: routed.empty.clone(),
                rows: rows.collect(),
            })
        }
    };
    let channels: Vec<_> = rows
        .iter()
        .map(|row| (&row.state.blocks[block].channel, row.row))
        .collect();
    BlockState {
        mixer,
        channel: gathered_state(&channels),
        source: None,
    }
}

/// Keys and values of rows, behind padding up to the length of `[length, room]`.
fn gathered_cache(
    rows: &[RowPart],
    caches: &[Option<&KeyValues>],
    [length, room]: [usize; 2],
) -> KeyValues {
    let gather = |buffer: fn(&KeyValues) -> Option<&Tensor<4>>| {
        let first = buffer((*caches.first()?)?)?;
        let [_, _, heads, width] = first.dims();
        let mut all = Tensor::zeros([rows.len(), room, heads, width], &first.device());
        for (place, (row, cache)) in rows.iter().zip(caches).enumerate() {
            let Some(source) = cache.and_then(buffer) else {
                continue;
            };
            let tokens = source.clone().slice(s![row.row..row.row + 1, row.places()]);
            all = all.slice_assign(s![place..place + 1, length - row.tokens..length], tokens);
        }
        Some(all)
    };
    KeyValues {
        key: gather(|cache| cache.key.as_ref()),
        value: gather(|cache| cache.value.as_ref()),
        length,
        // States that rows join and leave remember in f32.
        ..KeyValues::default()
    }
}

impl KeyValues {
    /// Puts the keys and values of a part of another's row where this one's row ends, at `length`.
    fn put(&mut self, place: usize, length: usize, other: &Self, part: &RowPart) {
        let put = |own: &mut Option<Tensor<4>>, other: &Option<Tensor<4>>| {
            if let (Some(old), Some(other)) = (own.take(), other) {
                let tokens = other
                    .clone()
                    .slice(s![part.row..part.row + 1, part.places()]);
                let start = length - part.tokens;
                *own = Some(old.slice_assign(s![place..place + 1, start..length], tokens));
            }
        };
        put(&mut self.key, &other.key);
        put(&mut self.value, &other.value);
    }

    fn bytes(&self) -> u64 {
        let buffers = [&self.key, &self.value].into_iter().flatten();
        buffers
            .map(|x| x.dims().iter().product::<usize>() as u64 * 4)
            .sum()
    }
}

/// A batch of rows of states that do not grow.
fn gathered_state(rows: &[(&RecurrentState, usize)]) -> RecurrentState {
    let mut gathered = RecurrentState::default();
    let Some((first, _)) = rows.first() else {
        return gathered;
    };
    for (number, (name, _)) in first.parts().enumerate() {
        let row = |(state, row): &(&RecurrentState, usize)| {
            let (_, part) = state.parts().nth(number)?;
            Some(part.clone().slice(s![*row..*row + 1]))
        };
        gathered.set(name, Tensor::cat(rows.iter().filter_map(row).collect(), 0));
    }
    gathered
}

/// Puts a row of a state in the place of another's.
fn put(own: &mut RecurrentState, place: usize, other: &RecurrentState, row: usize) {
    let names: Vec<String> = own.parts().map(|(name, _)| name.to_owned()).collect();
    for (number, name) in names.iter().enumerate() {
        let (Some((_, old)), Some((_, new))) = (own.parts().nth(number), other.parts().nth(number))
        else {
            continue;
        };
        let new = new.clone().slice(s![row..row + 1]);
        let part = old.clone().slice_assign(s![place..place + 1], new);
        own.set(name, part);
    }
}

impl BlockState {
    fn bytes(&self) -> u64 {
        let small = |state: &RecurrentState| -> u64 {
            let size = |(_, part): (&str, &Tensor<2>)| part.dims().iter().product::<usize>();
            state.parts().map(size).sum::<usize>() as u64 * 4
        };
        let mixer = match &self.mixer {
            MixerState::Attention(cache) => cache.bytes(),
            MixerState::Recurrent(state) => small(state),
            MixerState::Routed(routed) => routed.rows.iter().map(|(row, _)| row.bytes()).sum(),
        };
        mixer + small(&self.channel)
    }
}
