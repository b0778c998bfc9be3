//! What a merge will do, tensor by tensor, with everything checked that can be before a byte is written.

use std::collections::{BTreeMap, BTreeSet};

use espalier_models::checkpoint::{Dtype, TensorPlan};
use serde_json::{Map, Value, json};

use super::methods::{Base, Default, Parameter, Values};
use super::model::{BLOCKS, Model, Place, is_before_blocks, is_table, place};
use super::recipe::{Document, Settings, Slice, Source};
use super::tokens::Tokens;
use crate::{Error, Result};

/// Everything that a merge does.
#[derive(Debug)]
pub struct Plan {
    /// The tensors of the output.
    pub tensors: Vec<PlannedTensor>,
    /// The output's `config.json`.
    pub config: Map<String, Value>,
}

/// How one tensor comes about.
#[derive(Debug, Clone)]
pub struct PlannedTensor {
    /// Its name, type and shape in the output.
    pub written: TensorPlan,
    /// What it is made of.
    pub inputs: Vec<PlannedInput>,
    /// Parameters of the tensor as such.
    pub values: Values,
    /// The input that is the base, or the first: what the output is compared with.
    pub reference: usize,
}

/// A tensor of a model.
#[derive(Debug, Clone)]
pub struct PlannedInput {
    /// The model, by its place in the list of all.
    pub model: usize,
    /// The tensor's name there.
    pub name: String,
    /// The model's parameters for it.
    pub values: Values,
    /// Whether this is the base.
    pub is_base: bool,
}

impl PlannedTensor {
    /// Numbers of the output, which are as many as those of every input.
    pub fn elements(&self) -> usize {
        self.written.shape.iter().product()
    }
}

/// The opened models with the names that the recipe has for them.
pub type Models = Vec<(String, Model)>;

/// Plans a document.
///
/// # Errors
/// When models differ in architecture, vocabulary, tensors or shapes, blocks are missing, or the method cannot do what is asked.
pub fn plan(document: &Document, models: &Models, tokens: Option<&Tokens>) -> Result<Plan> {
    check_models(document, models, tokens)?;
    let planner = Planner {
        document,
        models,
        tokens,
        slices: whole(document, models)?,
    };
    let tensors = planner.tensors()?;
    let config = planner.config();
    Ok(Plan { tensors, config })
}

/// The slices with the base among their sources where it is one of the inputs, and all blocks where the recipe says nothing.
fn whole(document: &Document, models: &Models) -> Result<Vec<Slice>> {
    let mut slices = document.slices.clone();
    for slice in &mut slices {
        let own = slice.base.clone();
        let base = own.or_else(|| document.base.clone());
        let listed = |name: &String| slice.sources.iter().any(|source| source.model == *name);
        let whole = slice.sources.iter().all(|source| source.layers.is_none());
        match base.filter(|base| !listed(base)) {
            Some(model) if whole => slice.sources.push(Source {
                model,
                layers: None,
                parameters: Settings::new(),
            }),
            Some(model) if document.method.base == Base::Required => {
                let reason = format!(
                    "`base_model`: {model} is not among the `sources` of a slice; add it with its `layer_range`"
                );
                return Err(document.error("sources", reason));
            }
            _ => {}
        }
        for source in &slice.sources {
            let (_, model) = &models[index_of(models, &source.model)];
            let blocks = model.stacks.values().copied().max().unwrap_or(0);
            if let Some(layers) = source.layers.as_ref().filter(|layers| layers.end > blocks) {
                let reason = format!(
                    "`layer_range`: {layers:?} of {}, which has {blocks} blocks",
                    source.model
                );
                return Err(document.error("layer_range", reason));
            }
        }
    }
    Ok(slices)
}

fn index_of(models: &Models, name: &str) -> usize {
    models
        .iter()
        .position(|(known, _)| known == name)
        .unwrap_or(0)
}

/// Whether the models are of one kind.
fn check_models(document: &Document, models: &Models, tokens: Option<&Tokens>) -> Result<()> {
    let Some((_, first)) = models.first() else {
        return Err(document.error("models", "there is no model"));
    };
    for (_, model) in &models[1..] {
        let file = |model: &Model| model.folder.join("config.json").display().to_string();
        let differ = |key: &str, one: String, other: String, fix: &str| {
            Error::Invalid(format!(
                "{}: `{key}` is {other}, and {one} in {}; {fix}",
                file(model),
                file(first)
            ))
        };
        let (one, other) = (first.architecture(), model.architecture());
        if one != other {
            let fix = "only models of one architecture can be merged";
            return Err(differ("architectures", one.into(), other.into(), fix));
        }
        let (one, other) = (first.vocabulary(), model.vocabulary());
        if one != other && tokens.is_none() && document.method.name != "passthrough" {
            let fix = "say with `tokenizer_source` (`union`, `base` or a model) which tokens the merge has";
            let said =
                |count: Option<u64>| count.map_or("missing".into(), |count| count.to_string());
            return Err(differ("vocab_size", said(one), said(other), fix));
        }
    }
    Ok(())
}

struct Planner<'a> {
    document: &'a Document,
    models: &'a Models,
    tokens: Option<&'a Tokens>,
    slices: Vec<Slice>,
}

/// A tensor of the output before its inputs are looked for.
struct Wanted<'a> {
    /// Its name.
    name: String,
    /// The slice whose sources it comes from.
    slice: &'a Slice,
    /// Its name in each of the sources.
    names: Vec<String>,
    /// The share of the way through the slice's blocks.
    t: f64,
}

impl Planner<'_> {
    fn model(&self, source: &Source) -> &Model {
        &self.models[index_of(self.models, &source.model)].1
    }

    fn tensors(&self) -> Result<Vec<PlannedTensor>> {
        let (Some(first), Some(last)) = (self.slices.first(), self.slices.last()) else {
            return Err(self.document.error("slices", "there are none"));
        };
        let mut wanted = Vec::new();
        for (slice, before) in [(first, true), (last, false)] {
            for name in self.names(slice, |name| place(name) == Place::Outside) {
                if is_before_blocks(&name) == before {
                    let names = vec![name.clone(); slice.sources.len()];
                    wanted.push(Wanted {
                        name,
                        slice,
                        names,
                        t: 0.0,
                    });
                }
            }
        }
        self.blocks(&mut wanted)?;
        wanted.sort_by(|a, b| a.name.cmp(&b.name));
        wanted.iter().map(|wanted| self.tensor(wanted)).collect()
    }

    /// The names of tensors that any of a slice's sources has.
    fn names(&self, slice: &Slice, fits: impl Fn(&str) -> bool) -> BTreeSet<String> {
        let of = |source| {
            self.model(source)
                .checkpoint
                .names()
                .filter(|name| fits(name))
        };
        slice
            .sources
            .iter()
            .flat_map(of)
            .map(str::to_owned)
            .collect()
    }

    /// The tensors of all blocks, in every stack.
    fn blocks<'s>(&'s self, wanted: &mut Vec<Wanted<'s>>) -> Result<()> {
        let all: BTreeSet<&String> = self
            .models
            .iter()
            .flat_map(|(_, m)| m.stacks.keys())
            .collect();
        let cut = self
            .slices
            .iter()
            .flat_map(|slice| &slice.sources)
            .any(|s| s.layers.is_some());
        if cut && all.len() > 1 {
            let reason = format!(
                "the models have several stacks of blocks ({all:?}), which `slices` cannot tell apart; merge them whole, with `models`"
            );
            return Err(self.document.error("slices", reason));
        }
        for stack in all {
            let mut number = 0;
            for slice in &self.slices {
                let starts_and_count = self.range(slice, stack)?;
                let (starts, count) = starts_and_count;
                for place in 0..count {
                    let t = match count {
                        1 => 1.0,
                        _ => place as f64 / (count - 1) as f64,
                    };
                    for suffix in self.suffixes(slice, stack, &starts, place) {
                        let name = |block: usize| format!("{stack}{block}{suffix}");
                        wanted.push(Wanted {
                            name: name(number),
                            slice,
                            names: starts.iter().map(|start| name(start + place)).collect(),
                            t,
                        });
                    }
                    number += 1;
                }
            }
        }
        Ok(())
    }

    /// The first block of every source, and how many there are.
    fn range(&self, slice: &Slice, stack: &str) -> Result<(Vec<usize>, usize)> {
        let mut starts = Vec::new();
        let mut count = None;
        for source in &slice.sources {
            let model = self.model(source);
            let all = model.stacks.get(stack).copied().unwrap_or(0);
            let layers = source.layers.clone().unwrap_or(0..all);
            if *count.get_or_insert(layers.len()) != layers.len() {
                return Err(Error::Invalid(format!(
                    "{}: has {} blocks `{stack}`, and {} has {}; choose equally many with `slices`",
                    model.folder.display(),
                    layers.len(),
                    self.model(&slice.sources[0]).folder.display(),
                    count.unwrap_or(0)
                )));
            }
            starts.push(layers.start);
        }
        Ok((starts, count.unwrap_or(0)))
    }

    /// What stands behind the block's number in the names of all its tensors.
    fn suffixes(
        &self,
        slice: &Slice,
        stack: &str,
        starts: &[usize],
        at: usize,
    ) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for (source, start) in slice.sources.iter().zip(starts) {
            for name in self.model(source).checkpoint.names() {
                if let Place::Block(own, number, suffix) = place(name)
                    && own == stack
                    && number == start + at
                {
                    found.insert(suffix.to_owned());
                }
            }
        }
        found
    }

    fn tensor(&self, wanted: &Wanted) -> Result<PlannedTensor> {
        let base = wanted.slice.base.as_ref().or(self.document.base.as_ref());
        let mut inputs: Vec<PlannedInput> = Vec::new();
        let mut shape: Option<(Vec<usize>, String)> = None;
        for (source, name) in wanted.slice.sources.iter().zip(&wanted.names) {
            let model = self.model(source);
            let stored = model.stored_name(name).ok_or_else(|| {
                Error::Invalid(format!(
                    "{}: tensor `{name}` is missing, which another of the models has",
                    model.folder.display()
                ))
            })?;
            let mut found = model.info(&stored)?.shape.clone();
            if let (Some(tokens), true, Some(rows)) =
                (self.tokens, is_table(name), found.first_mut())
            {
                *rows = tokens.rows;
            }
            let file = model.checkpoint.path_of(&stored).display().to_string();
            match &shape {
                Some((shape, first)) if *shape != found => {
                    return Err(Error::Invalid(format!(
                        "{file}: tensor `{stored}` has shape {found:?}, and {shape:?} in {first}; only models of one shape can be merged"
                    )));
                }
                Some(_) => {}
                None => shape = Some((found, file)),
            }
            let is_base = base == Some(&source.model);
            inputs.push(PlannedInput {
                model: index_of(self.models, &source.model),
                values: self.own_values(wanted, source, name, is_base)?,
                name: stored,
                is_base: is_base && self.document.method.base != Base::Plain,
            });
        }
        self.check_count(wanted, &inputs)?;
        let values = self.values(
            self.document.method.globals,
            wanted,
            &wanted.name,
            None,
            false,
        )?;
        let reference = inputs.iter().position(|input| input.is_base).unwrap_or(0);
        let dtype = self.dtype(&inputs[reference]);
        Ok(PlannedTensor {
            written: TensorPlan {
                name: wanted.name.clone(),
                dtype,
                shape: shape.map(|(shape, _)| shape).unwrap_or_default(),
            },
            inputs,
            values,
            reference,
        })
    }

    fn own_values(
        &self,
        wanted: &Wanted,
        source: &Source,
        name: &str,
        is_base: bool,
    ) -> Result<Values> {
        self.values(
            self.document.method.own,
            wanted,
            name,
            Some(source),
            is_base,
        )
    }

    /// The values of parameters: the source's, the slice's, the recipe's, the usual ones.
    fn values(
        &self,
        parameters: &[Parameter],
        wanted: &Wanted,
        name: &str,
        source: Option<&Source>,
        is_base: bool,
    ) -> Result<Values> {
        let own = source.map(|source| &source.parameters);
        let places = [
            own,
            Some(&wanted.slice.parameters),
            Some(&self.document.parameters),
        ];
        let mut values = BTreeMap::new();
        for parameter in parameters {
            let settings = places
                .iter()
                .flatten()
                .filter_map(|place| place.get(parameter.name));
            let mut found = settings.filter_map(|setting| setting.value(name, wanted.t));
            let value = match (found.next(), parameter.default) {
                (Some(value), _) => Some(value),
                (None, Default::Value(value)) => Some(value),
                (None, Default::Absent) => None,
                (None, Default::Required) if is_base => None,
                (None, Default::Required) => {
                    let of = source
                        .map(|source| format!(" of {}", source.model))
                        .unwrap_or_default();
                    let reason = format!(
                        "`{}`{of} says nothing for tensor `{name}`; give a value without filter",
                        parameter.name
                    );
                    return Err(self.document.error(parameter.name, reason));
                }
            };
            values.extend(value.map(|value| (parameter.name, value)));
        }
        Ok(Values(values))
    }

    fn check_count(&self, wanted: &Wanted, inputs: &[PlannedInput]) -> Result<()> {
        let method = self.document.method;
        let found = inputs.iter().filter(|input| !input.is_base).count();
        let (fewest, most) = method.models;
        if (fewest..=most).contains(&found) {
            return Ok(());
        }
        let asked = match (fewest, most) {
            (fewest, usize::MAX) => format!("at least {fewest}"),
            (fewest, most) if fewest == most => format!("exactly {fewest}"),
            (fewest, most) => format!("{fewest} to {most}"),
        };
        let besides = if method.base == Base::Plain {
            ""
        } else {
            " besides the base"
        };
        let reason = format!(
            "`{}` merges {asked} models{besides}, and tensor `{}` has {found}",
            method.name, wanted.name
        );
        Err(self.document.error("merge_method", reason))
    }

    fn dtype(&self, reference: &PlannedInput) -> Dtype {
        let asked = self.document.out_dtype.or(self.document.dtype);
        let info = self.models[reference.model]
            .1
            .checkpoint
            .info(&reference.name);
        asked.unwrap_or_else(|| match info.map(|info| info.dtype) {
            Some(Dtype::F16) => Dtype::F16,
            Some(Dtype::BF16) => Dtype::BF16,
            _ => Dtype::F32,
        })
    }

    /// The base's configuration, or the first model's, with what the merge changes.
    fn config(&self) -> Map<String, Value> {
        let donor = self
            .document
            .base
            .as_ref()
            .map_or(0, |base| index_of(self.models, base));
        let mut config = self.models[donor].1.config.clone();
        if let Some(dtype) = self.document.out_dtype.or(self.document.dtype) {
            let name = match dtype {
                Dtype::F16 => "float16",
                Dtype::BF16 => "bfloat16",
                _ => "float32",
            };
            let key = if config.contains_key("torch_dtype") {
                "torch_dtype"
            } else {
                "dtype"
            };
            config.insert(key.into(), json!(name));
        }
        let cut = self
            .slices
            .iter()
            .flat_map(|slice| &slice.sources)
            .any(|s| s.layers.is_some());
        if cut {
            self.set_depth(&mut config);
        }
        if let Some(tokens) = self.tokens {
            config.insert("vocab_size".into(), json!(tokens.rows));
        }
        config
    }

    /// The number of blocks, and the keys that have an entry for each.
    fn set_depth(&self, config: &mut Map<String, Value>) {
        let ranges = || {
            self.slices.iter().filter_map(|slice| {
                let source = slice.sources.first()?;
                Some((self.model(source), source.layers.clone()?))
            })
        };
        let depth: usize = ranges().map(|(_, layers)| layers.len()).sum();
        let known = BLOCKS.iter().find(|key| config.contains_key(**key));
        config.insert((*known.unwrap_or(&BLOCKS[0])).into(), json!(depth));
        for (key, value) in config.iter_mut() {
            let entries: Option<Vec<Value>> = ranges()
                .map(|(model, layers)| {
                    let list = model.config.get(key)?.as_array()?;
                    let blocks = model.stacks.values().copied().max()?;
                    (list.len() == blocks).then(|| list.get(layers)).flatten()
                })
                .map(|part| part.map(<[Value]>::to_vec))
                .collect::<Option<Vec<_>>>()
                .map(|parts| parts.concat());
            if let (Some(entries), "layer_types" | "layers_block_type" | "attention_layers") =
                (entries, key.as_str())
            {
                *value = Value::Array(entries);
            }
        }
    }
}
