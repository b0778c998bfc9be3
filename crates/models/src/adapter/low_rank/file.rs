//! Low-rank factors in PEFT's files: `A` as `{module}.lora_A.weight`, `B` as `{module}.lora_B.weight`, those of a stack of experts as
//! [`ExpertParameter`] says.

use std::{collections::HashMap, ops::Range};

use super::{Factors, LowRank, targets::names_of};
use crate::{
    Result,
    adapter::{AdapterFile, PEFT_PREFIX, expert_parameters::ExpertParameter},
    checkpoint::PeftConfig,
    layout::{ExpertFactors, Factor, Module, PartSize, StoredTensor},
    model::LanguageModel,
    parameter::Parameters,
};

pub(super) fn names(module: &Module) -> [String; 2] {
    ["lora_A", "lora_B"].map(|part| format!("{PEFT_PREFIX}{}.{part}.weight", module.name))
}

pub(super) fn magnitude_name(module: &Module) -> String {
    format!("{PEFT_PREFIX}{}.lora_magnitude_vector", module.name)
}

pub(super) fn bias_name(module: &Module) -> String {
    format!("{PEFT_PREFIX}{}.lora_B.bias", module.name)
}

/// Outputs and inputs of every linear map by its name.
pub(super) type Sizes = HashMap<String, [usize; 2]>;

pub(super) fn sizes(model: &LanguageModel) -> Sizes {
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
            ..Factors::default()
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

/// The rows of several maps, so many each, which take turns in so many groups.
fn in_turns(values: &[f32], width: usize, outputs: &[usize], groups: usize) -> Vec<Vec<f32>> {
    let mut maps = vec![Vec::new(); outputs.len()];
    let mut rows = values.chunks(width.max(1));
    for _ in 0..groups {
        for (outputs, map) in outputs.iter().zip(&mut maps) {
            let own = rows.by_ref().take(outputs / groups);
            own.for_each(|row| map.extend(row));
        }
    }
    maps
}

impl PeftConfig {
    /// Reads `A` and `B` of a module or parameter with `stacked` experts (one where there is no stack) and gives them with the rank.
    fn read_factors(
        &self,
        names: &[&str],
        tensors: &[String; 2],
        [outputs, inputs]: [usize; 2],
        stacked: usize,
        file: &mut AdapterFile,
    ) -> Result<(Vec<f32>, Vec<f32>, usize)> {
        let name = names.first().copied().unwrap_or_default();
        let shape = |tensor: &String| file.shape(tensor).unwrap_or_default().to_vec();
        let (down, up) = (shape(&tensors[0]), shape(&tensors[1]));
        let all = down.first().copied().unwrap_or(0);
        let rank = all / stacked.max(1);
        if down != [rank * stacked, inputs] || up != [outputs, all] {
            return Err(file.error(format!(
                "`{name}` has shapes {down:?} and {up:?}, which do not fit the base"
            )));
        }
        let expected = self.rank_of(names);
        if rank != expected {
            return Err(file.error(format!(
                "`{name}` has rank {rank}, but the configuration says {expected}"
            )));
        }
        let down = file.read(&tensors[0], &down)?;
        Ok((down, file.read(&tensors[1], &up)?, rank))
    }

    /// What the file has for the maps of a module.
    pub(super) fn factors(
        &self,
        module: &Module,
        sizes: &Sizes,
        file: &mut AdapterFile,
    ) -> Result<Vec<(String, Factors)>> {
        let tensors = names(module);
        let is_there = tensors.iter().all(|name| file.shape(name).is_some());
        // What is not targeted is not read, and so refused with the name of its tensor.
        if !is_there || !self.may_have(module) {
            return Ok(Vec::new());
        }
        let of_maps: Vec<[usize; 2]> = module.maps.iter().map(|map| sizes[map]).collect();
        let outputs = of_maps.iter().map(|[outputs, _]| outputs).sum();
        let inputs = of_maps.first().map_or(0, |[_, inputs]| *inputs);
        let names = names_of(module);
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let (down, up, rank) = self.read_factors(&names, &tensors, [outputs, inputs], 1, file)?;
        let rows_of_maps: Vec<usize> = of_maps.iter().map(|[outputs, _]| *outputs).collect();
        let ups = in_turns(&up, rank, &rows_of_maps, module.groups);
        let scale = self.scale_of(&names);
        let mut factors = shared(&down, ups.clone(), rank, scale);
        if factors.iter().any(|factors| factors.down.is_empty()) {
            // All maps of a module have one, or none.
            factors = ups
                .into_iter()
                .map(|up| Factors {
                    down: down.clone(),
                    up,
                    scale,
                    ..Factors::default()
                })
                .collect();
        }
        if self.use_dora {
            let magnitude = file.read(&magnitude_name(module), &[outputs])?;
            let magnitudes = in_turns(&magnitude, 1, &rows_of_maps, module.groups);
            for (factors, magnitude) in factors.iter_mut().zip(magnitudes) {
                factors.magnitude = Some(magnitude);
            }
        }
        if self.lora_bias {
            let bias = file.read(&bias_name(module), &[outputs])?;
            let biases = in_turns(&bias, 1, &rows_of_maps, module.groups);
            for (factors, bias) in factors.iter_mut().zip(biases) {
                factors.bias = Some(bias);
            }
        }
        Ok(module.maps.iter().cloned().zip(factors).collect())
    }

    /// What the file has for a stack of experts, of which `wanted` are all that have an adapter.
    pub(super) fn expert_factors(
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
        let (down, up, rank) = self.read_factors(&[&stack.name], &names, size, experts, file)?;
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
}

/// The adapters of stacks of experts as PEFT's tensors.
pub(super) fn expert_tensors<'a>(
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
