//! What a configuration targets: linear modules by name, stacks of experts by the parameter that holds them.

use std::collections::{BTreeSet, HashMap};

use espalier_data::nearest::suggestion;

use super::targeted;
use crate::{
    Error, Result,
    adapter::{expert_parameters::ExpertParameter, no_linear_map, target_modules},
    checkpoint::{
        PeftConfig,
        peft_config::{Targets, is_named},
    },
    families::Family,
    layout::{self, Module},
    model::LanguageModel,
};

impl PeftConfig {
    /// The ranks and scales of all maps that get an adapter, by their names.
    pub(super) fn planned(
        &self,
        model: &LanguageModel,
        family: &Family,
    ) -> Result<HashMap<String, (usize, f64)>> {
        let all = layout::modules(model, family);
        if let Targets::List(entries) = &self.target_modules {
            let meant = |entry: &String| all.iter().any(|m| is_named(&m.name, entry));
            if let Some(strange) = entries.iter().find(|entry| !meant(entry)) {
                let other = no_linear_map(strange, model, family);
                return Err(other.unwrap_or_else(|| no_linear(strange, &all)));
            }
        }
        let stacks = ExpertParameter::all(&all);
        let meant = |entry: &&String| stacks.iter().any(|stack| is_named(&stack.name, entry));
        if let Some(strange) = self.target_parameters.iter().find(|entry| !meant(entry)) {
            return Err(no_stack(strange, &stacks));
        }
        let mut planned = HashMap::new();
        for stack in stacks
            .iter()
            .filter(|stack| self.matches_parameter(&stack.name))
        {
            let of_stack = (self.rank_for(&stack.name), self.scale_for(&stack.name));
            planned.extend(
                stack
                    .experts
                    .iter()
                    .flatten()
                    .map(|map| (map.clone(), of_stack)),
            );
        }
        // Parameters alone may be targeted.
        if planned.is_empty() || self.target_modules != Targets::List(Vec::new()) {
            for module in target_modules(model, family, &|module| targeted(self, module))? {
                let of_module = (self.rank_for(&module.name), self.scale_for(&module.name));
                planned.extend(module.maps.into_iter().map(|map| (map, of_module)));
            }
        }
        for stack in &stacks {
            let own = stack.experts.iter().flatten();
            let mut scales = own
                .filter_map(|map| planned.get(map))
                .map(|(_, scale)| *scale);
            if let Some(first) = scales.next()
                && let Some(other) = scales.find(|scale| *scale != first)
            {
                return Err(Error::Invalid(format!(
                    "`alpha_pattern` and `rank_pattern` give the experts of `{}` scales of {first} and {other}; they are one stack with one scale",
                    stack.name
                )));
            }
        }
        Ok(planned)
    }

    /// The rank of the stack's adapter where the experts' parts have ranks of their own, and its scale; nothing where no part has
    /// one. `modules` are the experts' by the names of their maps.
    pub(super) fn of_stack(
        &self,
        stack: &ExpertParameter,
        modules: &HashMap<&str, &Module>,
    ) -> Option<(usize, f64)> {
        let parts = stack.experts.first()?.len();
        if self.matches_parameter(&stack.name) {
            let rank = self.rank_for(&stack.name);
            return Some((parts * rank, self.scale_for(&stack.name)));
        }
        let name =
            |maps: &Vec<String>, part: usize| Some(modules.get(maps[part].as_str())?.name.clone());
        let mut scale = None;
        let mut rank_of = |part: usize| {
            let names = stack.experts.iter().filter_map(|maps| name(maps, part));
            let targeted = names.filter(|name| targeted(self, name));
            let ranks = targeted.map(|name| {
                scale.get_or_insert(self.scale_for(&name));
                self.rank_for(&name)
            });
            ranks.max().unwrap_or(0)
        };
        let rank = (0..parts).map(&mut rank_of).sum();
        Some((rank, scale?))
    }

    /// Names stacks of experts by their parameters, as PEFT does, instead of by single experts or as some of all linear layers.
    pub(super) fn name_stacks(&mut self, modules: &[Module]) {
        let stacks = ExpertParameter::all(modules);
        let by_map = by_name(modules);
        let found: Vec<Option<(usize, f64)>> = stacks
            .iter()
            .map(|stack| self.of_stack(stack, &by_map))
            .collect();
        if by_map.values().any(|module| targeted(self, &module.name)) {
            let others = modules.iter().filter(|module| module.expert.is_none());
            let others: Vec<&str> = others.map(|module| module.name.as_str()).collect();
            self.target_modules = Targets::List(short_names(&others, &|name| targeted(self, name)));
        }
        let names: Vec<&str> = stacks.iter().map(|stack| stack.name.as_str()).collect();
        let is_adapted = |name: &str| {
            let place = names.iter().position(|known| *known == name);
            place.is_some_and(|place| found[place].is_some())
        };
        self.target_parameters = short_names(&names, &is_adapted);
        for (stack, found) in stacks.iter().zip(&found) {
            if let Some((rank, scale)) = found {
                self.set_pattern(&stack.name, *rank, *scale);
            }
        }
    }
}

/// The modules of single experts by the names of their maps.
pub(super) fn by_name(modules: &[Module]) -> HashMap<&str, &Module> {
    let experts = modules.iter().filter(|module| module.expert.is_some());
    experts
        .flat_map(|module| module.maps.iter().map(move |map| (map.as_str(), module)))
        .collect()
}

/// The ends of names that mean exactly those of `all` that are `chosen`: the last part, or of a parameter the last two, where all
/// names with this end are chosen, else the whole name.
fn short_names(all: &[&str], chosen: &dyn Fn(&str) -> bool) -> Vec<String> {
    let end = |name: &str, parts: usize| {
        let mut last: Vec<&str> = name.rsplitn(parts + 1, '.').take(parts).collect();
        last.reverse();
        last.join(".")
    };
    let parameter = |name: &str| {
        name.ends_with("_proj") && name.contains(".experts.") || name.ends_with(".weight")
    };
    let short = |name: &str| end(name, if parameter(name) { 2 } else { 1 });
    let mut names: Vec<String> = Vec::new();
    for name in all.iter().filter(|name| chosen(name)) {
        let end = short(name);
        let whole = all.iter().all(|other| short(other) != end || chosen(other));
        let meant = if whole { end } else { (*name).to_owned() };
        if !names.contains(&meant) {
            names.push(meant);
        }
    }
    names
}

/// An entry of `target_modules` that means none of the model's linear layers.
fn no_linear(entry: &str, modules: &[Module]) -> Error {
    let last = |module: &Module| {
        module
            .name
            .rsplit('.')
            .next()
            .unwrap_or_default()
            .to_owned()
    };
    let known: BTreeSet<String> = modules.iter().map(last).collect();
    let hint = suggestion(entry, known.iter().map(String::as_str));
    let known: Vec<String> = known.into_iter().collect();
    Error::Invalid(format!(
        "`target_modules`: no linear layer that can have an adapter is named `{entry}`{hint}; there are {}",
        known.join(", ")
    ))
}

/// An entry of `target_parameters` that means none of the model's.
fn no_stack(entry: &str, stacks: &[ExpertParameter]) -> Error {
    let last = |stack: &ExpertParameter| {
        let parts: Vec<&str> = stack.name.rsplitn(3, '.').take(2).collect();
        parts.into_iter().rev().collect::<Vec<_>>().join(".")
    };
    let known: BTreeSet<String> = stacks.iter().map(last).collect();
    let known: Vec<String> = known.into_iter().collect();
    Error::Invalid(format!(
        "`target_parameters`: no stack of experts is named `{entry}`; {}",
        match known.is_empty() {
            true => "the model has none".to_owned(),
            false => format!("there are {}", known.join(", ")),
        }
    ))
}
