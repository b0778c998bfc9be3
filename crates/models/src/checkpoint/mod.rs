//! Checkpoints in and out: safetensors files, PyTorch's files, GGUF files, folders of shards, and the configuration of adapters.

pub(crate) mod bitnet;
pub(crate) mod bitsandbytes;
pub mod folder;
pub mod gguf;
pub(crate) mod gptq;
pub mod peft_config;
mod peft_initialisation;
mod peft_targets;
mod peft_tokens;
mod pickle;
mod pth;
mod pth_writer;
pub mod safetensors;
pub mod writer;
mod zip;

pub use self::safetensors::{Dtype, TensorFile, TensorInfo};
pub use folder::Checkpoint;
pub use peft_config::PeftConfig;
pub use pth_writer::state_dictionary;
pub use writer::{Elements, TensorPlan, TensorWriter};
