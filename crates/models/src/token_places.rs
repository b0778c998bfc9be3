//! Where the new tokens of a pass stand in their texts, whatever rows, padding, packing and caches make of them.

use burn::tensor::{Device, IndexingUpdateOp, Int, Tensor, TensorData};
use espalier_kernels::embedding::embedding;

use crate::context::Tokens;

/// Where one token stands.
///
/// ```
/// use espalier_models::token_places::Place;
/// let is_chosen = |index| Place { index, prompt: 5 }.is_at_end_of_prompt(1, 2);
/// assert_eq!([0, 1, 2, 3, 4, 5].map(is_chosen), [true, false, false, true, true, false]);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Tokens of its text before it, padding aside.
    pub index: usize,
    /// Tokens of its text's prompt. What is generated, or learned as an answer, stands behind the prompt.
    pub prompt: usize,
}

impl Place {
    /// Whether it is one of the `first` or one of the `last` tokens of the prompt.
    pub fn is_at_end_of_prompt(self, first: usize, last: usize) -> bool {
        let is_last = self.index + last >= self.prompt;
        self.index < self.prompt && (self.index < first || is_last)
    }
}

/// The places of all new tokens of a pass.
#[derive(Debug, Clone)]
pub struct TokenPlaces {
    places: Vec<Option<Place>>,
    device: Device,
}

impl TokenPlaces {
    /// The places of `tokens`; `prompts` is the length of the prompt of each new token's text, `[batch * time]`, where it is
    /// not the whole text.
    pub(crate) fn new(tokens: &Tokens, prompts: Option<&[u32]>) -> Self {
        let keys = tokens.past + tokens.time;
        let row = |row: usize| {
            let segments = match &tokens.segments {
                Some(segments) => segments[row * keys..(row + 1) * keys].to_vec(),
                None => vec![1; keys],
            };
            places(&segments).split_off(tokens.past)
        };
        let mut places: Vec<_> = (0..tokens.batch).flat_map(row).collect();
        for (place, prompt) in places.iter_mut().zip(prompts.unwrap_or_default()) {
            if let Some(place) = place {
                place.prompt = *prompt as usize;
            }
        }
        Self {
            places,
            device: tokens.device.clone(),
        }
    }

    /// The place of every new token, `[batch * time]`; padding has none.
    pub fn places(&self) -> &[Option<Place>] {
        &self.places
    }

    /// The flat indices of the `first` and `last` tokens of each prompt among the new tokens.
    pub fn ends_of_prompts(&self, first: usize, last: usize) -> Vec<u32> {
        self.chosen(&|place| place.is_at_end_of_prompt(first, last))
    }

    /// The flat indices of the new tokens whose place is accepted.
    pub fn chosen(&self, accepts: &dyn Fn(Place) -> bool) -> Vec<u32> {
        (0..)
            .zip(&self.places)
            .filter(|(_, place)| place.is_some_and(accepts))
            .map(|(index, _)| index)
            .collect()
    }

    /// `hidden`, `[batch, time, width]`, with `change` added to the tokens of these flat indices. `change` gets their hidden
    /// states, `[indices, width]`, and returns as much.
    pub fn added(
        &self,
        hidden: Tensor<3>,
        indices: &[u32],
        change: impl FnOnce(Tensor<2>) -> Tensor<2>,
    ) -> Tensor<3> {
        if indices.is_empty() {
            return hidden;
        }
        let [batch, time, width] = hidden.dims();
        let rows = hidden.reshape([batch * time, width]);
        let addition = change(embedding(rows.clone(), indices));
        let numbers: Vec<i32> = indices.iter().map(|index| *index as i32).collect();
        let numbers = Tensor::<1, Int>::from_data(
            TensorData::new(numbers, [indices.len()]),
            &self.device.clone().inner(),
        );
        rows.select_assign(0, numbers, addition, IndexingUpdateOp::Add)
            .reshape([batch, time, width])
    }
}

/// The places of a whole row of tokens with these segments, every text being a prompt.
fn places(segments: &[u32]) -> Vec<Option<Place>> {
    let text = |run: &[u32]| -> Vec<Option<Place>> {
        let place = |index| Place {
            index,
            prompt: run.len(),
        };
        (0..run.len())
            .map(|index| (run[0] != 0).then(|| place(index)))
            .collect()
    };
    segments.chunk_by(|a, b| a == b).flat_map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_has_no_place_and_each_text_counts_for_itself() {
        let found = places(&[0, 1, 1, 2, 0]);
        let place = |index, prompt| Some(Place { index, prompt });
        assert_eq!(found, [None, place(0, 2), place(1, 2), place(0, 1), None]);
    }

    #[test]
    fn the_ends_of_a_prompt_may_overlap_and_answers_stand_behind_it() {
        let ends = |prompt, first, last| {
            let place = |index| Place { index, prompt };
            (0..6)
                .filter(|index| place(*index).is_at_end_of_prompt(first, last))
                .collect::<Vec<_>>()
        };
        assert_eq!(ends(5, 2, 1), [0, 1, 4]);
        assert_eq!(ends(2, 2, 2), [0, 1]);
        assert_eq!(ends(4, 0, 0), [0; 0]);
        assert_eq!(ends(3, 9, 0), [0, 1, 2]);
    }
}
