//! Operators over sequences whose state does not grow: scans, linear attention with decay, convolutions.
//!
//! One function serves training and decoding. It runs over a whole sequence, or over a part of it from the state that the
//! part before left; a step of decoding is a part of length one. Without a given state a sequence starts from zeros.
//! Memory for the backward is linear in the length: states are kept at the beginning of chunks of time and computed again
//! inside.

pub mod causal_convolution;
mod channel_block;
pub mod dynamic_mix;
pub mod linear_scan;
pub mod long_convolution;
pub mod rg_lru;
pub mod s4d;
pub mod selective_scan;
mod sequence;
#[cfg(test)]
mod speed;
pub mod ssd;
mod tables;
#[cfg(test)]
mod testing;
pub mod token_mix;
pub mod token_shift;
pub mod wkv4;
pub mod wkv6;
pub mod wkv7;

use burn::tensor::Tensor;

/// The last `count` steps of `x`, `[batch, time, width]`, copied, so that a saved state does not keep the
/// whole sequence in memory.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use espalier_kernels::recurrent::last_steps;
/// let x = Tensor::<3>::from_floats([[[1.0], [2.0], [3.0]]], &Device::flex());
/// assert_eq!(last_steps(x, 2).into_data().try_to_vec::<f32>().unwrap(), [2.0, 3.0]);
/// ```
pub fn last_steps(x: Tensor<3>, count: usize) -> Tensor<3> {
    let [batch, time, width] = x.dims();
    if time <= count {
        return x;
    }
    let own = Tensor::zeros([batch, count, width], &x.device().inner());
    own.slice_assign(
        [0..batch, 0..count, 0..width],
        x.slice([0..batch, time - count..time, 0..width]),
    )
}
