//! The adapters of a model: which there are, which are active, and merging them.

use std::collections::BTreeMap;

use espalier_data::nearest::suggestion;

use super::{attachments::Attached, first_state::NO_WEIGHT, saved_modules};
use crate::{Error, Result, model::LanguageModel, parameter::Parameters};

impl LanguageModel {
    /// The names of all attached adapters, sorted.
    pub fn adapters(&self) -> Vec<String> {
        self.adapter_states().into_keys().collect()
    }

    /// The names of the active adapters, sorted. What they add is summed.
    pub fn active_adapters(&self) -> Vec<String> {
        let states = self.adapter_states().into_iter();
        states
            .filter_map(|(name, active)| active.then_some(name))
            .collect()
    }

    /// Whether each attached adapter is active.
    fn adapter_states(&self) -> BTreeMap<String, bool> {
        let mut states = BTreeMap::new();
        let mut add = |name: &str, active: bool| {
            states.insert(name.to_owned(), active);
        };
        self.visit_linears(&mut |map| map.adapters.adapters(&mut add));
        for (_, layer) in self.recurrent_layers() {
            layer.first_states().adapters(&mut add);
        }
        for stack in self.stacks() {
            let attached = stack.interventions().attached();
            attached.for_each(|attached| attached.adapters(&mut add));
        }
        self.embedding().adapters.adapters(&mut add);
        self.saved_modules().adapters(&mut add);
        states
    }

    /// Makes the adapters of these names active and all others inactive; the base is not copied.
    ///
    /// # Errors
    /// When a name is not attached, or two of the adapters replace the same module whole.
    pub fn set_active_adapters(&mut self, names: &[&str]) -> Result<()> {
        let known = self.adapters();
        if let Some(name) = names.iter().find(|name| known.iter().all(|k| k != *name)) {
            return Err(Error::Invalid(format!(
                "the model has no adapter `{name}`{}; it has {}",
                suggestion(name, known.iter().map(String::as_str)),
                if known.is_empty() {
                    "none".to_owned()
                } else {
                    known.join(", ")
                }
            )));
        }
        let choose = |name: &str| names.contains(&name);
        saved_modules::switch(self, &choose)?;
        self.each_attached(&mut |attached| attached.switch(&choose));
        Ok(())
    }

    /// Removes an adapter; modules that it replaced are the base's again.
    pub fn detach_adapter(&mut self, name: &str) {
        saved_modules::detach(self, name);
        self.each_attached(&mut |attached| attached.detach(name));
    }

    fn each_attached(&mut self, change: &mut dyn FnMut(&mut dyn Attached)) {
        self.visit_linears_mut(&mut |map| change(map.adapters));
        change(&mut self.embedding_mut().adapters);
        for (_, layer) in self.recurrent_layers_mut() {
            change(layer.first_states_mut());
        }
        for stack in self.stacks_mut() {
            stack
                .interventions_mut()
                .attached_mut()
                .for_each(&mut *change);
        }
    }

    /// Multiplies what an adapter adds by a weight.
    ///
    /// # Errors
    /// When a part of it is no addition, such as a module that it replaces whole.
    pub fn weigh_adapter(&mut self, name: &str, weight: f64) -> Result<()> {
        let mut others = weight != 1.0 && self.has_other_parts(name);
        self.visit_linears_mut(&mut |map| {
            if let Some(part) = map.adapters.get_mut(name) {
                others |= !part.weigh(weight);
            }
        });
        if let Some(part) = self.embedding_mut().adapters.get_mut(name) {
            others |= !part.weigh(weight);
        }
        match others {
            false => Ok(()),
            true => Err(Error::Invalid(format!(
                "`{name}` is more than additions to weights, and nothing else can have the weight {weight}; leave it at 1"
            ))),
        }
    }

    /// Whether an adapter has parts elsewhere than at linear maps and the embedding.
    fn has_other_parts(&self, name: &str) -> bool {
        let mut found = false;
        let mut note = |adapter: &str, _: bool| found |= adapter == name;
        for (_, layer) in self.recurrent_layers() {
            layer.first_states().adapters(&mut note);
        }
        for stack in self.stacks() {
            let attached = stack.interventions().attached();
            attached.for_each(|attached| attached.adapters(&mut note));
        }
        self.saved_modules().adapters(&mut note);
        found
    }

    /// Adds all active adapters into the weights. Inactive ones stay as they are.
    ///
    /// # Errors
    /// When one of them cannot be merged; the message has the reason. The model computes the same then too.
    pub fn merge_adapters(&mut self) -> Result<()> {
        match self.merge_what_can_be() {
            reasons if reasons.is_empty() => Ok(()),
            reasons => Err(Error::Invalid(format!(
                "not every adapter can be merged into the weights: {}",
                reasons.join("; ")
            ))),
        }
    }

    /// As [`LanguageModel::merge_adapters`], for speed alone: what cannot be merged stays attached and active. Returns the reasons.
    pub fn merge_what_can_be(&mut self) -> Vec<String> {
        let mut reasons = Vec::new();
        self.visit_linears_mut(&mut |map| {
            reasons.extend(map.merge().err().map(|error| error.to_string()))
        });
        if self.has_first_states() {
            reasons.push(NO_WEIGHT.into());
        }
        if self.has_interventions() {
            reasons.push("interventions depend on the hidden state and its place".into());
        }
        reasons.sort();
        reasons.dedup();
        self.embedding_mut().merge();
        saved_modules::merge(self);
        reasons
    }
}
