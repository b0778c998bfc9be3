//! Checkpoints in and out: safetensors files, folders of shards, and the configuration of adapters.

pub mod folder;
pub mod partial_file;
pub mod peft_config;
mod peft_targets;
pub mod safetensors;
pub mod writer;

pub use self::safetensors::{Dtype, TensorFile, TensorInfo};
pub use folder::Checkpoint;
pub use peft_config::PeftConfig;
pub use writer::{TensorPlan, TensorWriter};
