//! Modules of the base that an adapter trains and stores whole (`modules_to_save`), such as a head, and single tensors, such as biases.
//!
//! Whichever values are not in the model, the base's or the adapter's, are kept aside, so that the adapter can be switched.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::{AdapterFile, PEFT_PREFIX, no_module};
use crate::{
    Error, Result,
    checkpoint::peft_config::is_named,
    families::{Family, TensorEntry},
    layout::{self, StoredTensor},
    model::LanguageModel,
    parameter::{Parameter, Parameters},
    tied_head::{self, untied},
};

/// What adapters replaced of a model, and what stood there before.
#[derive(Debug, Clone, Default)]
pub struct SavedModules {
    replaced: Vec<Replaced>,
}

/// A parameter that belongs to the base or to an adapter by turns.
#[derive(Debug, Clone)]
struct Replaced {
    adapter: Arc<str>,
    parameter: String,
    /// Whether the adapter's values are in the model.
    active: bool,
    /// Whether it is trained with the adapter.
    trained: bool,
    /// The values that are not in the model, as they were there.
    aside: Parameter,
}

impl SavedModules {
    /// Calls `visitor` with every adapter that replaces a parameter, and whether it is active.
    pub fn adapters(&self, visitor: &mut dyn FnMut(&str, bool)) {
        for replaced in &self.replaced {
            visitor(&replaced.adapter, replaced.active);
        }
    }

    /// Whether a parameter is trained with this adapter, which is active.
    pub fn trains(&self, adapter: &str, parameter: &str) -> bool {
        let mut active = self.replaced.iter().filter(|r| r.active && r.trained);
        active.any(|r| &*r.adapter == adapter && r.parameter == parameter)
    }

    /// The parameters whose values change hands when those adapters become active that `choose` accepts, adapters that leave
    /// first.
    ///
    /// # Errors
    /// When two of them replace one parameter.
    fn exchanges(&self, choose: &dyn Fn(&str) -> bool) -> Result<Vec<usize>> {
        let mut owners: HashMap<&str, &str> = HashMap::new();
        for replaced in self.replaced.iter().filter(|r| choose(&r.adapter)) {
            if let Some(other) = owners.insert(&replaced.parameter, &replaced.adapter) {
                return Err(Error::Invalid(format!(
                    "the adapters `{other}` and `{}` both replace `{}`, of which there is one; leave one of them out",
                    replaced.adapter, replaced.parameter
                )));
            }
        }
        let change = |wanted: bool| {
            let turns = move |r: &Replaced| r.active != wanted && choose(&r.adapter) == wanted;
            (0..self.replaced.len()).filter(move |i| turns(&self.replaced[*i]))
        };
        Ok(change(false).chain(change(true)).collect())
    }
}

/// Whether `saved` names a tensor itself, or a module that it belongs to, see [`is_module_saved`].
pub(super) fn is_saved(tensor: &str, saved: &[String]) -> bool {
    is_module_saved(module_of(tensor), saved) || saved.iter().any(|entry| entry == tensor)
}

/// Whether `saved` names the module, or one around it, by the end of its name; as in PEFT that may begin within a part of it, so that
/// `norm` means every `input_layernorm` too.
pub(super) fn is_module_saved(module: &str, saved: &[String]) -> bool {
    let mut modules = std::iter::successors(Some(module), |name| {
        let (around, _) = name.rsplit_once('.')?;
        Some(around)
    });
    modules.any(|module| saved.iter().any(|name| module.ends_with(name.as_str())))
}

/// `entries` with the names of transformers where they have those of the family's files.
pub(super) fn in_memory(entries: &[String], model: &LanguageModel, family: &Family) -> Vec<String> {
    let spec = untied(model.spec());
    let (memory, file) = (family.in_memory(&spec), (family.tensors)(&spec));
    let mut found: Vec<String> = Vec::new();
    for entry in entries {
        let named = |tensor: &TensorEntry| is_saved(&tensor.name, std::slice::from_ref(entry));
        let of_file: Vec<&String> = match memory.iter().any(named) {
            true => Vec::new(),
            false => file
                .iter()
                .filter(|e| named(e))
                .flat_map(|e| &e.parts)
                .collect(),
        };
        let meant = memory
            .iter()
            .filter(|e| e.parts.iter().any(|part| of_file.contains(&part)));
        let modules = meant.map(|e| module_of(&e.name).to_owned());
        let modules: Vec<String> = modules.collect();
        match modules.is_empty() {
            true => found.push(entry.clone()),
            false => found.extend(modules),
        }
    }
    let mut seen = HashSet::new();
    found.retain(|entry| seen.insert(entry.clone()));
    found
}

/// What a configuration says of the modules that `entries` name: the names of transformers, and nothing of what that never reads.
pub(super) fn written(entries: &[String], model: &LanguageModel, family: &Family) -> Vec<String> {
    let mut written = in_memory(entries, model, family);
    written.retain(|entry| !is_unread(entry, family));
    written
}

/// The bias of a head of its own under the name that it has where the head is tied, which PEFT asks for too.
pub(super) fn other_bias<'a>(
    model: &'a LanguageModel,
    family: &Family,
    saved: &[String],
) -> Option<StoredTensor<'a>> {
    let spec = model.spec();
    let name = tied_head::other_bias(family, spec).filter(|_| !spec.tied_head)?;
    let mut tensors = tensors(model, family, saved).into_iter();
    let mut bias = tensors.find(|tensor| tensor.names().eq([tied_head::HEAD_BIAS]))?;
    bias.name = format!("{PEFT_PREFIX}{name}");
    is_saved(&name, saved).then_some(bias)
}

/// Whether an entry names a module that transformers makes and never reads, so that training it changes nothing there.
pub(super) fn is_unread(entry: &str, family: &Family) -> bool {
    let unread = family.modules.unread;
    unread.is_some_and(|module| is_named(entry, module))
}

/// Whether an entry names the tables that both stacks of an encoder-decoder look up in transformers.
fn is_own_table(entry: &str, family: &Family) -> bool {
    family.modules.unread.is_some() && is_named(entry, "embed_tokens")
}

/// The module of a tensor.
pub(super) fn module_of(tensor: &str) -> &str {
    tensor.rsplit_once('.').map_or(tensor, |(module, _)| module)
}

/// The tensors of the modules that `saved` names, under PEFT's names.
pub fn tensors<'a>(
    model: &'a LanguageModel,
    family: &Family,
    saved: &[String],
) -> Vec<StoredTensor<'a>> {
    let named = |mut tensor: StoredTensor<'a>| {
        tensor.name.insert_str(0, PEFT_PREFIX);
        tensor
    };
    layout::tensors_in_memory(model, family)
        .into_iter()
        .filter(|tensor| is_saved(&tensor.name, saved))
        .map(named)
        .collect()
}

/// The names under which PEFT looks for a classification head; a model has one of them.
const CLASSIFIERS: [&str; 2] = ["classifier", "score"];

/// Makes the modules that `saved` names the adapter's, with the base's values to begin with; those that `trained` accepts are trained
/// with it.
///
/// # Errors
/// When another active adapter has one of them, or a name means nothing.
pub fn attach(
    model: &mut LanguageModel,
    family: &Family,
    saved: &[String],
    adapter: &str,
    trained: &dyn Fn(&str) -> bool,
) -> Result<()> {
    let entries = family.in_memory(model.spec());
    let is_there = |name: &&String| {
        entries
            .iter()
            .any(|e| is_saved(&e.name, std::slice::from_ref(*name)))
    };
    let has_classifier = saved
        .iter()
        .any(|name| CLASSIFIERS.contains(&name.as_str()) && is_there(&name));
    let is_strange = |name: &&String| {
        !(is_there(name) || has_classifier && CLASSIFIERS.contains(&name.as_str()))
    };
    if let Some(strange) = saved.iter().find(is_strange) {
        return Err(match CLASSIFIERS.contains(&strange.as_str()) {
            true => Error::Invalid(format!(
                "`modules_to_save`: the adapter has a classification head (`{strange}`), and its base has none; name the folder of a model with one (`...ForSequenceClassification` or `...ForTokenClassification`) as its base"
            )),
            false if is_own_table(strange, family) => Error::Invalid(format!(
                "`modules_to_save`: `{strange}` is a table for each of the model's two sides in transformers, which part there, and one for both here; name `lm_head`, or train without an adapter"
            )),
            false => no_module("modules_to_save", strange, model, family),
        });
    }
    let is_part = |entry: &&TensorEntry| entry.rows.is_some() && is_saved(&entry.name, saved);
    if let Some(expert) = entries.iter().find(is_part) {
        return Err(Error::Invalid(format!(
            "`modules_to_save`: `{}` is one of many experts that transformers holds as one weight, and those are not trained whole; name them as `target_modules`",
            module_of(&expert.name)
        )));
    }
    // Our parameters, and whether they are trained.
    let parts: HashMap<String, bool> = entries
        .into_iter()
        .filter(|entry| is_saved(&entry.name, saved))
        .flat_map(|entry| {
            let trained = trained(module_of(&entry.name));
            entry.parts.into_iter().map(move |part| (part, trained))
        })
        .collect();
    let mut replaced = Vec::new();
    model.visit(&mut |parameter: &Parameter| {
        if let Some(trained) = parts.get(parameter.name()) {
            replaced.push(Replaced {
                adapter: adapter.into(),
                parameter: parameter.name().to_owned(),
                active: true,
                trained: *trained,
                aside: parameter.clone(),
            });
        }
    });
    let modules = model.saved_modules_mut();
    let known = modules.replaced.len();
    modules.replaced.extend(replaced);
    let is_active = |r: &Replaced, name: &str| r.active && &*r.adapter == name;
    let active = |name: &str| modules.replaced.iter().any(|r| is_active(r, name));
    if let Err(error) = modules.exchanges(&active) {
        modules.replaced.truncate(known);
        return Err(error);
    }
    Ok(())
}

/// Puts the file's values into the modules that `saved` names.
///
/// # Errors
/// When the file lacks a tensor of such a module, or one has another shape than its module.
pub fn read(
    model: &mut LanguageModel,
    family: &Family,
    saved: &[String],
    file: &mut AdapterFile,
) -> Result<()> {
    let values = file.values(tensors(model, family, saved))?;
    set_values(model, values);
    Ok(())
}

/// Replaces the values of parameters by name.
pub(super) fn set_values(model: &mut LanguageModel, mut values: HashMap<String, Vec<f32>>) {
    let device = model.device().clone();
    model.visit_mut(&mut |parameter| {
        if let Some(values) = values.remove(parameter.name()) {
            parameter.set_data(values, &device);
        }
    });
}

/// Makes the modules of those adapters active that `choose` accepts, and gives all others back to the base.
///
/// # Errors
/// When two of them have one module; nothing changes then.
pub fn switch(model: &mut LanguageModel, choose: &dyn Fn(&str) -> bool) -> Result<()> {
    for index in model.saved_modules().exchanges(choose)? {
        exchange(model, index);
    }
    Ok(())
}

/// Lets the values in the model and those kept aside change places.
fn exchange(model: &mut LanguageModel, index: usize) {
    let replaced = &mut model.saved_modules_mut().replaced[index];
    replaced.active = !replaced.active;
    let (name, aside) = (replaced.parameter.clone(), replaced.aside.clone());
    let mut before = None;
    model.visit_mut(&mut |parameter| {
        if parameter.name() == name {
            before = Some(parameter.clone());
            parameter.set_values_of(&aside);
        }
    });
    if let Some(before) = before {
        model.saved_modules_mut().replaced[index].aside = before;
    }
}

/// Makes the modules of active adapters the base's own.
pub fn merge(model: &mut LanguageModel) {
    let modules = model.saved_modules_mut();
    modules.replaced.retain(|replaced| !replaced.active);
}

/// Gives the modules of an adapter back to the base, for good.
pub fn detach(model: &mut LanguageModel, adapter: &str) {
    for index in 0..model.saved_modules().replaced.len() {
        let replaced = &model.saved_modules().replaced[index];
        if replaced.active && &*replaced.adapter == adapter {
            exchange(model, index);
        }
    }
    let modules = model.saved_modules_mut();
    modules.replaced.retain(|r| &*r.adapter != adapter);
}
