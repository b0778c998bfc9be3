//! LoRA (arXiv 2106.09685) and rsLoRA (arXiv 2312.03732): `W + scale B A`, in PEFT's folders.
//!
//! PEFT stores `A` as `{module}.lora_A.weight` and `B` as `{module}.lora_B.weight`. Where one module of the checkpoint is
//! several of our maps, its `B` has their factors on its diagonal.

use std::{
    collections::{BTreeSet, HashMap},
    ops::Range,
    sync::Arc,
};

use burn::tensor::{Device, Tensor, TensorData};
use espalier_data::{
    nearest::suggestion,
    random::{Random, fnv},
};
use espalier_kernels::linear::linear;
use serde_json::Value;

use super::{
    AdapterFile, AdapterKind, Fresh, PEFT_PREFIX, Registration, each_linear,
    expert_parameters::ExpertParameter,
    linear_adapter::{LinearAdapter, LinearPass, LinearWeights},
    linear_parts, target_modules,
};
use crate::{
    Error, Result,
    checkpoint::{
        PeftConfig,
        peft_config::{Targets, is_named},
    },
    families::{Family, config::Config},
    layers::linear::LinearMapMut,
    layout::{self, ExpertFactors, Factor, Module, PartSize, StoredTensor},
    model::LanguageModel,
    parameter::{Parameter, Parameters},
};

/// LoRA's line in the list of kinds.
pub const REGISTRATION: Registration = Registration {
    peft_type: "LORA",
    read: |config: &Config| Ok(Arc::new(PeftConfig::read(config)?)),
};

/// `W + scale * B A`, with `A` (`down`) `[rank, in]` and `B` (`up`) `[out, rank]`.
#[derive(Debug, Clone)]
pub struct LowRank {
    /// `A`, `[rank, in]`.
    pub down: Parameter,
    /// `B`, `[out, rank]`.
    pub up: Parameter,
    /// `alpha / rank`, or `alpha / sqrt(rank)` for rsLoRA.
    pub scale: f64,
}

impl LowRank {
    /// The rank of the addition.
    pub fn rank(&self) -> usize {
        self.down.shape()[0]
    }
}

impl LinearAdapter for LowRank {
    fn addition(&self, pass: &LinearPass<'_>) -> Tensor<2> {
        let down = self.down.value();
        let narrow = linear(pass.input.clone(), down, None, pass.precision) * self.scale;
        linear(narrow, self.up.value(), None, pass.precision)
    }

    fn merge(&self, _: &LinearWeights) -> Result<LinearWeights> {
        let [up, down] = [&self.up, &self.down].map(|factor| factor.value::<2>().inner());
        Ok(LinearWeights {
            weight: up.matmul(down) * self.scale,
            bias: None,
        })
    }

    fn parameters(&self) -> Vec<&Parameter> {
        vec![&self.down, &self.up]
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        vec![&mut self.down, &mut self.up]
    }

    fn low_rank(&self) -> Option<&LowRank> {
        Some(self)
    }
}

/// The values of an adapter of one map.
struct Factors {
    down: Vec<f32>,
    up: Vec<f32>,
    scale: f64,
}

impl Factors {
    /// The same with another scale, the difference put into `B`.
    fn rescale(&mut self, scale: f64) {
        let change = std::mem::replace(&mut self.scale, scale) / scale;
        if change != 1.0 {
            let changed = |value: &mut f32| *value = (f64::from(*value) * change) as f32;
            self.up.iter_mut().for_each(changed);
        }
    }

    fn attach(self, map: &mut LinearMapMut<'_>, adapter: &str, device: &Device) -> Result<()> {
        let [outputs, inputs] = map.size();
        let rank = self.down.len() / inputs.max(1);
        let parameter = |part: &str, shape: [usize; 2], values: Vec<f32>| {
            let flat = TensorData::new(values, [shape[0] * shape[1]]);
            let name = format!("{}.adapter.{adapter}.{part}", map.name);
            Parameter::new(name, shape.to_vec(), Tensor::from_data(flat, device))
                .of_adapter(adapter)
        };
        let low_rank = LowRank {
            down: parameter("down", [rank, inputs], self.down),
            up: parameter("up", [outputs, rank], self.up),
            scale: self.scale,
        };
        map.attach(adapter, Box::new(low_rank))
    }
}

fn targeted(config: &PeftConfig, module: &str) -> bool {
    module != "lm_head" && config.matches(module) || config.names(module)
}

fn names(module: &Module) -> [String; 2] {
    ["lora_A", "lora_B"].map(|part| format!("{PEFT_PREFIX}{}.{part}.weight", module.name))
}

/// Outputs and inputs of every linear map by its name.
type Sizes = HashMap<String, [usize; 2]>;

fn sizes(model: &LanguageModel) -> Sizes {
    let mut sizes = HashMap::new();
    model.visit_linears(&mut |map| {
        sizes.insert(map.name.clone(), map.size());
    });
    sizes
}

/// The factors of several maps that share one `A` `[rank, in]`, each with rows `[outputs, rank]` of one `B`. Where every map has a
/// part of the rank for itself, as in what is written here, it gets that alone.
fn shared(down: &[f32], ups: Vec<Vec<f32>>, rank: usize, scale: f64) -> Vec<Factors> {
    let inputs = down.len() / rank.max(1);
    let own = own_ranks(&ups, rank);
    let of_map = |(map, up): (usize, Vec<f32>)| {
        let kept = own.as_ref().map_or(0..rank, |own| own[map].clone());
        Factors {
            down: down[kept.start * inputs..kept.end * inputs].to_vec(),
            up: up
                .chunks(rank)
                .flat_map(|row| row[kept.clone()].to_vec())
                .collect(),
            scale,
        }
    };
    ups.into_iter().enumerate().map(of_map).collect()
}

/// Which part of the rank each map has for itself, if their `B` is block diagonal: one begins where the first number is that is not
/// zero, and none is where all are.
fn own_ranks(ups: &[Vec<f32>], rank: usize) -> Option<Vec<Range<usize>>> {
    let used = |up: &Vec<f32>| {
        let is_used = |column: &usize| up.iter().skip(*column).step_by(rank).any(|x| *x != 0.0);
        let mut columns = (0..rank).filter(is_used);
        let first = columns.next()?;
        Some(first..columns.next_back().unwrap_or(first) + 1)
    };
    let mut own: Vec<Range<usize>> = Vec::new();
    let mut end = rank;
    for up in ups.iter().rev() {
        let range = match used(up) {
            Some(range) if range.end > end => return None,
            Some(range) => range.start..end,
            None => end..end,
        };
        end = range.start;
        own.push(range);
    }
    own.reverse();
    // What lies before the first is its own too; where all is zero nothing tells the maps apart.
    let first = own.iter_mut().find(|range| range.start < range.end)?;
    first.start = 0;
    Some(own)
}

impl PeftConfig {
    /// Reads `A` and `B` of a module or parameter with `stacked` experts (one where there is no stack) and gives them with the rank.
    fn read_factors(
        &self,
        name: &str,
        tensors: &[String; 2],
        [outputs, inputs]: [usize; 2],
        stacked: usize,
        file: &mut AdapterFile,
    ) -> Result<(Vec<f32>, Vec<f32>, usize)> {
        let shape = |tensor: &String| file.shape(tensor).unwrap_or_default().to_vec();
        let (down, up) = (shape(&tensors[0]), shape(&tensors[1]));
        let all = down.first().copied().unwrap_or(0);
        let rank = all / stacked.max(1);
        if down != [rank * stacked, inputs] || up != [outputs, all] {
            return Err(file.error(format!(
                "`{name}` has shapes {down:?} and {up:?}, which do not fit the base"
            )));
        }
        let expected = self.rank_for(name);
        if rank != expected {
            return Err(file.error(format!(
                "`{name}` has rank {rank}, but the configuration says {expected}"
            )));
        }
        let down = file.read(&tensors[0], &down)?;
        Ok((down, file.read(&tensors[1], &up)?, rank))
    }

    /// What the file has for the maps of a module. It must not lack what the configuration targets; experts of a stack it may, for
    /// PEFT adapts them one by one only where a model's own code had a layer for each.
    fn factors(
        &self,
        module: &Module,
        sizes: &Sizes,
        file: &mut AdapterFile,
    ) -> Result<Vec<(String, Factors)>> {
        let names = names(module);
        let targeted = targeted(self, &module.name);
        if names.iter().any(|name| file.shape(name).is_none()) {
            if targeted && module.expert.is_none() {
                return Err(file.error(format!(
                    "no tensors for `{}`, which the configuration targets",
                    module.name
                )));
            }
            return Ok(Vec::new());
        }
        if !targeted {
            // Not read, and so refused with the name of its tensor.
            return Ok(Vec::new());
        }
        let of_maps: Vec<[usize; 2]> = module.maps.iter().map(|map| sizes[map]).collect();
        let outputs = of_maps.iter().map(|[outputs, _]| outputs).sum();
        let inputs = of_maps.first().map_or(0, |[_, inputs]| *inputs);
        let (down, up, rank) =
            self.read_factors(&module.name, &names, [outputs, inputs], 1, file)?;
        let mut ups = vec![Vec::new(); of_maps.len()];
        let mut rows = up.chunks(rank.max(1));
        for _ in 0..module.groups {
            for ([outputs, _], up) in of_maps.iter().zip(&mut ups) {
                rows.by_ref()
                    .take(outputs / module.groups)
                    .for_each(|row| up.extend(row));
            }
        }
        let scale = self.scale_for(&module.name);
        let mut factors = shared(&down, ups.clone(), rank, scale);
        if factors.iter().any(|factors| factors.down.is_empty()) {
            // All maps of a module have one, or none.
            factors = ups
                .into_iter()
                .map(|up| Factors {
                    down: down.clone(),
                    up,
                    scale,
                })
                .collect();
        }
        Ok(module.maps.iter().cloned().zip(factors).collect())
    }

    /// What the file has for a stack of experts, of which `wanted` are all that have an adapter.
    fn expert_factors(
        &self,
        stack: &ExpertParameter,
        wanted: &[&ExpertParameter],
        sizes: &Sizes,
        file: &mut AdapterFile,
    ) -> Result<Vec<(String, Factors)>> {
        let names = stack.tensors(wanted);
        if let Some(missing) = names.iter().find(|name| file.shape(name).is_none()) {
            return Err(file.error(format!(
                "no tensor `{missing}` for `{}`, which the configuration targets",
                stack.name
            )));
        }
        let maps = stack.experts.first().map_or(&[][..], |maps| maps);
        let outputs: Vec<usize> = maps.iter().map(|map| sizes[map][0]).collect();
        let size = [
            outputs.iter().sum(),
            maps.first().map_or(0, |map| sizes[map][1]),
        ];
        let experts = stack.experts.len();
        let (down, up, rank) = self.read_factors(&stack.name, &names, size, experts, file)?;
        let scale = self.scale_for(&stack.name);
        let untrained = up.iter().all(|value| *value == 0.0);
        let of_expert = |(expert, maps): (usize, &Vec<String>)| {
            let down = &down[expert * rank * size[1]..(expert + 1) * rank * size[1]];
            let mut rows = up.chunks(rank * experts);
            let own = |row: &[f32]| {
                row[expert..]
                    .iter()
                    .step_by(experts)
                    .copied()
                    .collect::<Vec<f32>>()
            };
            let of_part = |outputs: &usize| rows.by_ref().take(*outputs).flat_map(own).collect();
            let ups: Vec<Vec<f32>> = outputs.iter().map(of_part).collect();
            // Zero where others are not: this expert, or this part of it, has none.
            let is_zero = |up: &Vec<f32>| up.iter().all(|value| *value == 0.0);
            let none = !untrained && ups.iter().all(is_zero);
            let own = maps.iter().cloned().zip(shared(down, ups, rank, scale));
            own.filter(|(_, factors)| !none && !factors.down.is_empty())
                .collect::<Vec<_>>()
        };
        Ok(stack
            .experts
            .iter()
            .enumerate()
            .flat_map(of_expert)
            .collect())
    }

    /// The ranks and scales of all maps that get an adapter, by their names.
    fn planned(
        &self,
        model: &LanguageModel,
        family: &Family,
    ) -> Result<HashMap<String, (usize, f64)>> {
        let all = layout::modules(model, family);
        if let Targets::List(entries) = &self.target_modules {
            let meant = |entry: &String| all.iter().any(|m| is_named(&m.name, entry));
            if let Some(strange) = entries.iter().find(|entry| !meant(entry)) {
                return Err(no_linear(strange, &all));
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
    fn of_stack(
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
    fn name_stacks(&mut self, modules: &[Module]) {
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
fn by_name(modules: &[Module]) -> HashMap<&str, &Module> {
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

/// The adapters of stacks of experts as PEFT's tensors.
fn expert_tensors<'a>(
    stacks: &[ExpertParameter],
    sizes: &Sizes,
    parts: &HashMap<String, &'a LowRank>,
) -> Vec<StoredTensor<'a>> {
    let has = |stack: &&ExpertParameter| {
        stack
            .experts
            .iter()
            .flatten()
            .any(|map| parts.contains_key(map))
    };
    let adapted: Vec<&ExpertParameter> = stacks.iter().filter(has).collect();
    let mut tensors = Vec::new();
    for stack in &adapted {
        let maps = &stack.experts[0];
        let size = |part: usize| {
            let ranks = stack
                .experts
                .iter()
                .filter_map(|maps| parts.get(&maps[part]));
            PartSize {
                outputs: sizes[&maps[part]][0],
                rank: ranks.map(|adapter| adapter.rank()).max().unwrap_or(0),
            }
        };
        let (mut places, mut own) = (Vec::new(), Vec::new());
        for (expert, maps) in stack.experts.iter().enumerate() {
            for (part, map) in maps.iter().enumerate() {
                if let Some(adapter) = parts.get(map) {
                    places.push([expert, part]);
                    own.push(*adapter);
                }
            }
        }
        let factors = |factor| ExpertFactors {
            experts: stack.experts.len(),
            parts: (0..maps.len()).map(size).collect(),
            places: places.clone(),
            factor,
        };
        let [down, up] = stack.tensors(&adapted);
        let inputs = sizes[&maps[0]][1];
        let downs = own.iter().map(|adapter| &adapter.down).collect();
        tensors.push(StoredTensor::of_experts(
            down,
            downs,
            factors(Factor::Down { inputs }),
        ));
        let ups = own.iter().map(|adapter| &adapter.up).collect();
        tensors.push(StoredTensor::of_experts(up, ups, factors(Factor::Up)));
    }
    tensors
}

/// The low-rank parts of an adapter by the names of their maps.
fn low_rank_parts<'a>(model: &'a LanguageModel, adapter: &str) -> HashMap<String, &'a LowRank> {
    let parts = linear_parts(model, adapter).into_iter();
    parts
        .filter_map(|(map, part)| Some((map, part.low_rank()?)))
        .collect()
}

impl AdapterKind for PeftConfig {
    fn peft_type(&self) -> &'static str {
        REGISTRATION.peft_type
    }

    fn modules_to_save(&self) -> &[String] {
        &self.modules_to_save
    }

    /// `A` is uniform within `1 / sqrt(inputs)` and `B` zero.
    fn attach(&self, model: &mut LanguageModel, family: &Family, fresh: Fresh<'_>) -> Result<()> {
        let planned = self.planned(model, family)?;
        let device = model.device().clone();
        each_linear(model, &mut |map| match planned.get(&map.name) {
            None => Ok(()),
            Some((rank, scale)) => {
                let [outputs, inputs] = map.size();
                let bound = 1.0 / (inputs as f64).sqrt();
                let mut random = Random::new(fnv(&format!("{}|{}|adapter", fresh.seed, &map.name)));
                let factors = Factors {
                    down: (0..rank * inputs)
                        .map(|_| ((random.f() * 2.0 - 1.0) * bound) as f32)
                        .collect(),
                    up: vec![0.0; outputs * rank],
                    scale: *scale,
                };
                factors.attach(map, fresh.adapter, &device)
            }
        })
    }

    fn tensors<'a>(
        &self,
        model: &'a LanguageModel,
        family: &Family,
        adapter: &str,
    ) -> Vec<StoredTensor<'a>> {
        let parts = low_rank_parts(model, adapter);
        let modules = layout::modules(model, family);
        let mut tensors = Vec::new();
        for module in modules.iter().filter(|module| module.expert.is_none()) {
            let own = module.maps.iter().map(|map| parts.get(map).copied());
            let all: Option<Vec<&LowRank>> = own.collect();
            if let Some(all) = all {
                let [down, up] = names(module);
                let downs = all.iter().map(|a| &a.down).collect();
                tensors.push(StoredTensor::rows_of(down, downs));
                let ups = all.iter().map(|a| &a.up).collect();
                tensors.push(StoredTensor::block_diagonal(up, ups, module.groups));
            }
        }
        let stacks = ExpertParameter::all(&modules);
        tensors.extend(expert_tensors(&stacks, &sizes(model), &parts));
        tensors
    }

    /// Ranks are the file's. The maps of one module share its `A`, each with its rows of `B`.
    fn read(
        &self,
        model: &mut LanguageModel,
        family: &Family,
        adapter: &str,
        file: &mut AdapterFile,
    ) -> Result<()> {
        let sizes = sizes(model);
        let modules = layout::modules(model, family);
        let mut by_map = HashMap::new();
        for module in &modules {
            by_map.extend(self.factors(module, &sizes, file)?);
        }
        let stacks = ExpertParameter::all(&modules);
        let wanted = stacks
            .iter()
            .filter(|stack| self.matches_parameter(&stack.name));
        let wanted: Vec<&ExpertParameter> = wanted.collect();
        for stack in &wanted {
            by_map.extend(self.expert_factors(stack, &wanted, &sizes, file)?);
        }
        // Experts that were stored one by one may have scales of their own; their stack has one.
        let of_maps = by_name(&modules);
        for stack in &stacks {
            if let Some((_, scale)) = self.of_stack(stack, &of_maps) {
                let own = stack.experts.iter().flatten();
                own.for_each(|map| {
                    if let Some(factors) = by_map.get_mut(map) {
                        factors.rescale(scale);
                    }
                });
            }
        }
        let device = model.device().clone();
        each_linear(model, &mut |map| match by_map.remove(&map.name) {
            Some(factors) => factors.attach(map, adapter, &device),
            None => Ok(()),
        })
    }

    /// An adapter on a fused weight is stored as one of several times the rank, with the same scale; experts are named by the
    /// parameter that holds their stack.
    fn configuration(&self, model: &LanguageModel, family: &Family) -> Value {
        let mut config = self.clone();
        let modules = layout::modules(model, family);
        for module in modules.iter().filter(|module| module.expert.is_none()) {
            if module.maps.len() > 1 && targeted(self, &module.name) {
                let (rank, scale) = (self.rank_for(&module.name), self.scale_for(&module.name));
                config.set_pattern(&module.name, rank * module.maps.len(), scale);
            }
        }
        config.name_stacks(&modules);
        config.to_json()
    }

    fn describe(&self) -> String {
        format!("low rank, r = {}, alpha = {}", self.rank, self.alpha)
    }
}
