//! An adapter by its name: putting it on a model, reading its folder and writing it.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
};

use espalier_data::{disk, nearest::suggestion};
use serde_json::{Map, Value, json};

use super::{
    AdapterFile, AdapterKind, CONFIGURATION, DEFAULT_NAME, Fresh, KINDS, PEFT_PREFIX, Registration,
    saved_modules::{self, module_of},
    ties,
};
use crate::{
    Error, Result,
    families::{Family, config::Config},
    layout::{self, StoredTensor},
    model::LanguageModel,
    tied_head,
};

/// What PEFT calls the use of a model without a head.
const BASE_TASK: &str = "FEATURE_EXTRACTION";

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
    /// Whether it ends as a part of its base, and nothing of it is left to transformers.
    to_be_merged: bool,
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
            to_be_merged: false,
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

    /// The same adapter, which is merged into its base once it is trained: it may train modules that mean nothing to transformers.
    #[must_use]
    pub fn to_be_merged(self) -> Self {
        Self {
            to_be_merged: true,
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
            to_be_merged: false,
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
        let fresh = Fresh {
            adapter: &self.name,
            seed,
            is_read: false,
        };
        self.attach_as(model, family, fresh)
    }

    fn attach_as(
        &self,
        model: &mut LanguageModel,
        family: &Family,
        fresh: Fresh<'_>,
    ) -> Result<()> {
        if model.adapters().contains(&self.name) {
            return Err(Error::Invalid(format!(
                "the model has an adapter `{}` already; give this one another name",
                self.name
            )));
        }
        let attached = self.attach_parts(model, family, fresh);
        if attached.is_err() {
            model.detach_adapter(&self.name);
        }
        attached?;
        self.mark_trainable(model);
        Ok(())
    }

    fn attach_parts(
        &self,
        model: &mut LanguageModel,
        family: &Family,
        fresh: Fresh<'_>,
    ) -> Result<()> {
        let saved = self.saved(model, family);
        ties::untie(self.kind.as_ref(), &saved, model, family);
        self.kind.attach(model, family, fresh)?;
        let trained = |module: &str| !self.more_saved.iter().any(|more| more == module);
        saved_modules::attach(model, family, &saved, &self.name, &trained)
    }

    /// How many rows the model's table of tokens must have for it: as many as it has, unless the adapter holds further ones.
    ///
    /// # Errors
    /// When it needs rows that neither it nor the model has.
    pub fn rows_needed(&self, model: &LanguageModel, family: &Family) -> Result<usize> {
        self.kind.rows_needed(model, family)
    }

    /// The modules and tensors that it replaces whole.
    fn saved(&self, model: &LanguageModel, family: &Family) -> Vec<String> {
        let named = [self.kind.modules_to_save(), &self.more_saved].concat();
        let mut saved = saved_modules::in_memory(&named, model, family);
        saved.retain(|entry| self.to_be_merged || !saved_modules::is_unread(entry, family));
        saved.extend(self.kind.tensors_to_save(model, family));
        ties::saved(self.kind.as_ref(), saved, model, family)
    }

    /// Whether what is trained of it, on this model, can be kept in a folder that its reference reads.
    ///
    /// # Errors
    /// When it cannot.
    pub fn check_kept(&self, model: &LanguageModel, family: &Family) -> Result<()> {
        self.kind.check_kept(model, family, &self.name)
    }

    /// What the user should know before the adapter is put on the model, a sentence each.
    pub fn remarks(&self, model: &LanguageModel, family: &Family) -> Vec<String> {
        let saved = self.saved(model, family);
        let ties = ties::remark(self.kind.as_ref(), &saved, model, family);
        let mut named = self.kind.modules_to_save().iter();
        let unread = named.find(|entry| saved_modules::is_unread(entry, family));
        let unread = unread.filter(|_| !self.to_be_merged).map(|entry| {
            format!(
                "`modules_to_save`: transformers never reads `{entry}`, for encoder and decoder look up tables of their own there; in PEFT it changes nothing, and so it is left out here"
            )
        });
        let of_kind = self.kind.remarks(model, family).into_iter();
        ties.into_iter().chain(unread).chain(of_kind).collect()
    }

    /// Puts the adapter of a folder on the model, active and frozen, as is everything else. Returns the adapter with what its file says
    /// beyond the configuration.
    ///
    /// # Errors
    /// As [`Adapter::attach`], and when the folder's weights are missing or do not fit.
    pub fn load(&self, model: &mut LanguageModel, family: &Family, folder: &Path) -> Result<Self> {
        let (adapter, mut file) = self.open(model, family, folder)?;
        let fresh = Fresh {
            adapter: &self.name,
            seed: 0,
            is_read: true,
        };
        adapter.attach_as(model, family, fresh)?;
        model.set_trainable(|_| false);
        if let Err(error) = adapter.read_parts(model, family, &mut file) {
            model.detach_adapter(&self.name);
            return Err(error);
        }
        Ok(adapter)
    }

    /// The weights of a folder, under the names that they have there.
    pub(crate) fn weights(&self, folder: &Path) -> Result<AdapterFile> {
        self.kind.open(folder)
    }

    /// The weights of a folder, and this adapter with what that file says beyond the configuration.
    fn open(
        &self,
        model: &LanguageModel,
        family: &Family,
        folder: &Path,
    ) -> Result<(Self, AdapterFile)> {
        let mut file = self.kind.open(folder)?;
        file.set_vocabulary(model.spec().vocabulary);
        let mut tensors = layout::tensors_in_memory(model, family);
        let head = ties::head(model, family);
        let repeated = head.as_ref().map(|head| head.name.clone());
        tensors.extend(head);
        let names: Vec<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        let renamed = layout::renamed_tensors(model, family);
        let leaves_out_prefix = file.name_as(&names, &renamed, family.prefix)?;
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
            if saved_modules::is_unread(module, family) {
                file.skip(&stored);
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
        file.refuse_unread(&|name| tied_head::is_derived(name, family, model.spec()))
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
        let wrapped: BTreeSet<String> = tensors.iter().filter_map(wrapped_module).collect();
        let saved = self.saved(model, family);
        tensors.extend(saved_modules::tensors(model, family, &saved));
        tensors.extend(saved_modules::other_bias(model, family, &saved));
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
        let renamed = layout::renamed_tensors(model, family);
        for tensor in &mut tensors {
            tensor.name = self.name_in_file(&tensor.name, &renamed, &wrapped, family);
        }
        tensors
    }

    /// What the file calls a tensor of the adapter that is named as transformers does; `renamed` has its name by that of the base's
    /// file, where they differ. The base's own tensors of modules that PEFT wrapped have a part of their name more.
    fn name_in_file(
        &self,
        name: &str,
        renamed: &BTreeMap<String, String>,
        wrapped: &BTreeSet<String>,
        family: &Family,
    ) -> String {
        let Some(bare) = name.strip_prefix(PEFT_PREFIX) else {
            return name.to_owned();
        };
        let mut bare = bare.to_owned();
        if let Some((module, "bias")) = bare.rsplit_once('.')
            && wrapped.contains(module)
        {
            bare = format!("{module}.base_layer.bias");
        }
        if let Some((module, part)) = bare.rsplit_once('.')
            && self.more_saved.iter().any(|more| more == module)
        {
            let mut others = renamed.iter().filter(|(_, ours)| **ours == bare);
            let other = others.next().map_or(module, |(file, _)| module_of(file));
            if self.kind.adapts(&[module, other]) {
                bare = format!("{module}.base_layer.{part}");
            }
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
        // Names of a base model are those of one without a head, for which PEFT has one use alone.
        if self.leaves_out_prefix && map.get("task_type").is_some_and(|task| task != BASE_TASK) {
            map.insert("task_type".into(), Value::Null);
        }
        let text = format!("{:#}\n", Value::Object(map));
        let path = folder.join(CONFIGURATION);
        disk::write_whole(&path, text.as_bytes()).map_err(Error::file(&path))?;
        self.kind.write(self.tensors(model, family), folder)
    }

    /// The adapter in words.
    pub fn describe(&self) -> String {
        self.kind.describe()
    }
}

/// The module that PEFT wraps for a tensor of an adapter's own.
fn wrapped_module(tensor: &StoredTensor<'_>) -> Option<String> {
    let name = tensor.name.strip_prefix(PEFT_PREFIX)?;
    let (module, _) = name.split_once(".lora_")?;
    Some(module.to_owned())
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
