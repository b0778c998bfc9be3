//! The optimiser's step (AdamW, arXiv 1711.05101) and the sum of squares for clipping by norm, on flat tensors `[len]`.
//!
//! On the CPU a step is one pass over memory; elsewhere it is the same formula in tensor operations. Sums run in a fixed
//! order, so that a resumed run repeats the interrupted one bit for bit.

mod eight_bit;

pub use eight_bit::{AdamW8BitState, BLOCK, adamw_8bit};

use crate::readback::ReadFloats;
use std::sync::OnceLock;

use crate::{
    fused::{self, contiguous, dimensions, slice},
    parallel::{chunk, for_chunks, for_each},
    simd::vectorised,
};
use burn::{backend::Flex, tensor::Tensor};
use burn_flex::FlexTensor;

/// The numbers of one AdamW step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWStep {
    /// Step size.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled decay: the weight loses `learning_rate * weight_decay` of itself.
    pub weight_decay: f64,
    /// Number of this step, from 1.
    pub step: u64,
    /// Factor on the gradient (clipping).
    pub gradient_scale: f64,
}

/// Weight, first and second moment: `[len]` each.
#[derive(Debug, Clone)]
pub struct AdamWState {
    /// The weight.
    pub weight: Tensor<1>,
    /// Running mean of gradients.
    pub first: Tensor<1>,
    /// Running mean of squared gradients.
    pub second: Tensor<1>,
}

/// AdamW (arXiv 1711.05101, Algorithm 2) with bias correction; `gradient`: `[len]`, f32 throughout. On the CPU the state is
/// changed in place where it has no other owner.
pub fn adamw(state: AdamWState, gradient: Tensor<1>, step: AdamWStep) -> AdamWState {
    let plain = [&state.weight, &state.first, &state.second, &gradient]
        .into_iter()
        .all(fused::on_host);
    match plain {
        true => on_host(state, gradient, &step),
        false => in_tensors(state, gradient, step),
    }
}

/// Corrections by which the moments of a finite history are divided.
fn corrections(step: &AdamWStep) -> (f64, f64) {
    (
        1.0 - step.beta1.powf(step.step as f64),
        1.0 - step.beta2.powf(step.step as f64),
    )
}

fn in_tensors(state: AdamWState, gradient: Tensor<1>, step: AdamWStep) -> AdamWState {
    let (correct1, correct2) = corrections(&step);
    let gradient = gradient * step.gradient_scale;
    let first = state.first * step.beta1 + gradient.clone() * (1.0 - step.beta1);
    let second = state.second * step.beta2 + gradient.clone() * gradient * (1.0 - step.beta2);
    let denominator = (second.clone() / correct2).sqrt() + step.epsilon;
    let update = first.clone() / denominator * (step.learning_rate / correct1);
    let weight = state.weight * (1.0 - step.learning_rate * step.weight_decay) - update;
    AdamWState {
        weight,
        first,
        second,
    }
}

/// Elements that one thread takes at a time.
const CHUNK: usize = 1 << 14;

fn on_host(state: AdamWState, gradient: Tensor<1>, step: &AdamWStep) -> AdamWState {
    let AdamWState {
        weight,
        first,
        second,
    } = state;
    let [mut weight, mut first, mut second, gradient] =
        [weight, first, second, gradient].map(whole);
    let buffers =
        [&mut weight, &mut first, &mut second].map(|tensor| (tensor.storage_mut::<f32>(), CHUNK));
    for_chunks(buffers, |i, [weight, first, second]| {
        step_chunk(
            weight,
            first,
            second,
            chunk(slice(&gradient), CHUNK, i),
            step,
        );
    });
    let [weight, first, second] = [weight, first, second].map(Tensor::from_primitive::<Flex>);
    AdamWState {
        weight,
        first,
        second,
    }
}

/// The tensor's own memory where the tensor is all of it, else a copy. The tensor is on the host.
fn whole(tensor: Tensor<1>) -> FlexTensor {
    let Ok(tensor) = tensor.inner().try_into_primitive::<Flex>() else {
        return fused::tensor(Vec::new(), &[0]);
    };
    let all =
        tensor.is_contiguous() && slice(&tensor).len() == tensor.bytes().len() / size_of::<f32>();
    if all {
        tensor
    } else {
        fused::tensor(slice(&contiguous(&tensor)).to_vec(), &dimensions(&tensor))
    }
}

vectorised! {
    /// Both halves of a chunk side by side, as [`squares`] reads its parts.
    fn step_chunk(weight: &mut [f32], first: &mut [f32], second: &mut [f32], gradient: &[f32], step: &AdamWStep) {
        /// Elements of a half that are computed at a time.
        const PIECE: usize = 64;
        let (correct1, correct2) = corrections(step);
        let keep = (1.0 - step.learning_rate * step.weight_decay) as f32;
        let (beta1, beta2, epsilon) = (step.beta1 as f32, step.beta2 as f32, step.epsilon as f32);
        let (scale, rate) = (step.gradient_scale as f32, (step.learning_rate / correct1) as f32);
        let inverse2 = (1.0 / correct2) as f32;
        let half = gradient.len().div_ceil(2 * PIECE) * PIECE;
        for offset in (0..half.min(gradient.len())).step_by(PIECE) {
            for start in [offset, half + offset] {
                let piece = start.min(gradient.len())..(start + PIECE).min(gradient.len());
                let moments = first[piece.clone()].iter_mut().zip(&mut second[piece.clone()]);
                let values = weight[piece.clone()].iter_mut().zip(&gradient[piece]);
                for ((weight, gradient), (first, second)) in values.zip(moments) {
                    let gradient = gradient * scale;
                    *first = beta1 * *first + (1.0 - beta1) * gradient;
                    *second = beta2 * *second + (1.0 - beta2) * gradient * gradient;
                    *weight = *weight * keep - rate * *first / ((*second * inverse2).sqrt() + epsilon);
                }
            }
        }
    }
}

/// Parts of a chunk that are read side by side: the processor fetches ahead along each of them, half as fast along one alone.
const STREAMS: usize = 4;
/// Elements of a part that are read at a time, a line of memory.
const LINE: usize = 16;

vectorised! {
    /// Sum of squares in f64, in partial sums, of so many lines of memory that none waits for another.
    fn squares(values: &[f32]) -> f64 {
        let lines = values.len() / (STREAMS * LINE);
        let (parts, rest) = values.split_at(lines * STREAMS * LINE);
        let (parts, _) = parts.as_chunks::<LINE>();
        let mut sums = [[0f64; LINE]; STREAMS];
        for line in 0..lines {
            for (stream, sums) in sums.iter_mut().enumerate() {
                for (sum, value) in sums.iter_mut().zip(&parts[stream * lines + line]) {
                    *sum += f64::from(*value) * f64::from(*value);
                }
            }
        }
        let of_rest: f64 = rest.iter().map(|value| f64::from(*value) * f64::from(*value)).sum();
        sums.as_flattened().iter().sum::<f64>() + of_rest
    }
}

/// Sum of squares in f64, in a fixed order. `values`: `[len]`.
pub fn sum_of_squares(values: Tensor<1>) -> f64 {
    let total = |values: &[f32]| {
        let partial: Vec<OnceLock<f64>> = values.chunks(CHUNK).map(|_| OnceLock::new()).collect();
        for_each(partial.len(), |i| {
            let _ = partial[i].set(squares(chunk(values, CHUNK, i)));
        });
        partial.iter().filter_map(OnceLock::get).sum()
    };
    match fused::on_host(&values) {
        true => total(slice(&whole(values))),
        false => total(&values.floats()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, Distribution};

    fn step(number: u64) -> AdamWStep {
        AdamWStep {
            learning_rate: 0.1,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.01,
            step: number,
            gradient_scale: 0.5,
        }
    }

    #[test]
    fn first_step_moves_by_the_learning_rate() {
        let device = Device::flex();
        let zero = Tensor::<1>::zeros([2], &device);
        let state = AdamWState {
            weight: Tensor::ones([2], &device),
            first: zero.clone(),
            second: zero,
        };
        let after = adamw(state, Tensor::from_floats([3.0, -4.0], &device), step(1));
        let weight = after.weight.into_data().try_to_vec::<f32>().unwrap();
        assert!(
            (weight[0] - (0.999 - 0.1)).abs() < 1e-6 && (weight[1] - (0.999 + 0.1)).abs() < 1e-6,
            "{weight:?}"
        );
    }

    #[test]
    fn squares_of_any_length_are_summed() {
        for length in [0, 1, 63, 64, 65, 130, CHUNK - 1, CHUNK + 70] {
            let values: Vec<f32> = (0..length).map(|i| (i % 7) as f32 - 3.0).collect();
            let expected: f64 = values.iter().map(|value| f64::from(*value).powi(2)).sum();
            assert_eq!(
                sum_of_squares(Tensor::from_floats(&values[..], &Device::flex())),
                expected
            );
        }
    }

    #[test]
    fn host_and_tensor_forms_agree() {
        let device = Device::flex();
        for length in [1, 64, 65, 200, 40_000] {
            let random = || Tensor::<1>::random([length], Distribution::Uniform(0.1, 1.0), &device);
            let state = AdamWState {
                weight: random(),
                first: random(),
                second: random(),
            };
            let gradient = random();
            let host = adamw(state.clone(), gradient.clone(), step(7));
            let tensors = in_tensors(state, gradient, step(7));
            for (a, b) in [
                (host.weight, tensors.weight),
                (host.first, tensors.first),
                (host.second, tensors.second),
            ] {
                assert!((a - b).abs().max().into_scalar::<f32>() < 1e-6, "{length}");
            }
        }
    }
}
