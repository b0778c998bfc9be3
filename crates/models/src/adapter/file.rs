//! The file of an adapter's weights, of which every tensor must find its place.

use std::{collections::BTreeSet, path::Path};

use crate::{Error, Result, checkpoint::TensorFile};

/// The weights of an adapter folder, and which of them nobody has read yet.
#[derive(Debug)]
pub struct AdapterFile {
    file: TensorFile,
    unread: BTreeSet<String>,
}

impl AdapterFile {
    /// Maps the file.
    ///
    /// # Errors
    /// When it is missing or damaged.
    pub fn open(path: &Path) -> Result<Self> {
        let file = TensorFile::open(path)?;
        let unread = file.names().map(str::to_owned).collect();
        Ok(Self { file, unread })
    }

    /// The names of tensors that nobody has read yet, sorted.
    pub fn unread(&self) -> impl Iterator<Item = &str> {
        self.unread.iter().map(String::as_str)
    }

    /// The shape of a tensor, if the file has it.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.file.info(name).map(|info| info.shape.as_slice())
    }

    /// The values of a tensor of this shape, row by row.
    ///
    /// # Errors
    /// When the file has no such tensor, or one of another shape.
    pub fn read(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        match self.shape(name) {
            Some(found) if found == shape => {}
            found => {
                let found = found.map_or("missing".to_owned(), |found| format!("{found:?}"));
                return Err(self.error(format!(
                    "tensor `{name}` is {found}, which does not fit the base: expected {shape:?}"
                )));
            }
        }
        self.unread.remove(name);
        self.file.read_f32(name, None)
    }

    /// Refuses tensors that nobody has read.
    ///
    /// # Errors
    /// When there is one.
    pub fn refuse_unread(&self) -> Result<()> {
        match self.unread.first() {
            Some(name) => Err(self.error(format!(
                "tensor `{name}` fits no part of the base model that the configuration names"
            ))),
            None => Ok(()),
        }
    }

    /// An error about the file.
    pub fn error(&self, reason: String) -> Error {
        Error::Adapter {
            path: self.file.path().to_owned(),
            reason,
        }
    }
}
