//! What is added to a model and trained in its place: low-rank maps, or the states from which recurrent layers start.

pub mod first_state;
pub mod low_rank;

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use serde_json::{Map, Value};

pub use self::first_state::FirstStateConfig;
use crate::{
    Error, Result,
    checkpoint::PeftConfig,
    families::{Family, config::Config},
    folder::{self, LoadedModel},
    layout::{self, StoredTensor},
    model::LanguageModel,
};

/// Name of the configuration in an adapter folder.
pub const CONFIGURATION: &str = "adapter_config.json";

/// Name of the weights in an adapter folder.
const WEIGHTS: &str = "adapter_model.safetensors";

/// What an adapter folder's configuration says. A new kind adds its file and a variant here.
///
/// ```
/// use espalier_models::{adapter::Adapter, checkpoint::{PeftConfig, peft_config::Targets}};
/// let adapter = Adapter::LowRank(PeftConfig::new(8, 16.0, Targets::AllLinear)).based_on("models/base".into());
/// assert_eq!(adapter.base_model(), Some("models/base"));
/// ```
#[derive(Debug, Clone, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "there is one for each model")]
pub enum Adapter {
    /// LoRA, in PEFT's layout.
    LowRank(PeftConfig),
    /// Trained first states.
    FirstState(FirstStateConfig),
}

impl Adapter {
    /// Reads the configuration of an adapter folder.
    ///
    /// # Errors
    /// When it cannot be read, or sets a key that is not supported.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(CONFIGURATION);
        let config = Config::load(&path)?;
        match config.optional_text("peft_type")? {
            Some(first_state::KIND) => Ok(Self::FirstState(FirstStateConfig::read(&config)?)),
            _ => Ok(Self::LowRank(PeftConfig::read(&path)?)),
        }
    }

    /// The model that it was trained on.
    pub fn base_model(&self) -> Option<&str> {
        match self {
            Self::LowRank(config) => config.base_model.as_deref(),
            Self::FirstState(config) => config.base_model.as_deref(),
        }
    }

    /// The same adapter, said to be of this base model.
    #[must_use]
    pub fn based_on(self, base: String) -> Self {
        let base_model = Some(base);
        match self {
            Self::LowRank(config) => Self::LowRank(PeftConfig {
                base_model,
                ..config
            }),
            Self::FirstState(_) => Self::FirstState(FirstStateConfig { base_model }),
        }
    }

    /// Whether it can be added into the weights.
    pub fn merges(&self) -> bool {
        matches!(self, Self::LowRank(_))
    }

    /// Marks what belongs to the adapter as trained, the rest as frozen.
    pub fn mark_trainable(&self, model: &mut LanguageModel, family: &Family) {
        match self {
            Self::LowRank(config) => low_rank::mark_trainable(model, family, config),
            Self::FirstState(_) => first_state::mark_trainable(model),
        }
    }

    /// The adapter's tensors under the names of its file.
    pub fn tensors<'a>(&self, model: &'a LanguageModel, family: &Family) -> Vec<StoredTensor<'a>> {
        match self {
            Self::LowRank(config) => {
                layout::adapter_tensors(model, family, &config.modules_to_save)
            }
            Self::FirstState(_) => first_state::tensors(model),
        }
    }

    /// Writes the model's adapter as a folder.
    ///
    /// # Errors
    /// When the disk is full; nothing half-written keeps its name.
    pub fn save(&self, model: &LanguageModel, family: &Family, folder: &Path) -> Result<()> {
        std::fs::create_dir_all(folder).map_err(Error::file(folder))?;
        match self {
            Self::LowRank(config) => low_rank::write_configuration(model, family, config, folder)?,
            Self::FirstState(config) => config.write(&folder.join(CONFIGURATION))?,
        }
        folder::write_tensors(&self.tensors(model, family), &folder.join(WEIGHTS))
    }

    /// The adapter in words.
    pub fn describe(&self) -> String {
        match self {
            Self::LowRank(config) => {
                format!("low rank, r = {}, alpha = {}", config.rank, config.alpha)
            }
            Self::FirstState(_) => "trained first states of the recurrent layers".into(),
        }
    }
}

/// Loads an adapter folder and its base; a relative base path is resolved against the adapter folder. `changes` replace keys of
/// the base's `config.json`.
///
/// # Errors
/// When a file is missing or damaged, or the adapter does not fit its base.
pub fn load(folder: &Path, changes: &Map<String, Value>, device: &Device) -> Result<LoadedModel> {
    let adapter = Adapter::read(folder)?;
    let base = base_folder(folder, &adapter)?;
    let mut loaded = folder::load_changed(&base, changes, device)?;
    let (family, weights) = (loaded.family()?, folder.join(WEIGHTS));
    match &adapter {
        Adapter::LowRank(config) => {
            low_rank::attach(&mut loaded.model, family, config, 0)?;
            low_rank::fill(&mut loaded.model, family, &weights, config)?;
        }
        Adapter::FirstState(_) => {
            first_state::attach(&mut loaded.model)?;
            first_state::fill(&mut loaded.model, &weights)?;
        }
    }
    loaded.model.set_trainable(|_| false);
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
