//! NEFTune: noise on the embeddings of a training pass (arXiv 2310.05914, Algorithm 1).
//!
//! To every number of a token's embedding comes one that is uniform within `alpha / sqrt(L d)`, with `L` the tokens of the token's
//! text and `d` the embedding's width. The Hugging Face trainer takes for `L` the length of the padded batch.

use std::collections::HashMap;

use burn::tensor::{Device, Tensor, TensorData};
use espalier_data::random::Random;

use crate::input::Input;

/// The noise of one pass.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EmbeddingNoise {
    /// How strong it is; the paper's are 5, 10 and 15.
    pub alpha: f64,
    /// Seed of its numbers.
    pub seed: u64,
}

impl EmbeddingNoise {
    /// The noise of a batch, `[batch, time, width]`; none on padding.
    pub(crate) fn draw(self, input: &Input, width: usize, device: &Device) -> Tensor<3> {
        let [batch, time] = [input.batch, input.time()];
        let mut random = Random::new(self.seed);
        let mut noise = Vec::with_capacity(batch * time * width);
        for length in text_lengths(input) {
            let bound = match length {
                0 => 0.0,
                _ => self.alpha / ((length * width) as f64).sqrt(),
            };
            noise.extend((0..width).map(|_| ((2.0 * random.f() - 1.0) * bound) as f32));
        }
        Tensor::from_data(TensorData::new(noise, [batch, time, width]), device)
    }
}

/// The tokens of each token's text, 0 for padding.
fn text_lengths(input: &Input) -> Vec<usize> {
    let time = input.time();
    let Some(segments) = &input.segments else {
        return vec![time; input.ids.len()];
    };
    let mut counts: HashMap<(usize, u32), usize> = HashMap::new();
    for (i, segment) in segments.iter().enumerate() {
        *counts.entry((i / time.max(1), *segment)).or_default() += 1;
    }
    let length = |(i, segment): (usize, &u32)| match segment {
        0 => 0,
        segment => counts[&(i / time.max(1), *segment)],
    };
    segments.iter().enumerate().map(length).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use espalier_kernels::readback::ReadFloats;

    #[test]
    fn the_bound_is_that_of_each_text() {
        let input = Input {
            ids: vec![7; 6],
            batch: 1,
            segments: Some(vec![1, 1, 1, 1, 2, 0]),
            ..Input::default()
        };
        assert_eq!(text_lengths(&input), [4, 4, 4, 4, 1, 0]);
        let noise = EmbeddingNoise {
            alpha: 5.0,
            seed: 3,
        };
        let width = 400;
        let drawn = noise.draw(&input, width, &Device::flex());
        let drawn = drawn.reshape([6 * width]).floats();
        let largest = |token: usize| {
            let own = drawn[token * width..(token + 1) * width].iter();
            own.fold(0f32, |most, number| most.max(number.abs()))
        };
        // 5 / sqrt(4 * 400) and 5 / sqrt(1 * 400).
        assert!(largest(0) <= 0.125 && largest(0) > 0.12);
        assert!(largest(4) <= 0.25 && largest(4) > 0.24);
        assert_eq!(largest(5), 0.0);
        let again = noise.draw(&input, width, &Device::flex());
        assert_eq!(again.reshape([6 * width]).floats(), drawn);
    }
}
