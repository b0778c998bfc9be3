//! Evaluation: RULER and probes of long contexts, tasks (multiple choice, likelihoods, generated answers), perplexity with n-gram baselines, accuracy on the generated worlds, preference accuracy, retrieval,
//! confidence intervals, and report pages.

pub mod code;
pub mod curves;
pub mod divergence;
pub mod endpoint;
pub mod error;
pub mod judge;
pub mod likelihood;
pub mod long_perplexity;
pub mod ngram;
pub mod perplexity;
pub mod preference;
pub mod report;
pub mod respondent;
pub mod results;
pub mod retrieval;
pub mod ruler;
pub mod run;
pub mod statistics;
pub mod tasks;
pub mod val_probe;
pub mod world;

pub use error::{Error, Result};
