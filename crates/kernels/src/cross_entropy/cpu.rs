//! Head product, log-softmax and gradients over chunks of rows.
//!
//! With `p = softmax(h W^T)`: `d/dlogits log p_target = onehot(target) - p`, multiplied by the gradient of each row, and
//! `d/dlogits (log Z)^2 = 2 log Z p`; label smoothing has `(1 - e) onehot(target) + e / vocabulary` in place of the target.

use std::ops::Range;

use super::{HeadOptions, Regularisation};
use crate::{
    fused::{FusedOperator, Given, Saved, contiguous, dimensions, slice, tensor},
    matmul::{How, Matrix, multiplied, product},
    parallel::{chunk, for_chunks, zeros},
    simd::{exp, maximum, tanh, vectorised},
    stored::Stored,
    weight::Held,
};
use burn_flex::FlexTensor;

/// The log-probability of every target: `[tokens]`. Its backward computes the logits again.
#[derive(Debug)]
pub(super) struct LinearLogProbabilities {
    pub targets: Vec<u32>,
    pub options: HeadOptions,
    /// The head's weight, where it is no tensor.
    pub stored: Option<Stored>,
}

/// The negative sum of all: `[1]`. Every target has the same weight, so that the gradients are computed with the loss.
#[derive(Debug)]
pub(super) struct LinearCrossEntropy {
    pub targets: Vec<u32>,
    pub options: HeadOptions,
    /// The head's weight, where it is no tensor.
    pub stored: Option<Stored>,
}

/// Logits that exist at once, unless that are few rows.
const CHUNK: usize = 1 << 22;
/// Rows of a chunk at least: with fewer, adding to the weight's gradient costs more than computing it.
const ROWS: usize = 256;

/// Hidden states, the head's weight and bias, and their sizes.
struct Head<'a> {
    hidden: &'a [f32],
    weight: Held,
    bias: Option<&'a [f32]>,
    targets: &'a [u32],
    options: HeadOptions,
    width: usize,
    vocabulary: usize,
}

/// Gradients of hidden states, weight and bias, each empty where it is not wanted.
struct Gradients {
    hidden: Vec<f32>,
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl<'a> Head<'a> {
    /// `inputs`: hidden states, weight (`stored`, where it is no tensor) and, where there is one, bias.
    fn new(
        inputs: &'a [FlexTensor],
        stored: &Option<Stored>,
        targets: &'a [u32],
        options: HeadOptions,
    ) -> Self {
        let (weight, bias) = (Held::new(&inputs[1], stored), inputs.get(2).map(slice));
        let shape = weight.shape();
        Self {
            hidden: slice(&inputs[0]),
            weight,
            bias,
            targets,
            options,
            width: shape[1],
            vocabulary: shape[0],
        }
    }

    /// Ranges of rows that are computed together.
    fn chunks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let (rows, count) = (
            (CHUNK / self.vocabulary.max(1)).max(ROWS),
            self.targets.len(),
        );
        (0..count)
            .step_by(rows)
            .map(move |start| start..(start + rows).min(count))
    }

    fn hidden(&self, rows: &Range<usize>) -> Matrix<'a> {
        Matrix::new(
            &self.hidden[rows.start * self.width..rows.end * self.width],
            rows.len(),
            self.width,
        )
    }

    fn logits(&self, rows: &Range<usize>) -> Vec<f32> {
        let mut logits = multiplied(
            self.hidden(rows),
            self.weight.matrix().transposed(),
            How::all(self.options.precision),
        );
        if let Some(bias) = self.bias {
            for_chunks([(&mut logits, self.vocabulary)], |_, [row]| {
                row.iter_mut()
                    .zip(bias)
                    .for_each(|(logit, bias)| *logit += bias);
            });
        }
        if let Some(softcap) = self.options.softcap {
            for_chunks([(&mut logits, self.vocabulary)], |_, [row]| {
                cap(row, softcap as f32)
            });
        }
        logits
    }

    /// Each row's largest logit and the log of its sum of exponentials relative to it: apart, huge logits lose nothing.
    fn statistics(&self, logits: &[f32]) -> Vec<(f32, f32)> {
        let mut found = vec![0.0; logits.len() / self.vocabulary * 2];
        for_chunks([(&mut found, 2)], |i, [found]| {
            let (largest, log_sum) = log_sum(chunk(logits, self.vocabulary, i));
            found.copy_from_slice(&[largest, log_sum]);
        });
        found
            .chunks_exact(2)
            .map(|pair| (pair[0], pair[1]))
            .collect()
    }

    /// The mean log-probability of all tokens, summed over rows.
    fn mean_log_probabilities(&self, logits: &[f32], statistics: &[(f32, f32)]) -> f64 {
        let mut means = vec![0.0; statistics.len()];
        for_chunks([(&mut means, 1)], |i, [mean]| {
            let (largest, log_sum) = statistics[i];
            mean[0] = sum_below(chunk(logits, self.vocabulary, i), largest)
                / self.vocabulary as f32
                - log_sum;
        });
        means.into_iter().map(f64::from).sum()
    }

    fn gradients(&self, wanted: &[bool]) -> Gradients {
        let zeros = |input: usize, count: usize| {
            zeros(if wanted.get(input) == Some(&true) {
                count
            } else {
                0
            })
        };
        let (hidden, weight) = (
            zeros(0, self.hidden.len()),
            zeros(1, self.vocabulary * self.width),
        );
        Gradients {
            hidden,
            weight,
            bias: zeros(2, self.vocabulary),
        }
    }

    /// Turns logits into `factor ((1 - e) onehot(target) + e / vocabulary - p (1 + 2 z log Z))`, with one factor a row.
    fn differentiate(
        &self,
        rows: &Range<usize>,
        logits: &mut [f32],
        statistics: &[(f32, f32)],
        factors: &[f32],
        regularisation: Regularisation,
    ) {
        let Regularisation {
            z_loss,
            label_smoothing,
        } = regularisation;
        let (share, of_target) = (
            label_smoothing / self.vocabulary as f64,
            1.0 - label_smoothing,
        );
        let targets = &self.targets[rows.clone()];
        for_chunks([(logits, self.vocabulary)], |i, [logits]| {
            let (target, statistics, factor) = (targets[i], statistics[i], factors[i]);
            let capped = logits[target as usize];
            let scale = -factor * (1.0 + 2.0 * z_loss as f32 * (statistics.0 + statistics.1));
            let (scale, softcap) = (
                [scale, factor * share as f32],
                self.options.softcap.map(|softcap| softcap as f32),
            );
            match softcap {
                None => probabilities(logits, statistics.0, statistics.1, scale),
                Some(softcap) => {
                    capped_probabilities(logits, statistics.0, statistics.1, scale, softcap)
                }
            }
            let slope = softcap.map_or(1.0, |softcap| slope(capped, softcap));
            logits[target as usize] += factor * of_target as f32 * slope;
        });
    }

    /// Adds the contributions of some rows' logit gradients to the gradients of hidden states, weight and bias.
    fn accumulate(&self, rows: &Range<usize>, of_logits: &[f32], gradients: &mut Gradients) {
        if !gradients.bias.is_empty() {
            for row in of_logits.chunks_exact(self.vocabulary) {
                gradients
                    .bias
                    .iter_mut()
                    .zip(row)
                    .for_each(|(sum, value)| *sum += value);
            }
        }
        let of_logits = Matrix::new(of_logits, rows.len(), self.vocabulary);
        if !gradients.hidden.is_empty() {
            let part = &mut gradients.hidden[rows.start * self.width..rows.end * self.width];
            product(
                part,
                of_logits,
                self.weight.matrix(),
                false,
                How::all(self.options.precision),
            );
        }
        if !gradients.weight.is_empty() {
            product(
                &mut gradients.weight,
                of_logits.transposed(),
                self.hidden(rows),
                true,
                How::all(self.options.precision),
            );
        }
    }
}

impl LinearLogProbabilities {
    /// The log-probabilities, and each row's statistics.
    fn run(&self, inputs: &[FlexTensor]) -> (FlexTensor, Saved) {
        let head = Head::new(inputs, &self.stored, &self.targets, self.options);
        let (mut output, mut saved) = (Vec::with_capacity(self.targets.len()), Vec::new());
        for rows in head.chunks() {
            let logits = head.logits(&rows);
            let statistics = head.statistics(&logits);
            output.extend(log_probabilities(&head, &rows, &logits, &statistics));
            saved.extend(
                statistics
                    .iter()
                    .flat_map(|(largest, log_sum)| [*largest, *log_sum]),
            );
        }
        (tensor(output, &[self.targets.len()]), vec![saved])
    }

    fn differentiate(
        &self,
        inputs: &[FlexTensor],
        saved: &[f32],
        gradient: &[f32],
        wanted: &[bool],
    ) -> Gradients {
        let head = Head::new(inputs, &self.stored, &self.targets, self.options);
        let mut gradients = head.gradients(wanted);
        for rows in head.chunks() {
            let mut logits = head.logits(&rows);
            let saved = saved[rows.start * 2..rows.end * 2].chunks_exact(2);
            let statistics: Vec<(f32, f32)> = saved.map(|pair| (pair[0], pair[1])).collect();
            head.differentiate(
                &rows,
                &mut logits,
                &statistics,
                &gradient[rows.clone()],
                Regularisation::default(),
            );
            head.accumulate(&rows, &logits, &mut gradients);
        }
        gradients
    }
}

impl LinearCrossEntropy {
    /// The loss, and the gradients for an upstream gradient of one.
    fn run(&self, inputs: &[FlexTensor], wanted: &[bool]) -> (FlexTensor, Saved) {
        let head = Head::new(inputs, &self.stored, &self.targets, self.options);
        let mut gradients = head.gradients(wanted);
        let regularisation = self.options.regularisation;
        let Regularisation {
            z_loss,
            label_smoothing,
        } = regularisation;
        let mut loss = 0.0f64;
        for rows in head.chunks() {
            let mut logits = head.logits(&rows);
            let statistics = head.statistics(&logits);
            let chosen = log_probabilities(&head, &rows, &logits, &statistics)
                .map(f64::from)
                .sum::<f64>();
            loss -= (1.0 - label_smoothing) * chosen;
            if label_smoothing != 0.0 {
                loss -= label_smoothing * head.mean_log_probabilities(&logits, &statistics);
            }
            let squares = statistics
                .iter()
                .map(|(largest, log_sum)| f64::from(largest + log_sum).powi(2));
            loss += z_loss * squares.sum::<f64>();
            if wanted.contains(&true) {
                head.differentiate(
                    &rows,
                    &mut logits,
                    &statistics,
                    &vec![-1.0; rows.len()],
                    regularisation,
                );
                head.accumulate(&rows, &logits, &mut gradients);
            }
        }
        (
            tensor(vec![loss as f32], &[1]),
            vec![gradients.hidden, gradients.weight, gradients.bias],
        )
    }

    fn differentiate(saved: Saved, factor: f32) -> Gradients {
        let mut saved = saved.into_iter();
        let mut scaled = || {
            let mut values = saved.next().unwrap_or_default();
            for_chunks([(&mut values, 1 << 14)], |_, [chunk]| {
                chunk.iter_mut().for_each(|value| *value *= factor)
            });
            values
        };
        Gradients {
            hidden: scaled(),
            weight: scaled(),
            bias: scaled(),
        }
    }
}

impl Gradients {
    /// The wanted ones as tensors in the shapes of the inputs.
    fn tensors<const N: usize>(
        self,
        inputs: &[FlexTensor; N],
        wanted: [bool; N],
    ) -> [Option<FlexTensor>; N] {
        let mut all = [self.hidden, self.weight, self.bias].into_iter();
        let mut number = 0;
        inputs.each_ref().map(|input| {
            number += 1;
            all.next()
                .filter(|_| wanted[number - 1])
                .map(|values| tensor(values, &dimensions(input)))
        })
    }
}

/// With and without bias.
macro_rules! operators {
    ($inputs:literal) => {
        impl FusedOperator<$inputs> for LinearLogProbabilities {
            fn forward(
                &self,
                inputs: &[FlexTensor; $inputs],
                _: [bool; $inputs],
            ) -> (FlexTensor, Saved) {
                self.run(&inputs.each_ref().map(contiguous))
            }

            fn backward(
                &self,
                given: Given<$inputs>,
                wanted: [bool; $inputs],
            ) -> [Option<FlexTensor>; $inputs] {
                let inputs = given.inputs.each_ref().map(contiguous);
                let gradients =
                    self.differentiate(&inputs, &given.saved[0], slice(&given.gradient), &wanted);
                gradients.tensors(&given.inputs, wanted)
            }
        }

        impl FusedOperator<$inputs> for LinearCrossEntropy {
            fn forward(
                &self,
                inputs: &[FlexTensor; $inputs],
                wanted: [bool; $inputs],
            ) -> (FlexTensor, Saved) {
                self.run(&inputs.each_ref().map(contiguous), &wanted)
            }

            fn backward(
                &self,
                given: Given<$inputs>,
                wanted: [bool; $inputs],
            ) -> [Option<FlexTensor>; $inputs] {
                Self::differentiate(given.saved, slice(&given.gradient)[0])
                    .tensors(&given.inputs, wanted)
            }
        }
    };
}

operators!(2);
operators!(3);

/// The log-probability of each row's target.
fn log_probabilities<'a>(
    head: &'a Head<'_>,
    rows: &Range<usize>,
    logits: &'a [f32],
    statistics: &'a [(f32, f32)],
) -> impl Iterator<Item = f32> + 'a {
    let logits = logits
        .chunks_exact(head.vocabulary)
        .zip(&head.targets[rows.clone()]);
    logits
        .zip(statistics)
        .map(|((logits, target), (largest, log_sum))| logits[*target as usize] - largest - log_sum)
}

vectorised! {
    /// The maximum, and `log(sum(e^(x - maximum)))`.
    fn log_sum<const FUSED: bool>(x: &[f32]) -> (f32, f32) {
        let largest = maximum(x);
        let mut lanes = [0f32; 32];
        let (chunks, rest) = x.as_chunks::<32>();
        for chunk in chunks {
            for l in 0..32 {
                lanes[l] += exp::<FUSED>(chunk[l] - largest);
            }
        }
        let mut all = lanes;
        for i in 0..rest.len().min(32) {
            all[i] += exp::<FUSED>(rest[i] - largest);
        }
        (largest, all.iter().sum::<f32>().ln())
    }
}

vectorised! {
    /// `sum(x - largest)`.
    fn sum_below(x: &[f32], largest: f32) -> f32 {
        let mut lanes = [0f32; 32];
        let (chunks, rest) = x.as_chunks::<32>();
        for chunk in chunks {
            for l in 0..32 {
                lanes[l] += chunk[l] - largest;
            }
        }
        for i in 0..rest.len().min(32) {
            lanes[i] += rest[i] - largest;
        }
        lanes.iter().sum()
    }
}

vectorised! {
    /// Turns logits into `scale[0] * softmax + scale[1]`.
    fn probabilities<const FUSED: bool>(x: &mut [f32], largest: f32, log_sum: f32, scale: [f32; 2]) {
        x.iter_mut().for_each(|x| *x = exp::<FUSED>(*x - largest - log_sum) * scale[0] + scale[1]);
    }
}

/// The slope of the soft cap where it gives `capped`.
#[inline(always)]
fn slope(capped: f32, softcap: f32) -> f32 {
    let share = capped / softcap;
    1.0 - share * share
}

vectorised! {
    fn cap<const FUSED: bool>(x: &mut [f32], softcap: f32) {
        x.iter_mut().for_each(|x| *x = tanh::<FUSED>(*x / softcap) * softcap);
    }
}

vectorised! {
    /// As [`probabilities`], with the slope of the soft cap.
    fn capped_probabilities<const FUSED: bool>(x: &mut [f32], largest: f32, log_sum: f32, scale: [f32; 2], softcap: f32) {
        x.iter_mut().for_each(|x| *x = (exp::<FUSED>(*x - largest - log_sum) * scale[0] + scale[1]) * slope(*x, softcap));
    }
}
