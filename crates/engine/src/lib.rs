//! Generation: sampling, sequence state, streaming.
//!
//! The decoding loop works on token ids and knows nothing of text; [`text`] adds the tokenizer, stop strings and streaming.

pub mod beam;
pub mod decode;
pub mod embed;
pub mod error;
pub mod sampler;
pub mod score;
pub mod stop;
pub mod text;

pub use error::{Error, Result};
