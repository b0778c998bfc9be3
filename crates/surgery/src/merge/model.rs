//! A model as merging sees it: a configuration, tensors that are read when they are needed, and which of them belong to which block.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use espalier_models::checkpoint::{Checkpoint, Dtype, TensorInfo};
use serde_json::{Map, Value};

use crate::{Error, Result};

/// Keys of `config.json` with the number of blocks.
pub const BLOCKS: [&str; 4] = ["num_hidden_layers", "n_layer", "num_layers", "n_layers"];

/// Parts of the names of tables with a row for every token.
const TABLES: [&str; 9] = [
    "embed_tokens",
    "lm_head",
    "wte",
    "word_embeddings",
    "embed_in",
    "embed_out",
    "tok_embeddings",
    "shared.weight",
    "embeddings.weight",
];

/// An opened model.
#[derive(Debug)]
pub struct Model {
    /// Where it is.
    pub folder: PathBuf,
    /// Its `config.json`.
    pub config: Map<String, Value>,
    /// Its tensors.
    pub checkpoint: Checkpoint,
    /// How many blocks every stack has, by what stands before the number in their tensors' names.
    pub stacks: BTreeMap<String, usize>,
}

/// A tensor's name: that of a block with its number, or another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place<'a> {
    /// What stands before the block's number, the number, and what stands behind it.
    Block(&'a str, usize, &'a str),
    /// A tensor of no block.
    Outside,
}

/// Where a tensor of this name belongs.
pub fn place(name: &str) -> Place<'_> {
    let mut start = 0;
    for part in name.split('.') {
        let end = start + part.len();
        if let (Ok(number), true) = (part.parse(), part.bytes().all(|byte| byte.is_ascii_digit())) {
            return Place::Block(&name[..start], number, &name[end..]);
        }
        start = end + 1;
    }
    Place::Outside
}

/// Whether a tensor has a row for every token.
pub fn is_table(name: &str) -> bool {
    name.ends_with("weight") && TABLES.iter().any(|part| name.contains(part))
}

/// Whether a tensor of no block comes before the blocks.
pub fn is_before_blocks(name: &str) -> bool {
    ["embed", "wte", "wpe"]
        .iter()
        .any(|part| name.contains(part))
        && !name.contains("embed_out")
}

impl Model {
    /// Opens a model's folder.
    ///
    /// # Errors
    /// When a file is missing or damaged.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let text = std::fs::read(&path).map_err(Error::file(&path))?;
        let config = serde_json::from_slice(&text).map_err(|error| {
            Error::Invalid(format!("{}: {error}; save it again", path.display()))
        })?;
        let checkpoint = Checkpoint::open(folder)?;
        let mut stacks = BTreeMap::new();
        for name in checkpoint.names() {
            if let Place::Block(stack, number, _) = place(name) {
                let count = stacks.entry(stack.to_owned()).or_insert(0);
                *count = number.saturating_add(1).max(*count);
            }
        }
        Ok(Self {
            folder: folder.to_owned(),
            config,
            checkpoint,
            stacks,
        })
    }

    /// The architecture that `config.json` names.
    pub fn architecture(&self) -> &str {
        let first = self
            .config
            .get("architectures")
            .and_then(|list| list.get(0));
        let name = first.or_else(|| self.config.get("model_type"));
        name.and_then(Value::as_str).unwrap_or("unknown")
    }

    /// Rows of the tables of tokens, as `config.json` has it.
    pub fn vocabulary(&self) -> Option<u64> {
        self.config.get("vocab_size").and_then(Value::as_u64)
    }

    /// The name under which the model has this tensor: a head that is not stored is the table of tokens.
    pub fn stored_name(&self, name: &str) -> Option<String> {
        if self.checkpoint.info(name).is_some() {
            return Some(name.to_owned());
        }
        let tied = self
            .config
            .get("tie_word_embeddings")
            .and_then(Value::as_bool);
        let mut names = self.checkpoint.names();
        let table = names.find(|table| is_table(table) && is_before_blocks(table));
        let head = name == "lm_head.weight" && tied != Some(false);
        table.filter(|_| head).map(str::to_owned)
    }

    /// The type and shape of a tensor that is stored under this name.
    ///
    /// # Errors
    /// When it is no tensor of floating-point numbers, or not there.
    pub fn info(&self, stored: &str) -> Result<&TensorInfo> {
        let at = || {
            format!(
                "{}: tensor `{stored}`",
                self.checkpoint.path_of(stored).display()
            )
        };
        let info = self.checkpoint.info(stored);
        let info = info.ok_or_else(|| Error::Invalid(format!("{} is missing", at())))?;
        match info.dtype {
            Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F64 => Ok(info),
            other => Err(Error::Invalid(format!(
                "{} holds {other:?}; only F32, F16, BF16 and F64 are merged: save the model unpacked",
                at()
            ))),
        }
    }

    /// The numbers of a tensor by its name in the file.
    ///
    /// # Errors
    /// When it cannot be read, or one of them is not finite.
    pub fn read(&self, stored: &str) -> Result<Vec<f32>> {
        let numbers = self.checkpoint.read_f32(stored, None)?;
        match numbers.iter().position(|number| !number.is_finite()) {
            None => Ok(numbers),
            Some(at) => Err(Error::Invalid(format!(
                "{}: tensor `{stored}`: number {at} is {}; the file is damaged: download or save it again",
                self.checkpoint.path_of(stored).display(),
                numbers[at]
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_the_block() {
        assert_eq!(
            place("model.layers.12.mlp.experts.3.w1.weight"),
            Place::Block("model.layers.", 12, ".mlp.experts.3.w1.weight")
        );
        assert_eq!(place("model.norm.weight"), Place::Outside);
        assert_eq!(place("blocks.0.ln"), Place::Block("blocks.", 0, ".ln"));
        assert!(is_table("model.embed_tokens.weight") && is_table("lm_head.weight"));
        assert!(is_before_blocks("transformer.wte.weight") && !is_before_blocks("lm_head.weight"));
    }
}
