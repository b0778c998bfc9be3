//! Finding the modules that an adapter is for, and its parts at them.

use std::collections::{BTreeSet, HashMap};

use espalier_data::nearest::suggestion;

use super::{LinearAdapter, saved_modules};
use crate::{
    Error, Result,
    families::Family,
    layers::linear::LinearMapMut,
    layout::{self, Module},
    model::LanguageModel,
    parameter::Parameters,
};

/// The modules of the checkpoint that `targeted` accepts by their names; for kinds that adapt linear maps.
///
/// # Errors
/// When there is none; the message lists what there is.
pub fn target_modules(
    model: &LanguageModel,
    family: &Family,
    targeted: &dyn Fn(&str) -> bool,
) -> Result<Vec<Module>> {
    let all = layout::modules(model, family);
    let mut last: Vec<&str> = all
        .iter()
        .filter_map(|module| module.name.rsplit('.').next())
        .collect();
    last.sort_unstable();
    last.dedup();
    let choices = format!(
        "no module matches the adapter's targets; the model has {}",
        last.join(", ")
    );
    let found: Vec<Module> = all.into_iter().filter(|m| targeted(&m.name)).collect();
    match found.is_empty() {
        true => Err(Error::Invalid(choices)),
        false => Ok(found),
    }
}

/// An entry of the targets that means modules of the model which are no linear maps; nothing where it means none.
pub fn no_linear_map(entry: &str, model: &LanguageModel, family: &Family) -> Option<Error> {
    let (names, own) = (layout::tensors_in_memory(model, family), [entry.to_owned()]);
    let is_there = names
        .iter()
        .any(|tensor| saved_modules::is_saved(&tensor.name, &own));
    is_there.then(|| {
        Error::Invalid(format!(
            "`target_modules`: `{entry}` is no linear map, and only those can be adapted; train it whole as one of `modules_to_save`"
        ))
    })
}

/// An entry of a list of modules that means none of the model's.
pub fn no_module(key: &str, entry: &str, model: &LanguageModel, family: &Family) -> Error {
    let names = layout::tensors_in_memory(model, family);
    let modules = names.iter().filter_map(|tensor| {
        let (module, _) = tensor.name.rsplit_once('.')?;
        Some(module.rsplit('.').next().unwrap_or(module))
    });
    let known: BTreeSet<&str> = modules.collect();
    let hint = suggestion(entry, known.iter().copied());
    let all: Vec<&str> = known.into_iter().collect();
    Error::Invalid(format!(
        "`{key}`: no module of the model is named `{entry}`{hint}; there are {}",
        all.join(", ")
    ))
}

/// The parts of an adapter at linear maps, by the maps' names.
pub fn linear_parts<'a>(
    model: &'a LanguageModel,
    adapter: &str,
) -> HashMap<String, &'a dyn LinearAdapter> {
    let mut parts: HashMap<String, &'a dyn LinearAdapter> = HashMap::new();
    model.visit_linears(&mut |map| {
        if let Some(part) = map.adapters.get(adapter) {
            parts.insert(map.name, part.as_ref());
        }
    });
    parts
}

/// Calls `change` with every linear map of the model, until it fails.
///
/// # Errors
/// What `change` returns.
pub fn each_linear(
    model: &mut LanguageModel,
    change: &mut dyn FnMut(&mut LinearMapMut<'_>) -> Result<()>,
) -> Result<()> {
    let mut outcome = Ok(());
    model.visit_linears_mut(&mut |mut map| {
        if outcome.is_ok() {
            outcome = change(&mut map);
        }
    });
    outcome
}
