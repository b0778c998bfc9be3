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
}

impl Adapter {
    /// The adapter `default` of this kind.
    pub fn new(kind: impl AdapterKind + 'static) -> Self {
        Self {
            name: DEFAULT_NAME.into(),
            base_model: None,
            kind: Arc::new(kind),
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
        self.kind.attach(model, family, fresh)?;
        saved_modules::attach(model, family, self.kind.modules_to_save(), &self.name)
    }

    /// Puts the adapter of a folder on the model, active and frozen, as is everything else.
    ///
    /// # Errors
    /// As [`Adapter::attach`], and when the folder's weights are missing or do not fit.
    pub fn load(&self, model: &mut LanguageModel, family: &Family, folder: &Path) -> Result<()> {
        let mut file = AdapterFile::open(&folder.join(WEIGHTS))?;
        self.attach(model, family, 0)?;
        model.set_trainable(|_| false);
        let read = self.read_parts(model, family, &mut file);
        if read.is_err() {
            model.detach_adapter(&self.name);
        }
        read
    }

    fn read_parts(
        &self,
        model: &mut LanguageModel,
        family: &Family,
        file: &mut AdapterFile,
    ) -> Result<()> {
        self.kind.read(model, family, &self.name, file)?;
        saved_modules::read(model, family, self.kind.modules_to_save(), file)?;
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
            parameter.adapter() == Some(&self.name) || saved.replaces(&self.name, parameter.name())
        });
    }

    /// The adapter's tensors under the names of its file.
    pub fn tensors<'a>(&self, model: &'a LanguageModel, family: &Family) -> Vec<StoredTensor<'a>> {
        let mut tensors = self.kind.tensors(model, family, &self.name);
        let saved = self.kind.modules_to_save();
        tensors.extend(saved_modules::tensors(model, family, saved));
        tensors
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

/// Loads an adapter folder and its base; a relative base path is resolved against the adapter folder. `changes` replace keys of
/// the base's `config.json`.
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
    adapter.load(&mut loaded.model, family, folder)?;
    loaded.adapter = Some(adapter);
    Ok(loaded)
}

/// The base model of an adapter folder: beside the adapter, else in the working folder.
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
    let found = [beside.clone(), PathBuf::from(name)]
        .into_iter()
        .find(|path| path.is_dir() || folder::is_bare(path));
    found.ok_or_else(|| {
        let fix = "put it there, or change `base_model_name_or_path`";
        missing(format!(
            "base model `{name}` is neither at {} nor in the working folder; {fix}",
            beside.display()
        ))
    })
}
