//! The linear modules of a model, by the names under which adapters know them.

use std::collections::{BTreeMap, HashMap};

use crate::{
    families::{Family, TensorEntry},
    layers::linear::LinearMap,
    model::LanguageModel,
    parameter::Parameters,
};

/// A module that holds linear weights: its names, and our layers that make it up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// The name that transformers gives the module, such as `model.layers.0.self_attn.q_proj`.
    pub name: String,
    /// Other names of what it holds: those of the file, where they differ.
    pub other_names: Vec<String>,
    /// Our names of the linear maps whose outputs it concatenates, such as `blocks.0.mixer.query`.
    pub maps: Vec<String>,
    /// See [`TensorEntry::groups`].
    pub groups: usize,
    /// Which expert's it is, where it is one's.
    pub expert: Option<ExpertModule>,
    /// Whether PEFT knows it by its parameter alone, though transformers has a linear layer there.
    pub by_parameter: bool,
    /// Why an adapter of all linear layers leaves it out, where transformers and PEFT cannot serve one.
    pub left_out: Option<&'static str>,
}

/// An expert's module in the weight that holds all experts'.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ExpertModule {
    /// The tensor, which holds this expert's matrix or all of them.
    pub tensor: String,
    /// The expert's number.
    pub number: usize,
    /// The first of its rows in our weight; among an expert's modules it tells which part of the matrix they are.
    pub row: usize,
}

impl Module {
    /// All of its names, that of transformers first.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let others = self.other_names.iter().map(String::as_str);
        std::iter::once(self.name.as_str()).chain(others)
    }

    /// Whether it is the head over the vocabulary.
    pub fn is_head(&self) -> bool {
        self.maps == ["head"]
    }

    /// Whether it scores experts.
    pub fn is_router(&self) -> bool {
        self.maps.iter().all(|map| map.ends_with(".router"))
    }

    /// The name of its weight, where transformers has no linear layer for it but a bare parameter, as its routers are; JetMoE's alone
    /// have a linear layer.
    pub fn parameter(&self) -> Option<String> {
        let is_bare = self.is_router() && !self.name.ends_with(".layer");
        (is_bare || self.by_parameter).then(|| format!("{}.weight", self.name))
    }
}

/// The linear modules of a model as transformers has them, the head last. Experts that are stored as one tensor are modules with
/// their numbers before the last part of its name, such as `model.layers.0.mlp.3.input_linear`.
pub fn modules(model: &LanguageModel, family: &Family) -> Vec<Module> {
    let mut modules = of_table(model, family, family.in_memory(model.spec()));
    if family.modules.tensors.is_some() {
        let in_file = of_table(model, family, (family.tensors)(model.spec()));
        name_also(&mut modules, &in_file);
    }
    modules
}

/// The linear modules of a model's file that transformers calls otherwise, or has none for.
pub fn modules_of_file(model: &LanguageModel, family: &Family) -> Vec<Module> {
    if family.modules.tensors.is_none() {
        return Vec::new();
    }
    let in_memory = of_table(model, family, family.in_memory(model.spec()));
    let mut modules = of_table(model, family, (family.tensors)(model.spec()));
    modules.retain(|module| in_memory.iter().all(|other| other.name != module.name));
    name_also(&mut modules, &in_memory);
    modules
}

/// Gives modules the names of others that have a map in common with them.
fn name_also(modules: &mut [Module], others: &[Module]) {
    let mut names: HashMap<&str, &str> = HashMap::new();
    for other in others {
        names.extend(
            other
                .maps
                .iter()
                .map(|map| (map.as_str(), other.name.as_str())),
        );
    }
    for module in modules {
        for map in &module.maps {
            let Some(name) = names.get(map.as_str()) else {
                continue;
            };
            if module.names().all(|own| own != *name) {
                module.other_names.push((*name).to_owned());
            }
        }
    }
}

/// The modules of a table of tensors.
fn of_table(model: &LanguageModel, family: &Family, entries: Vec<TensorEntry>) -> Vec<Module> {
    let mut by_weight: HashMap<&str, Vec<LinearMap<'_>>> = HashMap::new();
    model.visit_linears(&mut |map| by_weight.entry(map.weight).or_default().push(map));
    let mut modules = Vec::new();
    for entry in entries {
        let parts = entry.parts.iter();
        let found: Option<Vec<_>> = parts.map(|part| by_weight.get(part.as_str())).collect();
        let Some(found) = found else {
            continue;
        };
        let name = entry.name.strip_suffix(".weight").unwrap_or(&entry.name);
        let mut experts: BTreeMap<Option<usize>, Vec<&LinearMap<'_>>> = BTreeMap::new();
        for map in found.into_iter().flatten() {
            if entry.rows.as_ref().is_none_or(|rows| *rows == map.rows) {
                experts.entry(map.expert).or_default().push(map);
            }
        }
        let is_end = |end: &str| name == end || name.ends_with(&format!(".{end}"));
        let by_parameter = family.modules.by_parameter.iter().any(|end| is_end(end));
        let mut left_out = family.modules.left_out.iter();
        let left_out = left_out.find(|left_out| is_end(left_out.name));
        modules.extend(experts.into_iter().map(|(number, maps)| {
            let stacked = number.filter(|_| entry.rows.is_none());
            let expert = |number| ExpertModule {
                tensor: entry.name.clone(),
                number,
                row: maps.iter().map(|map| map.rows.start).min().unwrap_or(0),
            };
            Module {
                name: match (stacked, name.rsplit_once('.')) {
                    (Some(number), Some((module, last))) => format!("{module}.{number}.{last}"),
                    _ => name.to_owned(),
                },
                other_names: Vec::new(),
                expert: number.map(expert),
                maps: maps.into_iter().map(|map| map.name.clone()).collect(),
                groups: entry.groups,
                by_parameter: number.is_none() && by_parameter,
                left_out: left_out.map(|left_out| left_out.reason),
            }
        }));
    }
    modules
}
