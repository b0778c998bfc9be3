//! Differentiable operators on Burn tensors: attention, norms, rotary positions, activations, cross-entropy.
//!
//! Each operator is one file: its shapes, its mathematics, and its definition in plain Burn operations. A faster
//! implementation of an operator stands beside its definition and is tested against it.
//!
//! Left out on purpose: anything that knows of models, files or tokens. Shapes are checked by the callers; an operator
//! called with wrong shapes is a broken invariant and panics inside Burn.

pub mod activation;
pub mod attention;
pub mod cross_entropy;
pub mod memory_map;
pub mod norm;
pub mod optimiser;
pub mod rotary;
