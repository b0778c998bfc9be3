//! One composable model for many families: specification, layers, checkpoints and adapters.
//!
//! A family is data: `families/` maps `config.json` to a [`spec::ModelSpec`] and checkpoint tensor names to ours.
//! [`model::LanguageModel`] is the one model that computes them all.

pub mod adapter;
pub mod alibi;
pub mod auxiliary_losses;
pub mod checkpoint;
mod classification;
mod context;
pub mod embedding_noise;
pub mod error;
pub mod expansion;
pub mod families;
pub mod folder;
pub mod fresh_classifier;
mod growth;
pub mod input;
pub mod layers;
pub mod layout;
pub mod model;
pub mod packing;
pub mod parameter;
pub mod pooling;
mod positions;
pub mod quantised;
pub mod recurrent;
mod relative_position_bias;
mod rotary_frequencies;
pub mod rounded_cache;
mod saved_configuration;
pub mod source;
pub mod spec;
mod spec_embedding;
mod spec_heads;
mod spec_latent;
mod spec_memory;
mod spec_parameters;
mod spec_routing;
mod spec_stack;
pub mod stack;
pub mod state;
pub mod state_file;
pub mod taps;
pub mod target_scores;
mod tied_head;
pub mod token_places;
pub mod upcycle;

pub use error::{Error, Result};
