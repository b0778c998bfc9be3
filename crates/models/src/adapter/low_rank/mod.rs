//! LoRA (arXiv 2106.09685) and rsLoRA (arXiv 2312.03732): `W + scale B A`, in PEFT's folders.
//!
//! PEFT stores `A` as `{module}.lora_A.weight` and `B` as `{module}.lora_B.weight`. Where one module of the checkpoint is
//! several of our maps, its `B` has their factors on its diagonal.

mod file;
mod targets;

use std::{collections::HashMap, sync::Arc};

use burn::tensor::{Device, Tensor, TensorData};
use espalier_data::random::{Random, fnv};
use espalier_kernels::{dropout::Dropout, linear::linear};
use serde_json::Value;

use self::{
    file::{expert_tensors, names, sizes},
    targets::by_name,
};
use super::{
    AdapterFile, AdapterKind, Fresh, Registration,
    attachments::Attached,
    each_linear,
    expert_parameters::ExpertParameter,
    linear_adapter::{LinearAdapter, LinearPass, LinearWeights},
    linear_parts, saved_modules,
};
use crate::{
    Result,
    checkpoint::PeftConfig,
    families::{Family, config::Config},
    layers::linear::LinearMapMut,
    layout::{self, Module, StoredTensor},
    model::LanguageModel,
    parameter::Parameter,
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
    /// Share of the inputs that are dropped in training.
    pub dropout: f64,
    /// Which inputs are dropped now.
    pub dropped: Option<Dropout>,
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
        let input = match self.dropped {
            Some(dropout) => dropout.forward(pass.input.clone()),
            None => pass.input.clone(),
        };
        let narrow = linear(input, down, None, pass.precision) * self.scale;
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

    fn set_dropout(&mut self, seed: Option<u64>) {
        let seed = seed.filter(|_| self.dropout > 0.0);
        let probability = self.dropout;
        self.dropped = seed.map(|seed| Dropout { probability, seed });
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

    fn attach(
        self,
        map: &mut LinearMapMut<'_>,
        adapter: &str,
        dropout: f64,
        device: &Device,
    ) -> Result<()> {
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
            dropout,
            dropped: None,
        };
        map.attach(adapter, Box::new(low_rank))
    }
}

/// What PEFT calls the use of a model: it has a name for what predicts next tokens and for what has no head, and none for what predicts
/// masked ones.
fn task_type(model: &LanguageModel) -> Option<String> {
    let spec = model.spec();
    let name = match (spec.headless, spec.encoder.is_some(), spec.head_transform) {
        (true, _, _) => "FEATURE_EXTRACTION",
        (false, true, _) => "SEQ_2_SEQ_LM",
        (false, false, Some(_)) => return None,
        (false, false, None) => "CAUSAL_LM",
    };
    Some(name.into())
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

    fn adapts(&self, names: &[&str]) -> bool {
        names.iter().any(|name| self.names(name))
    }

    fn remarks(&self, model: &LanguageModel, family: &Family) -> Vec<String> {
        targets::remarks(self, &layout::modules(model, family))
    }

    fn keeps_ties(&self) -> bool {
        self.ensure_weight_tying
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
                factors.attach(map, fresh.adapter, self.dropout, &device)
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
        for module in modules
            .iter()
            .chain(&layout::modules_of_file(model, family))
        {
            by_map.extend(self.factors(module, &sizes, file)?);
        }
        // Experts of a stack it may lack, for PEFT adapts them one by one only where a model's own code had a layer for each.
        let lacks = |module: &&Module| {
            let all = module.maps.iter().all(|map| by_map.contains_key(map));
            module.expert.is_none() && !all && self.targets(module)
        };
        if let Some(module) = modules.iter().find(lacks) {
            return Err(file.error(format!(
                "no tensors for `{}`, which the configuration targets",
                module.name
            )));
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
            if let Some(scale) = self.scale_of_stack(stack, &of_maps) {
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
            Some(factors) => factors.attach(map, adapter, self.dropout, &device),
            // Experts that the file lacks.
            None => {
                map.adapters.detach(adapter);
                Ok(())
            }
        })
    }

    /// An adapter on a fused weight is stored as one of several times the rank, with the same scale; experts are named by the
    /// parameter that holds their stack.
    fn configuration(&self, model: &LanguageModel, family: &Family, adapter: &str) -> Value {
        let mut config = self.clone();
        let modules = layout::modules(model, family);
        let parts = low_rank_parts(model, adapter);
        for module in modules.iter().filter(|module| module.expert.is_none()) {
            let own = module.maps.iter().map(|map| parts.get(map).copied());
            let own: Vec<&LowRank> = own.collect::<Option<_>>().unwrap_or_default();
            let Some(scale) = own.first().map(|adapter| adapter.scale) else {
                continue;
            };
            let rank = own.iter().map(|adapter| adapter.rank()).sum();
            if module.parameter().is_none() && !config.says(module, rank, scale) {
                // Without the family's prefix it means the module in a base model too.
                let name = module.name.strip_prefix(family.prefix);
                config.set_pattern(name.unwrap_or(&module.name), rank, scale);
            }
        }
        config.task_type = config.task_type.or_else(|| task_type(model));
        config.name_modules(&modules, &parts);
        config.modules_to_save = saved_modules::written(&self.modules_to_save, model, family);
        config.to_json()
    }

    fn describe(&self) -> String {
        format!("low rank, r = {}, alpha = {}", self.rank, self.alpha)
    }
}
