//! Training: objectives, optimisers, schedules and the trainer.
//!
//! The trainer knows nothing of any objective: it owns data order, accumulation, clipping, schedules, evaluation,
//! checkpoints and metrics. Objectives own the mathematics.

pub mod adapters;
pub mod batch;
pub mod checkpoint;
pub mod error;
pub mod metrics;
pub mod objectives;
pub mod optimisers;
pub mod options;
pub mod order;
pub mod plan;
pub mod trainer;

pub use error::{Error, Result};
