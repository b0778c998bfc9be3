//! Representation fine-tuning (ReFT, arXiv 2404.03592): all weights stay as they are, and the hidden states of a few tokens of the prompt
//! are edited after chosen blocks.
//!
//! Tokens are counted on the prompt alone, as [`Positions`] says; what is generated is not edited, but reads the edited prompt. The first
//! and the last tokens have edits of their own in each block, or share one (tied). Of an encoder-decoder the encoder is edited, which
//! reads the prompt.
//!
//! The folder holds `adapter_config.json` with the `peft_type` `LOREFT`. LoReFT's weights lie beside it as pyreft has them
//! (`pyreft.rs`), which opens the folder. Those of other forms are in `adapter_model.safetensors` as `layers.0.prefix.R` and so on:
//! pyreft's `load` cannot make the unconstrained ones, whose classes ask for more than its configuration says, and keeps the
//! others as rotations of the whole width. Of pyreft's own folders those of `LoreftIntervention`, `NoreftIntervention` and
//! `NodireftIntervention` are read, where an `adapter_config.json` beside them says base and positions, which pyreft does not keep.

mod edit;
mod positions;
mod pyreft;

use std::{path::Path, sync::Arc};

use burn::tensor::Tensor;
use espalier_data::random::{Random, fnv};
use espalier_kernels::{activation::Activation, dropout::Dropout};
use serde_json::{Value, json};

use self::{
    edit::{Edit, Form},
    pyreft::PyreftFolder,
};
pub use self::{
    edit::{Method, Start},
    positions::Positions,
};
use super::{AdapterFile, AdapterKind, Fresh, Intervention, Registration, WEIGHTS, saved_modules};
use crate::{
    Error, Result,
    families::{
        Family,
        config::{Config, activation_name},
    },
    folder::write_tensors,
    layout::StoredTensor,
    model::LanguageModel,
    parameter::Parameter,
    stack::Stack,
    taps::Site,
    token_places::TokenPlaces,
};

/// The widest edit, and the largest number of tokens at an end of a prompt and of a block.
const LIMIT: usize = 1 << 16;

/// The line of edited hidden states in the list of kinds.
pub const REGISTRATION: Registration = Registration {
    peft_type: "LOREFT",
    read: |config: &Config| Ok(Arc::new(ReftConfig::read(config)?)),
};

/// The configuration of edited hidden states.
#[derive(Debug, Clone, PartialEq)]
pub struct ReftConfig {
    /// The form of the edit.
    pub method: Method,
    /// The blocks after which hidden states are edited, from 0; all when absent.
    pub layers: Option<Vec<usize>>,
    /// Directions of an edit.
    pub rank: usize,
    /// The tokens that are edited.
    pub positions: Positions,
    /// Whether the first and the last tokens share one edit.
    pub tied: bool,
    /// Of `W h + b`.
    pub activation: Option<Activation>,
    /// Share of the edited states that is zeroed in training.
    pub dropout: f64,
    /// Where training starts; a folder does not say it.
    pub start: Start,
    /// Modules that are trained and saved whole, such as a head of classes.
    pub modules_to_save: Vec<String>,
}

/// Which of the tokens of a block an edit is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Prefix,
    Suffix,
    Shared,
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Self::Prefix => "prefix",
            Self::Suffix => "suffix",
            Self::Shared => "shared",
        }
    }
}

/// The edits of one block; no two of them are for one token.
#[derive(Debug, Clone)]
struct Edits {
    edits: Vec<(Part, Edit)>,
    positions: Positions,
}

impl Intervention for Edits {
    fn forward(&self, hidden: Tensor<3>, places: &TokenPlaces) -> Tensor<3> {
        let positions = self.positions;
        self.edits.iter().fold(hidden, |hidden, (part, edit)| {
            let tokens = places.chosen(&|place| match part {
                Part::Prefix => positions.is_first(place),
                Part::Suffix => positions.is_last(place),
                Part::Shared => positions.is_first(place) || positions.is_last(place),
            });
            places.added(hidden, &tokens, |rows| edit.change(rows))
        })
    }

    fn parameters(&self) -> Vec<&Parameter> {
        self.edits
            .iter()
            .flat_map(|(_, edit)| edit.parameters())
            .collect()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        let edits = self.edits.iter_mut();
        edits.flat_map(|(_, edit)| edit.parameters_mut()).collect()
    }

    fn set_dropout(&mut self, seed: Option<u64>) {
        for (number, (_, edit)) in self.edits.iter_mut().enumerate() {
            let probability = edit.dropout;
            let seed = seed.filter(|_| probability > 0.0);
            edit.dropped = seed.map(|seed| Dropout { probability, seed }.of(number as u64));
        }
    }

    fn dropout(&self) -> f64 {
        let shares = self.edits.iter().map(|(_, edit)| edit.dropout);
        shares.fold(0.0, f64::max)
    }
}

impl ReftConfig {
    /// LoReFT of this rank after all blocks.
    pub fn new(rank: usize, positions: Positions) -> Self {
        Self {
            method: Method::default(),
            layers: None,
            rank,
            positions,
            tied: false,
            activation: None,
            dropout: 0.0,
            start: Start::default(),
            modules_to_save: Vec::new(),
        }
    }

    /// Reads the configuration; what it does not say of pyreft's weights beside it, these say.
    fn read(config: &Config) -> Result<Self> {
        let beside = PyreftFolder::beside(config.path())?;
        let beside = beside.as_ref();
        let positions = config.optional_text("positions")?;
        let expected =
            "missing; expected the tokens of the prompt that are edited, such as `f7+l7`";
        let positions = positions.ok_or_else(|| config.error("positions", expected))?;
        let positions: Positions = positions
            .parse()
            .map_err(|reason: String| config.error("positions", reason))?;
        let method = match (config.optional_text("method")?, beside) {
            (None, Some(folder)) => folder.method,
            (None, None) => Method::default(),
            (Some(name), _) => Self::method(config, name)?,
        };
        let rank = match (config.optional_size("r", LIMIT)?, beside) {
            (None, Some(folder)) => folder.rank,
            (None, None) => config.size("r", LIMIT)?,
            (Some(rank), _) => rank,
        };
        let layers = match config.optional_counts("layers", LIMIT)? {
            None => beside.map(PyreftFolder::layers),
            said => said,
        };
        check_layers(layers.as_deref()).map_err(|reason| config.error("layers", reason))?;
        let tied = config.flag_or("tied", beside.is_some_and(|folder| !folder.has_suffixes()))?;
        let dropout = config.optional_number("dropout")?.unwrap_or_default();
        if !(0.0..1.0).contains(&dropout) {
            return Err(config.error("dropout", format!("{dropout} is outside 0 to below 1")));
        }
        let activation = match config.optional_text("act_fn")? {
            None | Some("linear") => None,
            Some(_) => Some(config.activation_or("act_fn", Activation::Relu)?),
        };
        let modules_to_save = config
            .optional_texts("modules_to_save")?
            .unwrap_or_default();
        if let Some(key) = config.unread().first() {
            let known = "method, layers, r, positions, tied, act_fn, dropout and modules_to_save";
            return Err(config.error(
                key,
                format!("no key of edited hidden states; known: {known}"),
            ));
        }
        Ok(Self {
            method,
            layers,
            rank,
            positions,
            tied,
            activation,
            dropout,
            start: Start::default(),
            modules_to_save: modules_to_save.into_iter().map(str::to_owned).collect(),
        })
    }

    fn method(config: &Config, name: &str) -> Result<Method> {
        let known = Method::ALL.map(|(_, name)| name);
        let found = Method::ALL.into_iter().find(|(_, known)| *known == name);
        found.map(|(method, _)| method).ok_or_else(|| {
            let near = espalier_data::nearest::suggestion(name, known);
            let known = known.join(", ");
            config.error(
                "method",
                format!("no form is `{name}`{near}; known: {known}"),
            )
        })
    }

    /// Whether the start that is asked for changes nothing, where that can be.
    ///
    /// # Errors
    /// When an edit of this form always changes something.
    pub fn check_start(&self) -> std::result::Result<(), String> {
        let starts_as = |activation: Option<Activation>| match (self.method, activation) {
            (Method::Consreft, _) => {
                Err("consreft takes the old part of a state away, whatever it learned")
            }
            (Method::Loreft | Method::Noreft, Some(_)) => {
                Err("an activation stands between the old part of a state and what takes its place")
            }
            (_, Some(Activation::Sigmoid)) => Err("the sigmoid of zero is no zero"),
            _ => Ok(()),
        };
        match self.start {
            Start::Random => Ok(()),
            Start::Identity => starts_as(self.activation)
                .map_err(|reason| format!("no start changes nothing: {reason}; choose `random`")),
        }
    }

    /// The parts of each block.
    fn parts(&self) -> &'static [Part] {
        match (self.positions.first, self.positions.last, self.tied) {
            (_, 0, _) => &[Part::Prefix],
            (0, _, _) => &[Part::Suffix],
            (_, _, true) => &[Part::Shared],
            (_, _, false) => &[Part::Prefix, Part::Suffix],
        }
    }

    /// The chosen blocks of a stack.
    fn blocks(&self, stack: &Stack) -> Vec<usize> {
        match &self.layers {
            Some(layers) => layers.clone(),
            None => (0..stack.sites()).collect(),
        }
    }

    /// The tensors of all edits in one of the two layouts.
    fn stored<'a>(
        &self,
        model: &'a LanguageModel,
        adapter: &str,
        is_pyrefts: bool,
    ) -> Vec<StoredTensor<'a>> {
        let mut tensors = Vec::new();
        let sites: Vec<_> = reader(model).interventions().of(adapter).collect();
        // As in pyreft, all first parts before all second ones.
        for (number, part) in self.parts().iter().enumerate() {
            for (site, edits) in &sites {
                let Site::Block(block) = *site else {
                    continue;
                };
                let count = self.method.parts().len();
                let own = edits.parameters().into_iter().skip(number * count);
                for (kind, parameter) in self.method.parts().iter().zip(own) {
                    tensors.push(match is_pyrefts {
                        true => pyreft::tensor(*kind, parameter, self.method, block, number),
                        false => {
                            let name = format!("layers.{block}.{}.{}", part.name(), kind.name());
                            StoredTensor::whole(name, parameter)
                        }
                    });
                }
            }
        }
        tensors
    }
}

/// Whether a list of blocks makes sense.
///
/// # Errors
/// When it is empty, or names one twice.
pub fn check_layers(layers: Option<&[usize]>) -> std::result::Result<(), String> {
    let Some(layers) = layers else {
        return Ok(());
    };
    let twice = (1..layers.len()).find(|i| layers[..*i].contains(&layers[*i]));
    match (layers.is_empty(), twice) {
        (true, _) => Err("names no block; leave it out for all".into()),
        (_, Some(i)) => Err(format!("names block {} twice", layers[i])),
        (false, None) => Ok(()),
    }
}

/// The stack that reads the prompt: the encoder where there is one.
fn reader(model: &LanguageModel) -> &Stack {
    model.stacks().next().unwrap_or(model.decoder())
}

impl AdapterKind for ReftConfig {
    fn peft_type(&self) -> &'static str {
        REGISTRATION.peft_type
    }

    fn modules_to_save(&self) -> &[String] {
        &self.modules_to_save
    }

    fn attach(&self, model: &mut LanguageModel, _: &Family, fresh: Fresh<'_>) -> Result<()> {
        self.check_start().map_err(Error::Invalid)?;
        let (width, device) = (model.spec().width, model.device().clone());
        if self.rank > width {
            return Err(Error::Invalid(format!(
                "`r` is {}, and hidden states have {width} numbers; choose less",
                self.rank
            )));
        }
        let form = Form {
            method: self.method,
            activation: self.activation,
            dropout: self.dropout,
            rank: self.rank,
            width,
            start: self.start,
        };
        let blocks = self.blocks(reader(model));
        let Some(stack) = model.stacks_mut().next() else {
            return Ok(());
        };
        for block in blocks {
            let edit = |part: &Part| {
                let place = format!("edits.{block}.adapter.{}.{}", fresh.adapter, part.name());
                let mut random = Random::new(fnv(&format!("{}|{place}", fresh.seed)));
                let name = |parameter: &str| format!("{place}.{parameter}");
                let edit = Edit::fresh(form, &mut random, &name, fresh.adapter, &device);
                (*part, edit)
            };
            let edits = Edits {
                edits: self.parts().iter().map(edit).collect(),
                positions: self.positions,
            };
            stack.intervene(Site::Block(block), fresh.adapter, Box::new(edits))?;
        }
        Ok(())
    }

    /// pyreft's files, and one for modules that are trained whole.
    fn open(&self, folder: &Path) -> Result<AdapterFile> {
        let usual = folder.join(WEIGHTS);
        let Some(beside) = PyreftFolder::of(folder)? else {
            return AdapterFile::open(&usual);
        };
        let mut files = beside.files();
        if usual.is_file() {
            files.push((String::new(), usual));
        }
        let files: Vec<_> = files
            .iter()
            .map(|(name, path)| (name.clone(), path.as_path()))
            .collect();
        AdapterFile::open_all(&files)
    }

    fn tensors<'a>(
        &self,
        model: &'a LanguageModel,
        _: &Family,
        adapter: &str,
    ) -> Vec<StoredTensor<'a>> {
        self.stored(model, adapter, pyreft::opens(self.method))
    }

    fn read(
        &self,
        model: &mut LanguageModel,
        _: &Family,
        adapter: &str,
        file: &mut AdapterFile,
    ) -> Result<()> {
        let own = self.stored(model, adapter, false);
        let is_ours = own.iter().any(|tensor| file.shape(&tensor.name).is_some());
        let tensors = self.stored(model, adapter, !is_ours);
        pyreft::skip_what_says_nothing(file, self.method);
        let values = file.values(tensors)?;
        saved_modules::set_values(model, values);
        Ok(())
    }

    fn write(&self, tensors: Vec<StoredTensor<'_>>, folder: &Path) -> Result<()> {
        let (theirs, ours): (Vec<_>, Vec<_>) = tensors
            .into_iter()
            .partition(|tensor| pyreft::is_named(&tensor.name));
        if !theirs.is_empty() {
            pyreft::write(&theirs, self.rank, folder)?;
        }
        match ours.is_empty() {
            true => Ok(()),
            false => write_tensors(&ours, &folder.join(WEIGHTS)),
        }
    }

    fn configuration(&self, model: &LanguageModel, _: &Family, _: &str) -> Value {
        json!({
            "method": self.method.name(),
            "layers": self.blocks(reader(model)),
            "r": self.rank,
            "positions": self.positions.to_string(),
            "tied": self.tied,
            "act_fn": self.activation.map(activation_name),
            "dropout": self.dropout,
            "modules_to_save": self.modules_to_save,
        })
    }

    fn merge_refusal(&self) -> Option<&'static str> {
        Some("edits of hidden states are no part of any weight")
    }

    fn describe(&self) -> String {
        format!(
            "{}, r = {}, at {}",
            self.method.name(),
            self.rank,
            self.positions
        )
    }
}
