//! Models as Hugging Face folders: `config.json`, safetensors, `generation_config.json`; adapter folders on top of them; and as files that
//! explain themselves (GGUF, RWKV's).

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use espalier_data::disk;
use espalier_kernels::stored::FourBit;
use serde_json::{Map, Value, json};

use crate::{
    Error, Result,
    adapter::{self, Adapter},
    checkpoint::{
        Checkpoint, Dtype, Elements, TensorPlan, TensorWriter, bitnet, bitsandbytes, gptq,
    },
    families::{self, Family, config::Config, one_bit},
    layout::{StoredTensor, stored_tensors},
    model::LanguageModel,
    packing, positions,
    quantised::Quantising,
    saved_configuration::configuration,
    source::{self, CheckpointSource, ParameterSource},
    spec::ModelSpec,
    tied_head::{self, EMBEDDING, HeadInFile, WithFresh},
};

pub use crate::saved_configuration::check_savable;

/// A model with what its folder says of it.
#[derive(Debug, Clone)]
pub struct LoadedModel {
    /// The model, adapters attached.
    pub model: LanguageModel,
    /// `config.json` as it was, unknown keys included; written back on save.
    pub config: Map<String, Value>,
    /// The folder of the weights and the tokenizer: the base model's when the model was given as an adapter.
    pub base: PathBuf,
    /// The type of most tensors in the file; bf16 where those are packed.
    pub dtype: Dtype,
    /// The adapter, when the model was given as one.
    pub adapter: Option<Adapter>,
    /// `generation_config.json` as it was, where there is one.
    pub generation: Map<String, Value>,
    /// What the user should know of how the files were read, a sentence each.
    pub remarks: Vec<String>,
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

/// How a model is used to generate: its end tokens, temperature and the like.
const GENERATION: &str = "generation_config.json";

/// Largest weight file that is written; larger models are sharded.
pub const MAX_SHARD_BYTES: u64 = 5_000_000_000;

/// Loads a model folder, an adapter folder together with its base, or a file of weights that explains itself (GGUF, RWKV's).
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
    load_quantised(folder, changes, None, device)
}

/// As [`load_changed`], with the linear maps of the (base) model's blocks rounded while they are read, one at a time, where `quantise`
/// says how.
///
/// # Errors
/// As [`load_changed`], and when the device is not the host.
pub fn load_quantised(
    folder: &Path,
    changes: &Map<String, Value>,
    quantise: Option<&'static FourBit>,
    device: &Device,
) -> Result<LoadedModel> {
    if quantise.is_some() && device.clone().inner() != Device::flex() {
        let reason = "a quantised base is kept on the host alone; leave the quantisation out, or choose the CPU";
        return Err(Error::Invalid(reason.into()));
    }
    if folder.join(adapter::CONFIGURATION).is_file() {
        let mut loaded = adapter::load(folder, changes, quantise, device)?;
        // What was learned on a base may end elsewhere than its texts do.
        if let Some(ends) = generation_ends(folder)?
            && !changes.contains_key("eos_token_id")
        {
            loaded.model.set_end_tokens(ends);
        }
        return Ok(loaded);
    }
    let Description {
        config,
        family,
        spec,
        checkpoint,
        generation,
        remarks,
        head,
    } = Description::read_changed(folder, changes)?;
    check_names(&checkpoint, family, &spec)?;
    if quantise.is_some() && spec.bits.is_some() {
        let reason = "its weights are rounded to fewer bits than four by themselves; leave the quantisation out";
        return Err(Error::checkpoint(folder, reason));
    }
    let said = Config::from_map(&folder.join("config.json"), config.clone());
    let scales = one_bit::scale_form(&said)?;
    let mut source = CheckpointSource::new(&checkpoint, family, &spec).with_scales(scales);
    if let Some(tensor) = head.embedding {
        source.read_from(EMBEDDING, tensor);
    }
    let fresh = head.fresh;
    let mut source = WithFresh { source, fresh };
    let model = match quantise {
        None => LanguageModel::build(spec, &mut source, device)?,
        Some(format) => {
            let source: &mut dyn ParameterSource = &mut source;
            LanguageModel::build(spec, &mut Quantising { source, format }, device)?
        }
    };
    Ok(LoadedModel {
        model,
        config,
        base: folder.to_owned(),
        dtype: match checkpoint.dtype() {
            Dtype::U8 | Dtype::I32 => Dtype::BF16,
            dtype => dtype,
        },
        adapter: None,
        generation,
        remarks,
    })
}

/// The end tokens that a folder's `generation_config.json` names, if it has one that does.
fn generation_ends(folder: &Path) -> Result<Option<Vec<u32>>> {
    let path = folder.join(GENERATION);
    if !path.is_file() {
        return Ok(None);
    }
    let generation = Config::load(&path)?;
    let named = generation
        .get("eos_token_id")
        .is_some_and(|ids| !ids.is_null());
    named.then(|| generation.tokens("eos_token_id")).transpose()
}

/// Writes the end tokens of a model beside an adapter on it, where they are not those of the base at `base`.
///
/// # Errors
/// When the base cannot be read or the disk is full.
pub fn save_other_ends(model: &LanguageModel, base: &Path, folder: &Path) -> Result<()> {
    let ends = &model.spec().eos;
    if Description::read(base)?.spec.eos == *ends {
        return Ok(());
    }
    write_json(
        &folder.join(GENERATION),
        &json!({ "eos_token_id": ids(ends) }),
    )
}

/// Whether a folder or file without a `config.json` is a model all the same, by its metadata or the names of its tensors.
pub fn is_bare(path: &Path) -> bool {
    let bare = |checkpoint: Checkpoint| {
        !matches!(checkpoint.configuration(), Ok(None))
            || !matches!(families::bare(&checkpoint), Ok(None))
    };
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
    /// `generation_config.json` as it is, where there is one.
    pub generation: Map<String, Value>,
    /// What the user should know of how the files are read, a sentence each.
    pub remarks: Vec<String>,
    /// Where the head comes from.
    head: HeadInFile,
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
        let generation = generation(folder)?;
        // What is changed by hand wins over both files.
        let tokens = generation_tokens(&generation)?.into_iter();
        for (key, value) in tokens.filter(|(key, _)| !changes.contains_key(*key)) {
            config = config.with(key, value);
        }
        let config = gptq::unpacked(bitsandbytes::unpacked(config)?)?;
        let family = families::family(&config)?;
        let mut spec = (family.read)(&config)?;
        config.refuse_unread()?;
        let checkpoint = Checkpoint::open(folder)?;
        let head = tied_head::settle(&mut spec, &config, family, &checkpoint)?;
        positions::settle(&mut spec, family, &checkpoint)?;
        fit(&mut spec, family, &checkpoint);
        Ok(Self {
            config: config.map().clone(),
            family,
            spec,
            checkpoint,
            generation: generation.map().clone(),
            remarks: head.remark.clone().into_iter().collect(),
            head,
        })
    }
}

/// What the folder's `generation_config.json` says; nothing where it has none.
fn generation(folder: &Path) -> Result<Config> {
    let path = folder.join(GENERATION);
    match path.is_file() {
        true => Config::load(&path),
        false => Ok(Config::from_map(&path, Map::new())),
    }
}

/// The tokens of `generation_config.json` that count when generating, in the place of those of `config.json`. A family takes from them
/// what it has.
fn generation_tokens(generation: &Config) -> Result<Vec<(&'static str, Value)>> {
    // Looked at here, where an error names the file that is wrong.
    generation.tokens("eos_token_id")?;
    let mut keys = vec!["eos_token_id"];
    for key in ["decoder_start_token_id", "forced_bos_token_id"] {
        generation.token(key)?;
        keys.push(key);
    }
    // Of several, generation chooses; the configuration has room for one.
    if generation.tokens("forced_eos_token_id")?.len() == 1 {
        keys.push("forced_eos_token_id");
    }
    let said = |key: &'static str| Some((key, generation.get(key)?.clone()));
    Ok(keys.into_iter().filter_map(said).collect())
}

/// The folder's `config.json`; where it has none, what the weights say of themselves.
fn read_config(path: &Path) -> Result<Config> {
    let file = path.join("config.json");
    let checkpoint = || match path.is_file() {
        // What is wrong with a file that is all there is has to be said.
        true => Checkpoint::open(path).map(Some),
        false => Ok(Checkpoint::open(path).ok()),
    };
    if !file.is_file()
        && let Some(checkpoint) = checkpoint()?
    {
        if let Some(map) = checkpoint.configuration()? {
            return Ok(Config::from_map(path, map));
        }
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

/// What the tensors' names say beyond the configuration: a pooler or next-sentence layer is there or not.
fn fit(spec: &mut ModelSpec, family: &Family, checkpoint: &Checkpoint) {
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
fn check_names(checkpoint: &Checkpoint, family: &Family, spec: &ModelSpec) -> Result<()> {
    let entries = (family.tensors)(spec);
    // A tied head that the file repeats.
    let head = tied_head::tensor_of(tied_head::HEAD, family, spec);
    let known = |name: &str| {
        let packed = gptq::weight_of(checkpoint, name);
        let name = packed.as_deref().unwrap_or(name);
        let full = format!("{}{name}", family.prefix);
        let derived = tied_head::is_derived(name, family, spec)
            || families::deepseek::is_of_further_tokens(spec, name);
        let (name, full) = (source::todays_name(name), source::todays_name(&full));
        let (name, full) = (source::unpacked_name(&name), source::unpacked_name(&full));
        derived
            || head
                .as_deref()
                .is_some_and(|head| head == name || head == full)
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
/// `config` is the original `config.json`, whose unknown keys are kept.
///
/// # Errors
/// When the disk is full; nothing half-written keeps its name.
pub fn save(
    model: &LanguageModel,
    folder: &Path,
    config: Option<&Map<String, Value>>,
    dtype: Dtype,
) -> Result<()> {
    save_from(model, folder, config, &Map::new(), dtype)
}

/// As [`save`], with what the original `generation_config.json` says beside the end tokens, such as a temperature.
///
/// # Errors
/// As [`save`].
pub fn save_from(
    model: &LanguageModel,
    folder: &Path,
    config: Option<&Map<String, Value>>,
    generation: &Map<String, Value>,
    dtype: Dtype,
) -> Result<()> {
    save_sharded(model, folder, config, generation, dtype, MAX_SHARD_BYTES)
}

/// As [`save_from`], in files of at most so many bytes, or of one tensor.
///
/// # Errors
/// As [`save`].
pub fn save_sharded(
    model: &LanguageModel,
    folder: &Path,
    config: Option<&Map<String, Value>>,
    generation: &Map<String, Value>,
    dtype: Dtype,
    shard: u64,
) -> Result<()> {
    let family = families::by_name(&model.spec().family)?;
    disk::create_folder(folder).map_err(Error::file(folder))?;
    let mut written = configuration(model.spec(), config, dtype)?;
    if packing::is_packed(model) {
        packing::check_savable(model, family)?;
        one_bit::say_packed(&mut written);
    }
    write_json(&folder.join("config.json"), &Value::Object(written))?;
    let generation = generation_of(model.spec(), generation);
    write_json(&folder.join(GENERATION), &generation)?;
    // The weights come last: a folder without them is no model.
    write_weights(model, family, folder, dtype, shard)
}

fn write_weights(
    model: &LanguageModel,
    family: &Family,
    folder: &Path,
    dtype: Dtype,
    shard: u64,
) -> Result<()> {
    let mut tensors = stored_tensors(model, family);
    tensors.extend(tied_head::repeated_tables(model, family));
    writer(&tensors, dtype)?.write_sharded(folder, shard, |name| elements(&tensors, name))?;
    Ok(())
}

/// Writes tensors to a file, in f32.
pub(crate) fn write_tensors(tensors: &[StoredTensor<'_>], path: &Path) -> Result<()> {
    writer(tensors, Dtype::F32)?.write_file(path, |name| values(tensors, name))
}

fn writer(tensors: &[StoredTensor<'_>], dtype: Dtype) -> Result<TensorWriter> {
    let plan = |t: &StoredTensor<'_>| match t.packed() {
        Some(_) => packing::plans(&t.name, &t.shape),
        None => vec![TensorPlan {
            name: t.name.clone(),
            dtype,
            shape: t.shape.clone(),
        }],
    };
    TensorWriter::new(tensors.iter().flat_map(plan).collect())
}

/// What the file holds under a name: numbers, or a packed weight's bytes or scale.
fn elements(tensors: &[StoredTensor<'_>], name: &str) -> Result<Elements<'static>> {
    let mut packed = tensors.iter().filter_map(|t| Some((t, t.packed()?)));
    match packed.find(|(t, _)| t.name == bitnet::weight_of(name)) {
        Some((t, weight)) => packing::elements(weight, t.name == name),
        None => Ok(values(tensors, name)?.into()),
    }
}

fn values(tensors: &[StoredTensor<'_>], name: &str) -> Result<Vec<f32>> {
    let tensor = tensors.iter().find(|tensor| tensor.name == name);
    Ok(tensor
        .map(|tensor| tensor.assemble(&|parameter| parameter.flat()))
        .unwrap_or_default())
}

/// What was said of generation, with the model's own end tokens.
fn generation_of(spec: &ModelSpec, said: &Map<String, Value>) -> Value {
    let mut map = said.clone();
    for (key, id) in [("bos_token_id", spec.bos), ("pad_token_id", spec.pad)] {
        map.entry(key).or_insert_with(|| json!(id));
    }
    map.insert("eos_token_id".into(), ids(&spec.eos));
    Value::Object(map)
}

/// One id as a number, several as a list, none as null: the ecosystem's habit.
fn ids(list: &[u32]) -> Value {
    match list {
        [] => Value::Null,
        [one] => json!(one),
        many => json!(many),
    }
}

/// Writes JSON beside its name and renames it.
///
/// # Errors
/// When the disk is full.
pub fn write_json(path: &Path, value: &Value) -> Result<()> {
    disk::write_whole(path, format!("{value:#}\n").as_bytes()).map_err(Error::file(path))
}
