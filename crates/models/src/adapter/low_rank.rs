//! LoRA (arXiv 2106.09685) and rsLoRA (arXiv 2312.03732): `W + scale B A`, in PEFT's folders.
//!
//! PEFT stores `A` as `{module}.lora_A.weight` and `B` as `{module}.lora_B.weight`. Where one module of the checkpoint is
//! several of our maps, its `B` has their factors on its diagonal.

use std::{collections::HashMap, sync::Arc};

use burn::tensor::{Device, Tensor, TensorData};
use espalier_data::random::{Random, fnv};
use espalier_kernels::{dropout::Dropout, linear::linear};
use serde_json::Value;

use super::{
    AdapterFile, AdapterKind, Fresh, PEFT_PREFIX, Registration, each_linear,
    linear_adapter::{LinearAdapter, LinearPass, LinearWeights},
    linear_parts, no_module, target_modules,
};
use crate::{
    Result,
    checkpoint::{
        PeftConfig,
        peft_config::{Targets, is_named},
    },
    families::{Family, config::Config},
    layers::linear::LinearMapMut,
    layout::{self, Module, StoredTensor},
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

/// What a file is compared with.
struct MapSize {
    /// Outputs and inputs.
    size: [usize; 2],
    /// Whether the map is an expert's.
    of_expert: bool,
}

/// The values of an adapter of one map.
struct Factors {
    down: Vec<f32>,
    up: Vec<f32>,
    scale: f64,
}

impl Factors {
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

fn targeted(config: &PeftConfig, module: &str) -> bool {
    module != "lm_head" && config.matches(module) || config.names(module)
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

fn names(module: &Module) -> [String; 2] {
    ["lora_A", "lora_B"].map(|part| format!("{PEFT_PREFIX}{}.{part}.weight", module.name))
}

impl PeftConfig {
    /// Whether the file may lack a module: it must not, where the configuration targets it. PEFT adapts experts only where the
    /// model's own code has a layer for each.
    fn lacking(
        &self,
        module: &Module,
        sizes: &HashMap<String, MapSize>,
        file: &AdapterFile,
    ) -> Result<()> {
        let of_experts = module.maps.iter().all(|map| sizes[map].of_expert);
        if of_experts || !targeted(self, &module.name) {
            return Ok(());
        }
        Err(file.error(format!(
            "no tensors for `{}`, which the configuration targets",
            module.name
        )))
    }

    /// What the file has for the maps of a module; `sizes` are outputs and inputs of all maps.
    fn factors(
        &self,
        module: &Module,
        sizes: &HashMap<String, MapSize>,
        file: &mut AdapterFile,
    ) -> Result<Vec<(String, Factors)>> {
        let names = names(module);
        let [Some(down), Some(up)] = names.each_ref().map(|name| file.shape(name)) else {
            return self.lacking(module, sizes, file).map(|()| Vec::new());
        };
        let (down, up) = (down.to_vec(), up.to_vec());
        let sizes: Vec<[usize; 2]> = module.maps.iter().map(|map| sizes[map].size).collect();
        let (rank, expected) = (
            down.first().copied().unwrap_or(0),
            self.rank_for(&module.name),
        );
        let outputs = sizes.iter().map(|[outputs, _]| outputs).sum();
        let fits = |[_, inputs]: &[usize; 2]| down == [rank, *inputs];
        if !sizes.iter().all(fits) || up != [outputs, rank] {
            return Err(file.error(format!(
                "`{}` has shapes {down:?} and {up:?}, which do not fit the base",
                module.name
            )));
        }
        if targeted(self, &module.name) && rank != expected {
            return Err(file.error(format!(
                "`{}` has rank {rank}, but the configuration says {expected}",
                module.name
            )));
        }
        let (down, up) = (file.read(&names[0], &down)?, file.read(&names[1], &up)?);
        let (scale, mut start) = (self.scale_for(&module.name), 0);
        let of_map = |(map, [outputs, _]): (&String, [usize; 2])| {
            let rows = start * rank..(start + outputs) * rank;
            start += outputs;
            let factors = Factors {
                down: down.clone(),
                up: up[rows].to_vec(),
                scale,
            };
            (map.clone(), factors)
        };
        Ok(module.maps.iter().zip(sizes).map(of_map).collect())
    }
}

impl AdapterKind for PeftConfig {
    fn peft_type(&self) -> &'static str {
        REGISTRATION.peft_type
    }

    fn modules_to_save(&self) -> &[String] {
        &self.modules_to_save
    }

    fn adapts(&self, module: &str) -> bool {
        self.names(module)
    }

    fn keeps_ties(&self) -> bool {
        self.ensure_weight_tying
    }

    /// `A` is uniform within `1 / sqrt(inputs)` and `B` zero.
    fn attach(&self, model: &mut LanguageModel, family: &Family, fresh: Fresh<'_>) -> Result<()> {
        let mut planned = HashMap::new();
        let modules = target_modules(model, family, &|module| targeted(self, module))?;
        if let Targets::List(entries) = &self.target_modules {
            let all = layout::modules(model, family);
            let meant = |entry: &String| all.iter().any(|m| is_named(&m.name, entry));
            if let Some(strange) = entries.iter().find(|entry| !meant(entry)) {
                return Err(no_module("target_modules", strange, model, family));
            }
        }
        for module in modules {
            let of_module = (self.rank_for(&module.name), self.scale_for(&module.name));
            planned.extend(module.maps.into_iter().map(|map| (map, of_module)));
        }
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
        let parts = linear_parts(model, adapter);
        let mut tensors = Vec::new();
        for module in layout::modules(model, family) {
            let own = module.maps.iter().map(|map| parts.get(map)?.low_rank());
            let all: Option<Vec<&LowRank>> = own.collect();
            if let Some(all) = all {
                let [down, up] = names(&module);
                let downs = all.iter().map(|a| &a.down).collect();
                tensors.push(StoredTensor::rows_of(down, downs));
                let ups = all.iter().map(|a| &a.up).collect();
                tensors.push(StoredTensor::block_diagonal(up, ups));
            }
        }
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
        let mut sizes = HashMap::new();
        model.visit_linears(&mut |map| {
            let (size, of_expert) = (map.size(), map.expert.is_some());
            sizes.insert(map.name.clone(), MapSize { size, of_expert });
        });
        let mut by_map = HashMap::new();
        for module in layout::modules(model, family) {
            by_map.extend(self.factors(&module, &sizes, file)?);
        }
        let device = model.device().clone();
        each_linear(model, &mut |map| match by_map.remove(&map.name) {
            Some(factors) => factors.attach(map, adapter, self.dropout, &device),
            None => Ok(()),
        })
    }

    /// An adapter on a fused weight is stored as one of several times the rank, with the same scale.
    fn configuration(&self, model: &LanguageModel, family: &Family) -> Value {
        let mut config = self.clone();
        for module in layout::modules(model, family) {
            if module.maps.len() > 1 && targeted(self, &module.name) {
                let (rank, scale) = (self.rank_for(&module.name), self.scale_for(&module.name));
                config.set_pattern(&module.name, rank * module.maps.len(), scale);
            }
        }
        config.task_type = config.task_type.or_else(|| task_type(model));
        config.to_json()
    }

    fn describe(&self) -> String {
        format!("low rank, r = {}, alpha = {}", self.rank, self.alpha)
    }
}
