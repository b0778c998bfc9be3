//! What is added to a model and trained in its place: low-rank maps, first states of recurrent layers, and whatever a kind adds to
//! linear maps and to the residual stream.
//!
//! A kind is one file here and one line in [`KINDS`]. It puts its parts where they work: a [`LinearAdapter`] at a linear map
//! ([`LinearMapMut::attach`]), an [`Intervention`] after a block ([`Stack::intervene`](crate::stack::Stack::intervene)), a first
//! state in a recurrent layer. Everything else, from folders to switching by name, knows only the trait [`AdapterKind`].

pub mod attachments;
pub mod expert_parameters;
mod file;
pub mod first_state;
pub mod intervention;
pub mod linear_adapter;
pub mod low_rank;
mod on_model;
pub mod saved_modules;
mod ties;

use std::{
    collections::{BTreeSet, HashMap},
    fmt::Debug,
    path::{Path, PathBuf},
    sync::Arc,
};

use burn::tensor::Device;
use espalier_data::{disk, nearest::suggestion};
use serde_json::{Map, Value, json};

pub use self::{
    file::AdapterFile, first_state::FirstStateConfig, intervention::Intervention,
    linear_adapter::LinearAdapter,
};
use crate::{
    Error, Result,
    families::{Family, config::Config},
    folder::{self, LoadedModel},
    layers::linear::LinearMapMut,
    layout::{self, Module, StoredTensor},
    model::LanguageModel,
    parameter::Parameters,
};

/// All kinds of adapters, one line each.
pub const KINDS: &[Registration] = &[low_rank::REGISTRATION, first_state::REGISTRATION];

/// How the configuration of a kind is told from others and read.
#[derive(Debug, Clone, Copy)]
pub struct Registration {
    /// `peft_type` in `adapter_config.json`.
    pub peft_type: &'static str,
    /// Reads the configuration. Every key counts: one that would change what is computed and is not supported is refused.
    pub read: fn(&Config) -> Result<Arc<dyn AdapterKind>>,
}

/// A kind of adapter with its configuration: what it puts on a model, and how its folder holds that.
pub trait AdapterKind: Debug + Send + Sync {
    /// What the kind is called in `adapter_config.json`.
    fn peft_type(&self) -> &'static str;

    /// Modules of the base that are trained and stored whole, by the ends of their names.
    fn modules_to_save(&self) -> &[String] {
        &[]
    }

    /// Whether it adapts the module of this checkpoint name by that name, and not only as one of all linear maps.
    fn adapts(&self, _module: &str) -> bool {
        false
    }

    /// Whether a head that is the embedding stays so, though the adapter changes one of them.
    fn keeps_ties(&self) -> bool {
        false
    }

    /// Puts fresh parts on the model, whose parameters say that they are the adapter's
    /// ([`Parameter::of_adapter`](crate::parameter::Parameter::of_adapter)). The model computes the same as before. What starts
    /// from the base's weights finds them in [`LinearMapMut::weights`].
    ///
    /// # Errors
    /// When no part of the model can have one.
    fn attach(&self, model: &mut LanguageModel, family: &Family, fresh: Fresh<'_>) -> Result<()>;

    /// The adapter's own tensors under the names of its file.
    fn tensors<'a>(
        &self,
        model: &'a LanguageModel,
        family: &Family,
        adapter: &str,
    ) -> Vec<StoredTensor<'a>>;

    /// Puts the values of a file into the attached parts; those of [`AdapterKind::tensors`], unless a kind reads more.
    ///
    /// # Errors
    /// When a tensor is missing or does not fit.
    fn read(
        &self,
        model: &mut LanguageModel,
        family: &Family,
        adapter: &str,
        file: &mut AdapterFile,
    ) -> Result<()> {
        let read = |tensor: StoredTensor<'_>| {
            let values = file.read(&tensor.name, &tensor.shape)?;
            Ok(tensor.split(values))
        };
        let tensors = self.tensors(model, family, adapter);
        let values = tensors.into_iter().map(read).collect::<Result<Vec<_>>>()?;
        saved_modules::set_values(model, values.into_iter().flatten().collect());
        Ok(())
    }

    /// The configuration, an object without `peft_type` and `base_model_name_or_path`.
    fn configuration(&self, model: &LanguageModel, family: &Family, adapter: &str) -> Value;

    /// Why such an adapter cannot be merged into the weights, where that is so.
    fn merge_refusal(&self) -> Option<&'static str> {
        None
    }

    /// The adapter in words.
    fn describe(&self) -> String;
}

/// An adapter that is new to its model.
#[derive(Debug, Clone, Copy)]
pub struct Fresh<'a> {
    /// The adapter's name.
    pub adapter: &'a str,
    /// Seed of its random numbers.
    pub seed: u64,
}

/// Name of the configuration in an adapter folder.
pub const CONFIGURATION: &str = "adapter_config.json";

/// Name of the weights in an adapter folder.
const WEIGHTS: &str = "adapter_model.safetensors";

/// The same as PyTorch writes them, in older folders; safetensors win where a folder has both.
const PICKLED_WEIGHTS: &str = "adapter_model.bin";

/// Prefix of every tensor in a PEFT adapter.
pub const PEFT_PREFIX: &str = "base_model.model.";

/// The name of an adapter that nobody named, as PEFT has it.
pub const DEFAULT_NAME: &str = "default";

/// An adapter by its name, of any kind.
///
/// ```
/// use espalier_models::{adapter::Adapter, checkpoint::{PeftConfig, peft_config::Targets}};
/// let adapter = Adapter::new(PeftConfig::new(8, 16.0, Targets::AllLinear)).based_on("models/base");
/// assert_eq!((adapter.name(), adapter.base_model()), ("default", Some("models/base")));
/// ```
///
/// Several adapters on one base, switched without copying it:
///
/// ```
/// use burn::tensor::Device;
/// use espalier_models::{
///     adapter::Adapter, checkpoint::{PeftConfig, peft_config::Targets}, families,
///     model::LanguageModel, source::Seed, spec::ModelSpec,
/// };
/// let spec = ModelSpec::llama(64, 16, 2, 2, 1, 32, 32);
/// let mut model = LanguageModel::build(spec, &mut Seed(0), &Device::flex())?;
/// let family = families::by_name("llama")?;
/// for name in ["german", "polite"] {
///     let adapter = Adapter::new(PeftConfig::new(2, 4.0, Targets::AllLinear)).named(name)?;
///     adapter.attach(&mut model, family, 0)?;
/// }
/// model.set_active_adapters(&["polite"])?;
/// assert_eq!(model.active_adapters(), ["polite"]);
/// # Ok::<(), espalier_models::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Adapter {
    name: String,
    base_model: Option<String>,
    kind: Arc<dyn AdapterKind>,
    /// Modules of the base that its file holds whole besides those that the configuration names.
    more_saved: Vec<String>,
    /// Whether its file leaves the family's prefix out of the names, as those of base models do.
    leaves_out_prefix: bool,
}

impl Adapter {
    /// The adapter `default` of this kind.
    pub fn new(kind: impl AdapterKind + 'static) -> Self {
        Self {
            name: DEFAULT_NAME.into(),
            base_model: None,
            kind: Arc::new(kind),
            more_saved: Vec::new(),
            leaves_out_prefix: false,
        }
    }

    /// The same adapter by another name.
    ///
    /// # Errors
    /// When the name is none: letters, digits, `-` and `_` make one.
    pub fn named(self, name: &str) -> Result<Self> {
        let is_plain = |c: char| c.is_alphanumeric() || ['-', '_'].contains(&c);
        if name.is_empty() || !name.chars().all(is_plain) {
            return Err(Error::Invalid(format!(
                "`{name}` is no name for an adapter; use letters, digits, `-` and `_`"
            )));
        }
        Ok(Self {
            name: name.to_owned(),
            ..self
        })
    }

    /// The same adapter, said to be of this base model: a folder or a hub's name.
    #[must_use]
    pub fn based_on(self, base: impl Into<String>) -> Self {
        Self {
            base_model: Some(base.into()),
            ..self
        }
    }

    /// Reads the configuration of an adapter folder.
    ///
    /// # Errors
    /// When it cannot be read, its kind is not known, or it sets a key that is not supported.
    pub fn read(folder: &Path) -> Result<Self> {
        Self::read_among(KINDS, folder)
    }

    /// As [`Adapter::read`], for other kinds than those of [`KINDS`].
    ///
    /// # Errors
    /// As [`Adapter::read`].
    pub fn read_among(kinds: &[Registration], folder: &Path) -> Result<Self> {
        let config = Config::load(&folder.join(CONFIGURATION))?;
        let base_model = config.optional_text("base_model_name_or_path")?;
        let base_model = base_model.map(str::to_owned);
        let kind = registered(kinds, &config)?;
        Ok(Self {
            name: DEFAULT_NAME.into(),
            base_model,
            kind: (kind.read)(&config)?,
            more_saved: Vec::new(),
            leaves_out_prefix: false,
        })
    }

    /// The adapter's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The model that it was trained on.
    pub fn base_model(&self) -> Option<&str> {
        self.base_model.as_deref()
    }

    /// Puts a fresh adapter on the model, active, and marks what belongs to it as trained, the rest as frozen.
    ///
    /// # Errors
    /// When the model has an adapter of this name, or nothing that can have one of this kind.
    pub fn attach(&self, model: &mut LanguageModel, family: &Family, seed: u64) -> Result<()> {
        if model.adapters().contains(&self.name) {
            return Err(Error::Invalid(format!(
                "the model has an adapter `{}` already; give this one another name",
                self.name
            )));
        }
        let attached = self.attach_parts(model, family, seed);
        if attached.is_err() {
            model.detach_adapter(&self.name);
        }
        attached?;
        self.mark_trainable(model);
        Ok(())
    }

    fn attach_parts(&self, model: &mut LanguageModel, family: &Family, seed: u64) -> Result<()> {
        let fresh = Fresh {
            adapter: &self.name,
            seed,
        };
        let saved = self.saved(model, family);
        ties::untie(self.kind.as_ref(), &saved, model, family);
        self.kind.attach(model, family, fresh)?;
        let trained = |module: &str| !self.more_saved.iter().any(|more| more == module);
        saved_modules::attach(model, family, &saved, &self.name, &trained)
    }

    /// The modules that it replaces whole.
    fn saved(&self, model: &LanguageModel, family: &Family) -> Vec<String> {
        ties::saved(self.kind.as_ref(), &self.more_saved, model, family)
    }

    /// What the user should know before the adapter is put on the model, a sentence each.
    pub fn remarks(&self, model: &LanguageModel, family: &Family) -> Vec<String> {
        let saved = self.saved(model, family);
        let remark = ties::remark(self.kind.as_ref(), &saved, model, family);
        remark.into_iter().collect()
    }

    /// Puts the adapter of a folder on the model, active and frozen, as is everything else. Returns the adapter with what its file says
    /// beyond the configuration.
    ///
    /// # Errors
    /// As [`Adapter::attach`], and when the folder's weights are missing or do not fit.
    pub fn load(&self, model: &mut LanguageModel, family: &Family, folder: &Path) -> Result<Self> {
        let pickled = folder.join(PICKLED_WEIGHTS);
        let usual = folder.join(WEIGHTS);
        let is_older = !usual.is_file() && pickled.is_file();
        let path = if is_older { pickled } else { usual };
        let (adapter, mut file) = self.open(model, family, &path)?;
        adapter.attach(model, family, 0)?;
        model.set_trainable(|_| false);
        if let Err(error) = adapter.read_parts(model, family, &mut file) {
            model.detach_adapter(&self.name);
            return Err(error);
        }
        Ok(adapter)
    }

    /// The file of weights, and this adapter with what that file says beyond the configuration.
    fn open(
        &self,
        model: &LanguageModel,
        family: &Family,
        path: &Path,
    ) -> Result<(Self, AdapterFile)> {
        let mut file = AdapterFile::open(path)?;
        let mut tensors = layout::stored_tensors(model, family);
        let head = ties::head(model, family);
        let repeated = head.as_ref().map(|head| head.name.clone());
        tensors.extend(head);
        let names: Vec<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        let leaves_out_prefix = file.name_as(&names, family.prefix)?;
        let named = self.saved(model, family);
        let mut more_saved = BTreeSet::new();
        for tensor in tensors {
            let stored = format!("{PEFT_PREFIX}{}", tensor.name);
            let Some(shape) = file.shape(&stored).map(<[usize]>::to_vec) else {
                continue;
            };
            let Some((module, _)) = tensor.name.rsplit_once('.') else {
                continue;
            };
            if saved_modules::is_saved(&tensor.name, &named) {
                continue;
            }
            // PEFT writes weights of wrapped modules and of embeddings beside the adapter, most often as the base has them.
            let own = file.read(&stored, &shape)?;
            let is_the_bases = own == tensor.assemble(&|parameter| parameter.flat());
            // A head that stays tied is there twice.
            let is_there_twice = self.kind.keeps_ties() && repeated.as_ref() == Some(&tensor.name);
            if !is_the_bases && !is_there_twice {
                more_saved.insert(module.to_owned());
            }
        }
        let adapter = Self {
            more_saved: more_saved.into_iter().collect(),
            leaves_out_prefix,
            ..self.clone()
        };
        Ok((adapter, file))
    }

    fn read_parts(
        &self,
        model: &mut LanguageModel,
        family: &Family,
        file: &mut AdapterFile,
    ) -> Result<()> {
        self.kind.read(model, family, &self.name, file)?;
        let saved = self.saved(model, family);
        saved_modules::read(model, family, &saved, file)?;
        file.refuse_unread()
    }

    /// Why it cannot be added into the weights, where that is so.
    pub fn merge_refusal(&self) -> Option<&'static str> {
        self.kind.merge_refusal()
    }

    /// Marks what belongs to the adapter as trained, the rest as frozen.
    pub fn mark_trainable(&self, model: &mut LanguageModel) {
        let saved = model.saved_modules().clone();
        model.set_trainable(|parameter| {
            parameter.adapter() == Some(&self.name) || saved.trains(&self.name, parameter.name())
        });
    }

    /// The adapter's tensors under the names of its file.
    pub fn tensors<'a>(&self, model: &'a LanguageModel, family: &Family) -> Vec<StoredTensor<'a>> {
        let mut tensors = self.kind.tensors(model, family, &self.name);
        let saved = self.saved(model, family);
        tensors.extend(saved_modules::tensors(model, family, &saved));
        // PEFT asks for a head that stays tied too.
        let has_embedding = |head: &StoredTensor<'_>| {
            let embedding = head.names().next();
            let mut own = tensors.iter().flat_map(|tensor| tensor.names());
            self.kind.keeps_ties() && own.any(|name| Some(name) == embedding)
        };
        let head = ties::head(model, family).filter(has_embedding);
        tensors.extend(head.map(|mut head| {
            head.name.insert_str(0, PEFT_PREFIX);
            head
        }));
        for tensor in &mut tensors {
            tensor.name = self.name_in_file(&tensor.name, family);
        }
        tensors
    }

    /// What the file calls a tensor of the adapter that is named as the checkpoint's.
    fn name_in_file(&self, name: &str, family: &Family) -> String {
        let Some(bare) = name.strip_prefix(PEFT_PREFIX) else {
            return name.to_owned();
        };
        let mut bare = bare.to_owned();
        if let Some((module, part)) = bare.rsplit_once('.')
            && self.more_saved.iter().any(|more| more == module)
            && self.kind.adapts(module)
        {
            bare = format!("{module}.base_layer.{part}");
        }
        let bare = match bare.strip_prefix(family.prefix) {
            Some(rest) if self.leaves_out_prefix => rest,
            _ => &bare,
        };
        format!("{PEFT_PREFIX}{bare}")
    }

    /// Writes the model's adapter as a folder; it has to be active.
    ///
    /// # Errors
    /// When it is not active, or the disk is full; nothing half-written keeps its name.
    pub fn save(&self, model: &LanguageModel, family: &Family, folder: &Path) -> Result<()> {
        if !model.active_adapters().contains(&self.name) {
            return Err(Error::Invalid(format!(
                "the adapter `{}` is not active; switch it on to save it",
                self.name
            )));
        }
        disk::create_folder(folder).map_err(Error::file(folder))?;
        let mut map = Map::new();
        map.insert("peft_type".into(), self.kind.peft_type().into());
        map.insert("base_model_name_or_path".into(), json!(self.base_model));
        if let Value::Object(configuration) = self.kind.configuration(model, family, &self.name) {
            map.extend(configuration);
        }
        let text = format!("{:#}\n", Value::Object(map));
        let path = folder.join(CONFIGURATION);
        disk::write_whole(&path, text.as_bytes()).map_err(Error::file(&path))?;
        folder::write_tensors(&self.tensors(model, family), &folder.join(WEIGHTS))
    }

    /// The adapter in words.
    pub fn describe(&self) -> String {
        self.kind.describe()
    }
}

/// The kind that a configuration names.
fn registered<'a>(kinds: &'a [Registration], config: &Config) -> Result<&'a Registration> {
    let found = config.optional_text("peft_type")?;
    if let Some(kind) = kinds.iter().find(|kind| Some(kind.peft_type) == found) {
        return Ok(kind);
    }
    let known = || kinds.iter().map(|kind| kind.peft_type);
    let names: Vec<String> = known().map(|name| format!("`{name}`")).collect();
    let wrong = match found {
        Some(name) => format!(
            "no kind of adapter is `{name}`{}",
            suggestion(name, known())
        ),
        None => "missing".to_owned(),
    };
    Err(config.error("peft_type", format!("{wrong}; known: {}", names.join(", "))))
}

/// The modules of the checkpoint that `targeted` accepts by their names; for kinds that adapt linear maps.
///
/// # Errors
/// When there is none; the message lists what there is.
pub fn target_modules(
    model: &LanguageModel,
    family: &Family,
    targeted: &dyn Fn(&str) -> bool,
) -> Result<Vec<Module>> {
    let all = layout::modules(model, family);
    let mut last: Vec<&str> = all
        .iter()
        .filter_map(|module| module.name.rsplit('.').next())
        .collect();
    last.sort_unstable();
    last.dedup();
    let choices = format!(
        "no module matches the adapter's targets; the model has {}",
        last.join(", ")
    );
    let found: Vec<Module> = all.into_iter().filter(|m| targeted(&m.name)).collect();
    match found.is_empty() {
        true => Err(Error::Invalid(choices)),
        false => Ok(found),
    }
}

/// An entry of the targets that means modules of the model which are no linear maps; nothing where it means none.
pub fn no_linear_map(entry: &str, model: &LanguageModel, family: &Family) -> Option<Error> {
    let (names, own) = (layout::stored_tensors(model, family), [entry.to_owned()]);
    let is_there = names
        .iter()
        .any(|tensor| saved_modules::is_saved(&tensor.name, &own));
    is_there.then(|| {
        Error::Invalid(format!(
            "`target_modules`: `{entry}` is no linear map, and only those can be adapted; train it whole as one of `modules_to_save`"
        ))
    })
}

/// An entry of a list of modules that means none of the model's.
pub fn no_module(key: &str, entry: &str, model: &LanguageModel, family: &Family) -> Error {
    let names = layout::stored_tensors(model, family);
    let modules = names.iter().filter_map(|tensor| {
        let (module, _) = tensor.name.rsplit_once('.')?;
        Some(module.rsplit('.').next().unwrap_or(module))
    });
    let known: BTreeSet<&str> = modules.collect();
    let hint = suggestion(entry, known.iter().copied());
    let all: Vec<&str> = known.into_iter().collect();
    Error::Invalid(format!(
        "`{key}`: no module of the model is named `{entry}`{hint}; there are {}",
        all.join(", ")
    ))
}

/// The parts of an adapter at linear maps, by the maps' names.
pub fn linear_parts<'a>(
    model: &'a LanguageModel,
    adapter: &str,
) -> HashMap<String, &'a dyn LinearAdapter> {
    let mut parts: HashMap<String, &'a dyn LinearAdapter> = HashMap::new();
    model.visit_linears(&mut |map| {
        if let Some(part) = map.adapters.get(adapter) {
            parts.insert(map.name, part.as_ref());
        }
    });
    parts
}

/// Calls `change` with every linear map of the model, until it fails.
///
/// # Errors
/// What `change` returns.
pub fn each_linear(
    model: &mut LanguageModel,
    change: &mut dyn FnMut(&mut LinearMapMut<'_>) -> Result<()>,
) -> Result<()> {
    let mut outcome = Ok(());
    model.visit_linears_mut(&mut |mut map| {
        if outcome.is_ok() {
            outcome = change(&mut map);
        }
    });
    outcome
}

/// Loads an adapter folder and its base, see [`base_folder`]. `changes` replace keys of the base's `config.json`.
///
/// # Errors
/// When a file is missing or damaged, or the adapter does not fit its base.
pub fn load(folder: &Path, changes: &Map<String, Value>, device: &Device) -> Result<LoadedModel> {
    let adapter = Adapter::read(folder)?;
    let base = base_folder(folder, &adapter)?;
    if base.join(CONFIGURATION).is_file() {
        return Err(Error::Adapter {
            path: folder.join(CONFIGURATION),
            reason: format!(
                "its base {} is an adapter itself; merge that into its own base first, and name the result here",
                base.display()
            ),
        });
    }
    let mut loaded = folder::load_changed(&base, changes, device)?;
    let family = loaded.family()?;
    loaded
        .remarks
        .extend(adapter.remarks(&loaded.model, family));
    if let Some(named) = adapter
        .base_model()
        .filter(|named| is_elsewhere(&base, named))
    {
        loaded.remarks.push(format!(
            "{}: the base model is no longer at {named}; {} is taken for it",
            folder.join(CONFIGURATION).display(),
            base.display()
        ));
    }
    loaded.adapter = Some(adapter.load(&mut loaded.model, family, folder)?);
    Ok(loaded)
}

/// Whether a base was found elsewhere than at its absolute path.
fn is_elsewhere(base: &Path, named: &str) -> bool {
    Path::new(named).is_absolute() && base != Path::new(named)
}

/// The base model of an adapter folder: where its configuration says, beside the adapter or in the working folder. A base that was
/// moved together with the adapter is found by the end of its path, in the folders above the adapter.
///
/// # Errors
/// When the configuration names no base model, or there is none where it says.
pub fn base_folder(folder: &Path, adapter: &Adapter) -> Result<PathBuf> {
    let missing = |reason: String| Error::Adapter {
        path: folder.join(CONFIGURATION),
        reason,
    };
    let name = adapter
        .base_model()
        .ok_or_else(|| missing("`base_model_name_or_path` is missing".into()))?;
    let beside = folder.join(name);
    let is_there = |path: &PathBuf| path.is_dir() || folder::is_bare(path);
    let mut named = [beside.clone(), PathBuf::from(name)].into_iter();
    let found = named.find(is_there).or_else(|| moved(folder, name));
    found.ok_or_else(|| {
        let fix = "put it there, or change `base_model_name_or_path`";
        let beside = beside.display();
        missing(match Path::new(name).is_absolute() {
            true => {
                format!("base model {beside} is not there, nor further up from the adapter; {fix}")
            }
            false => format!(
                "base model `{name}` is neither at {beside} nor in the working folder; {fix}"
            ),
        })
    })
}

/// The model folder whose path ends as the absolute path `name` does, over two names at least, from the nearest folder above the
/// adapter; longer ends first.
fn moved(folder: &Path, name: &str) -> Option<PathBuf> {
    let name = Path::new(name);
    let parts: Vec<_> = name.components().skip(1).collect();
    if !name.is_absolute() {
        return None;
    }
    let place = std::path::absolute(folder).ok()?;
    let ends = (0..parts.len().saturating_sub(1)).map(|skipped| parts[skipped..].iter().collect());
    let is_model = |path: &PathBuf| {
        *path != place && (path.join("config.json").is_file() || folder::is_bare(path))
    };
    ends.flat_map(|end: PathBuf| place.ancestors().map(move |above| above.join(&end)))
        .find(is_model)
}
