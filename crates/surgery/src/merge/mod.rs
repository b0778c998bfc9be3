//! Merging: checkpoints of one architecture become one, tensor by tensor, without training.
//!
//! Recipes are those of mergekit ([`recipe`]). A merge is planned and checked whole before a byte is written ([`plan`]); then tensors are
//! read from the mapped files, merged on all cores as many at a time as memory allows, and written ([`run`]). The output's folder gets its name
//! when all of it is there.

mod card;
pub mod methods;
pub mod model;
pub mod plan;
pub mod recipe;
pub mod run;
pub mod setting;
pub mod tokens;

pub use run::{Difference, Options, Summary, merge};
