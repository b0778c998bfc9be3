//! ReFT (arXiv 2404.03592): LoReFT, DiReFT and their relatives, which edit the hidden states of a few tokens of the prompt.
//!
//! Recipe: `reft.toml`. The paper takes learning rates of 1e-4 to 4e-3, no weight decay, and for its tasks of common sense all blocks,
//! rank 8, `f7+l7`, tied.

use espalier_kernels::activation::Activation;
use espalier_models::{
    adapter::{
        Adapter, ReftConfig,
        reft::{Method, Positions, Start, check_layers},
    },
    model::LanguageModel,
};
use serde::{Deserialize, Serialize};

use super::{Tuning, Whole};
use crate::{Error, Result};

/// As wide as the widest models, where an edit is no longer of a low rank.
const LARGEST_RANK: usize = 1 << 16;

/// What `W h + b` passes.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum EditActivation {
    /// Nothing.
    #[default]
    Linear,
    /// `x * sigmoid(x)`.
    Silu,
    /// `x * Phi(x)`.
    Gelu,
    /// `max(0, x)`.
    Relu,
    /// `max(0, x)^2`.
    Relu2,
    /// The hyperbolic tangent.
    Tanh,
    /// The logistic function.
    Sigmoid,
}

impl EditActivation {
    fn function(self) -> Option<Activation> {
        match self {
            Self::Linear => None,
            Self::Silu => Some(Activation::Silu),
            Self::Gelu => Some(Activation::Gelu),
            Self::Relu => Some(Activation::Relu),
            Self::Relu2 => Some(Activation::Relu2),
            Self::Tanh => Some(Activation::Tanh),
            Self::Sigmoid => Some(Activation::Sigmoid),
        }
    }
}

/// The options of ReFT.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ReftOptions {
    /// The form of the edit.
    pub method: Method,
    /// Directions of an edit.
    #[schemars(range(min = 1, max = LARGEST_RANK))]
    pub rank: usize,
    /// The tokens of the prompt that are edited: the first p and the last s, `f<p>+l<s>`, or one of the two.
    pub positions: String,
    /// The blocks after which hidden states are edited, from 0; all when absent.
    pub layers: Option<Vec<usize>>,
    /// Whether the first and the last tokens share one edit in each block.
    pub tied: bool,
    /// What `W h + b` passes.
    pub activation: EditActivation,
    /// Share of the edited states that is zeroed in training.
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1.0))]
    pub dropout: f64,
    /// Where training starts: `random` as in the reference, or `identity`, which changes nothing.
    pub start: Start,
    /// Modules that are trained and saved whole, such as a head of classes.
    pub modules_to_save: Vec<String>,
}

impl Default for ReftOptions {
    fn default() -> Self {
        Self {
            method: Method::default(),
            rank: 8,
            positions: "f7+l7".into(),
            layers: None,
            tied: false,
            activation: EditActivation::default(),
            dropout: 0.0,
            start: Start::default(),
            modules_to_save: Vec::new(),
        }
    }
}

impl ReftOptions {
    fn config(&self) -> Result<ReftConfig> {
        let option = |key: &'static str, reason: String| Error::Option { key, reason };
        if !(1..=LARGEST_RANK).contains(&self.rank) {
            let reason = format!("{} is outside 1 to {LARGEST_RANK}", self.rank);
            return Err(option("rank", reason));
        }
        let positions: Positions = self
            .positions
            .parse()
            .map_err(|reason| option("positions", reason))?;
        check_layers(self.layers.as_deref()).map_err(|reason| option("layers", reason))?;
        if !(0.0..1.0).contains(&self.dropout) {
            let reason = format!("{} is outside 0 to below 1", self.dropout);
            return Err(option("dropout", reason));
        }
        let activation = self.activation.function();
        if activation.is_some() && !self.method.has_weight() {
            let reason = format!(
                "{} has no `W h + b`; leave it at `linear`",
                self.method.name()
            );
            return Err(option("activation", reason));
        }
        let config = ReftConfig {
            method: self.method,
            layers: self.layers.clone(),
            tied: self.tied,
            activation,
            dropout: self.dropout,
            start: self.start,
            modules_to_save: self.modules_to_save.clone(),
            ..ReftConfig::new(self.rank, positions)
        };
        config
            .check_start()
            .map_err(|reason| option("start", reason))?;
        Ok(config)
    }
}

impl Tuning for ReftOptions {
    fn adapter(&self) -> Result<Adapter> {
        Ok(Adapter::new(self.config()?))
    }

    fn with_modules(&self, _: Vec<String>, whole: Whole) -> Result<Adapter> {
        let reason = match whole {
            Whole::Vocabulary => "edits of hidden states cannot be merged into a model that grew",
            Whole::Classifier => {
                "a folder of edits of hidden states does not say that its base has a classifier"
            }
        };
        Err(Error::Option {
            key: "adapter",
            reason: format!("{reason}; tune with `lora`, or without an adapter"),
        })
    }

    fn check_model(&self, model: &LanguageModel) -> Result<()> {
        let width = model.spec().width;
        let sites = model.stacks().next().map_or(0, |stack| stack.sites());
        if self.rank > width {
            return Err(Error::Option {
                key: "rank",
                reason: format!(
                    "{} is more than {width}, the numbers of a hidden state; choose less",
                    self.rank
                ),
            });
        }
        let layers = self.layers.iter().flatten();
        match layers.copied().find(|layer| *layer >= sites) {
            None => Ok(()),
            Some(layer) => Err(Error::Option {
                key: "layers",
                reason: format!(
                    "{layer} is no block of this model, which has 0 to {}",
                    sites.saturating_sub(1)
                ),
            }),
        }
    }
}
