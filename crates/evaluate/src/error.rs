//! What can go wrong while evaluating.

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error with the context that the caller has not got.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The model or its files.
    #[error(transparent)]
    Model(#[from] espalier_models::Error),
    /// The data, the tokenizer or the template.
    #[error(transparent)]
    Data(#[from] espalier_data::Error),
    /// Generation or scoring.
    #[error(transparent)]
    Engine(#[from] espalier_engine::Error),
    /// A task: its file, its data or its options; the text names what and how to mend it.
    #[error("{0}")]
    Task(String),
    /// The report page.
    #[error(transparent)]
    Report(#[from] crate::report::ReportError),
    /// The metrics log.
    #[error(transparent)]
    Metrics(#[from] crate::curves::MetricsError),
}

impl Error {
    /// A [`Error::Task`].
    pub fn task(text: impl Into<String>) -> Self {
        Self::Task(text.into())
    }
}
