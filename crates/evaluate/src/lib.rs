//! Evaluation: perplexity with n-gram baselines, accuracy on the generated worlds, preference accuracy, retrieval,
//! confidence intervals, and report pages.

pub mod curves;
pub mod error;
pub mod ngram;
pub mod perplexity;
pub mod preference;
pub mod report;
pub mod retrieval;
pub mod statistics;
pub mod world;

pub use error::{Error, Result};
