//! What a configuration targets: linear modules by name, stacks of experts by the parameter that holds them.

use std::collections::{BTreeSet, HashMap};

use espalier_data::nearest::suggestion;

use super::{LowRank, targeted};
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

    /// The scale of a stack's experts, where any of them has an adapter; `modules` are theirs by the names of their maps.
    pub(super) fn scale_of_stack(
        &self,
        stack: &ExpertParameter,
        modules: &HashMap<&str, &Module>,
    ) -> Option<f64> {
        if self.matches_parameter(&stack.name) {
            return Some(self.scale_for(&stack.name));
        }
        let of_maps = stack.experts.iter().flatten();
        let names = of_maps.filter_map(|map| Some(&modules.get(map.as_str())?.name));
        let mut scales = names.filter(|name| targeted(self, name));
        scales.next().map(|name| self.scale_for(name))
    }

    /// Names stacks of experts by their parameters, as PEFT does, instead of by single experts or as some of all linear layers.
    pub(super) fn name_stacks(&mut self, modules: &[Module], parts: &HashMap<String, &LowRank>) {
        let mut experts = modules.iter().filter(|module| module.expert.is_some());
        if experts.any(|module| targeted(self, &module.name)) {
            let others = modules.iter().filter(|module| module.expert.is_none());
            let others: Vec<&str> = others.map(|module| module.name.as_str()).collect();
            let names = short_names(&others, &|name| targeted(self, name));
            self.target_modules = Targets::List(names);
        }
        let stacks = ExpertParameter::all(modules);
        let adapted: HashMap<&str, (usize, f64)> = stacks
            .iter()
            .filter_map(|stack| Some((stack.name.as_str(), rank_and_scale(stack, parts)?)))
            .collect();
        let names: Vec<&str> = stacks.iter().map(|stack| stack.name.as_str()).collect();
        self.target_parameters = short_names(&names, &|name| adapted.contains_key(name));
        for name in names {
            if let Some((rank, scale)) = adapted.get(name) {
                self.set_pattern(name, *rank, *scale);
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

/// The rank of a stack's adapter, where every part of an expert has a rank of its own, and its scale; nothing where no expert has one.
fn rank_and_scale(
    stack: &ExpertParameter,
    parts: &HashMap<String, &LowRank>,
) -> Option<(usize, f64)> {
    let of_part = |part: usize| {
        stack
            .experts
            .iter()
            .filter_map(move |maps| parts.get(&maps[part]))
    };
    let count = stack.experts.first()?.len();
    let scale = (0..count).flat_map(of_part).next()?.scale;
    let rank = |part| {
        of_part(part)
            .map(|adapter| adapter.rank())
            .max()
            .unwrap_or(0)
    };
    Some(((0..count).map(rank).sum(), scale))
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
