//! What the binary tells its user when something goes wrong: one message, and an exit code that scripts can trust.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done; also when the reader of the output went away |
//! | 1 | the work failed: a file, a model, the data |
//! | 2 | the command was wrong: an argument, a recipe's key, an override |
//! | 101 | a bug of this program |
//! | 129, 130, 143 | it was asked to stop, by SIGHUP (a lost terminal), SIGINT (Ctrl-C) or SIGTERM |

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::{interrupt, recipe::document::RecipeError};

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a command did not do what it was asked for.
///
/// ```
/// use espalier::Error;
/// let error = Error::Usage("`--count 0`: expected at least 1".into());
/// assert_eq!(error.exit_code(), 2);
/// assert_eq!(error.to_json()["error"]["kind"], "usage");
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The command is wrong; the text names the argument, what was expected and the nearest valid choice.
    #[error("{0}")]
    Usage(String),
    /// The work failed; the text names the file, the cause and the fix.
    #[error("{0}")]
    Work(String),
    /// A recipe cannot be read or is wrong.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// The model or its files.
    #[error(transparent)]
    Model(#[from] espalier_models::Error),
    /// The data, the tokenizer or the template.
    #[error(transparent)]
    Data(#[from] espalier_data::Error),
    /// Generation.
    #[error(transparent)]
    Engine(#[from] espalier_engine::Error),
    /// Training.
    #[error(transparent)]
    Train(#[from] espalier_train::Error),
    /// Evaluation.
    #[error(transparent)]
    Evaluate(#[from] espalier_evaluate::Error),
    /// The program was asked to stop; the text says where, and how to go on.
    #[error("{0}")]
    Interrupted(String),
    /// A file of the command itself.
    #[error("{}: {source}; check that the path exists and its disk has room and permits access", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Standard input or output.
    #[error("standard input or output: {0}")]
    Stream(#[from] io::Error),
}

impl Error {
    /// What a model cannot do is the fault of what was asked for.
    pub fn of_request(error: espalier_models::Error) -> Self {
        match error {
            espalier_models::Error::Invalid(reason) => Self::usage(reason),
            other => other.into(),
        }
    }

    /// A [`Error::Usage`].
    pub fn usage(text: impl Into<String>) -> Self {
        Self::Usage(text.into())
    }

    /// A [`Error::Work`].
    pub fn work(text: impl Into<String>) -> Self {
        Self::Work(text.into())
    }

    /// A [`Error::File`] at `path`, for `map_err`.
    pub fn file(path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::File { path, source }
    }

    /// Whether the command, and not its work, is at fault.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Usage(_) => true,
            Self::Recipe(error) => !matches!(error, RecipeError::File { .. }),
            _ => false,
        }
    }

    /// Whether the reader of the output went away (`espalier ... | head`), which is no failure.
    pub fn is_closed_pipe(&self) -> bool {
        matches!(self, Self::Stream(error) if error.kind() == ErrorKind::BrokenPipe)
    }

    /// Whether the work was stopped from outside.
    pub fn is_interruption(&self) -> bool {
        matches!(
            self,
            Self::Interrupted(_) | Self::Train(espalier_train::Error::Interrupted { .. })
        )
    }

    /// The process's exit code.
    pub fn exit_code(&self) -> u8 {
        match () {
            () if self.is_closed_pipe() => 0,
            () if self.is_usage() => 2,
            () if self.is_interruption() => interrupt::code(),
            () => 1,
        }
    }

    /// The error for machines: `{"error": {"kind", "code", "message"}}`.
    pub fn to_json(&self) -> Value {
        let kind = match () {
            () if self.is_usage() => "usage",
            () if self.is_interruption() => "interrupted",
            () => "work",
        };
        json!({"error": {"kind": kind, "code": self.exit_code(), "message": self.to_string()}})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_follow_the_kind() {
        assert_eq!(Error::Work("no".into()).exit_code(), 1);
        assert_eq!(Error::file("a")(io::Error::other("gone")).exit_code(), 1);
        assert_eq!(Error::Stream(ErrorKind::BrokenPipe.into()).exit_code(), 0);
        assert_eq!(Error::Stream(ErrorKind::InvalidData.into()).exit_code(), 1);
        let missing = RecipeError::File {
            path: "r.toml".into(),
            source: ErrorKind::NotFound.into(),
        };
        assert_eq!(Error::from(missing).exit_code(), 1);
        let stopped = Error::from(espalier_train::Error::Interrupted { step: 1, total: 2 });
        assert!(stopped.exit_code() >= 128 && !stopped.is_usage());
        assert_eq!(stopped.to_json()["error"]["kind"], "interrupted");
        let change = RecipeError::Override {
            text: "a".into(),
            reason: "expected `key=value`".into(),
        };
        assert_eq!(Error::from(change).exit_code(), 2);
    }
}
