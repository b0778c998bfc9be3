//! LoRA (arXiv 2106.09685) and rsLoRA (arXiv 2312.03732): `W + scale B A`, in PEFT's folders. DoRA and PiSSA are in files of their own.
//!
//! With `lora_bias` `B` has a bias `b` of its own: `y = W x + scale (B A x + b)`. What is done to embedding and head besides is in
//! `vocabulary.rs`.
//!
//! PEFT stores `A` as `{module}.lora_A.weight` and `B` as `{module}.lora_B.weight`. Where one module of the checkpoint is
//! several of our maps, its `B` has their factors on its diagonal.

pub mod arithmetic;
mod dora;
mod factors;
mod file;
mod start;
mod targets;
mod vocabulary;

use std::{collections::HashMap, sync::Arc};

use burn::tensor::Tensor;
use espalier_kernels::{
    dropout::Dropout,
    linear::{Precision, linear},
};
use serde_json::Value;

use self::{
    factors::Factors,
    file::{bias_name, expert_tensors, magnitude_name, names, sizes},
    targets::by_name,
    vocabulary::{Vocabulary, low_rank_table},
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
    Error, Result,
    checkpoint::{PeftConfig, peft_config::TrainedBiases},
    families::{Family, config::Config},
    fresh_classifier::TASKS,
    layout::{self, Module, StoredTensor},
    model::LanguageModel,
    parameter::Parameter,
    spec::Subject,
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
    /// `A` and `-B` of what the base loses at the start, never trained (PiSSA).
    pub start: Option<[Parameter; 2]>,
    /// The length of every row of the sum, `[out]` (DoRA).
    pub magnitude: Option<Parameter>,
    /// What is added to the product, `[out]`, times the scale too.
    pub bias: Option<Parameter>,
}

impl LowRank {
    /// A plain addition of `A` and `B`.
    pub fn new([down, up]: [Parameter; 2], scale: f64) -> Self {
        Self {
            down,
            up,
            scale,
            dropout: 0.0,
            dropped: None,
            start: None,
            magnitude: None,
            bias: None,
        }
    }

    /// Whether it is a sum of products alone, of whatever inputs.
    pub fn is_product(&self) -> bool {
        self.magnitude.is_none() && self.bias.is_none()
    }

    /// The rank of the addition, with what the base loses.
    pub fn rank(&self) -> usize {
        let start = self.start.as_ref().map_or(0, |[down, _]| down.shape()[0]);
        self.down.shape()[0] + start
    }

    /// `A` and `B`, with what the base loses beside them: `[rank, in]` and `[out, rank]`.
    pub fn factors(&self) -> [Tensor<2>; 2] {
        let [down, up] = [self.down.value(), self.up.value()];
        match &self.start {
            None => [down, up],
            Some([start_down, start_up]) => [
                Tensor::cat(vec![down, start_down.value()], 0),
                Tensor::cat(vec![up, start_up.value()], 1),
            ],
        }
    }

    /// Whether it is a sum of products alone, which takes part in the product of its weight.
    pub fn is_plain(&self) -> bool {
        self.dropped.is_none() && self.is_product()
    }

    /// `scale B A`, with what the base loses, outside autodiff: `[out, in]`.
    fn product(&self) -> Tensor<2> {
        let [down, up] = self.factors().map(Tensor::inner);
        up.matmul(down) * self.scale
    }

    /// `scale x A^T B^T`, with what the base loses.
    fn through(&self, input: Tensor<2>, precision: Precision) -> Tensor<2> {
        wide(input, self.factors(), self.scale, precision)
    }

    /// The same without what the base loses.
    fn trained(&self, input: Tensor<2>, precision: Precision) -> Tensor<2> {
        let factors = [self.down.value(), self.up.value()];
        wide(input, factors, self.scale, precision)
    }

    /// The base's product without what it loses.
    fn with_start(&self, product: Tensor<2>, input: &Tensor<2>, precision: Precision) -> Tensor<2> {
        match &self.start {
            None => product,
            Some(start) => {
                let factors = start.each_ref().map(Parameter::value);
                product + wide(input.clone(), factors, self.scale, precision)
            }
        }
    }

    /// The parameters of the matrices `A`, and those of the matrices `B`.
    fn matrices(&self) -> (Vec<&Parameter>, Vec<&Parameter>) {
        let start = self.start.iter();
        let (downs, ups): (Vec<_>, Vec<_>) = start.map(|[down, up]| (down, up)).unzip();
        (
            [vec![&self.down], downs].concat(),
            [vec![&self.up], ups].concat(),
        )
    }
}

/// `scale x A^T B^T`.
fn wide(
    input: Tensor<2>,
    [down, up]: [Tensor<2>; 2],
    scale: f64,
    precision: Precision,
) -> Tensor<2> {
    let narrow = linear(input, down, None, precision) * scale;
    linear(narrow, up, None, precision)
}

impl LinearAdapter for LowRank {
    fn addition(&self, pass: &LinearPass<'_>) -> Tensor<2> {
        if let Some(magnitude) = &self.magnitude {
            return dora::addition(self, magnitude, pass);
        }
        let product = match self.dropped {
            None => self.through(pass.input.clone(), pass.precision),
            Some(dropout) => {
                let input = dropout.forward(pass.input.clone());
                let trained = self.trained(input, pass.precision);
                self.with_start(trained, &pass.input, pass.precision)
            }
        };
        match &self.bias {
            Some(bias) => product + (bias.value::<1>() * self.scale).unsqueeze(),
            None => product,
        }
    }

    fn merge(&self, base: &LinearWeights) -> Result<LinearWeights> {
        Ok(match &self.magnitude {
            Some(magnitude) => dora::merge(self, magnitude, base),
            None => LinearWeights {
                weight: self.product(),
                bias: match (&self.bias, &base.bias) {
                    (Some(_), None) => return Err(Error::Invalid(NO_BIAS.into())),
                    (bias, _) => bias.as_ref().map(|bias| bias.flat() * self.scale),
                },
            },
        })
    }

    fn parameters(&self) -> Vec<&Parameter> {
        let start = self.start.iter().flatten();
        let own = [&self.down, &self.up].into_iter();
        let vectors = self.magnitude.iter().chain(&self.bias);
        own.chain(start).chain(vectors).collect()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        let start = self.start.iter_mut().flatten();
        let own = [&mut self.down, &mut self.up].into_iter();
        let vectors = self.magnitude.iter_mut().chain(&mut self.bias);
        own.chain(start).chain(vectors).collect()
    }

    fn set_dropout(&mut self, seed: Option<u64>) {
        let seed = seed.filter(|_| self.dropout > 0.0);
        let probability = self.dropout;
        self.dropped = seed.map(|seed| Dropout { probability, seed });
    }

    fn dropout(&self) -> f64 {
        self.dropout
    }

    fn weigh(&mut self, weight: f64) -> bool {
        let is_sum = self.magnitude.is_none();
        if is_sum {
            self.scale *= weight;
        }
        is_sum || weight == 1.0
    }

    fn low_rank(&self) -> Option<&LowRank> {
        Some(self)
    }
}

/// Why `B` with a bias is not merged into a layer without one.
const NO_BIAS: &str = "`lora_bias` adds a bias, and a layer that it adds to has none to take it; keep the adapter apart, or train it without";

/// What PEFT calls the use of a model: it has a name for what predicts next tokens, for what classifies and for what has no head, and none
/// for what predicts masked ones.
fn task_type(model: &LanguageModel) -> Option<String> {
    let spec = model.spec();
    if let Some(classifier) = spec.classifier {
        let of_tokens = classifier.subject == Subject::Tokens;
        let known = TASKS.into_iter().find(|(_, tokens)| *tokens == of_tokens);
        return known.map(|(name, _)| name.to_owned());
    }
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

    fn tensors_to_save(&self, model: &LanguageModel, family: &Family) -> Vec<String> {
        let is_bias = |name: &String| name == "bias" || name.ends_with(".bias");
        let tensors = layout::tensors_in_memory(model, family).into_iter();
        let mut biases: Vec<String> = tensors
            .filter(|tensor| !tensor.is_fixed())
            .map(|tensor| tensor.name)
            .filter(is_bias)
            .collect();
        match self.biases {
            TrainedBiases::None => biases.clear(),
            TrainedBiases::All => {}
            TrainedBiases::OfTargets => {
                let modules = layout::modules(model, family).into_iter();
                let targeted = modules.filter(|m| m.expert.is_none() && self.targets(m));
                let own: Vec<String> = targeted.map(|m| format!("{}.bias", m.name)).collect();
                biases.retain(|bias| own.contains(bias));
            }
        }
        biases
    }

    fn adapts(&self, names: &[&str]) -> bool {
        names.iter().any(|name| self.names(name))
    }

    fn parts_head(&self, embedding: &[&str], head: &[&str]) -> bool {
        self.rows_part(embedding, head)
    }

    fn rows_needed(&self, model: &LanguageModel, family: &Family) -> Result<usize> {
        self.vocabulary_needed(model, family)
    }

    fn remarks(&self, model: &LanguageModel, family: &Family) -> Vec<String> {
        let mut remarks = targets::remarks(self, &layout::modules(model, family));
        if self.biases != TrainedBiases::None && self.tensors_to_save(model, family).is_empty() {
            let which = self.biases.name();
            remarks.push(format!(
                "`bias` = \"{which}\" trains nothing: the model has no such biases"
            ));
        }
        remarks
    }

    fn keeps_ties(&self) -> bool {
        self.ensure_weight_tying
    }

    fn check_kept(&self, model: &LanguageModel, family: &Family, adapter: &str) -> Result<()> {
        let parts = low_rank_parts(model, adapter);
        self.check_dropout(&layout::modules(model, family), &|map| {
            parts.contains_key(map)
        })
    }

    /// Where a file's values take their place, `A` and `B` are zero.
    fn attach(&self, model: &mut LanguageModel, family: &Family, fresh: Fresh<'_>) -> Result<()> {
        let planned = self.planned(model, family, fresh.is_read)?;
        self.attach_vocabulary(model, family, fresh)?;
        let device = model.device().clone();
        each_linear(model, &mut |map| match planned.get(&map.name) {
            None => Ok(()),
            Some((rank, scale)) => {
                let mut factors = match fresh.is_read {
                    true => start::zeros(map.size(), *rank, *scale),
                    false => self.fresh(map, *rank, *scale, fresh.seed),
                };
                factors.bias = self.lora_bias.then(|| vec![0.0; map.size()[0]]);
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
                let (downs, ups): (Vec<_>, Vec<_>) = all.iter().map(|own| own.matrices()).unzip();
                tensors.push(StoredTensor::rows_of(down, downs.concat()));
                tensors.push(StoredTensor::block_diagonal(up, ups, module.groups));
                let magnitudes: Vec<_> = all.iter().filter_map(|a| a.magnitude.as_ref()).collect();
                if !magnitudes.is_empty() {
                    let rows = StoredTensor::rows_of(magnitude_name(module), magnitudes);
                    tensors.push(rows.in_turns(module.groups));
                }
                let biases: Vec<_> = all.iter().filter_map(|a| a.bias.as_ref()).collect();
                if !biases.is_empty() {
                    let rows = StoredTensor::rows_of(bias_name(module), biases);
                    tensors.push(rows.in_turns(module.groups));
                }
            }
        }
        let stacks = ExpertParameter::all(&modules);
        tensors.extend(expert_tensors(&stacks, &sizes(model), &parts));
        tensors.extend(vocabulary::tensors(model, family, adapter));
        tensors.extend(vocabulary::repeated(model, family, adapter));
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
        vocabulary::read(model, family, adapter, file)?;
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
        self.take_out_of_the_base(&modules, model, &mut by_map)?;
        let device = model.device().clone();
        each_linear(model, &mut |map| match by_map.remove(&map.name) {
            Some(factors) => factors.attach(map, adapter, self.dropout, &device),
            // Experts that the file lacks.
            None => {
                let part = map.adapters.get(adapter);
                if part.is_some_and(|part| part.low_rank().is_some()) {
                    map.adapters.detach(adapter);
                }
                Ok(())
            }
        })
    }

    /// An adapter on a fused weight is stored as one of several times the rank, with the same scale; experts are named by the
    /// parameter that holds their stack.
    fn configuration(&self, model: &LanguageModel, family: &Family, adapter: &str) -> Value {
        let parts = low_rank_parts(model, adapter);
        let mut config = match parts.values().any(|part| part.start.is_some()) {
            true => self.converted(),
            false => self.clone(),
        };
        let modules = layout::modules(model, family);
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
        let embedding = low_rank_table(model, adapter).zip(Vocabulary::of(model, family));
        let embedding = embedding.map(|(own, vocabulary)| {
            let module = vocabulary.module();
            if !config.says(&module, own.rank(), own.scale) {
                let name = module.name.strip_prefix(family.prefix);
                config.set_pattern(name.unwrap_or(&module.name), own.rank(), own.scale);
            }
            module
        });
        config.task_type = config.task_type.or_else(|| task_type(model));
        config.name_modules(&modules, embedding.as_ref(), &parts);
        // PEFT reads no dropout beside them, and nothing is trained with it.
        if !config.target_parameters.is_empty() {
            config.dropout = 0.0;
        }
        config.modules_to_save = saved_modules::written(&self.modules_to_save, model, family);
        config.to_json()
    }

    fn describe(&self) -> String {
        let kind = if self.use_dora { ", DoRA" } else { "" };
        let tokens = self.tokens.iter().flat_map(|tokens| tokens.lists());
        let tokens = match tokens.map(Vec::len).max() {
            Some(count) => format!(", rows of {count} tokens"),
            None => String::new(),
        };
        format!(
            "low rank, r = {}, alpha = {}{kind}{tokens}",
            self.rank, self.alpha
        )
    }
}
