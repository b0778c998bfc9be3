//! Head product, log-softmax and gradients over chunks of rows.
//!
//! With `p = softmax(h W^T)`: `d/dlogits log p_target = onehot(target) - p`, multiplied by the gradient of each row.

use burn_flex::FlexTensor;
use rayon::prelude::*;

use crate::{
    host::{Given, HostOperator, contiguous, dimensions, slice, tensor},
    matmul::{Matrix, Threads, multiplied, product},
    simd::{exp, maximum, vectorised},
};

#[derive(Debug)]
pub(super) struct LinearLogProbabilities {
    pub targets: Vec<u32>,
}

/// Logits that exist at once.
const CHUNK: usize = 1 << 20;

/// Sizes of the operands, and how many rows make a chunk.
struct Sizes {
    width: usize,
    vocabulary: usize,
    rows: usize,
}

impl Sizes {
    fn of(weight: &FlexTensor) -> Self {
        let shape = dimensions(weight);
        Self { width: shape[1], vocabulary: shape[0], rows: (CHUNK / shape[0].max(1)).max(16) }
    }

    /// Logits of some rows of hidden states.
    fn logits(&self, hidden: &[f32], weight: &[f32]) -> Vec<f32> {
        let rows = hidden.len() / self.width;
        let (left, right) = (Matrix::new(hidden, rows, self.width), Matrix::new(weight, self.vocabulary, self.width));
        multiplied(left, right.transposed(), Threads::All)
    }
}

impl HostOperator<2> for LinearLogProbabilities {
    /// Saves each row's largest logit and the log of its sum of exponentials relative to it: apart, huge logits lose nothing.
    fn forward(&self, [hidden, weight]: &[FlexTensor; 2]) -> (FlexTensor, Vec<f32>) {
        let (hidden, weight) = (contiguous(hidden), contiguous(weight));
        let sizes = Sizes::of(&weight);
        let mut output = vec![0.0; self.targets.len()];
        let mut saved = vec![0.0; self.targets.len() * 2];
        let chunks = slice(&hidden).chunks(sizes.rows * sizes.width).zip(self.targets.chunks(sizes.rows));
        for ((hidden, targets), (output, saved)) in
            chunks.zip(output.chunks_mut(sizes.rows).zip(saved.chunks_mut(sizes.rows * 2)))
        {
            let logits = sizes.logits(hidden, slice(&weight));
            let rows = logits.par_chunks(sizes.vocabulary).zip(targets).zip(output).zip(saved.par_chunks_mut(2));
            rows.for_each(|(((logits, target), output), saved)| {
                let (largest, log_sum) = log_sum(logits);
                saved.copy_from_slice(&[largest, log_sum]);
                *output = logits[*target as usize] - largest - log_sum;
            });
        }
        (tensor(output, &[self.targets.len()]), saved)
    }

    fn backward(&self, given: &Given<2>, wanted: [bool; 2]) -> [Option<FlexTensor>; 2] {
        let [hidden, weight] = given.inputs.each_ref().map(contiguous);
        let sizes = Sizes::of(&weight);
        let mut of_hidden = vec![0.0; if wanted[0] { slice(&hidden).len() } else { 0 }];
        let mut of_weight = vec![0.0; if wanted[1] { slice(&weight).len() } else { 0 }];
        for start in (0..self.targets.len()).step_by(sizes.rows) {
            let rows = start..(start + sizes.rows).min(self.targets.len());
            let elements = rows.start * sizes.width..rows.end * sizes.width;
            let chunk = &slice(&hidden)[elements.clone()];
            let mut logits = sizes.logits(chunk, slice(&weight));
            let saved = given.saved[rows.start * 2..rows.end * 2].par_chunks(2);
            let given_rows = self.targets[rows.clone()].par_iter().zip(saved);
            let given_rows = given_rows.zip(&slice(&given.gradient)[rows.clone()]);
            let all = logits.par_chunks_mut(sizes.vocabulary).zip(given_rows);
            all.for_each(|(logits, ((target, saved), gradient))| {
                probabilities(logits, saved[0], saved[1], -*gradient);
                logits[*target as usize] += gradient;
            });
            let of_logits = Matrix::new(&logits, rows.len(), sizes.vocabulary);
            if wanted[0] {
                let weight = Matrix::new(slice(&weight), sizes.vocabulary, sizes.width);
                product(&mut of_hidden[elements], of_logits, weight, false, Threads::All);
            }
            if wanted[1] {
                let hidden = Matrix::new(chunk, rows.len(), sizes.width);
                product(&mut of_weight, of_logits.transposed(), hidden, true, Threads::All);
            }
        }
        [
            wanted[0].then(|| tensor(of_hidden, &dimensions(&hidden))),
            wanted[1].then(|| tensor(of_weight, &dimensions(&weight))),
        ]
    }
}

vectorised! {
    /// The maximum, and `log(sum(e^(x - maximum)))`.
    fn log_sum(x: &[f32]) -> (f32, f32) {
        let largest = maximum(x);
        let mut lanes = [0f32; 32];
        let (chunks, rest) = x.as_chunks::<32>();
        for chunk in chunks {
            for l in 0..32 {
                lanes[l] += exp(chunk[l] - largest);
            }
        }
        for (lane, x) in lanes.iter_mut().zip(rest) {
            *lane += exp(x - largest);
        }
        (largest, lanes.iter().sum::<f32>().ln())
    }
}

vectorised! {
    /// Turns logits into `scale * softmax`.
    fn probabilities(x: &mut [f32], largest: f32, log_sum: f32, scale: f32) {
        x.iter_mut().for_each(|x| *x = exp(*x - largest - log_sum) * scale);
    }
}
