//! The upcycling stage: a dense model becomes one with experts.

use std::path::Path;

use espalier_models::upcycle::{Upcycling, upcycle};
use serde_json::{Value, json};

use super::{Workshop, model};
use crate::{Result, recipe::UpcycleStage};

/// Upcycles and leaves `model/` in the stage's folder.
///
/// # Errors
/// When a model cannot be loaded, has no form with experts, or does not fit the others.
pub fn run(workshop: &mut Workshop, stage: &UpcycleStage, folder: &Path) -> Result<Value> {
    let open = |name: &String| model::open(&workshop.model_path(name), &Default::default(), None, &workshop.device);
    let mut start = open(&stage.model)?;
    let donors = stage.donors.iter().map(open).collect::<Result<Vec<_>>>()?;
    let donors: Vec<_> = donors.iter().map(|donor| &donor.loaded.model).collect();
    let UpcycleStage { experts, active, balance, noise, seed, .. } = *stage;
    let grown = upcycle(&start.loaded.model, &donors, Upcycling { experts, active, balance, noise, seed })?;
    let (all, in_use) = (grown.spec().parameter_count(), grown.spec().active_parameter_count());
    // Keys of the dense family that the new one does not know would stay in its configuration.
    start.loaded.config = espalier_models::families::write_config(grown.spec())?;
    model::save(&folder.join("model"), &grown, &start.loaded, None, &start.tokenizer)?;
    workshop
        .voice
        .say(&format!("   {active} of {experts} experts active, {all} parameters, {in_use:.0} of them at work"));
    Ok(json!({"kind": "upcycle", "parameters": all, "active_parameters": in_use}))
}
