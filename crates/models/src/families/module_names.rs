//! What transformers makes of a family's files: modules whose names may be others than those of the tensors, by which adapters
//! know them.

use super::{Family, TensorEntry, rename};
use crate::spec::ModelSpec;

/// How the modules that transformers builds differ from the tensors of the files.
#[derive(Debug, Clone, Copy)]
pub struct ModuleNames {
    /// The tensors as its modules hold them, where names or fusions are others than the file's.
    pub tensors: Option<fn(&ModelSpec) -> Vec<TensorEntry>>,
    /// Linear layers that an adapter of all linear layers leaves out.
    pub left_out: &'static [LeftOut],
    /// Linear layers whose last names PEFT takes for those of experts, so that it knows them by their parameters alone.
    pub by_parameter: &'static [&'static str],
    /// A module that an encoder-decoder has there and never reads: its stacks look up tables of their own.
    pub unread: Option<&'static str>,
}

/// A linear layer that gets an adapter only where it is named.
#[derive(Debug, Clone, Copy)]
pub struct LeftOut {
    /// The end of its name.
    pub name: &'static str,
    /// Why, as the end of a sentence about adapters of it.
    pub reason: &'static str,
}

impl ModuleNames {
    /// The modules are the file's.
    pub const OF_FILES: Self = Self {
        tensors: None,
        left_out: &[],
        by_parameter: &[],
        unread: None,
    };

    /// The modules are the file's, and PEFT takes the parts of dense and shared layers for those of experts.
    pub const BESIDE_EXPERTS: Self = Self {
        by_parameter: &["gate_proj", "up_proj", "down_proj"],
        ..Self::OF_FILES
    };

    /// The modules are the file's but for what `tensors` says.
    pub const fn of(tensors: fn(&ModelSpec) -> Vec<TensorEntry>) -> Self {
        Self {
            tensors: Some(tensors),
            ..Self::OF_FILES
        }
    }

    /// The modules are the file's, and these are left out.
    pub const fn without(left_out: &'static [LeftOut]) -> Self {
        Self {
            left_out,
            ..Self::OF_FILES
        }
    }
}

impl Family {
    /// The tensors as the modules of transformers hold them.
    pub fn in_memory(&self, spec: &ModelSpec) -> Vec<TensorEntry> {
        self.modules.tensors.unwrap_or(self.tensors)(spec)
    }
}

/// The entries of a table with their names changed as [`rename`] does.
pub(super) fn renamed(entries: Vec<TensorEntry>, names: &[(&str, &str)]) -> Vec<TensorEntry> {
    let renamed = |entry: TensorEntry| TensorEntry {
        name: rename(&entry.name, names),
        ..entry
    };
    entries.into_iter().map(renamed).collect()
}
