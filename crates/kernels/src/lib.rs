//! Differentiable operators on Burn tensors: linear maps, attention, recurrences, norms, rotary positions, activations,
//! cross-entropy.
//!
//! Each operator is a folder: its shapes and mathematics in `mod.rs`, its definition in plain Burn operations in
//! `reference.rs`, and the fused form for the CPU in `cpu.rs`, which the module `fused` makes differentiable and which is
//! tested against the definition. Other devices run the definition.
//!
//! Left out on purpose: anything that knows of models, files or tokens. Shapes are checked by the callers; an operator
//! called with wrong shapes is a broken invariant and panics.

pub mod activation;
pub mod allocator;
pub mod attention;
pub mod backward;
pub mod bandwidth;
mod bf16;
pub mod checkpoint;
pub mod cross_entropy;
pub mod decomposition;
pub mod dropout;
pub mod embedding;
pub mod experts;
mod fused;
pub mod linear;
mod matmul;
pub mod memory_map;
pub mod norm;
pub mod one_bit;
pub mod optimiser;
mod parallel;
pub mod readback;
pub mod recomputable;
pub mod recurrent;
pub mod release;
pub mod rotary;
pub mod simd;
pub mod stored;
#[cfg(test)]
mod testing;
pub mod weight;
