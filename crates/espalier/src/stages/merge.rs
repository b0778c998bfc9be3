//! The stage that merges adapters: into the weights of their base, or into one adapter.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use espalier_models::{
    adapter::{
        Adapter, DEFAULT_NAME, base_folder, fit_base,
        low_rank::arithmetic::{Combination, combine},
    },
    folder::LoadedModel,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{
    kinds::{ArtifactKind, Input, Output, StageKind, Workplace, keys},
    model::{self, Origin, Start},
};
use crate::{Error, Result, model_path};

/// As wide as the widest models.
const LARGEST_RANK: usize = 1 << 16;

/// Merging: adapters are added into the weights of their base, each times its weight; a weight of -1 takes one out of a model into which
/// it was merged. With `combine` they become one adapter instead.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MergeStage {
    /// Adapter folders, or the names of earlier stages.
    #[schemars(length(min = 1))]
    pub adapters: Vec<String>,
    /// Their weights; 1 for each when absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub weights: Vec<f64>,
    /// The model into which they are merged; the base that they name when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Leave one adapter of this kind in place of a model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub combine: Option<Combine>,
    /// The rank of the adapter with `combine = "svd"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = LARGEST_RANK))]
    pub rank: Option<usize>,
}

/// How adapters become one, by PEFT's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Combine {
    /// Sums of the factors; of one rank, and near the sum only where the adapters are alike.
    Linear,
    /// Factors side by side: exactly the sum, of all ranks together.
    Cat,
    /// The largest singular values of the sum.
    Svd,
}

impl MergeStage {
    fn combination(&self) -> Option<Combination> {
        Some(match self.combine? {
            Combine::Linear => Combination::Linear,
            Combine::Cat => Combination::Cat,
            Combine::Svd => Combination::Svd {
                rank: self.rank.unwrap_or(1),
            },
        })
    }

    fn weight(&self, adapter: usize) -> f64 {
        self.weights.get(adapter).copied().unwrap_or(1.0)
    }
}

impl StageKind for MergeStage {
    fn check(&self) -> Result<()> {
        if self.adapters.is_empty() {
            return Err(Error::usage("`adapters`: give one at least"));
        }
        let (weights, adapters) = (self.weights.len(), self.adapters.len());
        if weights != 0 && weights != adapters {
            return Err(Error::usage(format!(
                "`weights`: there are {weights} for {adapters} adapters; give one for each"
            )));
        }
        if let Some(weight) = self.weights.iter().find(|weight| !weight.is_finite()) {
            return Err(Error::usage(format!("`weights`: {weight} is no number")));
        }
        match (self.combine == Some(Combine::Svd), self.rank) {
            (true, None) => Err(Error::usage("`combine = \"svd\"` needs a `rank`")),
            (false, Some(_)) => Err(Error::usage(
                "`rank` is for `combine = \"svd\"`; the other ways have the adapters' own",
            )),
            (_, Some(rank)) if !(1..=LARGEST_RANK).contains(&rank) => Err(Error::usage(format!(
                "`rank`: {rank} is outside 1 to {LARGEST_RANK}"
            ))),
            _ => Ok(()),
        }
    }

    fn inputs(&mut self) -> Vec<Input<'_>> {
        let model = self.model.iter_mut();
        let all = self.adapters.iter_mut().chain(model);
        all.map(Input::Model).collect()
    }

    fn outputs(&self) -> Vec<Output> {
        vec![Output {
            part: "",
            kind: ArtifactKind::Model,
            path: "model",
        }]
    }

    fn seed(&mut self) -> Option<&mut u64> {
        None
    }

    fn deciding_keys(&self) -> Result<Value> {
        keys(self)
    }

    fn run(&self, workplace: &mut Workplace) -> Result<Value> {
        let folders = self.adapters.iter().map(|path| adapter_folder(path));
        let folders = folders.collect::<Result<Vec<PathBuf>>>()?;
        let Loaded {
            mut start,
            names,
            words,
        } = load(self, &folders, workplace)?;
        let wrong = |error| words.told(error);
        let model = &mut start.loaded.model;
        let weighted = names.iter().enumerate();
        let weighted: Vec<(&str, f64)> = weighted
            .map(|(i, name)| (name.as_str(), self.weight(i)))
            .collect();
        let adapter = match self.combination() {
            Some(combination) => Some(combine(model, &weighted, combination).map_err(wrong)?),
            None => {
                for (name, weight) in weighted {
                    model.weigh_adapter(name, weight).map_err(wrong)?;
                }
                model.merge_adapters().map_err(wrong)?;
                None
            }
        };
        model::save(
            &workplace.folder.join("model"),
            &start.loaded.model,
            Origin {
                config: &start.loaded.config,
                generation: &start.loaded.generation,
                base: &start.loaded.base,
            },
            adapter.as_ref(),
            &start.tokenizer,
        )?;
        let count = names.len();
        let made = if adapter.is_some() {
            "one adapter"
        } else {
            "a whole model"
        };
        let merged = match count {
            1 => "an adapter".to_owned(),
            _ => format!("{count} adapters"),
        };
        workplace
            .voice
            .say(&format!("   {merged} merged into {made}"));
        Ok(json!({"kind": "merge", "adapters": count}))
    }
}

/// The base with all adapters.
struct Loaded {
    start: Start,
    /// What the adapters are called on it.
    names: Vec<String>,
    words: Words,
}

/// The base with all adapters, which lie in `folders`.
fn load(stage: &MergeStage, folders: &[PathBuf], workplace: &mut Workplace) -> Result<Loaded> {
    let first = match &stage.model {
        Some(model) => Path::new(model),
        None => &folders[0],
    };
    let mut start = model::open(first, &Map::new(), None, None, workplace.device)?;
    if stage.model.is_some() && start.loaded.adapter.is_some() {
        return Err(Error::usage(
            "`model` is an adapter; name a whole model, or put the adapter into `adapters`",
        ));
    }
    let family = start.loaded.family()?;
    let words = Words::of(&start.loaded, folders)?;
    let mut names = Vec::new();
    for (number, folder) in folders.iter().enumerate() {
        if number == 0 && start.loaded.adapter.is_some() {
            names.push(DEFAULT_NAME.to_owned());
            continue;
        }
        let adapter = Adapter::read(folder)?;
        if stage.model.is_none() {
            check_base(&start.loaded.base, folder, &adapter)?;
        }
        let adapter = adapter.named(&name_of(number))?;
        let told = start.loaded.remarks.len();
        fit_base(&mut start.loaded, &adapter, folder).map_err(Error::of_request)?;
        for remark in &start.loaded.remarks[told..] {
            workplace.voice.say(&format!("   {remark}"));
        }
        let model = &mut start.loaded.model;
        let loaded = adapter.load(model, family, folder);
        names.push(loaded.map_err(|error| words.told(error))?.name().to_owned());
    }
    Ok(Loaded {
        start,
        names,
        words,
    })
}

/// What an adapter is called on the model, by its place in the list.
fn name_of(number: usize) -> String {
    format!("adapter-{}", number + 1)
}

/// What the user calls what errors name as it is called inside: adapters by their folders, parameters as the model's files do.
struct Words(HashMap<String, String>);

impl Words {
    fn of(loaded: &LoadedModel, folders: &[PathBuf]) -> Result<Self> {
        let mut words = HashMap::new();
        for entry in (loaded.family()?.tensors)(loaded.model.spec()) {
            for part in &entry.parts {
                let maps = [part, &entry.name].map(|name| name.strip_suffix(".weight"));
                if let [Some(ours), Some(theirs)] = maps {
                    words.insert(ours.to_owned(), theirs.to_owned());
                }
                words.insert(part.clone(), entry.name.clone());
            }
        }
        for (number, folder) in folders.iter().enumerate() {
            words.insert(name_of(number), folder.display().to_string());
        }
        if loaded.adapter.is_some()
            && let Some(first) = folders.first()
        {
            words.insert(DEFAULT_NAME.to_owned(), first.display().to_string());
        }
        Ok(Self(words))
    }

    /// An error in these words. What the adapters are to each other is the request's fault.
    fn told(&self, error: espalier_models::Error) -> Error {
        let text = error.to_string();
        // What is quoted stands between the odd and the even marks.
        let parts = text.split('`').enumerate().map(|(place, part)| {
            let known = self.0.get(part).filter(|_| place % 2 == 1);
            known.map_or(part, String::as_str)
        });
        let text = parts.collect::<Vec<_>>().join("`");
        match error {
            espalier_models::Error::Invalid(_) => Error::Usage(text),
            _ => Error::Work(text),
        }
    }
}

/// The folder of an adapter.
fn adapter_folder(path: &str) -> Result<PathBuf> {
    let folder = model_path::resolve_model(Path::new(path))?;
    match folder
        .join(espalier_models::adapter::CONFIGURATION)
        .is_file()
    {
        true => Ok(folder),
        false => Err(Error::usage(format!(
            "`adapters`: {} is no adapter but a whole model; name adapter folders",
            folder.display()
        ))),
    }
}

/// Whether an adapter stands on the same base as the first.
fn check_base(base: &Path, folder: &Path, adapter: &Adapter) -> Result<()> {
    let own = base_folder(folder, adapter)?;
    let real = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    match real(base) == real(&own) {
        true => Ok(()),
        false => Err(Error::usage(format!(
            "`adapters`: {} stands on {}, and the first on {}; give `model` where the same base has two places",
            folder.display(),
            own.display(),
            base.display()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_no_sense_is_told_before_anything_runs() {
        let stage = MergeStage {
            adapters: vec!["a".into(), "b".into()],
            weights: Vec::new(),
            model: None,
            combine: None,
            rank: None,
        };
        assert!(stage.check().is_ok());
        let said = |change: &dyn Fn(&mut MergeStage)| {
            let mut stage = stage.clone();
            change(&mut stage);
            stage.check().unwrap_err().to_string()
        };
        assert!(said(&|s| s.weights = vec![1.0]).contains("1 for 2 adapters"));
        assert!(said(&|s| s.adapters.clear()).contains("one at least"));
        assert!(said(&|s| s.combine = Some(Combine::Svd)).contains("needs a `rank`"));
        assert!(said(&|s| s.rank = Some(2)).contains("is for `combine"));
        assert!(said(&|s| s.weights = vec![1.0, f64::NAN]).contains("no number"));
    }
}
