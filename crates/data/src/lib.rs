//! Text in, token ids out: records, readers, tokenizers, chat templates, packing and the generated worlds.
//!
//! The crate knows nothing of tensors, so it can be used alone.

pub mod disk;
pub mod encode;
pub mod error;
pub mod gguf;
pub mod nearest;
pub mod packing;
pub mod random;
pub mod readers;
pub mod record;
pub mod tables;
pub mod template;
pub mod tokenizer;
pub mod worlds;

pub use error::{Error, Result};
