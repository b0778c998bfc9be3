//! What of the model is trained: everything, or an adapter.
//!
//! A way to tune is one file here and one line below; what it puts on the model is a kind of `espalier_models::adapter`.

pub mod lora;
pub mod reft;
pub mod state;

use espalier_models::{adapter::Adapter, families::Family, model::LanguageModel};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// What is trained whole beside an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whole {
    /// Embedding and head, whose new rows would stay as they begin.
    Vocabulary,
    /// A classifier, which would stay as it begins.
    Classifier,
}

/// A way to tune: options of a recipe that become an adapter.
pub trait Tuning {
    /// The adapter that these options describe, not yet on a model.
    ///
    /// # Errors
    /// When an option makes no sense.
    fn adapter(&self) -> Result<Adapter>;

    /// The adapter of these options with these modules of the base trained whole besides. Tables of tokens stay tied where they are.
    ///
    /// # Errors
    /// When this way to tune trains no modules of the base.
    fn with_modules(&self, modules: Vec<String>, whole: Whole) -> Result<Adapter>;

    /// Whether of tokens that are added to the model's vocabulary the rows alone are trained, and kept in the adapter.
    fn keeps_added_tokens(&self) -> bool {
        false
    }

    /// The adapter of these options with the rows of these tokens trained besides, in the embedding and a head of its own, whose
    /// modules are named where the model has both.
    ///
    /// # Errors
    /// When this way to tune trains no rows.
    fn with_added_tokens(&self, _added: &[u32], _modules: [Option<String>; 2]) -> Result<Adapter> {
        self.with_modules(Vec::new(), Whole::Vocabulary)
    }

    /// Whether the options make sense for a model, before anything is put on it.
    ///
    /// # Errors
    /// When they do not.
    fn check_model(&self, _model: &LanguageModel) -> Result<()> {
        Ok(())
    }

    /// Gives the parameters of the adapter learning rates of their own.
    fn set_rates(&self, _model: &mut LanguageModel) {}
}

/// Defines [`AdapterOptions`] and [`KINDS`] from one line for each way to tune: its help, its variant, its name in recipes, its
/// options.
macro_rules! ways_to_tune {
    ($(#[doc = $help:literal] $variant:ident = $name:literal: $options:ty;)+) => {
        /// The ways to tune, by name: `adapter = { lora = { rank = 16 } }`. Full fine-tuning when a recipe names none.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
        pub enum AdapterOptions {
            $(
                #[doc = $help]
                #[serde(rename = $name)]
                $variant($options),
            )+
        }

        /// The names of all ways to tune, each with its help.
        pub const KINDS: &[(&str, &str)] = &[$(($name, $help)),+];

        impl AdapterOptions {
            fn tuning(&self) -> &dyn Tuning {
                match self {
                    $(Self::$variant(options) => options,)+
                }
            }
        }
    };
}

ways_to_tune! {
    /// A low-rank addition to chosen weights.
    Lora = "lora": lora::LoraOptions;
    /// Edits of hidden states at a few tokens of the prompt (LoReFT, DiReFT).
    Reft = "reft": reft::ReftOptions;
    /// The states from which recurrent layers start.
    State = "state": state::StateOptions;
}

impl AdapterOptions {
    /// Whether the options make sense, whatever the model.
    ///
    /// # Errors
    /// The first option that does not.
    pub fn check(&self) -> Result<()> {
        self.tuning().adapter().map(drop)
    }

    /// What the user should know before the adapter is put on the model, a sentence each.
    ///
    /// # Errors
    /// When an option makes no sense.
    pub fn remarks(&self, model: &LanguageModel, family: &Family) -> Result<Vec<String>> {
        Ok(self.tuning().adapter()?.remarks(model, family))
    }

    /// Puts a fresh adapter on the model and marks it as trained; returns what its folder will say.
    ///
    /// # Errors
    /// When an option makes no sense or no module of the model can have one.
    pub fn attach(&self, model: &mut LanguageModel, family: &Family, seed: u64) -> Result<Adapter> {
        self.attach_as(self.tuning().adapter()?, model, family, seed)
    }

    fn attach_as(
        &self,
        adapter: Adapter,
        model: &mut LanguageModel,
        family: &Family,
        seed: u64,
    ) -> Result<Adapter> {
        self.tuning().check_model(model)?;
        adapter.attach(model, family, seed)?;
        self.tuning().set_rates(model);
        Ok(adapter)
    }

    /// As [`AdapterOptions::attach`], with embedding and head trained whole besides, whose new rows would stay untrained otherwise
    /// (LLaMA-Factory's `additional_target`); the adapter has to be merged in the end.
    ///
    /// # Errors
    /// As [`AdapterOptions::attach`], and when this way to tune trains no modules of the base.
    pub fn attach_with_vocabulary(
        &self,
        model: &mut LanguageModel,
        family: &Family,
        seed: u64,
    ) -> Result<Adapter> {
        let adapter = self.with_vocabulary(model, family)?;
        self.attach_as(adapter, model, family, seed)
    }

    /// As [`AdapterOptions::attach`], with the model's classifier trained whole besides, as PEFT has it (`modules_to_save`).
    ///
    /// # Errors
    /// As [`AdapterOptions::attach`], and when this way to tune trains no modules of the base.
    pub fn attach_with_classifier(
        &self,
        model: &mut LanguageModel,
        family: &Family,
        seed: u64,
    ) -> Result<Adapter> {
        let modules = modules_of(model, family, &|part| part.starts_with("classifier."));
        let adapter = self.tuning().with_modules(modules, Whole::Classifier)?;
        self.attach_as(adapter, model, family, seed)
    }

    /// Whether of tokens that are added the rows alone are trained, and kept in the adapter.
    pub fn keeps_added_tokens(&self) -> bool {
        self.tuning().keeps_added_tokens()
    }

    /// As [`AdapterOptions::attach`], with the rows of added tokens trained besides, in embedding and head.
    ///
    /// # Errors
    /// As [`AdapterOptions::attach`], and when an adapter cannot hold all that the new tokens bring.
    pub fn attach_with_tokens(
        &self,
        added: &[u32],
        model: &mut LanguageModel,
        family: &Family,
        seed: u64,
    ) -> Result<Adapter> {
        let spec = model.spec();
        if spec.head_bias {
            return Err(Error::Option {
                key: "added_tokens",
                reason: "the model's head has a bias for every token, which no adapter holds; leave it out, and the whole model is left".into(),
            });
        }
        let entries = family.in_memory(spec);
        let module = |part: &str| {
            let mut entries = entries.iter();
            let entry = entries.find(|entry| entry.parts.iter().any(|own| own == part))?;
            let module = entry.name.strip_suffix(".weight").unwrap_or(&entry.name);
            Some(module.to_owned())
        };
        let modules = ["embedding.weight", "head.weight"].map(module);
        let adapter = self.tuning().with_added_tokens(added, modules)?;
        self.attach_as(adapter, model, family, seed)
    }

    fn with_vocabulary(&self, model: &LanguageModel, family: &Family) -> Result<Adapter> {
        let holds = |part: &str| ["embedding.weight", "head.weight"].contains(&part);
        let modules = modules_of(model, family, &holds);
        let adapter = self.tuning().with_modules(modules, Whole::Vocabulary)?;
        Ok(adapter.to_be_merged())
    }

    /// A sentence for each way to tune, its name before it.
    pub fn help() -> String {
        let one = |(name, help): &(&str, &str)| format!("`{name}`: {}", help.trim());
        KINDS.iter().map(one).collect::<Vec<_>>().join(" ")
    }
}

/// The modules of transformers that hold parameters of ours which `holds` accepts, each once.
fn modules_of(model: &LanguageModel, family: &Family, holds: &dyn Fn(&str) -> bool) -> Vec<String> {
    let entries = family.in_memory(model.spec()).into_iter();
    let held = entries.filter(|entry| entry.parts.iter().any(|part| holds(part)));
    let module = |name: &str| {
        name.rsplit_once('.')
            .map_or(name, |(module, _)| module)
            .to_owned()
    };
    let mut modules: Vec<String> = held.map(|entry| module(&entry.name)).collect();
    modules.dedup();
    modules
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_known_and_unknown_ones_list_them() {
        for (name, _) in KINDS {
            let options = serde_json::json!({ *name: {} });
            assert!(serde_json::from_value::<AdapterOptions>(options).is_ok());
            assert!(AdapterOptions::help().contains(name));
        }
        let wrong = serde_json::json!({ "lroa": {} });
        let error = serde_json::from_value::<AdapterOptions>(wrong).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("expected one of `lora`, `reft`, `state`")
        );
    }
}
