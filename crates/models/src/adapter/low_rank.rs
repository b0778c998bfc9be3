//! Low-rank adapters on a model: attached fresh, loaded from PEFT folders and saved to them.

use std::{collections::HashMap, path::Path};

use burn::tensor::{Device, Tensor, TensorData};
use espalier_data::random::{Random, fnv};

use super::CONFIGURATION;
use crate::{
    Error, Result,
    checkpoint::{PeftConfig, TensorFile},
    families::Family,
    layers::linear::{LinearMapMut, LowRank},
    layout::{self, Module, PEFT_PREFIX, is_saved},
    model::LanguageModel,
    parameter::{Parameter, Parameters},
};

/// Attaches fresh adapters to the modules that `config` targets and marks them (and `modules_to_save`) as trained.
///
/// `A` is uniform within `1 / sqrt(inputs)` and `B` zero, so that the model computes the same as before.
///
/// # Errors
/// When no module matches; the message lists what there is.
pub fn attach(
    model: &mut LanguageModel,
    family: &Family,
    config: &PeftConfig,
    seed: u64,
) -> Result<()> {
    let targets: Vec<Module> = layout::modules(model, family)
        .into_iter()
        .filter(|m| targeted(config, m))
        .collect();
    if targets.is_empty() {
        return Err(Error::Invalid(format!(
            "no module matches the adapter's targets; {}",
            choices(model, family)
        )));
    }
    for module in &targets {
        let (rank, scale) = (
            config.rank_for(&module.name),
            config.scale_for(&module.name),
        );
        let device = model.device().clone();
        each_map(model, &module.maps, &mut |_, map| {
            let [outputs, inputs] = map.size();
            let bound = 1.0 / (inputs as f64).sqrt();
            let mut random = Random::new(fnv(&format!("{seed}|{}|adapter", &map.name)));
            let down = (0..rank * inputs)
                .map(|_| ((random.f() * 2.0 - 1.0) * bound) as f32)
                .collect();
            *map.adapter = Some(low_rank(
                &map.name,
                [inputs, outputs],
                down,
                vec![0.0; outputs * rank],
                scale,
                &device,
            ));
        });
    }
    mark_trainable(model, family, config);
    Ok(())
}

fn targeted(config: &PeftConfig, module: &Module) -> bool {
    module.name != "lm_head" && config.matches(&module.name) || config.names(&module.name)
}

fn choices(model: &LanguageModel, family: &Family) -> String {
    let modules = layout::modules(model, family);
    let mut last: Vec<&str> = modules
        .iter()
        .filter_map(|m| m.name.rsplit('.').next())
        .collect();
    last.sort_unstable();
    last.dedup();
    format!("the model has {}", last.join(", "))
}

/// Calls `change` with every linear map named, and its place in `names`.
fn each_map(
    model: &mut LanguageModel,
    names: &[String],
    change: &mut dyn FnMut(usize, LinearMapMut<'_>),
) {
    model.visit_linears_mut(&mut |map| {
        if let Some(place) = names.iter().position(|name| *name == map.name) {
            change(place, map);
        }
    });
}

fn low_rank(
    name: &str,
    [inputs, outputs]: [usize; 2],
    down: Vec<f32>,
    up: Vec<f32>,
    scale: f64,
    device: &Device,
) -> LowRank {
    let rank = down.len() / inputs.max(1);
    let parameter = |part: &str, shape: Vec<usize>, values: Vec<f32>| {
        let flat = Tensor::from_data(
            TensorData::new(values, [shape.iter().product::<usize>()]),
            device,
        );
        Parameter::new(format!("{name}.adapter.{part}"), shape, flat)
    };
    LowRank {
        down: parameter("down", vec![rank, inputs], down),
        up: parameter("up", vec![outputs, rank], up),
        scale,
    }
}

/// Marks adapters and whole modules as trained, the rest as frozen.
pub fn mark_trainable(model: &mut LanguageModel, family: &Family, config: &PeftConfig) {
    if config.modules_to_save.iter().any(|name| name == "lm_head") {
        model.untied_head();
    }
    let entries = (family.tensors)(model.spec());
    let saved = entries
        .iter()
        .filter(|entry| is_saved(&entry.name, &config.modules_to_save));
    let saved: Vec<String> = saved.flat_map(|entry| entry.parts.clone()).collect();
    model.set_trainable(|p| {
        p.name().contains(".adapter.") || saved.iter().any(|name| name == p.name())
    });
}

/// Puts the weights of an adapter file into the attached adapters; every tensor of the file must find its place.
pub(super) fn fill(
    model: &mut LanguageModel,
    family: &Family,
    path: &Path,
    config: &PeftConfig,
) -> Result<()> {
    let file = TensorFile::open(path)?;
    let wrong = |reason: String| Error::Adapter {
        path: path.to_owned(),
        reason,
    };
    let mut unused: Vec<String> = file.names().map(str::to_owned).collect();
    let device = model.device().clone();
    for module in layout::modules(model, family) {
        let names =
            ["lora_A", "lora_B"].map(|part| format!("{PEFT_PREFIX}{}.{part}.weight", module.name));
        let [Some(down), Some(up)] = [file.info(&names[0]), file.info(&names[1])] else {
            continue;
        };
        let (down_shape, up_shape) = (down.shape.clone(), up.shape.clone());
        let misfit = || {
            wrong(format!(
                "`{}` has shapes {down_shape:?} and {up_shape:?}, which do not fit the base",
                module.name
            ))
        };
        if down_shape.len() != 2 || up_shape.len() != 2 {
            return Err(misfit());
        }
        let (down, up) = (
            file.read_f32(&names[0], None)?,
            file.read_f32(&names[1], None)?,
        );
        unused.retain(|name| !names.contains(name));
        let scale = config.scale_for(&module.name);
        let mut start = 0;
        let mut fits = true;
        each_map(model, &module.maps, &mut |_, map| {
            let [outputs, inputs] = map.size();
            let rank = down_shape[0];
            fits &= down_shape == [rank, inputs] && up_shape[1] == rank;
            let rows = start * rank..(start + outputs) * rank;
            start += outputs;
            if fits && rows.end <= up.len() {
                *map.adapter = Some(low_rank(
                    &map.name,
                    [inputs, outputs],
                    down.clone(),
                    up[rows].to_vec(),
                    scale,
                    &device,
                ));
            }
        });
        if !fits || start != up_shape[0] {
            return Err(misfit());
        }
    }
    unused = fill_saved(model, family, &file, unused, &config.modules_to_save)?;
    match unused.first() {
        Some(name) => Err(wrong(format!(
            "tensor `{name}` fits no module of the base model"
        ))),
        None => Ok(()),
    }
}

/// Replaces whole modules; returns the tensors of the file that found no place.
fn fill_saved(
    model: &mut LanguageModel,
    family: &Family,
    file: &TensorFile,
    unused: Vec<String>,
    saved: &[String],
) -> Result<Vec<String>> {
    let entries = (family.tensors)(model.spec());
    let mut values: HashMap<String, Vec<f32>> = HashMap::new();
    let mut left = Vec::new();
    for name in unused {
        let bare = name.strip_prefix(PEFT_PREFIX).unwrap_or(&name);
        let entry = entries
            .iter()
            .find(|e| e.name == bare && e.parts.len() == 1 && is_saved(bare, saved));
        match entry {
            Some(entry) => values.insert(entry.parts[0].clone(), file.read_f32(&name, None)?),
            None => {
                left.push(name);
                continue;
            }
        };
    }
    let device = model.device().clone();
    let mut misfit = None;
    model.visit_mut(&mut |p| {
        if let Some(values) = values.remove(p.name()) {
            if values.len() == p.len() {
                p.set_data(values, &device);
            } else {
                misfit = Some(p.name().to_owned());
            }
        }
    });
    left.extend(misfit);
    Ok(left)
}

/// Writes the configuration of the model's adapter as PEFT does.
///
/// # Errors
/// When the disk is full.
pub(super) fn write_configuration(
    model: &LanguageModel,
    family: &Family,
    config: &PeftConfig,
    folder: &Path,
) -> Result<()> {
    let mut config = config.clone();
    let mut fused = layout::modules(model, family);
    fused.retain(|module| module.maps.len() > 1 && targeted(&config, module));
    for module in &fused {
        // An adapter on a fused weight is stored as one of several times the rank, with the same scale.
        let times = module.maps.len();
        let (rank, scale) = (
            config.rank_for(&module.name),
            config.scale_for(&module.name),
        );
        config.set_pattern(&module.name, rank * times, scale);
    }
    config.write(&folder.join(CONFIGURATION))
}
