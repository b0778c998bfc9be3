//! Models as Hugging Face folders: `config.json`, safetensors, `generation_config.json`; adapter folders on top of them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use burn::tensor::Device;
use serde_json::{Map, Value, json};

use crate::{
    Error, Result,
    adapter::{self, Adapter},
    checkpoint::{Checkpoint, Dtype, TensorPlan, TensorWriter, partial_file::write_whole},
    families::{self, Family, config::Config},
    layout::{StoredTensor, stored_tensors},
    model::LanguageModel,
    source::{self, CheckpointSource},
    spec::ModelSpec,
};

/// A model with what its folder says of it.
#[derive(Debug, Clone)]
pub struct LoadedModel {
    /// The model, adapters attached.
    pub model: LanguageModel,
    /// `config.json` as it was, unknown keys included; written back on save.
    pub config: Map<String, Value>,
    /// The folder of the weights and the tokenizer: the base model's when the model was given as an adapter.
    pub base: PathBuf,
    /// The type of most tensors in the file.
    pub dtype: Dtype,
    /// The adapter, when the model was given as one.
    pub adapter: Option<Adapter>,
}

impl LoadedModel {
    /// The registered family.
    ///
    /// # Errors
    /// When the family is not registered.
    pub fn family(&self) -> Result<&'static Family> {
        families::by_name(&self.model.spec().family)
    }
}

/// Largest weight file that is written; larger models are sharded.
pub const MAX_SHARD_BYTES: u64 = 5_000_000_000;

/// Loads a model folder, an adapter folder together with its base, or a file of weights that explains itself (RWKV's).
///
/// # Errors
/// When a file is missing, damaged or does not fit the others.
pub fn load(folder: &Path, device: &Device) -> Result<LoadedModel> {
    load_changed(folder, &Map::new(), device)
}

/// As [`load`], with some keys of the (base) model's `config.json` replaced; the weights must still fit.
///
/// # Errors
/// As [`load`], and when the changed configuration makes no sense.
pub fn load_changed(
    folder: &Path,
    changes: &Map<String, Value>,
    device: &Device,
) -> Result<LoadedModel> {
    if folder.join(adapter::CONFIGURATION).is_file() {
        return adapter::load(folder, changes, device);
    }
    let Description {
        config,
        family,
        spec,
        checkpoint,
    } = Description::read_changed(folder, changes)?;
    check_names(&checkpoint, family, &(family.tensors)(&spec))?;
    let mut source = CheckpointSource::new(&checkpoint, family, &spec);
    let model = LanguageModel::build(spec, &mut source, device)?;
    Ok(LoadedModel {
        model,
        config,
        base: folder.to_owned(),
        dtype: checkpoint.dtype(),
        adapter: None,
    })
}

/// Whether a folder or file without a `config.json` is a model all the same, by the names of its tensors.
pub fn is_bare(path: &Path) -> bool {
    let bare = |checkpoint: Checkpoint| !matches!(families::bare(&checkpoint), Ok(None));
    !path.join("config.json").is_file() && Checkpoint::open(path).is_ok_and(bare)
}

/// What the files of a model folder say, before any weight is read.
pub struct Description {
    /// `config.json`, or what takes its place where names and shapes say everything, with the end-of-sequence ids of `generation_config.json`.
    pub config: Map<String, Value>,
    /// The registered family.
    pub family: &'static Family,
    /// What the configuration and the tensors' names describe.
    pub spec: ModelSpec,
    /// The weights, mapped.
    pub checkpoint: Checkpoint,
}

impl Description {
    /// Reads the folder's configuration and the headers of its weights.
    ///
    /// # Errors
    /// When a file is missing or damaged, or the family is not registered.
    pub fn read(folder: &Path) -> Result<Self> {
        Self::read_changed(folder, &Map::new())
    }

    fn read_changed(folder: &Path, changes: &Map<String, Value>) -> Result<Self> {
        let mut config = read_config(folder)?;
        for (key, value) in changes {
            config = config.with(key, value.clone());
        }
        let generation = folder.join("generation_config.json");
        if generation.is_file() {
            // Its end-of-sequence list is the one that counts when generating.
            let generation = Config::load(&generation)?;
            if let Some(eos) = generation.get("eos_token_id").filter(|eos| !eos.is_null()) {
                config = config.with("eos_token_id", eos.clone());
            }
        }
        let family = families::family(&config)?;
        let mut spec = (family.read)(&config)?;
        config.refuse_unread()?;
        let checkpoint = Checkpoint::open(folder)?;
        fit(&mut spec, family, &checkpoint);
        Ok(Self {
            config: config.map().clone(),
            family,
            spec,
            checkpoint,
        })
    }
}

/// The folder's `config.json`; where it has none, what the weights say of themselves.
fn read_config(path: &Path) -> Result<Config> {
    let file = path.join("config.json");
    if !file.is_file()
        && let Ok(checkpoint) = Checkpoint::open(path)
    {
        if let Some(map) = families::bare(&checkpoint)? {
            return Ok(Config::from_map(path, map));
        }
        if path.is_file() {
            let reason = "holds tensors alone, and they do not say what model they are; give the folder of its config.json";
            return Err(Error::checkpoint(path, reason));
        }
    }
    Config::load(&file)
}

/// The name of an output matrix of its own, other than the usual one.
fn head_name(spec: &ModelSpec, family: &Family) -> Option<String> {
    let untied = ModelSpec {
        tied_head: false,
        ..spec.clone()
    };
    let entries = (family.tensors)(&untied).into_iter();
    entries
        .filter(|entry| entry.parts.iter().any(|part| part == "head.weight"))
        .map(|entry| entry.name)
        .next()
}

/// What the tensors' names say beyond the configuration: a file without an output matrix means a tied one, and a pooler or
/// next-sentence layer is there or not.
fn fit(spec: &mut ModelSpec, family: &Family, checkpoint: &Checkpoint) {
    let own = head_name(spec, family);
    if !spec.headless {
        spec.tied_head |= !checkpoint
            .names()
            .any(|name| name == "lm_head.weight" || Some(name) == own.as_deref());
    }
    if spec.bidirectional {
        let whole = ModelSpec {
            pooler: true,
            next_sentence: true,
            ..spec.clone()
        };
        let table = (family.tensors)(&whole);
        let has = |part: &str| {
            let of = |entry: &&families::TensorEntry| entry.parts.iter().any(|p| p == part);
            table.iter().find(of).is_some_and(|entry| {
                // A classifier may have taken the pooler's place.
                let alone = table.iter().filter(|e| e.name == entry.name).count() == 1;
                let stored = source::stored_name(checkpoint, family.prefix, &entry.name);
                alone && stored.is_some()
            })
        };
        (spec.pooler, spec.next_sentence) = (has("pooler.weight"), has("next_sentence.weight"));
    }
}

/// Every tensor of the file must be known: one that would be left out silently is an error.
fn check_names(
    checkpoint: &Checkpoint,
    family: &Family,
    entries: &[families::TensorEntry],
) -> Result<()> {
    let known = |name: &str| {
        let full = format!("{}{name}", family.prefix);
        let derived = family.ignored.iter().any(|suffix| name.ends_with(suffix));
        let (name, full) = (source::todays_name(name), source::todays_name(&full));
        derived
            || name == "lm_head.weight"
            || entries
                .iter()
                .any(|entry| entry.name == name || entry.name == full)
    };
    let unknown: Vec<&str> = checkpoint
        .names()
        .filter(|name| !known(name))
        .take(5)
        .collect();
    match unknown.is_empty() {
        true => Ok(()),
        false => Err(Error::checkpoint(
            checkpoint.folder(),
            format!(
                "has tensors that `{}` does not know: {}",
                family.model_type,
                unknown.join(", ")
            ),
        )),
    }
}

/// Writes a model folder: `config.json`, weights in `dtype`, `generation_config.json`. Adapters must have been merged.
///
/// `config` is the original `config.json`, whose unknown keys are kept. The weights come last: a folder without them is no model.
///
/// # Errors
/// When the disk is full; nothing half-written keeps its name.
pub fn save(
    model: &LanguageModel,
    folder: &Path,
    config: Option<&Map<String, Value>>,
    dtype: Dtype,
) -> Result<()> {
    let family = families::by_name(&model.spec().family)?;
    fs::create_dir_all(folder).map_err(Error::file(folder))?;
    write_json(
        &folder.join("config.json"),
        &configuration(model, config, dtype)?,
    )?;
    let spec = model.spec();
    let ids =
        json!({"bos_token_id": spec.bos, "eos_token_id": ids(&spec.eos), "pad_token_id": spec.pad});
    write_json(&folder.join("generation_config.json"), &ids)?;
    write_weights(model, family, folder, dtype)
}

fn write_weights(
    model: &LanguageModel,
    family: &Family,
    folder: &Path,
    dtype: Dtype,
) -> Result<()> {
    let tensors = stored_tensors(model, family);
    writer(&tensors, dtype)?
        .write_sharded(folder, MAX_SHARD_BYTES, |name| values(&tensors, name))?;
    Ok(())
}

/// Writes tensors to a file, in f32.
pub(crate) fn write_tensors(tensors: &[StoredTensor<'_>], path: &Path) -> Result<()> {
    writer(tensors, Dtype::F32)?.write_file(path, |name| values(tensors, name))
}

fn writer(tensors: &[StoredTensor<'_>], dtype: Dtype) -> Result<TensorWriter> {
    let plan = |t: &StoredTensor<'_>| TensorPlan {
        name: t.name.clone(),
        dtype,
        shape: t.shape.clone(),
    };
    TensorWriter::new(tensors.iter().map(plan).collect())
}

fn values(tensors: &[StoredTensor<'_>], name: &str) -> Result<Vec<f32>> {
    let tensor = tensors.iter().find(|tensor| tensor.name == name);
    Ok(tensor
        .map(|tensor| tensor.assemble(&|parameter| parameter.flat()))
        .unwrap_or_default())
}

/// One id as a number, several as a list, none as null: the ecosystem's habit.
fn ids(list: &[u32]) -> Value {
    match list {
        [] => Value::Null,
        [one] => json!(one),
        many => json!(many),
    }
}

fn configuration(
    model: &LanguageModel,
    config: Option<&Map<String, Value>>,
    dtype: Dtype,
) -> Result<Value> {
    // What the model is overrides what the folder said; keys that we do not know stay.
    let mut map = config.cloned().unwrap_or_default();
    let mut written = families::write_config(model.spec())?;
    keep_labels(&map, &mut written);
    map.extend(written);
    let name = match dtype {
        Dtype::BF16 => "bfloat16",
        Dtype::F16 => "float16",
        _ => "float32",
    };
    map.remove("torch_dtype");
    map.insert("dtype".into(), name.into());
    Ok(Value::Object(map))
}

/// Names of classes stay where they name as many as there are.
fn keep_labels(old: &Map<String, Value>, written: &mut Map<String, Value>) {
    let count = |map: &Map<String, Value>| Some(map.get("id2label")?.as_object()?.len());
    if count(old).is_some() && count(old) == count(written) {
        written.remove("id2label");
        written.remove("label2id");
    }
}

/// Writes JSON beside its name and renames it.
///
/// # Errors
/// When the disk is full.
pub fn write_json(path: &Path, value: &Value) -> Result<()> {
    write_whole(path, format!("{value:#}\n").as_bytes())
}
