//! Surgery: models as things to cut and join, with a check before and a measurement after.
//!
//! [`merge`] combines checkpoints of one architecture tensor by tensor, by the recipes of mergekit.

pub mod error;
pub mod merge;

pub use error::{Error, Result};
