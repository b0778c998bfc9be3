//! Evaluation: perplexity with n-gram baselines and over what needs far context, RULER and probes of long contexts, accuracy on the generated worlds, preference accuracy, retrieval,
//! confidence intervals, and report pages.

pub mod curves;
pub mod error;
pub mod long_perplexity;
pub mod ngram;
pub mod perplexity;
pub mod preference;
pub mod report;
pub mod retrieval;
pub mod ruler;
pub mod statistics;
pub mod val_probe;
pub mod world;

pub use error::{Error, Result};
