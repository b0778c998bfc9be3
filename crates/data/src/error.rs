//! What can go wrong with text, files and templates.

use std::path::PathBuf;

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error with the context that the caller has not got.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A record of a data set is malformed.
    #[error("{}:{line}: {reason}", path.display())]
    Record {
        /// The data file.
        path: PathBuf,
        /// Line in the file, from 1.
        line: usize,
        /// What is wrong and what was expected.
        reason: String,
    },
    /// A tokenizer file is missing or malformed, or text could not be encoded.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// A chat template is missing, malformed or refused the conversation.
    #[error("chat template: {0}")]
    Template(String),
    /// A value that the caller gave makes no sense.
    #[error("{0}")]
    Invalid(String),
}

impl Error {
    /// Wraps an I/O error with its path.
    pub fn file(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::File {
            path: path.into(),
            source,
        }
    }
}
