//! What can go wrong in a training run.

use std::path::PathBuf;

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error with the context that the caller has not got.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The model or its files.
    #[error(transparent)]
    Model(#[from] espalier_models::Error),
    /// The data.
    #[error(transparent)]
    Data(#[from] espalier_data::Error),
    /// Gradients were lost on their way.
    #[error(transparent)]
    Gradients(#[from] espalier_kernels::backward::LostGradients),
    /// Generation, for objectives that learn from what the model writes.
    #[error(transparent)]
    Engine(#[from] espalier_engine::Error),
    /// A file of the run.
    #[error("{}: {source}; check that the path exists and the disk has room", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// An option makes no sense.
    #[error("`{key}`: {reason}")]
    Option {
        /// The option's key.
        key: &'static str,
        /// What is wrong, and the fix.
        reason: String,
    },
    /// A column of the samples is not what an objective needs.
    #[error("column `{name}`: {reason}")]
    Column {
        /// The column.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// A source of rewards failed.
    #[error("the reward `{source_name}`: {reason}")]
    Reward {
        /// The source's name.
        source_name: String,
        /// What it did, with its last words, and the fix.
        reason: String,
    },
    /// The loss or a gradient is not a finite number.
    #[error(
        "step {step}: {what} is not finite; lower `learning_rate`, or check the data of this step"
    )]
    NotFinite {
        /// The step, from 1.
        step: usize,
        /// The loss, or the tensor's name.
        what: String,
    },
    /// The run was asked to stop; a checkpoint holds what is done.
    #[error(
        "stopped after step {step} of {total}, which a checkpoint keeps; the same command goes on from there"
    )]
    Interrupted {
        /// The last step, from 1.
        step: usize,
        /// All steps.
        total: usize,
    },
    /// A checkpoint does not belong to this run.
    #[error("{}: {reason}", path.display())]
    Checkpoint {
        /// The checkpoint.
        path: PathBuf,
        /// What does not fit, and the fix.
        reason: String,
    },
}

impl Error {
    /// Rows of several texts for an objective that does not take them.
    pub fn packing(objective: &str) -> Self {
        let fix = "leave `packing` out; `group_by_length = true` spares padding too";
        Self::Option {
            key: "packing",
            reason: format!(
                "`{objective}` takes a row for one text, and packed rows hold several; {fix}"
            ),
        }
    }

    /// Wraps an I/O error with its path.
    pub fn file(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { path, source }
    }
}

/// Whether an option is above 0.
///
/// # Errors
/// When it is not.
pub(crate) fn positive(key: &'static str, value: f64) -> Result<()> {
    match value > 0.0 && value.is_finite() {
        true => Ok(()),
        false => Err(Error::Option {
            key,
            reason: format!("{value} is not a positive number"),
        }),
    }
}

/// Whether an option is at least 0.
///
/// # Errors
/// When it is not.
pub(crate) fn not_negative(key: &'static str, value: f64) -> Result<()> {
    match value >= 0.0 && value.is_finite() {
        true => Ok(()),
        false => Err(Error::Option {
            key,
            reason: format!("{value} is negative or no number"),
        }),
    }
}

/// Whether a count is at least `least`.
///
/// # Errors
/// When it is not.
pub(crate) fn at_least(key: &'static str, value: usize, least: usize) -> Result<()> {
    match value >= least {
        true => Ok(()),
        false => Err(Error::Option {
            key,
            reason: format!("must be at least {least}"),
        }),
    }
}

/// Whether an option's value is within its range.
///
/// # Errors
/// When it is not.
pub(crate) fn within(key: &'static str, value: f64, low: f64, high: f64) -> Result<()> {
    match value >= low && value <= high {
        true => Ok(()),
        false => Err(Error::Option {
            key,
            reason: format!("{value} is outside {low} to {high}"),
        }),
    }
}
