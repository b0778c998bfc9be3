//! The order of the data: a function of seed and step alone, so that a resumed run needs no memory of it.
//!
//! A pass over the data ends with its last sample, as in transformers: the last batch and the last step of a pass hold what
//! is left, and no step reaches into the next pass.

use espalier_data::random::{Random, fnv};

use crate::{batch::Sample, options::TrainOptions};

/// Steps whose samples are sorted together where samples of like length share a batch.
const GROUPED_STEPS: usize = 50;

/// Shuffled passes over samples, cut into steps and batches.
///
/// ```
/// use espalier_train::{options::TrainOptions, order::Order};
/// let options = TrainOptions { batch: 2, accumulation: 2, ..Default::default() };
/// let mut order = Order::new(vec![1; 5], &options);
/// let sizes = |step: Vec<Vec<usize>>| step.iter().map(Vec::len).collect::<Vec<_>>();
/// assert_eq!(sizes(order.step(0)), [2, 2]);
/// assert_eq!(sizes(order.step(1)), [1]); // the rest of the first pass
/// ```
#[derive(Debug, Clone)]
pub struct Order {
    lengths: Vec<usize>,
    batch: usize,
    accumulation: usize,
    grouped: bool,
    seed: u64,
    epoch: Option<usize>,
    shuffled: Vec<usize>,
}

impl Order {
    /// Passes over samples of these lengths, each shuffled anew.
    pub fn new(lengths: Vec<usize>, options: &TrainOptions) -> Self {
        Self {
            lengths,
            batch: options.batch.max(1),
            accumulation: options.accumulation.max(1),
            grouped: options.group_by_length,
            seed: options.seed,
            epoch: None,
            shuffled: Vec::new(),
        }
    }

    /// Passes over `samples`.
    pub fn of(samples: &[Sample], options: &TrainOptions) -> Self {
        Self::new(samples.iter().map(Sample::tokens).collect(), options)
    }

    /// The numbers of the samples of each batch of a step (from 0).
    pub fn step(&mut self, step: usize) -> Vec<Vec<usize>> {
        let per_step = self.batch * self.accumulation;
        let steps = self.lengths.len().div_ceil(per_step).max(1);
        self.enter(step / steps);
        let start = (step % steps) * per_step;
        let end = self.shuffled.len().min(start + per_step);
        let samples = self.shuffled.get(start..end).unwrap_or_default();
        samples.chunks(self.batch).map(<[usize]>::to_vec).collect()
    }

    fn enter(&mut self, epoch: usize) {
        if self.epoch == Some(epoch) {
            return;
        }
        self.shuffled = (0..self.lengths.len()).collect();
        Random::new(fnv(&format!("order|{}|{epoch}", self.seed))).shuffle(&mut self.shuffled);
        if self.grouped {
            self.group(epoch);
        }
        self.epoch = Some(epoch);
    }

    /// Sorts windows of the shuffled samples by length and shuffles the batches that this makes. The batch with the longest sample of all
    /// comes first, so that a run that needs too much memory fails at once.
    ///
    /// transformers leaves the batches of a window as they are, from the longest to the shortest. Then the gradients of fifty steps lean one
    /// way before they lean the other, and what was learned of long texts is unlearned again (docs/log.md).
    fn group(&mut self, epoch: usize) {
        let per_step = self.batch * self.accumulation;
        let steps = (self.lengths.len() / (4 * per_step)).clamp(1, GROUPED_STEPS);
        let mut random = Random::new(fnv(&format!("batches|{}|{epoch}", self.seed)));
        let mut batches: Vec<Vec<usize>> = Vec::new();
        for window in self.shuffled.chunks_mut(steps * per_step) {
            window.sort_by_key(|sample| std::cmp::Reverse(self.lengths[*sample]));
            let first = batches.len();
            batches.extend(window.chunks(self.batch).map(<[usize]>::to_vec));
            // A batch that is not full stays the last of all.
            let full = first + window.len() / self.batch;
            random.shuffle(&mut batches[first..full]);
        }
        let full = self.shuffled.len() / self.batch;
        let longest = |batch: &usize| batches[*batch].first().map(|s| self.lengths[*s]);
        if let Some(longest) = (0..full).rev().max_by_key(longest) {
            batches.swap(0, longest);
        }
        self.shuffled = batches.concat();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(batch: usize, accumulation: usize) -> TrainOptions {
        TrainOptions {
            batch,
            accumulation,
            seed: 42,
            ..TrainOptions::default()
        }
    }

    #[test]
    fn every_pass_holds_every_sample_once() {
        for (batch, accumulation) in [(1, 16), (2, 2), (3, 1), (7, 1), (8, 4)] {
            let options = options(batch, accumulation);
            let mut order = Order::new(vec![1; 7], &options);
            let steps = options.total_steps(7).unwrap();
            for pass in 0..3 {
                let of_pass = (pass * steps..(pass + 1) * steps).flat_map(|step| order.step(step));
                let mut seen: Vec<usize> = of_pass.flatten().collect();
                seen.sort_unstable();
                assert_eq!(seen, [0, 1, 2, 3, 4, 5, 6], "{batch} x {accumulation}");
            }
        }
    }

    #[test]
    fn a_step_is_the_same_whatever_came_before() {
        let options = options(2, 2);
        let mut whole = Order::new((0..9).collect(), &options);
        let steps: Vec<_> = (0..8).map(|step| whole.step(step)).collect();
        for (step, expected) in steps.iter().enumerate().rev() {
            assert_eq!(&Order::new((0..9).collect(), &options).step(step), expected);
        }
        assert_ne!(steps[..3], steps[3..6], "each pass has an order of its own");
    }

    #[test]
    fn batches_of_like_length_begin_with_the_longest() {
        let lengths: Vec<usize> = (0..64).map(|i| (i * 37) % 64).collect();
        let options = TrainOptions {
            group_by_length: true,
            ..options(4, 1)
        };
        let padding = |options: &TrainOptions| {
            let mut order = Order::new(lengths.clone(), options);
            let batches: Vec<Vec<usize>> = (0..16).flat_map(|step| order.step(step)).collect();
            let of = |batch: &Vec<usize>| {
                let of_batch = batch.iter().map(|sample| lengths[*sample]);
                let longest = of_batch.clone().max().unwrap();
                of_batch.map(|length| longest - length).sum::<usize>()
            };
            assert_eq!(batches.iter().map(Vec::len).sum::<usize>(), 64);
            (lengths[batches[0][0]], batches.iter().map(of).sum())
        };
        let (first, grouped): (usize, usize) = padding(&options);
        let (_, shuffled) = padding(&TrainOptions {
            group_by_length: false,
            ..options
        });
        assert_eq!(first, 63);
        assert!(3 * grouped < shuffled, "{grouped} against {shuffled}");
    }

    #[test]
    fn batches_of_like_length_come_in_no_order_of_lengths() {
        let lengths: Vec<usize> = (0..1600).map(|i| (i * 37) % 64).collect();
        let options = TrainOptions {
            group_by_length: true,
            ..options(4, 1)
        };
        let mut order = Order::new(lengths.clone(), &options);
        let first = |step: usize| lengths[order.step(step)[0][0]];
        let firsts: Vec<usize> = (0..400).map(first).collect();
        let falls = firsts.windows(2).filter(|pair| pair[1] <= pair[0]).count();
        assert!((150..250).contains(&falls), "{falls}");
    }
}
