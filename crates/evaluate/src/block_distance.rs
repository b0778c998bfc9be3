//! How much blocks change the stream: what can be left out.
//!
//! The angular distance of "The Unreasonable Ineffectiveness of the Deeper Layers" (arXiv 2403.17887, equation 7) at the last token of each
//! text, `d(l, l + n) = arccos(cos(x_l, x_{l+n})) / pi` between what block `l` and block `l + n` are given, and the block
//! influence of ShortGPT (arXiv 2403.03853, equation 1), one minus the mean cosine at all tokens between what a block is given and what it gives.
//! The last norm is not part of it. At the first token alone both deceive: its norm is huge and its direction fixed.

use burn::tensor::Tensor;
use espalier_models::{
    model::{Input, LanguageModel},
    taps::{Flow, Site},
};

use crate::Result;

/// What was measured over some texts.
///
/// ```
/// use espalier_evaluate::block_distance::angular_distance;
/// assert!((angular_distance(&[1.0, 0.0], &[1.0, 1.0]) - 0.25).abs() < 1e-7);
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct BlockDistances {
    /// `angular[n - 1][l]` is the mean angular distance between what blocks `l` and `l + n` are given, in half turns.
    pub angular: Vec<Vec<f64>>,
    /// The influence of each block.
    pub influence: Vec<f64>,
    /// How many texts were read.
    pub texts: usize,
}

/// Reads the texts and measures all blocks; `progress` hears how many are done.
///
/// # Errors
/// When there are no texts, one is empty, or a token id is outside the vocabulary.
pub fn block_distances(
    model: &LanguageModel,
    texts: &[Vec<u32>],
    progress: &mut dyn FnMut(usize),
) -> Result<BlockDistances> {
    let model = model.frozen();
    let blocks = model.spec().blocks.len();
    let mut sums = BlockDistances {
        angular: (1..=blocks).map(|n| vec![0.0; blocks + 1 - n]).collect(),
        influence: vec![0.0; blocks],
        texts: texts.len(),
    };
    let mut tokens = 0;
    for (number, text) in texts.iter().enumerate() {
        let states = states(&model, text)?;
        let width = states[0].len() / text.len();
        let last = |state: &Vec<f32>| state[state.len() - width..].to_vec();
        let last: Vec<Vec<f32>> = states.iter().map(last).collect();
        for (n, row) in sums.angular.iter_mut().enumerate() {
            for (l, sum) in row.iter_mut().enumerate() {
                *sum += angular_distance(&last[l], &last[l + n + 1]);
            }
        }
        for (block, sum) in sums.influence.iter_mut().enumerate() {
            let [before, after] = [block, block + 1].map(|site| states[site].chunks(width));
            *sum += before
                .zip(after)
                .map(|(a, b)| 1.0 - cosine(a, b))
                .sum::<f64>();
        }
        tokens += text.len();
        progress(number + 1);
    }
    let (texts, tokens) = (texts.len().max(1) as f64, tokens.max(1) as f64);
    sums.angular
        .iter_mut()
        .flatten()
        .for_each(|sum| *sum /= texts);
    sums.influence.iter_mut().for_each(|sum| *sum /= tokens);
    Ok(sums)
}

/// What every block is given, and what the last one gives: `[time * width]` each.
fn states(model: &LanguageModel, text: &[u32]) -> Result<Vec<Vec<f32>>> {
    let mut states = Vec::new();
    let mut observer = |_: Site, hidden: Tensor<3>| {
        states.push(hidden.clone());
        Flow::Continue(hidden)
    };
    let input = Input::rows(&[text.to_vec()])?;
    model.hidden_observed(&input, None, &mut observer)?;
    Ok(states.into_iter().map(floats).collect())
}

fn floats(tensor: Tensor<3>) -> Vec<f32> {
    tensor
        .into_data()
        .convert::<f32>()
        .try_into_vec()
        .unwrap_or_default()
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        let products = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b));
        products.sum()
    };
    let lengths = (dot(a, a) * dot(b, b)).sqrt();
    match lengths > 0.0 {
        true => (dot(a, b) / lengths).clamp(-1.0, 1.0),
        // A stream of zeros has no direction: what leaves it alone is no change.
        false => f64::from(u8::from(a == b)),
    }
}

/// The angle between two vectors in half turns, from 0 to 1.
pub fn angular_distance(a: &[f32], b: &[f32]) -> f64 {
    cosine(a, b).acos() / std::f64::consts::PI
}

impl BlockDistances {
    /// The first of `count` blocks that lie one behind the other and change the stream least, and how far they turn it.
    pub fn closest(&self, count: usize) -> Option<(usize, f64)> {
        let row = self.angular.get(count.checked_sub(1)?)?;
        let places = row.iter().copied().enumerate();
        places.min_by(|(_, a), (_, b)| a.total_cmp(b))
    }

    /// The `count` blocks with the least influence, by number.
    pub fn least_influential(&self, count: usize) -> Vec<usize> {
        let mut blocks: Vec<usize> = (0..self.influence.len()).collect();
        blocks.sort_by(|a, b| self.influence[*a].total_cmp(&self.influence[*b]));
        blocks.truncate(count);
        blocks.sort_unstable();
        blocks
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;
    use espalier_models::{depth::with_blocks, expansion::expanded, source::Seed, spec::ModelSpec};

    #[test]
    fn angles_are_half_turns() {
        for (a, b, distance) in [
            (&[1.0, 0.0][..], &[1.0, 1.0][..], 0.25),
            (&[1.0, 0.0], &[0.0, 3.0], 0.5),
            (&[1.0, 0.0], &[-2.0, 0.0], 1.0),
            (&[1.0, 2.0, 3.0], &[2.0, 1.0, 0.5], 0.278_299),
            (&[0.0, 0.0], &[0.0, 0.0], 0.0),
        ] {
            assert!((angular_distance(a, b) - distance).abs() < 1e-6, "{a:?}");
        }
    }

    #[test]
    fn the_closest_blocks_of_a_path_are_found() {
        let path: [[f32; 2]; 6] = [
            [1.0, 0.0],
            [1.0, 0.2],
            [0.9, 0.6],
            [0.85, 0.65],
            [0.8, 0.7],
            [0.0, 1.0],
        ];
        let row = |n: usize| {
            let pairs = (0..path.len() - n).map(|l| angular_distance(&path[l], &path[l + n]));
            pairs.collect::<Vec<_>>()
        };
        let distances = BlockDistances {
            angular: (1..6).map(row).collect(),
            influence: vec![0.3, 0.1, 0.2],
            texts: 1,
        };
        let expected = [
            &[0.06283, 0.12433, 0.02064, 0.02100, 0.27119][..],
            &[0.18717, 0.14497, 0.04164, 0.29219],
            &[0.20781, 0.16598, 0.31283],
        ];
        for ((row, expected), best) in distances.angular.iter().zip(expected).zip([2, 2, 1]) {
            let gap = row.iter().zip(expected).map(|(a, b)| (a - b).abs());
            assert!(gap.fold(0.0, f64::max) < 1e-5, "{row:?}");
            let count = path.len() - row.len();
            assert_eq!(distances.closest(count).unwrap().0, best);
        }
        assert_eq!(distances.closest(0), None);
        assert_eq!(distances.closest(9), None);
        assert_eq!(distances.least_influential(2), [1, 2]);
    }

    #[test]
    fn a_block_that_computes_nothing_is_found_and_nobody_misses_it() {
        let spec = ModelSpec::llama(61, 16, 4, 2, 1, 32, 32);
        let base = LanguageModel::build(spec, &mut Seed(1), &Device::flex()).unwrap();
        // Its blocks 2 and 5 compute nothing.
        let model = expanded(&base, 2).unwrap();
        let texts = [vec![5, 9, 2, 7, 1], vec![3, 3, 8]];
        let found = block_distances(&model, &texts, &mut |_| {}).unwrap();
        let (block, distance) = found.closest(1).unwrap();
        assert_eq!((block, distance < 1e-7), (2, true));
        assert_eq!(found.least_influential(2), [2, 5]);
        let pruned = with_blocks(&model, &[0, 1, 3, 4]).unwrap();
        let logits = |model: &LanguageModel| {
            let logits = model
                .logits(&Input::rows(&[texts[0].clone()]).unwrap())
                .unwrap();
            logits.into_data().try_into_vec::<f32>().unwrap()
        };
        assert_eq!(logits(&pruned), logits(&base));
    }
}
