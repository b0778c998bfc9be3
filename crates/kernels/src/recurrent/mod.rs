//! Operators over sequences whose state does not grow: scans, linear attention with decay, convolutions.
//!
//! One function serves training and decoding. It runs over a whole sequence, or over a part of it from the state that the
//! part before left; a step of decoding is a part of length one. Without a given state a sequence starts from zeros.
//! Memory for the backward is linear in the length: states are kept at the beginning of chunks of time and computed again
//! inside.

pub mod causal_convolution;
mod lanes;
pub mod linear_scan;
pub mod rg_lru;
pub mod s4d;
pub mod selective_scan;
mod sequence;
#[cfg(test)]
mod speed;
pub mod ssd;
#[cfg(test)]
mod testing;
pub mod token_mix;
pub mod token_shift;
pub mod wkv4;
pub mod wkv6;
pub mod wkv7;
