//! What a configuration targets: linear modules by name, stacks of experts by the parameter that holds them.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use espalier_data::nearest::suggestion;

use super::{LowRank, vocabulary::Vocabulary};
use crate::{
    Error, Result,
    adapter::{
        expert_parameters::ExpertParameter, no_linear_map, saved_modules::is_module_saved,
        target_modules,
    },
    checkpoint::{
        PeftConfig,
        peft_config::{Initialisation, Targets, is_named},
    },
    families::Family,
    layout::{self, Module},
    model::LanguageModel,
};

/// Whether `saved` names the module itself, and not only one around it.
fn saved_itself(module: &str, saved: &[String]) -> bool {
    saved.iter().any(|entry| module.ends_with(entry.as_str()))
}

/// All names of a module for patterns; what is a bare parameter in transformers goes by that, too.
pub(super) fn names_of(module: &Module) -> Vec<String> {
    let names = module.names().map(str::to_owned);
    module.parameter().into_iter().chain(names).collect()
}

impl PeftConfig {
    /// Whether a module has an adapter: by any of its names, or by its parameter's. Of all linear layers the head is none, and neither
    /// are routers, what cannot serve one elsewhere, and what is trained whole.
    pub(super) fn targets(&self, module: &Module) -> bool {
        let named = module.names().any(|name| self.matches(name))
            && !module.names().any(|name| self.excludes(name));
        let by_parameter = module
            .parameter()
            .is_some_and(|name| self.matches_parameter(&name));
        let is_usual = !module.is_head() && !module.is_router() && module.left_out.is_none();
        let is_usual = is_usual && !is_module_saved(&module.name, &self.modules_to_save);
        by_parameter || named && (self.target_modules != Targets::AllLinear || is_usual)
    }

    /// Whether a file may have an adapter of a module: of all linear layers also those that only a file of another program names, but none
    /// that the configuration excludes or that lies in another layer.
    pub(super) fn may_have(&self, module: &Module) -> bool {
        let names = names_of(module);
        let excluded = names.iter().any(|name| self.excludes(name));
        let chosen = !excluded && names.iter().any(|name| self.has_layer(name));
        self.targets(module) || self.target_modules == Targets::AllLinear && chosen
    }

    /// Whether PEFT reads the targets as a module's, which has a linear layer there.
    fn targets_in_peft(&self, module: &Module) -> bool {
        let is_usual = self.target_modules != Targets::AllLinear || !module.is_head();
        module.parameter().is_none() && is_usual && self.matches(&module.name)
    }

    /// The rank and the scale of a module.
    fn rank_and_scale(&self, module: &Module) -> (usize, f64) {
        let names = names_of(module);
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        (self.rank_of(&names), self.scale_of(&names))
    }

    /// Whether patterns and defaults give a module this rank and scale, by all of its names and by that of transformers alone.
    pub(super) fn says(&self, module: &Module, rank: usize, scale: f64) -> bool {
        // A scale may be made of roots.
        let near = |found: f64| (found - scale).abs() <= 1e-12 * scale.abs();
        let of_name = (self.rank_for(&module.name), self.scale_for(&module.name));
        let found = [self.rank_and_scale(module), of_name];
        found
            .iter()
            .all(|(own, found)| *own == rank && near(*found))
    }

    /// The rank of a module.
    pub(super) fn rank_of_module(&self, module: &Module) -> usize {
        self.rank_and_scale(module).0
    }

    /// What needs the matrix of a layer alone cannot be had where experts are computed together, nor in PEFT at a bare parameter.
    fn check_matrices(
        &self,
        all: &[Module],
        planned: &HashMap<String, (usize, f64)>,
    ) -> Result<()> {
        let name = match (self.use_dora, self.initialisation) {
            (true, _) => "DoRA",
            (_, Initialisation::Pissa { .. }) => "PiSSA",
            _ => return Ok(()),
        };
        match bare(all, &|map| planned.contains_key(map)) {
            None => Ok(()),
            Some((module, what)) => Err(Error::Invalid(format!(
                "{name} needs a layer of its own, and `{module}` is {what}; leave it out of `target_modules` and `target_parameters`, or use a plain LoRA"
            ))),
        }
    }

    /// Refuses to train with dropout what PEFT adapts as a parameter: it knows no dropout there, and would not read the folder.
    pub(super) fn check_dropout(
        &self,
        modules: &[Module],
        has: &dyn Fn(&str) -> bool,
    ) -> Result<()> {
        match bare(modules, has).filter(|_| self.dropout > 0.0) {
            None => Ok(()),
            Some((module, what)) => Err(Error::Invalid(format!(
                "an adapter of `{module}` is trained without dropout, for it is {what}, and PEFT reads no others; set `dropout` (`lora_dropout` in adapter_config.json) to 0, or leave it out of `target_modules` and `target_parameters`"
            ))),
        }
    }

    /// The ranks and scales of all maps that get an adapter, by their names. Of what is read from a folder some parameters may be no
    /// model's: PEFT writes them for the experts of a kind of model, and ignores them where a model of that kind has none.
    pub(super) fn planned(
        &self,
        model: &LanguageModel,
        family: &Family,
        is_read: bool,
    ) -> Result<HashMap<String, (usize, f64)>> {
        let all = layout::modules(model, family);
        let stacks = ExpertParameter::all(&all);
        self.check_entries(&all, model, family)?;
        let strange = self.strange_parameters(&all);
        let some = strange.len() < self.target_parameters.len()
            || self.target_modules != Targets::List(Vec::new());
        if let Some(strange) = strange.first().filter(|_| !(is_read && some)) {
            return Err(no_parameter(strange, &parameters(&all)));
        }
        let mut planned = HashMap::new();
        for stack in stacks
            .iter()
            .filter(|stack| self.matches_parameter(&stack.name))
        {
            let of_stack = (self.rank_for(&stack.name), self.scale_for(&stack.name));
            let maps = stack.experts.iter().flatten();
            planned.extend(maps.map(|map| (map.clone(), of_stack)));
        }
        let targeted: Vec<&Module> = all.iter().filter(|module| self.targets(module)).collect();
        // Parameters alone may be targeted.
        let vocabulary = Vocabulary::of(model, family);
        let has_embedding = vocabulary
            .as_ref()
            .is_some_and(|own| self.targets_embedding(own));
        let embedding = vocabulary.filter(|own| self.names_any(&own.embedding));
        let names = embedding.iter().flat_map(|own| &own.embedding);
        let mut saved = names.filter(|name| saved_itself(name, &self.modules_to_save));
        if let Some(name) = saved.next() {
            return Err(Error::Invalid(format!(
                "`{name}` is one of the `target_modules` and one of the `modules_to_save`, of which PEFT would use one alone; name it in one of them"
            )));
        }
        let wants_modules = self.target_modules != Targets::List(Vec::new());
        if targeted.is_empty() && !has_embedding && (planned.is_empty() || wants_modules) {
            target_modules(model, family, &|_| false)?;
        }
        let both = |module: &&Module| saved_itself(&module.name, &self.modules_to_save);
        if let Some(module) = targeted.iter().copied().find(|module| both(module)) {
            return Err(Error::Invalid(format!(
                "`{}` is one of the `target_modules` and one of the `modules_to_save`, which PEFT refuses; name it in one of them",
                module.name
            )));
        }
        for module in targeted {
            let of_module = self.rank_and_scale(module);
            planned.extend(module.maps.iter().map(|map| (map.clone(), of_module)));
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
        self.check_matrices(&all, &planned)?;
        Ok(planned)
    }

    /// Refuses entries of `target_modules` that mean nothing.
    fn check_entries(&self, all: &[Module], model: &LanguageModel, family: &Family) -> Result<()> {
        let Targets::List(entries) = &self.target_modules else {
            return Ok(());
        };
        let vocabulary = Vocabulary::of(model, family);
        let meant = |entry: &String| {
            let mut names = all.iter().flat_map(Module::names);
            names.any(|name| is_named(name, entry))
                || Self::is_entry_of_embedding(entry, vocabulary.as_ref())
        };
        match entries.iter().find(|entry| !meant(entry)) {
            None => Ok(()),
            Some(strange) => {
                let other = no_linear_map(strange, model, family);
                Err(other.unwrap_or_else(|| no_linear(strange, all)))
            }
        }
    }

    /// The entries of `target_parameters` that mean nothing.
    fn strange_parameters(&self, modules: &[Module]) -> Vec<&str> {
        let known = parameters(modules);
        let meant = |entry: &&str| known.iter().any(|name| is_named(name, entry));
        let entries = self.target_parameters.iter().map(String::as_str);
        entries.filter(|entry| !meant(entry)).collect()
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
        let mut experts = of_maps.filter_map(|map| modules.get(map.as_str()));
        let first = experts.find(|module| self.targets(module))?;
        Some(self.rank_and_scale(first).1)
    }

    /// Whether PEFT opens a configuration with these targets and layers: it takes layers beside a list of names alone, and a pattern of
    /// layers beside layers alone.
    fn opens_in_peft(&self) -> bool {
        let chooses = self.layers_to_transform.is_some() || !self.layers_pattern.is_empty();
        match &self.target_modules {
            Targets::List(_) => {
                self.layers_pattern.is_empty() || self.layers_to_transform.is_some()
            }
            Targets::AllLinear | Targets::Regex(_) => !chooses,
        }
    }

    /// Names what has an adapter as PEFT does: linear layers, and an `embedding` that has one, as modules, by the names of transformers, stacks of experts and routers by
    /// their parameters. The targets stay as they are where PEFT reads the same from them.
    pub(super) fn name_modules(
        &mut self,
        modules: &[Module],
        embedding: Option<&Module>,
        parts: &HashMap<String, &LowRank>,
    ) {
        let has = |module: &Module| {
            let is_embedding = embedding.is_some_and(|embedding| embedding.maps == module.maps);
            is_embedding || module.maps.iter().all(|map| parts.contains_key(map))
        };
        let is_module = |module: &&Module| module.expert.is_none() && module.parameter().is_none();
        let layers = embedding.into_iter().chain(modules);
        let layers: Vec<&Module> = layers.filter(is_module).collect();
        let differs = |module: &&Module| self.targets_in_peft(module) != has(module);
        let mut others = modules.iter().filter(|module| !is_module(module));
        let names_another = others.any(|module| module.names().any(|name| self.matches(name)));
        if names_another || !self.opens_in_peft() || layers.iter().any(differs) {
            let chosen: HashSet<&str> = layers
                .iter()
                .filter(|m| has(m))
                .map(|m| m.name.as_str())
                .collect();
            let names: Vec<&str> = layers.iter().map(|module| module.name.as_str()).collect();
            let names = short_names(&names, &|name| chosen.contains(name));
            self.target_modules = Targets::List(names);
            // The list has none of them.
            self.exclude_modules = None;
            self.layers_to_transform = None;
            self.layers_pattern = Vec::new();
        }
        let stacks = ExpertParameter::all(modules);
        let mut adapted: BTreeMap<String, (usize, f64)> = stacks
            .iter()
            .filter_map(|stack| Some((stack.name.clone(), rank_and_scale(stack, parts)?)))
            .collect();
        let mut names: Vec<String> = stacks.into_iter().map(|stack| stack.name).collect();
        for module in modules {
            let Some(parameter) = module.parameter() else {
                continue;
            };
            let own = module.maps.iter().find_map(|map| parts.get(map));
            adapted.extend(own.map(|own| (parameter.clone(), (own.rank(), own.scale))));
            names.push(parameter);
        }
        let all: Vec<&str> = names.iter().map(String::as_str).collect();
        self.target_parameters = short_names(&all, &|name| adapted.contains_key(name));
        for (name, (rank, scale)) in adapted {
            if (self.rank_for(&name), self.scale_for(&name)) != (rank, scale) {
                self.set_pattern(&name, rank, scale);
            }
        }
    }
}

/// What the user should know of modules that are named and that other programs cannot serve, a sentence for each reason.
pub(super) fn remarks(config: &PeftConfig, modules: &[Module]) -> Vec<String> {
    let mut reasons: BTreeMap<&str, &str> = BTreeMap::new();
    let named = config.target_modules != Targets::AllLinear;
    for module in modules
        .iter()
        .filter(|module| named && config.targets(module))
    {
        if let Some(reason) = module.left_out {
            let last = module.name.rsplit('.').next().unwrap_or_default();
            reasons.insert(reason, last);
        }
    }
    let sentence = |(reason, name)| {
        format!("an adapter of `{name}` counts here, but not everywhere: {reason}")
    };
    let strange = config.strange_parameters(modules);
    let ignored = (!strange.is_empty()).then(|| {
        format!(
            "`target_parameters`: the model has no {}; as PEFT does, the adapter is read without",
            strange.join(", ")
        )
    });
    reasons.into_iter().map(sentence).chain(ignored).collect()
}

/// The names of all weights that `target_parameters` may mean.
fn parameters(modules: &[Module]) -> Vec<String> {
    let stacks = ExpertParameter::all(modules).into_iter();
    let bare = modules.iter().filter_map(Module::parameter);
    stacks.map(|stack| stack.name).chain(bare).collect()
}

/// The first module, with what it is, that PEFT adapts as a parameter and whose maps are some that are asked for.
fn bare<'a>(modules: &'a [Module], has: &dyn Fn(&str) -> bool) -> Option<(&'a str, &'static str)> {
    let is_bare = |module: &&Module| module.expert.is_some() || module.parameter().is_some();
    let mut found = modules.iter().filter(is_bare);
    let module = found.find(|module| module.maps.iter().any(|map| has(map)))?;
    let what = match (&module.expert, module.by_parameter) {
        (Some(_), _) => "an expert of a stack",
        (None, true) => "a layer that PEFT takes for a part of an expert",
        (None, false) => "a router without one",
    };
    Some((&module.name, what))
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
fn no_parameter(entry: &str, parameters: &[String]) -> Error {
    let last = |name: &String| {
        let parts: Vec<&str> = name.rsplitn(3, '.').take(2).collect();
        parts.into_iter().rev().collect::<Vec<_>>().join(".")
    };
    let known: BTreeSet<String> = parameters.iter().map(last).collect();
    let known: Vec<String> = known.into_iter().collect();
    Error::Invalid(format!(
        "`target_parameters`: no stack of experts and no router is named `{entry}`; {}",
        match known.is_empty() {
            true => "the model has none".to_owned(),
            false => format!("there are {}", known.join(", ")),
        }
    ))
}
