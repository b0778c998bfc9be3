//! What is added to a model and trained in its place: low-rank maps, first states of recurrent layers, edits of hidden states, and
//! whatever a kind adds to linear maps and to the residual stream.
//!
//! A kind is one file here and one line in [`KINDS`]. It puts its parts where they work: a [`LinearAdapter`] at a linear map
//! ([`LinearMapMut::attach`](crate::layers::linear::LinearMapMut::attach)), an [`Intervention`] after a block ([`Stack::intervene`](crate::stack::Stack::intervene)), a first
//! state in a recurrent layer. Everything else, from folders to switching by name, knows only the trait [`AdapterKind`].

pub mod attachments;
pub mod expert_parameters;
mod file;
pub mod first_state;
mod folder;
pub mod intervention;
pub mod linear_adapter;
pub mod low_rank;
mod modules;
mod named;
mod on_model;
pub mod reft;
pub mod saved_modules;
pub mod table;
mod ties;

use std::{fmt::Debug, path::Path, sync::Arc};

use serde_json::Value;

pub use self::{
    file::AdapterFile,
    first_state::FirstStateConfig,
    folder::{base_folder, fit_base, load},
    intervention::Intervention,
    linear_adapter::LinearAdapter,
    modules::{each_linear, linear_parts, no_linear_map, no_module, target_modules},
    named::Adapter,
    reft::ReftConfig,
};
use crate::{
    Result,
    families::{Family, config::Config},
    folder::write_tensors,
    layout::StoredTensor,
    model::LanguageModel,
};

/// All kinds of adapters, one line each.
pub const KINDS: &[Registration] = &[
    low_rank::REGISTRATION,
    first_state::REGISTRATION,
    reft::REGISTRATION,
];

/// How the configuration of a kind is told from others and read.
#[derive(Debug, Clone, Copy)]
pub struct Registration {
    /// `peft_type` in `adapter_config.json`.
    pub peft_type: &'static str,
    /// Reads the configuration. Every key counts: one that would change what is computed and is not supported is refused.
    pub read: fn(&Config) -> Result<Arc<dyn AdapterKind>>,
}

/// A kind of adapter with its configuration: what it puts on a model, and how its folder holds that.
pub trait AdapterKind: Debug + Send + Sync {
    /// What the kind is called in `adapter_config.json`.
    fn peft_type(&self) -> &'static str;

    /// Modules of the base that are trained and stored whole, by the ends of their names or of those of modules around them.
    fn modules_to_save(&self) -> &[String] {
        &[]
    }

    /// Tensors of the base besides, such as biases, that are trained and stored whole, by the names that transformers has for them.
    fn tensors_to_save(&self, _model: &LanguageModel, _family: &Family) -> Vec<String> {
        Vec::new()
    }

    /// Whether it changes a head and an embedding of these names, which are one, in different ways, besides what
    /// [`AdapterKind::adapts`] says.
    fn parts_head(&self, _embedding: &[&str], _head: &[&str]) -> bool {
        false
    }

    /// How many rows the table of tokens must have for it, where it holds all of those that the base lacks.
    ///
    /// # Errors
    /// When it needs rows that neither it nor the base has.
    fn rows_needed(&self, model: &LanguageModel, _family: &Family) -> Result<usize> {
        Ok(model.spec().vocabulary)
    }

    /// Whether it adapts the module of these names by one of them, and not only as one of all linear maps.
    fn adapts(&self, _names: &[&str]) -> bool {
        false
    }

    /// What the user should know before it is put on the model, a sentence each.
    fn remarks(&self, _model: &LanguageModel, _family: &Family) -> Vec<String> {
        Vec::new()
    }

    /// Whether a head that is the embedding stays so, though the adapter changes one of them.
    fn keeps_ties(&self) -> bool {
        false
    }

    /// Puts fresh parts on the model, whose parameters say that they are the adapter's
    /// ([`Parameter::of_adapter`](crate::parameter::Parameter::of_adapter)). The model computes the same as before, unless
    /// the kind's reference starts otherwise. What starts
    /// from the base's weights finds them in [`LinearMapMut::weights`](crate::layers::linear::LinearMapMut::weights).
    ///
    /// # Errors
    /// When no part of the model can have one.
    fn attach(&self, model: &mut LanguageModel, family: &Family, fresh: Fresh<'_>) -> Result<()>;

    /// Opens the weights of a folder.
    ///
    /// # Errors
    /// When a file is missing or damaged.
    fn open(&self, folder: &Path) -> Result<AdapterFile> {
        let (pickled, usual) = (folder.join(PICKLED_WEIGHTS), folder.join(WEIGHTS));
        let is_older = !usual.is_file() && pickled.is_file();
        AdapterFile::open(if is_older { &pickled } else { &usual })
    }

    /// Writes all tensors of a folder, the adapter's own and those of modules that are trained whole.
    ///
    /// # Errors
    /// When the disk is full.
    fn write(&self, tensors: Vec<StoredTensor<'_>>, folder: &Path) -> Result<()> {
        write_tensors(&tensors, &folder.join(WEIGHTS))
    }

    /// The adapter's own tensors under the names of its file.
    fn tensors<'a>(
        &self,
        model: &'a LanguageModel,
        family: &Family,
        adapter: &str,
    ) -> Vec<StoredTensor<'a>>;

    /// Puts the values of a file into the attached parts; those of [`AdapterKind::tensors`], unless a kind reads more.
    ///
    /// # Errors
    /// When a tensor is missing or does not fit.
    fn read(
        &self,
        model: &mut LanguageModel,
        family: &Family,
        adapter: &str,
        file: &mut AdapterFile,
    ) -> Result<()> {
        let values = file.values(self.tensors(model, family, adapter))?;
        saved_modules::set_values(model, values);
        Ok(())
    }

    /// The configuration, an object without `peft_type` and `base_model_name_or_path`.
    fn configuration(&self, model: &LanguageModel, family: &Family, adapter: &str) -> Value;

    /// Whether what is trained of it can be kept in a folder that its reference reads.
    ///
    /// # Errors
    /// When it cannot.
    fn check_kept(&self, _model: &LanguageModel, _family: &Family, _adapter: &str) -> Result<()> {
        Ok(())
    }

    /// Why such an adapter cannot be merged into the weights, where that is so.
    fn merge_refusal(&self) -> Option<&'static str> {
        None
    }

    /// The adapter in words.
    fn describe(&self) -> String;
}

/// An adapter that is new to its model.
#[derive(Debug, Clone, Copy)]
pub struct Fresh<'a> {
    /// The adapter's name.
    pub adapter: &'a str,
    /// Seed of its random numbers.
    pub seed: u64,
    /// Whether a file's values take the place of the fresh ones at once.
    pub is_read: bool,
}

/// Name of the configuration in an adapter folder.
pub const CONFIGURATION: &str = "adapter_config.json";

/// Name of the weights in an adapter folder.
const WEIGHTS: &str = "adapter_model.safetensors";

/// The same as PyTorch writes them, in older folders; safetensors win where a folder has both.
const PICKLED_WEIGHTS: &str = "adapter_model.bin";

/// Prefix of every tensor in a PEFT adapter.
pub const PEFT_PREFIX: &str = "base_model.model.";

/// The name of an adapter that nobody named, as PEFT has it.
pub const DEFAULT_NAME: &str = "default";
