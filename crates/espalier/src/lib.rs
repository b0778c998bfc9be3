//! The whole life of a language model: the facade library and the binary.
//!
//! The crates of the workspace are re-exported under short names, so that one dependency gives all of them; what this crate
//! adds is the binary ([`cli`]) and its recipes ([`recipe`]).

pub use espalier_data as data;
pub use espalier_engine as engine;
pub use espalier_evaluate as evaluate;
pub use espalier_kernels as kernels;
pub use espalier_models as models;
pub use espalier_surgery as surgery;
pub use espalier_train as train;

pub mod cli;
pub mod device;
pub mod error;
pub mod evaluation;
pub mod export;
pub mod interrupt;
pub mod memory;
pub mod model_path;
pub mod recipe;
pub mod stages;
pub mod terminal;
pub mod units;
pub mod voice;

pub use error::{Error, Result};
