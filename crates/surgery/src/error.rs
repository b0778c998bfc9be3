//! The errors of this crate: each is one line that names the place, what was expected, and the fix.

use std::io;
use std::path::{Path, PathBuf};

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why models were not joined.
///
/// ```
/// use espalier_surgery::Error;
/// let error = Error::Recipe { path: "a.yaml".into(), line: Some(3), reason: "no".into() };
/// assert_eq!(error.to_string(), "a.yaml:3: no");
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The recipe is wrong; the text names the key and the nearest valid choice.
    #[error("{}{}: {reason}", path.display(), line.map(|line| format!(":{line}")).unwrap_or_default())]
    Recipe {
        /// The recipe's file.
        path: PathBuf,
        /// The line, where it is known.
        line: Option<usize>,
        /// What is wrong, and the fix.
        reason: String,
    },
    /// The models do not fit each other or what was asked for; the text names file and tensor.
    #[error("{0}")]
    Invalid(String),
    /// A model or its files.
    #[error(transparent)]
    Model(#[from] espalier_models::Error),
    /// A file that cannot be read or written.
    #[error("{}: {source}; check that the path exists and that its disk has room and permits access", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

impl Error {
    /// An [`Error::File`] at `path`, for `map_err`.
    pub fn file(path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::File { path, source }
    }

    /// Whether what was asked for is at fault, and no file.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Recipe { .. })
    }
}
