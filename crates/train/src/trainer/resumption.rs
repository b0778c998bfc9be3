//! What a run goes on from: a checkpoint's tensors, and the logs as they were.

use std::path::Path;

use super::Run;
use crate::{
    Result,
    averaging::Averager,
    checkpoint::{Progress, Tensors},
    metrics::MetricsLog,
    named_tensors::SavedTensors,
    optimisers::Optimiser,
    trained,
};

/// The log of what an objective shows to readers.
pub(super) const SAMPLES: &str = "samples.jsonl";

/// That log as it was when it had so many bytes; none before there is something to show.
pub(super) fn open_samples(folder: &Path, bytes: u64) -> Result<Option<MetricsLog>> {
    let path = folder.join(SAMPLES);
    match path.exists() || bytes > 0 {
        true => MetricsLog::open(&path, bytes).map(Some),
        false => Ok(None),
    }
}

/// Puts a checkpoint into model, objective and optimiser. All that it holds must be theirs, and all that they need in it.
pub(super) fn restore(
    run: &mut Run<'_>,
    optimiser: &mut dyn Optimiser,
    mut averager: Option<&mut Averager>,
    progress: &Progress,
    saved: &Tensors<SavedTensors>,
) -> Result<()> {
    let mut restored = Ok(());
    trained::visit_mut(&mut run.model, run.objective, &mut |key, parameter| {
        if restored.is_ok() {
            restored = saved
                .weights
                .restore_parameter(key, parameter)
                .and_then(|()| optimiser.restore(key, parameter, &saved.optimiser));
        }
        if let (Ok(()), Some(averager)) = (&restored, &mut averager) {
            restored = averager.restore(key, parameter, &saved.optimiser, progress.step);
        }
    });
    restored?;
    run.objective
        .restore(&saved.objective, &progress.objective)?;
    saved.weights.refuse_unread()?;
    saved.optimiser.refuse_unread()?;
    saved.objective.refuse_unread()
}
