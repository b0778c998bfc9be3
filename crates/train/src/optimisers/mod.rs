//! Optimisers. Each keeps its state by parameter name and hands it over for checkpoints.

pub mod adamw;

pub use adamw::AdamW;
