//! Whether an objective suits the model, the samples and the options.

use espalier_data::packing::Row;
use espalier_models::model::LanguageModel;

use crate::{
    Error, Result,
    batch::Sample,
    objectives::{Objective, PackedRows},
    options::TrainOptions,
};

/// Whether model, samples and options suit the objective.
///
/// # Errors
/// When they do not; [`super::train`] refuses them alike, but a plan was made by then.
pub fn check(
    model: &LanguageModel,
    objective: &dyn Objective,
    samples: &[Sample],
    options: &TrainOptions,
) -> Result<()> {
    check_objective(objective, options)?;
    check_rows(objective, samples.iter())?;
    objective.check(model, samples, options)?;
    match objective.needs_head() {
        true => Ok(model.check_head()?),
        false => Ok(()),
    }
}

/// Whether the options suit the objective.
fn check_objective(objective: &dyn Objective, options: &TrainOptions) -> Result<()> {
    let name = objective.name();
    if options.label_smoothing > 0.0 && !objective.predicts_tokens() {
        let reason = format!("`{name}` has no target tokens to smooth; leave it 0");
        return Err(Error::Option {
            key: "label_smoothing",
            reason,
        });
    }
    if objective.needs_dropout() && options.dropout == 0.0 {
        let reason =
            format!("`{name}` compares passes under different dropout; set it, for example to 0.1");
        return Err(Error::Option {
            key: "dropout",
            reason,
        });
    }
    Ok(())
}

/// Whether the objective takes the rows as they are.
pub(super) fn check_rows<'a>(
    objective: &dyn Objective,
    mut samples: impl Iterator<Item = &'a Sample>,
) -> Result<()> {
    let is_packed = |row: &Row| row.segments.iter().any(|segment| *segment > 1);
    let apart = objective.packed_rows() == PackedRows::Apart;
    match apart || !samples.any(|sample| sample.rows.iter().any(is_packed)) {
        true => Ok(()),
        false => Err(Error::packing(objective.name())),
    }
}
