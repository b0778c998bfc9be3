//! Generation: sampling and beam search over a key-value cache or a recurrent state, streamed text; and scores and
//! embeddings of given texts.
//!
//! The decoding loop works on token ids alone; [`text`] adds the tokenizer, stop strings and streaming.

pub mod answer;
pub mod beam;
pub mod decode;
pub mod embed;
pub mod error;
pub mod rules;
pub mod sampler;
pub mod scheduler;
pub mod score;
pub mod sentence_transformers;
pub mod stop;
pub mod text;

pub use error::{Error, Result};
