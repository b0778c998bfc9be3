//! The errors of this crate: each is one line that names the place, what was expected, and the fix.

use std::io;
use std::path::{Path, PathBuf};

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that can go wrong with a model, its files or its inputs.
///
/// ```
/// use espalier_models::error::Error;
/// let error = Error::Token { id: 70, vocabulary: 61 };
/// assert!(error.to_string().starts_with("token 70 is outside the vocabulary"));
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file that cannot be opened, read or written.
    #[error("{}: {source}; check that the path exists and that its disk has room and permits access", .path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A weight file that breaks its format or does not fit its model.
    #[error("{}: {reason}", .path.display())]
    Checkpoint {
        /// The weight file or its folder.
        path: PathBuf,
        /// What is wrong, and the fix.
        reason: String,
    },
    /// A key of a configuration file that is missing, of the wrong type or out of range.
    #[error("{}: key `{key}`: {reason}", .path.display())]
    Config {
        /// The configuration file.
        path: PathBuf,
        /// The key, with dots between levels.
        key: String,
        /// What is wrong, and the fix.
        reason: String,
    },
    /// An architecture that no family registers.
    #[error("unknown architecture `{name}`{}; `espalier families` lists all that are known", suggestion(.nearest))]
    UnknownArchitecture {
        /// The name in the file.
        name: String,
        /// The known names most like it, where some are close.
        nearest: Vec<String>,
    },
    /// A tensor whose shape does not fit.
    #[error(
        "{operator}: expected shape {expected}, found {found:?}; check that the weights belong to this model"
    )]
    Shape {
        /// The operator or the tensor's name.
        operator: String,
        /// The shape that fits, in words or numbers.
        expected: String,
        /// The shape that came.
        found: Vec<usize>,
    },
    /// An adapter that cannot be read or does not fit its model.
    #[error("{}: {reason}", .path.display())]
    Adapter {
        /// The adapter's file or folder.
        path: PathBuf,
        /// What is wrong, and the fix.
        reason: String,
    },
    /// A token that the embedding table lacks.
    #[error(
        "token {id} is outside the vocabulary of {vocabulary}; use the tokenizer that belongs to this model, or grow the embedding"
    )]
    Token {
        /// The token.
        id: u32,
        /// Rows of the embedding table.
        vocabulary: usize,
    },
    /// A value from the caller that makes no sense; the text says which and what would.
    #[error("{0}")]
    Invalid(String),
}

impl Error {
    /// A [`Error::File`] at `path`, for `map_err`.
    pub fn file(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::File { path, source }
    }

    /// A [`Error::Checkpoint`] at `path`.
    pub fn checkpoint(path: &Path, reason: impl Into<String>) -> Self {
        Self::Checkpoint {
            path: path.to_path_buf(),
            reason: reason.into(),
        }
    }
}

fn suggestion(nearest: &[String]) -> String {
    match nearest {
        [] => String::new(),
        names => format!("; did you mean `{}`?", names.join("` or `")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_is_one_line_with_its_place() {
        let path = PathBuf::from("model/config.json");
        let lines = [
            Error::file(&path)(io::Error::other("denied")).to_string(),
            Error::checkpoint(&path, "the header is cut off").to_string(),
            Error::Config {
                path,
                key: "n_head".into(),
                reason: "must be positive".into(),
            }
            .to_string(),
            Error::UnknownArchitecture {
                name: "A".into(),
                nearest: vec!["B".into(), "C".into()],
            }
            .to_string(),
            Error::Shape {
                operator: "linear".into(),
                expected: "[2, 3]".into(),
                found: vec![3, 2],
            }
            .to_string(),
            Error::Token {
                id: 9,
                vocabulary: 4,
            }
            .to_string(),
        ];
        assert!(
            lines
                .iter()
                .all(|line| !line.contains('\n') && line.len() > 20)
        );
        assert!(lines[2].starts_with("model/config.json: key `n_head`"));
        assert_eq!(
            lines[3],
            "unknown architecture `A`; did you mean `B` or `C`?; `espalier families` lists all that are known"
        );
    }
}
