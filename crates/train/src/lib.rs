//! Training: objectives, optimisers, schedules and the trainer.
//!
//! The trainer knows nothing of any objective: it owns data order, accumulation, clipping, schedules, evaluation,
//! checkpoints and metrics. Objectives own the mathematics, and may own parameters, batches and state.

pub mod adapters;
pub mod averaging;
pub mod batch;
pub mod checkpoint;
pub mod choice;
pub mod columns;
pub mod error;
pub mod evaluation;
pub mod freeze;
pub mod metrics;
pub mod named_tensors;
pub mod objectives;
pub mod optimisers;
pub mod options;
pub mod order;
pub mod plan;
pub mod quantise;
pub mod rates;
mod released;
pub mod rewards;
pub mod schedule;
pub mod token_count;
pub mod trained;
pub mod trainer;

pub use error::{Error, Result};
